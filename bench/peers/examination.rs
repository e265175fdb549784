//! The questions.

use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nightlatch_bench::doors::Passage;
use nightlatch_bench::figures::Figures;
use nightlatch_bench::footprint::{self, Footprint};
use nightlatch_bench::probe::{self, Watch};
use nightlatch_bench::{PATIENCE, moment};
use nightlatch_core::time::Timestamp;
use nightlatch_tests::wait;

use crate::many::{self, Many};
use crate::peer::{Peer, netns};
use crate::place::Place;

/// How often.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) asks: usize,
    pub(crate) ends: usize,
    pub(crate) ends_dead: usize,
    /// Requests while many are open.
    pub(crate) asks_among_many: usize,
    /// Rounds over the doors, and connects through each in a round.
    pub(crate) rounds: usize,
    pub(crate) connects: usize,
    pub(crate) idle: Duration,
}

impl Amount {
    pub(crate) const FULL: Self = Self {
        asks: 15,
        ends: 5,
        ends_dead: 3,
        asks_among_many: 5,
        rounds: 99,
        connects: 50,
        idle: Duration::from_secs(5),
    };
    pub(crate) const QUICK: Self = Self {
        asks: 3,
        ends: 3,
        ends_dead: 1,
        asks_among_many: 1,
        rounds: 12,
        connects: 50,
        idle: Duration::from_secs(2),
    };
}

/// What was found of one. What could not be found says why.
pub(crate) struct Examined {
    /// Milliseconds from the start of the client to the first connection.
    pub(crate) asks: Result<Figures>,
    pub(crate) hundred: Result<Many>,
    pub(crate) thousand: Result<Many>,
    /// `None`: not asked, since it would take too long.
    pub(crate) ten_thousand: Result<Option<Many>>,
    /// As `asks`, with as many open as came of 1,000.
    pub(crate) asks_among_many: Result<Figures>,
    /// `None` of what is only another way to ask.
    pub(crate) daemons: Option<Daemons>,
    pub(crate) under_thousand: Result<Under>,
    /// MiB of its daemons with as many open as came of 10,000.
    pub(crate) ten_thousand_mib: Option<f64>,
}

/// What does not depend on how it is asked.
pub(crate) struct Daemons {
    pub(crate) ends: Result<Ends>,
    /// Killed one second after the first request.
    pub(crate) ends_dead: Result<Ends>,
    pub(crate) flushed: Result<Flushed>,
    pub(crate) empty: Result<Under>,
}

#[derive(Default)]
pub(crate) struct Ends {
    /// Milliseconds from the end, counted from the request, to the first refused attempt.
    pub(crate) errors: Figures,
    /// Grants that had not ended [`AFTER`] their end.
    pub(crate) endless: usize,
}

/// The ruleset flushed: who gets in at once, and still 10 s later?
pub(crate) struct Flushed {
    pub(crate) stranger_at_once: bool,
    pub(crate) stranger_later: bool,
}

/// What was measured while so many were open.
pub(crate) struct Under {
    pub(crate) openings: usize,
    /// `None` where no daemon runs.
    pub(crate) idle: Option<Footprint>,
    /// Without rules, through the unguarded port, through the guarded one.
    pub(crate) passages: [Passage; 3],
}

/// How long a grant is watched before its end.
const BEFORE: Duration = Duration::from_secs(3);
/// How long a grant is watched after its end.
pub(crate) const AFTER: Duration = Duration::from_secs(6);
const SILENCE: Duration = Duration::from_millis(100);

/// Addresses of which none is used twice while one is examined.
struct Sources(u16);

impl Sources {
    fn next(&mut self) -> Result<Ipv4Addr> {
        self.0 = self.0.checked_add(1).context("no addresses left")?;
        let [high, low] = self.0.to_be_bytes();
        Ok(Ipv4Addr::new(198, 19, high, low))
    }

    fn some(&mut self, count: usize) -> Result<Vec<Ipv4Addr>> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// One who is being examined.
struct Examination<'p, P> {
    peer: &'p mut dyn Peer,
    amount: Amount,
    sources: Sources,
    progress: P,
}

