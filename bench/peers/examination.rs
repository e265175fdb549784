//! The questions.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_bench::figures::Figures;
use nightlatch_bench::{footprint, moment, probe};
use nightlatch_core::time::Timestamp;

use crate::peer::{Peer, netns};
use crate::place::Place;

/// How often.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) asks: usize,
    pub(crate) ends: usize,
}

/// What was found of one.
pub(crate) struct Examined {
    /// Milliseconds from the start of the client to the first connection.
    pub(crate) asks: Figures,
    /// Milliseconds from the end, counted from the request, to the first refused attempt.
    pub(crate) ends: Figures,
    /// Grants that had not ended when the watch did.
    pub(crate) endless: usize,
    /// Killed one second into a grant: open so long after its end?
    pub(crate) open_after_kill: bool,
    /// The ruleset flushed: who gets in at once, and still after a while?
    pub(crate) stranger_after_flush: bool,
    pub(crate) stranger_later: bool,
    pub(crate) many: Many,
    /// MiB of its daemons on the machine: without grants, and with many.
    pub(crate) resident: (f64, f64),
}

/// So many of a thousand were open in the end, after so many seconds.
#[derive(Clone, Copy)]
pub(crate) struct Many {
    pub(crate) open: usize,
    pub(crate) seconds: f64,
}

const LONG: Duration = Duration::from_secs(3600);
/// How long a grant is watched before its end.
const BEFORE: Duration = Duration::from_secs(3);
/// How long a grant is watched after its end.
pub(crate) const AFTER: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(30);
const A_THOUSAND: usize = 1000;
pub(crate) const MANY_WITHIN: Duration = Duration::from_secs(120);
const SILENCE: Duration = Duration::from_millis(100);

pub(crate) fn examine(peer: &mut dyn Peer, amount: Amount, progress: impl Fn(&str)) -> Result<Examined> {
    let mut sources = (1..=u16::MAX).map(|number| {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(198, 19, high, low)
    });
    let mut source = || sources.next().context("no addresses left");
    progress("set up");
    let grant = peer.short();
    let mut place = peer.start(grant)?;
    ensure!(
        !knock(&place, source()?)?,
        "the port is open before anybody asked"
    );
    let empty = resident(&place)?;
    progress("request → first connect");
    let mut asks = Figures::default();
    for _ in 0..amount.asks {
        asks.add(ask(peer, &place, source()?, grant)?.0);
    }
    let (mut ends, mut endless) = (Figures::default(), 0);
    for number in 1..=amount.ends {
        progress(&format!("end {number} of {}", amount.ends));
        let source = source()?;
        let (_, asked_at) = ask(peer, &place, source, grant)?;
        match end(&place, source, asked_at, grant)? {
            Some(error) => ends.add(error),
            None => endless += 1,
        }
    }
    progress("killed one second into a grant");
    let open_after_kill = kill(peer, &mut place, source()?)?;
    progress("the ruleset flushed");
    drop(place);
    let mut place = peer.start(grant)?;
    ask(peer, &place, source()?, grant)?;
    place.flush_ruleset()?;
    let stranger_after_flush = knock(&place, source()?)?;
    thread::sleep(Duration::from_secs(10));
    let stranger_later = knock(&place, source()?)?;
    progress("1,000 grants");
    place.kill_daemons()?;
    drop(place);
    let place = peer.start(LONG)?;
    let many = many(peer, &place)?;
    Ok(Examined {
        asks,
        ends,
        endless,
        open_after_kill,
        stranger_after_flush,
        stranger_later,
        many,
        resident: (empty, resident(&place)?),
    })
}

/// Milliseconds until the first connection, and when it was asked for.
fn ask(peer: &dyn Peer, place: &Place, source: Ipv4Addr, grant: Duration) -> Result<(f64, Timestamp)> {
    place.speak_from(source)?;
    let (at, mut client) = peer.client(place, source, grant)?;
    let asked_at = moment::now()?;
    let started = Instant::now();
    let opened = thread::scope(|scope| -> Result<Instant> {
        let running =
            scope.spawn(|| netns(place, at).inside(|| client.status().context("running the client")));
        let opened = place
            .user
            .inside(|| probe::first_open(source, place.door, PATIENCE));
        let status = running
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ensure!(status.success(), "the client ended with {status}");
        opened
    })?;
    Ok((opened.duration_since(started).as_secs_f64() * 1000.0, asked_at))
}

/// `None`: it did not end.
fn end(place: &Place, source: Ipv4Addr, asked_at: Timestamp, grant: Duration) -> Result<Option<f64>> {
    let moment = |length| asked_at.checked_add(length).context("a moment out of range");
    let end = moment(grant)?;
    let (begin, last) = (moment(grant.saturating_sub(BEFORE))?, moment(grant + AFTER)?);
    let pace = Duration::from_millis(2);
    let watched = place
        .user
        .inside(|| probe::watch(source, place.door, begin, last, pace))?;
    ensure!(watched.last_open_at.is_some(), "it had ended long before its end");
    Ok(watched
        .first_shut_at
        .map(|shut_at| moment::milliseconds_between(end, shut_at)))
}

fn kill(peer: &dyn Peer, place: &mut Place, source: Ipv4Addr) -> Result<bool> {
    let grant = peer.short();
    let (_, asked_at) = ask(peer, place, source, grant)?;
    thread::sleep(Duration::from_secs(1));
    place.kill_daemons()?;
    let late = asked_at
        .checked_add(grant + AFTER)
        .context("a moment out of range")?;
    thread::sleep(late.since(moment::now()?));
    knock(place, source)
}

fn many(peer: &dyn Peer, place: &Place) -> Result<Many> {
    const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
    let sources: Vec<Ipv4Addr> = (FIRST..).take(A_THOUSAND).map(Ipv4Addr::from).collect();
    let started = Instant::now();
    let deadline = started + MANY_WITHIN;
    thread::scope(|scope| -> Result<Many> {
        let asking = scope.spawn(|| peer.ask_many(place, &sources, LONG, deadline));
        let mut shut = sources.clone();
        let mut seconds = 0.0;
        while !shut.is_empty() && Instant::now() < deadline {
            let before = shut.len();
            // Those asked for first open first: looking at a few is enough to see where it stands.
            let mut looked = 0;
            shut.retain(|source| {
                looked += 1;
                looked > 5 || !matches!(knock_briefly(place, *source), Ok(true))
            });
            if shut.len() < before {
                seconds = started.elapsed().as_secs_f64();
            } else {
                thread::sleep(Duration::from_millis(5));
            }
        }
        asking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        // Some may have opened out of turn.
        shut.retain(|source| !matches!(knock_briefly(place, *source), Ok(true)));
        Ok(Many {
            open: A_THOUSAND - shut.len(),
            seconds,
        })
    })
}

fn knock(place: &Place, source: Ipv4Addr) -> Result<bool> {
    place.user.inside(|| probe::connects(source, place.door, SILENCE))
}

fn knock_briefly(place: &Place, source: Ipv4Addr) -> Result<bool> {
    let briefly = Duration::from_millis(5);
    place.user.inside(|| probe::connects(source, place.door, briefly))
}

fn resident(place: &Place) -> Result<f64> {
    place
        .daemons
        .iter()
        .map(|daemon| footprint::resident_mib(*daemon))
        .sum()
}
