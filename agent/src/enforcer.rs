//! The enforcer: one loop and one owner of ledger, clock, firewall and receipts.
//!
//! It never waits for the disk: closing comes first, and opening when the writer says that its record is there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nightlatch_core::assignment::{Assignment, Digest, Generation};
use nightlatch_core::clock::HostClock;
use nightlatch_core::host::HostRules;
use nightlatch_core::id::{BreakGlassId, GrantId};
use nightlatch_core::keys::{ListNumber, VerifiedKeys};
use nightlatch_core::ledger::{Closing, Ledger, Record};
use nightlatch_core::policy::VerifiedPolicy;
use nightlatch_core::port::PortSpan;
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::{BootTime, Timestamp};
use nightlatch_proto::convert::agent::HostState;
use tokio::sync::mpsc;

use crate::break_glass::Recorded;
use crate::break_glass::watch::FromConsole;
use crate::causes::causes;
use crate::clock::{Clock, Reading};
use crate::firewall::{Applied, FirewallError, Touch};
use crate::outbox::{Entry, Outbox};
use crate::server_link::{FromServer, ToServer};
use crate::writer::Disk;
use fight::Fight;
use lane::Lane;
use taking::Unanswered;

mod console;
mod fight;
mod gate;
mod lane;
mod life;
mod repair;
mod taking;
mod telling;
mod writing;

pub use gate::{Gate, Table};
pub use life::{Notices, WriterEnded};

#[cfg(test)]
pub(crate) mod fake;

/// Assignments that wait for the first word about the time. A server sends few before it.
const MOST_WAITING: usize = 16;
const MOST_REPORTS: usize = 64;
/// Receipts of one message, in bytes; a server takes 256 KiB and 1,000 of them.
const BATCH: usize = 192 * 1024;
/// Batches of receipts on the way.
const WINDOW: usize = 8;
const MARK_INTERVAL: Duration = Duration::from_secs(60);
/// How long after a failure the firewall is tried again.
const GATE_PAUSE: Duration = Duration::from_millis(500);