/// Each question is put to a peer that was just set up, so that none answers for what another one did.
pub(crate) fn examine(peer: &mut dyn Peer, amount: Amount, progress: impl Fn(&str)) -> Examined {
    let is_another_way = peer.is_another_way();
    let mut examination = Examination {
        peer,
        amount,
        sources: Sources(0),
        progress,
    };
    let asks = examination.asks();
    let daemons = (!is_another_way).then(|| examination.daemons());
    let hundred = examination.many(100).map(|(many, _)| many);
    let (thousand, under_thousand, asks_among_many) = examination.thousand();
    let (ten_thousand, ten_thousand_mib) = examination.ten_thousand(&thousand);
    Examined {
        asks,
        hundred,
        thousand,
        ten_thousand,
        asks_among_many,
        daemons,
        under_thousand,
        ten_thousand_mib,
    }
}

impl<P: Fn(&str)> Examination<'_, P> {
    fn start(&mut self, question: &str, grant: Duration) -> Result<Place> {
        (self.progress)(question);
        let place = self.peer.start(grant).context("setting it up")?;
        let stranger = self.sources.next()?;
        ensure!(!knock(&place, stranger)?, "the port is open before anybody asked");
        Ok(place)
    }

    fn asks(&mut self) -> Result<Figures> {
        let grant = self.peer.short();
        let place = self.start("request → first connect", grant)?;
        self.asks_at(&place, self.amount.asks, grant)
    }

    fn asks_at(&mut self, place: &Place, count: usize, grant: Duration) -> Result<Figures> {
        let count = count.min(self.peer.most_asks());
        let mut asks = Figures::default();
        for number in 0..count {
            // The last one was let in at the beginning of a round.
            let share = (number as f64 + 0.5) / count as f64;
            thread::sleep(self.peer.round().mul_f64(share));
            asks.add(ask(self.peer, place, self.sources.next()?, grant)?);
        }
        Ok(asks)
    }

    fn daemons(&mut self) -> Daemons {
        let Amount { ends, ends_dead, .. } = self.amount;
        Daemons {
            ends: self.ends(ends, false),
            ends_dead: self.ends(ends_dead, true),
            flushed: self.flushed(),
            empty: self.empty(),
        }
    }

    fn ends(&mut self, count: usize, dead: bool) -> Result<Ends> {
        let grant = self.peer.short();
        let question = if dead { "ends, killed before" } else { "ends" };
        let mut place = self.start(question, grant)?;
        let begin = Instant::now();
        let mut asked = Vec::new();
        for source in self.sources.some(count)? {
            self.peer.speak_from(&place, source)?;
            let request = self.peer.request(&place, source, grant)?;
            let asked_at = moment::now()?;
            netns(&place, self.peer.at()).inside(|| request.make())?;
            asked.push((source, asked_at));
        }
        let sources: Vec<Ipv4Addr> = asked.iter().map(|(source, _)| *source).collect();
        place.user.inside(|| {
            wait::until_true("the port is still shut for somebody", PATIENCE, || {
                let open = probe::open_for(&sources, place.door, Duration::from_millis(20))?;
                Ok(open.into_iter().all(|open| open))
            })
        })?;
        if dead {
            wait::let_pass_until(begin + Duration::from_secs(1));
            place.kill_daemons()?;
        }
        ends_of(&place, &asked, grant)
    }

    fn flushed(&mut self) -> Result<Flushed> {
        let grant = self.peer.short();
        let place = self.start("the ruleset flushed", grant)?;
        ask(self.peer, &place, self.sources.next()?, grant)?;
        place.flush_ruleset()?;
        let stranger_at_once = knock(&place, self.sources.next()?)?;
        thread::sleep(Duration::from_secs(10));
        let stranger_later = knock(&place, self.sources.next()?)?;
        Ok(Flushed {
            stranger_at_once,
            stranger_later,
        })
    }

    fn empty(&mut self) -> Result<Under> {
        let mut place = self.start("nothing open: idle, connects", many::LONG)?;
        self.under(&mut place, 0)
    }

    fn under(&mut self, place: &mut Place, open: usize) -> Result<Under> {
        let window = self.amount.idle.max(self.peer.round());
        let daemons = place.daemons.as_slice();
        let idle = (!daemons.is_empty()).then(|| footprint::idle_together(daemons, window));
        let regular = self.sources.next()?;
        ask(self.peer, place, regular, many::LONG)?;
        Ok(Under {
            openings: open + 1,
            idle: idle.transpose()?,
            passages: place.passages(regular, self.amount.rounds, self.amount.connects)?,
        })
    }

    /// With the place they are open in.
    fn many(&mut self, count: usize) -> Result<(Many, Place)> {
        let place = self.start(&format!("{count} grants"), many::LONG)?;
        Ok((many::ask(self.peer, &place, count)?, place))
    }

    fn thousand(&mut self) -> (Result<Many>, Result<Under>, Result<Figures>) {
        match self.many(1_000) {
            Err(error) => {
                let missing = || anyhow!("there were no 1,000 grants");
                (Err(error), Err(missing()), Err(missing()))
            }
            Ok((mut many, mut place)) => {
                if let Err(error) = many.settle(&place) {
                    many.complaint.get_or_insert_with(|| format!("{error:#}"));
                }
                (self.progress)(&format!("with {} open", many.settled));
                let under = self.under(&mut place, many.settled);
                let asks = self.asks_at(&place, self.amount.asks_among_many, many::LONG);
                (Ok(many), under, asks)
            }
        }
    }

    fn ten_thousand(&mut self, thousand: &Result<Many>) -> (Result<Option<Many>>, Option<f64>) {
        let Ok(thousand) = thousand else {
            return (Err(anyhow!("there were no 1,000 grants")), None);
        };
        if !thousand.ten_times_fits(self.peer.round()) {
            return (Ok(None), None);
        }
        match self.many(10_000) {
            Ok((many, place)) => {
                let mib = footprint::together_mib(&place.daemons).ok();
                (Ok(Some(many)), mib.filter(|mib| *mib > 0.0))
            }
            Err(error) => (Err(error), None),
        }
    }
}

