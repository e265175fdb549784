//! The enforcer: one loop and one owner of ledger, clock, firewall, files and receipts.
//!
//! Closing needs neither disk nor network and comes first; opening waits for its record on disk.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use nightlatch_core::assignment::{Assignment, Digest, Generation};
use nightlatch_core::clock::HostClock;
use nightlatch_core::host::HostRules;
use nightlatch_core::id::GrantId;
use nightlatch_core::keys::{ListNumber, VerifiedKeys};
use nightlatch_core::ledger::{Change, Closing, Ledger, LeftOut, Record};
use nightlatch_core::policy::VerifiedPolicy;
use nightlatch_core::port::{PortKey, PortSpan};
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::{BootTime, Timestamp};
use nightlatch_proto::convert::agent::HostState;
use tokio::sync::mpsc;

use crate::causes::causes;
use crate::clock::Clock;
use crate::firewall::{Applied, Firewall, FirewallError};
use crate::frame_file::NotWritten;
use crate::ledger_file::{RecordSink, snapshot};
use crate::outbox::Outbox;
use crate::server_link::{FromServer, Taken, ToServer};

mod life;
mod telling;

pub use life::Notices;

#[cfg(test)]
pub(crate) mod fake;

/// Assignments that wait for the first word about the time. A server sends few before it.
const MOST_WAITING: usize = 16;
const MOST_REPORTS: usize = 64;
const BATCH: usize = 64;
/// Batches of receipts on the way.
const WINDOW: usize = 4;
const MARK_INTERVAL: Duration = Duration::from_secs(60);
/// How long after a failed write the whole is asked for again.
const WHOLE_PAUSE: Duration = Duration::from_secs(10);
/// How long after a failure the firewall is tried again.
const GATE_PAUSE: Duration = Duration::from_millis(500);

/// The firewall as the enforcer needs it.
pub trait Gate {
    /// # Errors
    /// The table is not what it should be; the next call makes it anew.
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError>;

    /// # Errors
    /// It can't be said.
    fn is_in_place(&mut self, now: BootTime) -> Result<bool, FirewallError>;

    /// # Errors
    /// As [`Self::apply`].
    fn rebuild(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError>;

    /// The ports that the kernel's table guards, whoever made it; `None` if there is no table.
    ///
    /// # Errors
    /// The table can't be read.
    fn guarded(&mut self) -> Result<Option<BTreeSet<PortKey>>, FirewallError>;
}

impl Gate for Firewall {
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        Self::apply(self, wanted, now)
    }

    fn is_in_place(&mut self, now: BootTime) -> Result<bool, FirewallError> {
        Self::is_in_place(self, now)
    }

    fn rebuild(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        Self::rebuild(self, wanted, now)
    }

    fn guarded(&mut self) -> Result<Option<BTreeSet<PortKey>>, FirewallError> {
        Ok(self.read()?.map(|table| table.guarded))
    }
}

