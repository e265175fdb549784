//! Many grants: from publishing to the last receipt.

use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nightlatch_bench::{PATIENCE, footprint};
use nightlatch_tests::wait;
use nix::sys::signal::Signal;

use crate::world::World;

/// Milliseconds, and milliseconds of processor time from publishing on.
pub(crate) struct Published {
    /// From the agent's start until all were signed and recorded.
    pub(crate) signing: f64,
    pub(crate) passed: f64,
    pub(crate) agent_busy: f64,
    /// With what it takes to answer [`at_event`].
    pub(crate) server_busy: f64,
}

/// `count` requests wait for a host that is away. It comes back, the server signs and records them in pieces of at
/// most 500, each a transaction, and answers the host after the last, which publishes them: from that commit the
/// time runs until the server has stored the last receipt.
pub(crate) fn publish(world: &mut World<'_>, count: usize) -> Result<Published> {
    let machine = world.guarded_machine();
    let name = machine.name();
    let open_before = world.open_grants()?;
    machine.end_agent(Signal::SIGTERM)?;
    wait::until_true("the server still has the machine connected", PATIENCE, || {
        Ok(!world.caller.machine(&name)?.connected)
    })?;
    let wishes = world.wishes(count, Duration::ZERO)?;
    world.caller.ask_many(count, wishes)?;
    world.settle()?;

    let count_events = u64::try_from(count)?;
    // One says that the machine has connected; then each grant has one when signed and one when opened.
    let signed = world.caller.last_event()? + 1 + count_events;
    let begin = Instant::now();
    let (published, busy, last_receipt) = thread::scope(|scope| -> Result<_> {
        let starting = scope.spawn(move || machine.start_agent());
        let published = at_event(world, signed)?;
        let busy = processor_times(world)?;
        let last_receipt = at_event(world, signed + count_events)?;
        starting.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((published, busy, last_receipt))
    })?;
    let [agent_busy, server_busy] = processor_times(world)?;
    let open = world.open_grants()?;
    ensure!(
        open == open_before + count,
        "{open} grants are open: {open_before} were, and {count} were added"
    );
    Ok(Published {
        signing: milliseconds(published.duration_since(begin)),
        passed: milliseconds(last_receipt.duration_since(published)),
        agent_busy: agent_busy - busy[0],
        server_busy: server_busy - busy[1],
    })
}

/// When that many events were there, to a hundredth of the time it took: looking takes the server's time, too.
fn at_event(world: &mut World<'_>, sequence: u64) -> Result<Instant> {
    const LONGEST: Duration = Duration::from_secs(90);
    let begin = Instant::now();
    while world.caller.last_event()? < sequence {
        ensure!(
            begin.elapsed() < LONGEST,
            "not all were signed and opened within {LONGEST:?}"
        );
        let pause = begin.elapsed() / 100;
        thread::sleep(pause.clamp(Duration::from_micros(300), Duration::from_millis(3)));
    }
    Ok(Instant::now())
}

fn processor_times(world: &World<'_>) -> Result<[f64; 2]> {
    let time = |process| footprint::processor_time(process).map(milliseconds);
    Ok([time(world.agent()?)?, time(world.server()?)?])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Many calls by one caller, each of which waits for the host: milliseconds until the last has its answer.
pub(crate) fn asked_for_at_once(world: &mut World<'_>, count: usize) -> Result<f64> {
    world.settle()?;
    let wishes = world.wishes(count, PATIENCE)?;
    let started = Instant::now();
    world.caller.ask_many(count, wishes)?;
    Ok(milliseconds(started.elapsed()))
}
