//! Many grants: from publishing to the last receipt.

use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nightlatch_bench::footprint;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;

use crate::PATIENCE;
use crate::caller::Wish;
use crate::world::World;

/// Milliseconds, and milliseconds of processor time from publishing on.
pub(crate) struct Published {
    /// From the agent's start until all were signed and recorded.
    pub(crate) signing: f64,
    pub(crate) passed: f64,
    pub(crate) agent_busy: f64,
    pub(crate) server_busy: f64,
}

/// `count` requests wait for a host that is away. It comes back, the server signs and records all of them in one
/// transaction, and publishes them: from that moment the time runs until it has stored the last receipt.
pub(crate) fn publish(world: &mut World<'_>, count: usize) -> Result<Published> {
    let machine = world.guarded_machine();
    let name = machine.name();
    let open_before = world.caller.open_grants(&name)?;
    machine.end_agent(Signal::SIGTERM)?;
    wait::until_true("the server still has the machine connected", PATIENCE, || {
        Ok(!world.caller.machine(&name)?.connected)
    })?;
    world.caller.ask_many(count, numbered(world, Duration::ZERO))?;
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
    let open = world.caller.open_grants(&name)?;
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

/// Many callers, each of whom waits for the host: milliseconds until the last has its answer.
pub(crate) fn asked_for_at_once(world: &mut World<'_>, count: usize) -> Result<f64> {
    world.settle()?;
    let wishes = numbered(world, PATIENCE);
    let started = Instant::now();
    world.caller.ask_many(count, wishes)?;
    Ok(milliseconds(started.elapsed()))
}

/// Grant number n is for the n-th address of a network of their own.
fn numbered(world: &World<'_>, wait: Duration) -> impl Fn(usize) -> Wish + use<> {
    const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
    let (machine, port) = (world.guarded_machine().name(), world.guarded().port());
    move |number| Wish {
        machine: machine.clone(),
        port,
        source: Ipv4Addr::from(FIRST + u32::try_from(number).unwrap_or_default()),
        length: Duration::from_secs(2 * 3600),
        wait,
    }
}