/// What the enforcer starts with.
pub struct Start<G, S, C> {
    pub rules: HostRules,
    pub clock: C,
    pub time: HostClock,
    pub ledger: Ledger,
    pub gate: G,
    pub sink: S,
    pub outbox: Outbox,
    /// Guarded as well until the server's whole assignment is known, after a loss.
    pub guarded_meanwhile: Vec<PortSpan>,
    /// Open before, and no longer valid.
    pub fallen: Vec<GrantId>,
    /// Whether grants were lost, so that the server must send the whole.
    pub needs_whole: bool,
    pub reports: Vec<(&'static str, String)>,
    pub kernel_version: String,
}

/// See the module's documentation.
pub struct Enforcer<G, S, C> {
    rules: HostRules,
    clock: C,
    time: HostClock,
    ledger: Ledger,
    gate: G,
    sink: S,
    outbox: Outbox,
    kernel_version: String,
    guarded_meanwhile: Vec<PortSpan>,
    needs_whole: bool,
    ask_whole_at: Option<BootTime>,
    gate_due_at: Option<BootTime>,
    /// What the firewall does is what was due by then.
    applied_at: Option<BootTime>,
    marked_at: BootTime,
    /// Closed, but without a receipt yet.
    closed: Vec<(GrantId, &'static str)>,
    /// The file still holds grants that no longer verify.
    has_fallen: bool,
    reports: VecDeque<(&'static str, String, Option<Timestamp>)>,
    stream: Option<Stream>,
}

struct Stream {
    to_server: mpsc::Sender<ToServer>,
    time_heard: bool,
    waiting: VecDeque<Assignment>,
    /// The last number that was sent on it, and those of the batches on the way.
    sent: u64,
    on_the_way: VecDeque<u64>,
    /// Failures that last and were told on it.
    said: BTreeSet<&'static str>,
}

impl<G: Gate, S: RecordSink, C: Clock> Enforcer<G, S, C> {
    /// Makes the firewall equal to what is known, before anybody is asked.
    pub fn start(start: Start<G, S, C>) -> Self {
        let Start {
            rules,
            clock,
            time,
            ledger,
            gate,
            sink,
            outbox,
            guarded_meanwhile,
            fallen,
            needs_whole,
            reports,
            kernel_version,
        } = start;
        let marked_at = clock.now();
        let mut enforcer = Self {
            rules,
            clock,
            time,
            ledger,
            gate,
            sink,
            outbox,
            kernel_version,
            guarded_meanwhile,
            needs_whole,
            ask_whole_at: None,
            gate_due_at: None,
            applied_at: None,
            marked_at,
            has_fallen: !fallen.is_empty(),
            closed: fallen
                .into_iter()
                .map(|id| (id, Closing::NoLongerValid.code()))
                .collect(),
            reports: VecDeque::new(),
            stream: None,
        };
        for (code, message) in reports {
            enforcer.report(code, message);
        }
        enforcer.enforce();
        enforcer.mend();
        enforcer
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
    }

    fn connected(&mut self, to_server: mpsc::Sender<ToServer>) {
        self.stream = Some(Stream {
            to_server,
            time_heard: false,
            waiting: VecDeque::new(),
            sent: 0,
            said: BTreeSet::new(),
            on_the_way: VecDeque::new(),
        });
        let hello = ToServer::Hello(Box::new(self.host_state()));
        self.say(hello);
        self.send_reports();
        self.send_receipts();
    }

    fn host_state(&self) -> HostState {
        // After a loss the host claims to have nothing, and is sent the whole.
        let (generation, digest) = if self.needs_whole {
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
            self.write_or_log(&record, true);
        }
        let waiting = self.stream.as_mut().map(|stream| {
            stream.time_heard = true;
            std::mem::take(&mut stream.waiting)
        });
        for assignment in waiting.into_iter().flatten() {
            self.take(&assignment);
        }
        self.account();
    }

    fn assigned(&mut self, assignment: Assignment) {
        self.remove(&assignment, self.clock.now());
        let Some(stream) = self.stream.as_mut() else {
            return;
        };
        if stream.time_heard {
            self.take(&assignment);
        } else if stream.waiting.len() < MOST_WAITING {
            stream.waiting.push_back(assignment);
        } else {
            stream.waiting.clear();
            self.reply(
                assignment.generation,
                Taken::NeedWhole,
                "too much came before the time was known",
            );
        }
    }

    fn take(&mut self, assignment: &Assignment) {
        let now = self.clock.now();
        let generation = assignment.generation;
        let change = match self
            .ledger
            .consider(assignment, self.rules.ceiling.as_ref(), &self.time, now)
        {
            Ok(change) => change,
            Err(refused) => {
                let taken = if refused.needs_whole() {
                    Taken::NeedWhole
                } else {
                    Taken::Refused
                };
                tracing::warn!(%generation, %refused, "assignment not taken");
                return self.reply(generation, taken, &refused.to_string());
            }
        };
        self.close(&change, now);
        if let Err(error) = self.write(&change.record(), true) {
            tracing::error!(
                error = %causes(&error),
                "nothing opens: it can't be written down"
            );
            self.report("LEDGER_NOT_WRITTEN", causes(&error).to_string());
            self.ask_whole_at = Some(now.plus(WHOLE_PAUSE));
            self.account();
            return self.reply(
                generation,
                Taken::Refused,
                "the host's disk takes no record, so nothing opens",
            );
        }
        self.is_over("LEDGER_NOT_WRITTEN");
        if change.left_out().is_empty() {
            self.forget_said_but(&["FIREWALL_FAILED", "TIME_JUMP"]);
        }
        for left_out in change.left_out() {
            tracing::error!(code = left_out.code(), %left_out, "part of the assignment refused");
            self.report(left_out.code(), left_out.to_string());
        }
        let lacks_policy = change.left_out().iter().any(|left_out| match left_out {
            LeftOut::Policy(_) | LeftOut::NoKeys => true,
            LeftOut::Keys(_) | LeftOut::OlderKeys { .. } => false,
        });
        let refused = self.newly_refused(&change);
        let guards = self.guards();
        self.ledger.commit(change);
        self.ledger.recorded(self.ledger.number());
        if assignment.base.is_none() {
            self.needs_whole = false;
            self.ask_whole_at = None;
            if !lacks_policy {
                self.guarded_meanwhile.clear();
            }
        }
        self.enforce();
        self.add_receipts(refused);
        self.account();
        self.reply(generation, Taken::Accepted, "");
        self.compact(guards != self.guards(), now);
    }

    fn guards(&self) -> (Option<ListNumber>, Option<(u64, u64)>) {
        (
            self.ledger.keys().map(VerifiedKeys::number),
            self.ledger.policy().map(VerifiedPolicy::rank),
        )
    }

    /// A new policy or key list is written twice at once, see [`snapshot`].
    fn compact(&mut self, at_once: bool, now: BootTime) {
        let (sink, ledger, time) = (&mut self.sink, &self.ledger, &self.time);
        let compacted = if at_once {
            sink.rewrite(&snapshot(ledger, time, now))
        } else {
            sink.compact(|| snapshot(ledger, time, now))
        };
        if let Err(error) = compacted {
            tracing::warn!(
                error = %causes(&error),
                "the ledger's file stays long"
            );
        }
    }

    /// What goes with it, whatever becomes of the rest.
    fn remove(&mut self, assignment: &Assignment, now: BootTime) {
        let gone = self.ledger.removals(assignment);
        if gone.is_empty() {
            return;
        }
        let unreported = self.ledger.unreported(now);
        let opened = gone
            .iter()
            .filter(|id| self.ledger.was_opened(**id) || unreported.opened.contains(id));
        self.closed
            .extend(opened.map(|id| (*id, Closing::Removed.code())));
        let record = self.ledger.remove_all(gone, now);
        self.enforce();
        self.write_or_log(&record, false);
    }

    fn close(&mut self, change: &Change, now: BootTime) {
        let unreported = self.ledger.unreported(now);
        for (id, why) in change.closing() {
            if self.ledger.was_opened(*id) || unreported.opened.contains(id) {
                self.closed.push((*id, why.code()));
            }
        }
        self.ledger.close(change);
        self.enforce();
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

    fn write(&mut self, record: &Record, durably: bool) -> Result<(), NotWritten> {
        if !self.sink.is_sound() {
            self.sink
                .rewrite(&snapshot(&self.ledger, &self.time, self.clock.now()))?;
        }
        self.sink.append(std::slice::from_ref(record), durably)
    }

    fn write_or_log(&mut self, record: &Record, durably: bool) {
        if let Err(error) = self.write(record, durably) {
            tracing::warn!(
                error = %causes(&error),
                "the ledger's file is behind"
            );
        }
    }
}

#[cfg(test)]
mod tests;
