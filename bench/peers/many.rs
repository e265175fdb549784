//! Many grants: how long until the last of those who ask at once is let in.

use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nightlatch_bench::probe;

use crate::peer::Peer;
use crate::place::Place;

pub(crate) const LONG: Duration = Duration::from_secs(3600);
/// Whoever isn't done then is not waited for.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);
/// An open door answers within a fraction of this.
const SILENCE: Duration = Duration::from_millis(30);

/// What came of so many requests.
pub(crate) struct Many {
    pub(crate) asked: usize,
    /// When all were, or [`WITHIN`] had passed.
    pub(crate) open: usize,
    pub(crate) seconds: f64,
    /// The part of it in which only the client's address was changed.
    pub(crate) aside: f64,
    /// How many were open when no more came.
    pub(crate) settled: usize,
    /// Why some were perhaps not asked for.
    pub(crate) complaint: Option<String>,
}

pub(crate) fn ask(peer: &dyn Peer, place: &Place, count: usize) -> Result<Many> {
    let sources = sources(count);
    let started = Instant::now();
    let deadline = started + WITHIN;
    let (asked, all_open_after) = thread::scope(|scope| {
        let asking = scope.spawn(|| peer.ask_many(place, &sources, LONG, deadline));
        let looked = place.user.inside(|| all_open(place, &sources, started, deadline));
        (asking.join().unwrap_or_else(|panic| resume_unwind(panic)), looked)
    });
    let (open, seconds) = match all_open_after? {
        Some(seconds) => (count, seconds),
        None => (count_open(place, &sources)?, WITHIN.as_secs_f64()),
    };
    let aside = asked.as_ref().map_or(0.0, Duration::as_secs_f64);
    Ok(Many {
        asked: count,
        open,
        seconds,
        aside,
        settled: open,
        complaint: asked.err().map(|error| format!("{error:#}")),
    })
}

impl Many {
    pub(crate) const fn is_complete(&self) -> bool {
        self.open == self.asked
    }

    /// Whether ten times as many would be let in within [`WITHIN`], if each takes as long, waiting for a round aside.
    pub(crate) fn ten_times_fits(&self, round: Duration) -> bool {
        let round = round.as_secs_f64();
        let work = (self.seconds - round).max(0.0);
        self.is_complete() && round + 10.0 * work < WITHIN.as_secs_f64()
    }

    /// Lets daemons that are behind go on until no more open.
    pub(crate) fn settle(&mut self, place: &Place) -> Result<()> {
        const QUIET: Duration = Duration::from_secs(5);
        let (sources, begin) = (sources(self.asked), Instant::now());
        while self.settled < self.asked && begin.elapsed() < WITHIN {
            thread::sleep(QUIET);
            let now = count_open(place, &sources)?;
            if now == self.settled {
                break;
            }
            self.settled = now;
        }
        Ok(())
    }
}

/// Addresses that nobody asks for otherwise.
fn sources(count: usize) -> Vec<Ipv4Addr> {
    const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
    (FIRST..).take(count).map(Ipv4Addr::from).collect()
}

fn count_open(place: &Place, sources: &[Ipv4Addr]) -> Result<usize> {
    let open = place
        .user
        .inside(|| probe::open_for(sources, place.door, SILENCE))?;
    Ok(open.into_iter().filter(|open| *open).count())
}

/// Seconds until all were let in; `None` if they weren't. Knocks for the last one, who is let in last as a rule, and
/// looks at the others only then.
fn all_open(place: &Place, sources: &[Ipv4Addr], started: Instant, deadline: Instant) -> Result<Option<f64>> {
    let mut shut = sources.to_vec();
    let mut seconds = 0.0;
    while let Some(last) = shut.last().copied() {
        if probe::connects(last, place.door, Duration::from_millis(5))? {
            seconds = started.elapsed().as_secs_f64();
            let open = probe::open_for(&shut, place.door, SILENCE)?;
            let mut open = open.into_iter();
            shut.retain(|_| !open.next().unwrap_or_default());
        } else if Instant::now() >= deadline {
            return Ok(None);
        } else {
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(Some(seconds))
}