/// What the enforcer starts with.
pub struct Start<G, D, C> {
    pub rules: HostRules,
    pub clock: C,
    pub time: HostClock,
    pub ledger: Ledger,
    pub gate: G,
    pub disk: D,
    pub outbox: Outbox,
    /// Whether the files take something without being written anew first.
    pub sound: Sound,
    /// Guarded as well until the server's whole assignment is known, after a loss.
    pub guarded_meanwhile: Vec<PortSpan>,
    /// Open before, and no longer valid.
    pub fallen: Vec<GrantId>,
    /// Whether grants were lost, so that the server must send the whole.
    pub needs_whole: bool,
    pub reports: Vec<(&'static str, String)>,
    pub kernel_version: String,
}

/// Which files take something without being written anew first.
#[derive(Clone, Copy, Debug)]
pub struct Sound {
    pub ledger: bool,
    pub receipts: bool,
}

/// See the module's documentation.
pub struct Enforcer<G, D, C> {
    rules: HostRules,
    clock: C,
    time: HostClock,
    ledger: Ledger,
    gate: G,
    disk: D,
    ledger_lane: Lane<Record>,
    receipts_lane: Lane<Entry>,
    outbox: Outbox,
    /// The last number that the ledger has on disk as given, and those that it will have with the record of a number.
    given: u64,
    giving: VecDeque<(u64, u64)>,
    kernel_version: String,
    guarded_meanwhile: Vec<PortSpan>,
    needs_whole: bool,
    /// Assignments that memory has and the disk not yet.
    unanswered: VecDeque<Unanswered>,
    gate_due_at: Option<BootTime>,
    /// What others do to the table, as the kernel tells it; and what of it is to be looked after.
    touches: mpsc::Receiver<Touch>,
    touched: Option<Touch>,
    fight: Fight,
    /// What the firewall does is what was due by then.
    applied_at: Option<BootTime>,
    marked_at: BootTime,
    /// Since then no sleep of the host is unknown to the firewall.
    awake_since: Reading,
    /// Closed by the record of that number, but without a receipt yet.
    closed: Vec<(GrantId, &'static str, u64)>,
    /// Refused before the daemon's start, perhaps without a receipt.
    owed_refusals: Vec<(GrantId, String)>,
    /// Receipts were made, and once the one of that number is on disk the ledger's file may say so.
    reported: VecDeque<(u64, Record)>,
    fallen: Fallen,
    disk_hangs: bool,
    reports: VecDeque<(&'static str, String, Option<Timestamp>)>,
    stream: Option<Stream>,
    console: mpsc::Receiver<FromConsole>,
    /// What root has opened, now or before, for the server.
    recorded: BTreeMap<BreakGlassId, Recorded>,
}

/// Grants in the file that no longer verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fallen {
    None,
    /// Without receipts yet.
    Untold,
    /// Once that receipt is on disk, the file may be written without them.
    Told(u64),
}

struct Stream {
    to_server: mpsc::Sender<ToServer>,
    time_heard: bool,
    waiting: VecDeque<Assignment>,
    /// The last number that was sent on it, and those of the batches on the way.
    sent: u64,
    on_the_way: VecDeque<u64>,
    /// What was taken last, if the server was not told that it is settled.
    unsettled: Option<Generation>,
    /// Settled once the receipts up to that number are stored.
    settling: Option<(u64, Generation)>,
    /// Failures that last and were told on it.
    said: BTreeSet<&'static str>,
}

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    /// Makes the firewall equal to what is known, before anybody is asked.
    pub fn start(start: Start<G, D, C>) -> Self {
        let Start {
            rules,
            clock,
            time,
            ledger,
            gate,
            disk,
            outbox,
            sound,
            guarded_meanwhile,
            fallen,
            needs_whole,
            reports,
            kernel_version,
        } = start;
        let (marked_at, awake_since) = (clock.now(), clock.reading());
        let untold = ledger.untold().filter(|(id, _)| !fallen.contains(id));
        let closed = fallen
            .iter()
            .map(|id| (*id, Closing::NoLongerValid))
            .chain(untold)
            .map(|(id, why)| (id, why.code(), 0))
            .collect();
        let owed_refusals = ledger
            .untold_refusals()
            .map(|(id, code)| (id, code.to_owned()))
            .collect();
        let mut enforcer = Self {
            rules,
            clock,
            time,
            ledger_lane: Lane::new(ledger.recorded_number(), sound.ledger),
            receipts_lane: Lane::new(outbox.ready(), sound.receipts),
            ledger,
            gate,
            disk,
            outbox,
            given: 0,
            giving: VecDeque::new(),
            kernel_version,
            guarded_meanwhile,
            needs_whole,
            unanswered: VecDeque::new(),
            gate_due_at: None,
            touches: mpsc::channel(1).1,
            touched: None,
            fight: Fight::default(),
            applied_at: None,
            marked_at,
            awake_since,
            reported: VecDeque::new(),
            fallen: if fallen.is_empty() {
                Fallen::None
            } else {
                Fallen::Untold
            },
            disk_hangs: false,
            closed,
            owed_refusals,
            reports: VecDeque::new(),
            stream: None,
            console: mpsc::channel(1).1,
            recorded: BTreeMap::new(),
        };
        for (code, message) in reports {
            enforcer.report(code, message);
        }
        enforcer.enforce();
        enforcer.flush();
        enforcer
    }

    /// Hears of what others do to the table, instead of finding it at the next look only.
    #[must_use]
    pub fn watching(self, touches: mpsc::Receiver<Touch>) -> Self {
        Self { touches, ..self }
    }

    /// Takes one word of the link.
    pub fn hear(&mut self, word: FromServer) {
        match word {
            FromServer::Connected(to_server) => self.connected(to_server),
            FromServer::Time {
                time,
                asked_at,
                heard_at,
            } => self.time_heard(time, asked_at, heard_at),
            FromServer::Assignment(assignment) => self.assigned(assignment),
            FromServer::ReceiptsStored(sequence) => self.receipts_stored(sequence),
            FromServer::Disconnected => self.stream = None,
        }
        self.flush();
    }

