//! What connecting costs, through the table and without one.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nightlatch_bench::figures::Figures;
use nightlatch_bench::probe;

use crate::world::{self, Porches, World};

/// One door: microseconds a connect and connects a second, a figure a round; and how fast its connect was beside
/// that of the door without rules in the same round.
#[derive(Default)]
pub(crate) struct Door {
    pub(crate) connect: Figures,
    pub(crate) rate: Figures,
    pub(crate) of_no_rules: Figures,
}

/// All doors, under one number of openings.
pub(crate) struct Doors {
    pub(crate) without_rules: Door,
    /// The same once more: how far equal doors differ.
    pub(crate) without_rules_again: Door,
    pub(crate) unguarded: Door,
    pub(crate) guarded: Door,
}

/// The guarded door must be open for `source`, or unguarded still.
pub(crate) fn connects(world: &World<'_>, source: Ipv4Addr, rounds: usize, connects: usize) -> Result<Doors> {
    let Porches {
        without_rules,
        without_rules_again,
        unguarded,
        guarded,
    } = world.porches();
    let ways = [without_rules, without_rules_again, unguarded, guarded];
    let mut doors: [Door; 4] = Default::default();
    for round in 0..rounds {
        let mut medians = [0.0; 4];
        for turn in 0..4 {
            // Each comes first, second, third and last equally often.
            let which = (round + turn) % 4;
            let (Some(way), Some(door), Some(slot)) =
                (ways.get(which), doors.get_mut(which), medians.get_mut(which))
            else {
                continue;
            };
            let (median, rate) = through(way, source, connects)?;
            door.connect.add(median);
            door.rate.add(rate);
            *slot = median;
        }
        let [base, ..] = medians;
        for (door, median) in doors.iter_mut().zip(medians) {
            door.of_no_rules.add(base / median);
        }
    }
    let [without_rules, without_rules_again, unguarded, guarded] = doors;
    Ok(Doors {
        without_rules,
        without_rules_again,
        unguarded,
        guarded,
    })
}

/// One connect after another: the median in microseconds, and how many a second.
fn through(door: &world::Door, source: Ipv4Addr, connects: usize) -> Result<(f64, f64)> {
    let mut each = Figures::default();
    let begin = Instant::now();
    for _ in 0..connects {
        let started = Instant::now();
        let open = probe::connects(source, door.at, Duration::from_millis(900))?;
        ensure!(open, "{} is shut for {source}", door.at);
        each.add(started.elapsed().as_secs_f64() * 1e6);
    }
    let rate = connects as f64 / begin.elapsed().as_secs_f64();
    door.porch.clear();
    Ok((each.median(), rate))
}