/// Milliseconds until the first connection.
fn ask(peer: &dyn Peer, place: &Place, source: Ipv4Addr, grant: Duration) -> Result<f64> {
    peer.speak_from(place, source)?;
    let request = peer.request(place, source, grant)?;
    let started = Instant::now();
    let opened = thread::scope(|scope| -> Result<Instant> {
        let running = scope.spawn(|| netns(place, peer.at()).inside(|| request.make()));
        let opened = place
            .user
            .inside(|| probe::first_open(source, place.door, PATIENCE));
        running.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        opened
    })?;
    Ok(opened.duration_since(started).as_secs_f64() * 1000.0)
}

/// Watches all at the same time, each to its own end.
fn ends_of(place: &Place, asked: &[(Ipv4Addr, Timestamp)], grant: Duration) -> Result<Ends> {
    place.user.inside(|| {
        thread::scope(|scope| {
            let watches = asked.iter().copied().map(|(source, asked_at)| {
                // A thread begins in the namespace of the one that makes it.
                scope.spawn(move || end_of(place, source, asked_at, grant))
            });
            let watches: Vec<_> = watches.collect();
            let mut ends = Ends::default();
            for watch in watches {
                match watch.join().unwrap_or_else(|panic| resume_unwind(panic))? {
                    Some(error) => ends.errors.add(error),
                    None => ends.endless += 1,
                }
            }
            Ok(ends)
        })
    })
}

/// `None`: it did not end.
fn end_of(place: &Place, source: Ipv4Addr, asked_at: Timestamp, grant: Duration) -> Result<Option<f64>> {
    let moment = |length| asked_at.checked_add(length).context("a moment out of range");
    let (end, last) = (moment(grant)?, moment(grant + AFTER)?);
    let watch = Watch {
        begin: moment(grant.saturating_sub(BEFORE))?,
        end: last,
        pace: Duration::from_millis(2),
        quiet: Duration::from_millis(1500),
    };
    let watched = probe::watch(source, place.door, watch)?;
    ensure!(
        watched.last_open_at.is_some(),
        "it had ended {BEFORE:?} before its end"
    );
    // Attempts right before the last look may only have been slow.
    let shut = |shut_at: &Timestamp| last.since(*shut_at) > Duration::from_millis(100);
    let shut_at = watched.first_shut_at.filter(shut);
    Ok(shut_at.map(|shut_at| moment::milliseconds_between(end, shut_at)))
}

fn knock(place: &Place, source: Ipv4Addr) -> Result<bool> {
    place.user.inside(|| probe::connects(source, place.door, SILENCE))
}
