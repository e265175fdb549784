//! How far from its stated end a grant really ends.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use nightlatch_bench::PATIENCE;
use nightlatch_bench::caller::Wish;
use nightlatch_bench::figures::Figures;
use nightlatch_bench::moment;
use nightlatch_bench::probe::{self, Watch};
use nightlatch_core::time::Timestamp;
use nix::sys::signal::Signal;

use crate::world::World;

const LENGTH: Duration = Duration::from_secs(4);
/// Between two ends: each is watched from a while before to a while after.
const APART: Duration = Duration::from_millis(300);
const BEFORE: Duration = Duration::from_millis(120);
const AFTER: Duration = Duration::from_millis(80);
const PACE: Duration = Duration::from_micros(500);
/// Ends that fit between the first request and the first end.
const AT_ONCE: usize = 10;

/// Milliseconds from the end that the server stated to the first attempt that got no answer.
pub(crate) fn errors(world: &mut World<'_>, count: usize, agent_dead: bool) -> Result<Figures> {
    let mut errors = Figures::default();
    while errors.count() < count {
        let batch = AT_ONCE.min(count - errors.count());
        let mut ends = Vec::new();
        for _ in 0..batch {
            let began = moment::now()?;
            ends.push(open(world)?);
            let next = began.checked_add(APART).context("a moment out of range")?;
            std::thread::sleep(next.since(moment::now()?));
        }
        if agent_dead {
            world.agent()?.end(Signal::SIGKILL)?;
        }
        for (source, end) in ends {
            errors.add(error(world, source, end)?);
        }
        if agent_dead {
            world.guarded_machine().start_agent()?;
            world.guarded_machine().wait_connected()?;
        }
    }
    Ok(errors)
}

fn open(world: &mut World<'_>) -> Result<(Ipv4Addr, Timestamp)> {
    let source = world.fresh_source();
    let end = world.caller.open(&Wish {
        machine: world.guarded_machine().name(),
        port: world.guarded().port(),
        source,
        length: LENGTH,
        wait: PATIENCE,
    })?;
    Ok((source, end))
}

fn error(world: &World<'_>, source: Ipv4Addr, end: Timestamp) -> Result<f64> {
    let watch = Watch {
        begin: end.checked_sub(BEFORE).context("a moment out of range")?,
        end: end.checked_add(AFTER).context("a moment out of range")?,
        pace: PACE,
        quiet: BEFORE + AFTER,
    };
    let watched = probe::watch(source, world.guarded(), watch)?;
    watched
        .last_open_at
        .with_context(|| format!("shut more than {BEFORE:?} before its end"))?;
    let shut_at = watched
        .first_shut_at
        .with_context(|| format!("open more than {AFTER:?} after its end"))?;
    Ok(moment::milliseconds_between(end, shut_at))
}
