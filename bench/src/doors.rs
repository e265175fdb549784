//! What connecting costs, through rules and without any.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nightlatch_tests::netns::Netns;

use crate::figures::Figures;
use crate::probe::{self, Porch};

/// A door whose connects are timed.
pub struct Door {
    pub at: SocketAddrV4,
    porch: Porch,
}

impl Door {
    pub fn open(netns: &Netns, at: SocketAddrV4) -> Result<Self> {
        let porch = Porch::open(netns, at)?;
        Ok(Self { at, porch })
    }

    /// One connect after another: the median in microseconds, and how many a second.
    fn passed(&self, source: Ipv4Addr, connects: usize) -> Result<(f64, f64)> {
        let mut each = Figures::default();
        let begin = Instant::now();
        for _ in 0..connects {
            let started = Instant::now();
            let open = probe::connects(source, self.at, Duration::from_millis(900))?;
            ensure!(open, "{} is shut for {source}", self.at);
            each.add(started.elapsed().as_secs_f64() * 1e6);
        }
        let rate = connects as f64 / begin.elapsed().as_secs_f64();
        self.porch.clear();
        Ok((each.median(), rate))
    }
}

/// One door: microseconds a connect and connects a second, a figure a round; and how fast its connect was beside
/// that of the first door in the same round.
#[derive(Default)]
pub struct Passage {
    pub connect: Figures,
    pub rate: Figures,
    pub of_first: Figures,
}

/// Passes through all doors by turns, from the namespace of the thread that calls. All must be open for `source`.
pub fn compare<const N: usize>(
    doors: [&Door; N],
    source: Ipv4Addr,
    rounds: usize,
    connects: usize,
) -> Result<[Passage; N]> {
    let mut passages = [(); N].map(|()| Passage::default());
    for round in 0..rounds {
        let mut medians = [0.0; N];
        for turn in 0..N {
            // Each comes first, second and so on equally often.
            let which = (round + turn) % N;
            let (Some(door), Some(passage), Some(slot)) =
                (doors.get(which), passages.get_mut(which), medians.get_mut(which))
            else {
                continue;
            };
            let (median, rate) = door.passed(source, connects)?;
            passage.connect.add(median);
            passage.rate.add(rate);
            *slot = median;
        }
        let base = medians.first().copied().unwrap_or(f64::NAN);
        for (passage, median) in passages.iter_mut().zip(medians) {
            passage.of_first.add(base / median);
        }
    }
    Ok(passages)
}