    fn connected(&mut self, to_server: mpsc::Sender<ToServer>) {
        // What was sent on another stream needs no answer on this one.
        self.unanswered.clear();
        let state = self.host_state();
        self.stream = Some(Stream {
            to_server,
            time_heard: false,
            waiting: VecDeque::new(),
            sent: 0,
            said: BTreeSet::new(),
            on_the_way: VecDeque::new(),
            unsettled: Some(state.generation).filter(|held| *held > Generation::default()),
            settling: None,
        });
        self.say(ToServer::Hello(Box::new(state)));
        self.send_reports();
        self.tell_console();
        self.send_receipts();
        self.settle();
    }

    fn host_state(&self) -> HostState {
        // After a loss the host claims to have nothing, and is sent the whole. What isn't on disk isn't claimed.
        let is_ahead = self.ledger_lane.durable() < self.ledger.number();
        let (generation, digest) = if self.needs_whole || is_ahead {
            (Generation::default(), Digest::of([]))
        } else {
            (self.ledger.generation(), self.ledger.digest())
        };
        HostState {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_version: self.kernel_version.clone(),
            boot_id: self.time.boot_id(),
            generation,
            digest,
            keys: self
                .ledger
                .keys()
                .map_or_else(ListNumber::default, VerifiedKeys::number),
            policy: self.ledger.policy().map_or((0, 0), VerifiedPolicy::rank),
            host_guarded: self.rules.guarded.clone(),
            ceiling: self.rules.ceiling.clone(),
        }
    }

    fn time_heard(&mut self, time: Timestamp, asked_at: BootTime, heard_at: BootTime) {
        if let Err(jump) = self.time.hear(time, asked_at, heard_at, self.clock.wall()) {
            tracing::error!(%jump, "the server's time is not taken");
            self.report("TIME_JUMP", jump.to_string());
        } else {
            self.is_over("TIME_JUMP");
        }
        if let Some(record) = self.ledger.settle(&self.time, self.clock.now()) {
            self.enforce();
            self.record(record, 1, true);
        }
        // What was let in before is told before something takes it away.
        self.account();
        let waiting = self.stream.as_mut().map(|stream| {
            stream.time_heard = true;
            std::mem::take(&mut stream.waiting)
        });
        for assignment in waiting.into_iter().flatten() {
            self.take(&assignment);
        }
        self.account();
    }

    /// Makes the firewall equal to what the ledger justifies now.
    fn enforce(&mut self) {
        let now = self.clock.now();
        let wanted = self.wanted(now);
        // A failed change may have been about what has changed since; the second try makes the table anew.
        let applied = self.gate.apply(&wanted, now).or_else(|error| {
            tracing::warn!(
                error = %causes(&error),
                "the firewall is made anew"
            );
            self.gate.rebuild(&wanted, now)
        });
        self.applied(applied, now);
    }

    fn applied(&mut self, applied: Result<Applied, FirewallError>, now: BootTime) {
        match applied {
            Ok(applied) => {
                tracing::debug!(?applied, "the firewall is as it should be");
                self.gate_due_at = None;
                self.applied_at = Some(now);
                self.ledger.enforced(now);
                self.is_over("FIREWALL_FAILED");
            }
            Err(error) => {
                tracing::error!(
                    error = %causes(&error),
                    "the firewall is not as it should be"
                );
                if self.gate_due_at.is_none() {
                    self.report("FIREWALL_FAILED", causes(&error).to_string());
                }
                self.gate_due_at = Some(now.plus(GATE_PAUSE));
            }
        }
    }

    fn wanted(&mut self, now: BootTime) -> Ruleset {
        if self.guarded_meanwhile.is_empty() {
            return self.ledger.in_force(&self.rules, now);
        }
        let mut rules = self.rules.clone();
        rules.guarded.extend(&self.guarded_meanwhile);
        self.ledger.in_force(&rules, now)
    }
}

#[cfg(test)]
mod tests;
