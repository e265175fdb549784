//! One part of the survey alone, to compare what is there before and after a change.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use nightlatch_bench::figures::Figures;
use nightlatch_bench::footprint;
use nightlatch_tests::lab::{Lab, Stage, Wish as LabWish};
use nightlatch_tests::plan::LabName;
use nightlatch_tests::process::Process;

use crate::asks::{self, Asks};
use crate::published::{self, Published};
use crate::sizes::Sizes;
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Request → first connect.
    Asks,
    /// 100, 1,000 and 10,000 grants at once, and one more then.
    Grants,
    /// 1,000 calls of one client over one connection, 64 at a time, each waiting for the host.
    Calls,
}

/// The lab is left standing.
pub(crate) fn measure(name: &LabName, binaries: PathBuf, part: Part, sizes: &Sizes) -> Result<String> {
    let wish = LabWish {
        name: name.clone(),
        machines: 2,
        binaries,
        stage: Stage::Enrolled,
    };
    let lab = Lab::up(wish, |_step| {})?;
    lab.client().netns().inside(|| {
        let mut world = World::make(&lab)?;
        world.guard()?;
        world.settle()?;
        match part {
            Part::Asks => asks(&mut world, sizes),
            Part::Grants => grants(&mut world, sizes),
            Part::Calls => calls(&mut world, sizes),
        }
    })
}

fn asks(world: &mut World<'_>, sizes: &Sizes) -> Result<String> {
    let Asks {
        command,
        warm,
        by_hand,
        start,
    } = asks::all_kinds(world, sizes.asks)?;
    let all = [
        ("whole command", &command),
        ("warm client", &warm),
        ("nft spawned", &by_hand),
        ("--version", &start),
    ];
    let mut text: String = all.map(|(name, figures)| line(name, figures)).concat();
    text += &many_warm(world, sizes.asks * 5)?;
    Ok(text)
}

fn grants(world: &mut World<'_>, sizes: &Sizes) -> Result<String> {
    let mut text = String::new();
    for (count, times) in sizes.published.iter().copied().filter(|(count, _)| *count >= 100) {
        for time in 1..=times {
            let Published {
                signing,
                passed,
                agent_busy,
                server_busy,
            } = published::publish(world, count)?;
            text += &format!(
                "{count} grants: {passed:.0} ms, agent {agent_busy:.0}, server {server_busy:.0} ms of processor, {signing:.0} ms before\n"
            );
            if time == times {
                world.settle()?;
                let [agent, server] = [world.agent()?, world.server()?].map(footprint::resident_mib);
                text += &format!("  agent {:.1} MiB, server {:.1} MiB\n", agent?, server?);
                text += &many_warm(world, sizes.asks)?;
            }
            world.clear()?;
        }
    }
    Ok(text)
}

fn calls(world: &mut World<'_>, sizes: &Sizes) -> Result<String> {
    let mut text = String::new();
    for _ in 0..sizes.calls.max(3) {
        let before = busy(world)?;
        let passed = published::asked_for_at_once(world, 1_000)?;
        let after = busy(world)?;
        text += &format!(
            "1,000 calls, 64 at a time: {passed:.0} ms, agent {:.0}, server {:.0} ms of processor\n",
            after[0] - before[0],
            after[1] - before[1]
        );
        world.clear()?;
    }
    Ok(text)
}

/// With the processor time that each takes.
fn many_warm(world: &mut World<'_>, times: usize) -> Result<String> {
    let before = busy(world)?;
    let figures = asks::many_warm(world, times)?;
    let after = busy(world)?;
    let each = |of: usize| (after[of] - before[of]) / times as f64;
    let processor = format!(
        "  of processor: agent {:.2}, server {:.2} ms each\n",
        each(0),
        each(1)
    );
    Ok(line("warm client alone", &figures) + &processor)
}

fn busy(world: &World<'_>) -> Result<[f64; 2]> {
    let time = |process: Process| footprint::processor_time(process).map(|time| time.as_secs_f64() * 1000.0);
    Ok([time(world.agent()?)?, time(world.server()?)?])
}

fn line(name: &str, figures: &Figures) -> String {
    let [least, median, most] = [0.0, 0.5, 0.95].map(|share| figures.quantile(share));
    format!("{name}: min {least:.2}, p50 {median:.2}, p95 {most:.2} ms\n")
}
