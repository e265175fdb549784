//! Somebody outside who tries a door all the time, and remembers each moment at which it was not shut.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::{Answer, knock};
use crate::netns::Netns;

/// A host that lets a packet through answers well within it.
const SILENCE: Duration = Duration::from_millis(8);
const PAUSE: Duration = Duration::from_millis(1);
/// For a single attempt, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_millis(600);

/// One attempt that got an answer. A refusal counts as well: the packet was let through, only nobody listened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub after: Duration,
    pub was_accepted: bool,
}

/// What a probe has seen.
#[derive(Debug)]
pub struct Sight {
    pub begin: Instant,
    /// When the last attempt began, after the beginning.
    pub last_try: Option<Duration>,
    pub tries: u64,
    pub passed: Vec<Passed>,
}

impl Sight {
    /// How long it was open for at least, from the first answer to the last.
    pub fn span(&self) -> Duration {
        match (self.passed.first(), self.passed.last()) {
            (Some(first), Some(last)) => last.after.saturating_sub(first.after),
            _ => Duration::ZERO,
        }
    }

    /// Nobody was let in, and from that moment on it was the firewall that kept them out.
    pub fn expect_shut_from(&self, moment: Instant, during: &str) -> Result<()> {
        let moment = moment.saturating_duration_since(self.begin);
        ensure!(
            self.last_try.is_some_and(|last| last >= moment),
            "the probe never tried after {moment:?} of {during}, from which on it counts"
        );
        ensure!(
            self.passed
                .iter()
                .all(|passed| !passed.was_accepted && passed.after < moment),
            "{} attempts passed during {during}, some accepted or after {moment:?}: {:?}",
            self.passed.len(),
            self.passed
        );
        Ok(())
    }

    pub fn expect_shut(&self, during: &str) -> Result<()> {
        ensure!(self.tries > 0, "the probe never tried during {during}");
        ensure!(
            self.passed.is_empty(),
            "{} of {} attempts passed during {during}, the first {:?}",
            self.passed.len(),
            self.tries,
            self.passed.first()
        );
        Ok(())
    }
}

/// Tries until it is asked what it has seen.
pub struct Probe {
    begin: Instant,
    over: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    work: JoinHandle<Result<(Vec<Passed>, Option<Duration>)>>,
}

impl Probe {
    pub fn start(netns: &Netns, from: IpAddr, to: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let tries = Arc::new(AtomicU64::new(0));
        let (netns, told, counted) = (netns.clone(), Arc::clone(&over), Arc::clone(&tries));
        let begin = Instant::now();
        let work = thread::spawn(move || {
            netns.inside(|| {
                let (mut passed, mut last_try) = (Vec::new(), None);
                while !told.load(Ordering::Relaxed) {
                    last_try = Some(begin.elapsed());
                    let answer = knock(Some(from), to, SILENCE)?;
                    let after = begin.elapsed();
                    match answer {
                        Answer::Connected(_) => passed.push(Passed {
                            after,
                            was_accepted: true,
                        }),
                        Answer::Refused => passed.push(Passed {
                            after,
                            was_accepted: false,
                        }),
                        Answer::Silent => {}
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PAUSE);
                }
                Ok((passed, last_try))
            })
        });
        Self {
            begin,
            over,
            tries,
            work,
        }
    }

    /// How often it has tried so far.
    pub fn tries(&self) -> u64 {
        self.tries.load(Ordering::Relaxed)
    }

    pub fn end(self) -> Result<Sight> {
        self.over.store(true, Ordering::Relaxed);
        let (passed, last_try) = self.work.join().ok().context("the probe fell over")??;
        Ok(Sight {
            begin: self.begin,
            last_try,
            tries: self.tries.load(Ordering::Relaxed),
            passed,
        })
    }
}

/// Whether one attempt is accepted, given time.
pub fn reaches(netns: &Netns, from: IpAddr, to: SocketAddr) -> Result<bool> {
    netns.inside(|| Ok(matches!(knock(Some(from), to, PATIENCE)?, Answer::Connected(_))))
}
