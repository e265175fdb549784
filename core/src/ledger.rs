//! The ledger: the verified grants of this host, when each begins and ends on its clock, and the policy.
//!
//! Changes are considered first ([`Ledger::consider`]), so that the host can close at once, write to disk, and
//! only then open. Everything read back from disk is verified again.

mod change;
mod entries;
mod in_force;
mod milestones;
mod record;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use crate::assignment::{Assignment, Digest, Generation};
use crate::clock::{HostClock, Mark};
use crate::grant::{Grant, VerifiedGrant};
use crate::host::HostRules;
use crate::id::{GrantId, MachineId};
use crate::keys::VerifiedKeys;
use crate::policy::VerifiedPolicy;
use crate::port::{PortKey, PortSpan};
use crate::ruleset::{End, OpeningKey, Ruleset};
use crate::signing::PublicKey;
use crate::time::{BootTime, Timestamp};
use entries::Entries;
use in_force::InForce;

pub use change::{AssignmentRefused, Change, LeftOut};
pub use record::{AssignedRecord, Boot, Numbers, Record, Replayed};

/// The most grants that a host takes.
pub const MOST_GRANTS: usize = 20_000;

/// The most openings of all grants of a host together: what a stolen server can cost in memory.
pub const MOST_OPENINGS: usize = 100_000;

/// How late an end may become, by a slow clock of the host, before it is mended.
const TOLERATED_DRIFT: Duration = Duration::from_secs(1);

/// Why an opening ended before its time, or at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closing {
    Expired,
    /// The server's assignment no longer has the grant.
    Removed,
    /// The key that signed it is no longer on the root's list, or the host's ceiling was lowered.
    NoLongerValid,
}

impl Closing {
    /// The stable code that receipts carry.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Expired => "EXPIRED",
            Self::Removed => "REMOVED",
            Self::NoLongerValid => "NO_LONGER_VALID",
        }
    }
}

#[derive(Clone, Debug)]
struct Accepted {
    grant: VerifiedGrant,
    /// Whether the record that brought it is on disk; until then it does not open.
    is_recorded: bool,
    start: BootTime,
    /// Fixed at the first acceptance; whatever comes later only shortens it.
    end: BootTime,
    /// After a reboot, until the server is heard: what the wall clock says at the least.
    wall_end: Option<BootTime>,
    opened: bool,
    closed: bool,
}

impl Accepted {
    fn end(&self) -> BootTime {
        self.wall_end.map_or(self.end, |wall_end| wall_end.min(self.end))
    }

    fn is_open(&self, now: BootTime) -> bool {
        self.is_recorded && self.start <= now && now < self.end()
    }

    /// Whether its end lies past the true one for sure, and by more than is worth a word to the disk.
    fn is_late(&self, mark: Mark) -> bool {
        let at_most = self.grant.grant().not_after.since(mark.time);
        mark.at < self.end && mark.at.plus(at_most).plus(TOLERATED_DRIFT) < self.end
    }

    /// A wall clock that ran ahead had closed it: both are reported anew.
    fn reopen(&mut self, now: BootTime) {
        if self.closed && now < self.end {
            (self.opened, self.closed) = (false, false);
        }
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Accepted(Box<Accepted>),
    /// Kept for the digest, and so that it is judged again only when the whole comes.
    Refused {
        code: String,
        /// Its end, if a listed key signed it for this machine: once removed, it must not come back.
        not_after: Option<Timestamp>,
    },
}

impl Entry {
    fn not_after(&self) -> Option<Timestamp> {
        match self {
            Self::Accepted(accepted) => Some(accepted.grant.grant().not_after),
            Self::Refused { not_after, .. } => *not_after,
        }
    }
}

/// A grant as the ledger holds it, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<'l> {
    pub grant: &'l Grant,
    pub start: BootTime,
    pub end: BootTime,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Ledger {
    machine: MachineId,
    root: PublicKey,
    generation: Generation,
    keys: Option<VerifiedKeys>,
    policy: Option<VerifiedPolicy>,
    /// Ports of a policy that the last one replaced and whose end isn't on disk yet, of one read back whose key
    /// is trusted no more, or of one that was lost.
    also_guarded: Vec<PortSpan>,
    /// The number of the record that ends `also_guarded`.
    also_until: Option<u64>,
    entries: Entries,
    /// Accepted, by the number of the record that isn't known to be on disk.
    unrecorded: BTreeMap<u64, Vec<GrantId>>,
    /// Closed before their end, with that end: a server restored from an old copy may send them again.
    revoked: BTreeMap<GrantId, Timestamp>,
    /// Closed before their end after they were reported as open, and no receipt is known to be on disk.
    untold: BTreeMap<GrantId, Closing>,
    /// Refused, and no receipt is known to be on disk.
    untold_refusals: BTreeSet<GrantId>,
    /// The number of the last record that was made.
    number: u64,
    numbers: Option<Numbers>,
    in_force: Option<InForce>,
}

impl Ledger {
    /// An empty ledger of a host that just joined. `root` was pinned at enrolment.
    pub fn new(machine: MachineId, root: PublicKey) -> Self {
        Self {
            machine,
            root,
            generation: Generation(0),
            keys: None,
            policy: None,
            also_guarded: Vec::new(),
            also_until: None,
            entries: Entries::default(),
            unrecorded: BTreeMap::new(),
            revoked: BTreeMap::new(),
            untold: BTreeMap::new(),
            untold_refusals: BTreeSet::new(),
            number: 0,
            numbers: None,
            in_force: None,
        }
    }

    /// The receipts that may have been sent without being on disk.
    pub const fn numbers(&self) -> Option<Numbers> {
        self.numbers
    }

    /// The number of the last record that was made. It never falls, so that less of it on disk is a loss.
    pub const fn number(&self) -> u64 {
        self.number
    }

    fn next_number(&mut self) -> u64 {
        self.number = self.number.saturating_add(1);
        self.number
    }

    pub const fn generation(&self) -> Generation {
        self.generation
    }

    pub const fn keys(&self) -> Option<&VerifiedKeys> {
        self.keys.as_ref()
    }

    pub const fn policy(&self) -> Option<&VerifiedPolicy> {
        self.policy.as_ref()
    }

    pub const fn machine(&self) -> MachineId {
        self.machine
    }

    /// Over all assigned grants, the refused ones too.
    pub fn digest(&self) -> Digest {
        self.entries.digest_after(&BTreeSet::new(), &BTreeSet::new())
    }

    /// The grants that are open or will open, in the order of their ids.
    pub fn held(&self, now: BootTime) -> impl Iterator<Item = Held<'_>> {
        self.accepted()
            .filter(move |(_, accepted)| now < accepted.end())
            .map(|(_, accepted)| Held {
                grant: accepted.grant.grant(),
                start: accepted.start,
                end: accepted.end(),
            })
    }

    fn accepted(&self) -> impl Iterator<Item = (GrantId, &Accepted)> {
        self.entries.iter().filter_map(|(id, entry)| match entry {
            Entry::Accepted(accepted) => Some((id, accepted.as_ref())),
            Entry::Refused { .. } => None,
        })
    }

    /// The closing half of a change: needs neither disk nor network, and comes first.
    pub fn close(&mut self, change: &Change) {
        for (id, why) in &change.closing {
            match why {
                Closing::NoLongerValid => {
                    self.owe_receipt(*id, *why);
                    self.refuse(*id, why.code().to_string(), None);
                }
                Closing::Removed | Closing::Expired => self.remove(*id),
            }
        }
        if let Some(policy) = &change.policy {
            self.also_guard(policy.policy().guarded.iter().copied());
        }
    }

    /// These stay guarded until a policy comes.
    pub fn also_guard(&mut self, spans: impl IntoIterator<Item = PortSpan>) {
        for span in spans {
            if !self.policy_ports().any(|known| *known == span) {
                self.also_guarded.push(span);
            }
        }
    }

    /// What an assignment takes away, whatever else is wrong with it: the ids that it says are gone, for no id
    /// comes back, and what it doesn't name if it is the whole and none older than what the host has.
    pub fn removals(&self, assignment: &Assignment) -> Vec<GrantId> {
        let current = assignment.base.is_none() && self.is_current(assignment);
        self.gone(assignment, current).into_iter().collect()
    }

    /// Closes them at once. Gives the record, for whoever reads the ledger back.
    pub fn remove_all(&mut self, ids: Vec<GrantId>, now: BootTime) -> Record {
        let ends_later = |id: &GrantId| match self.entries.get(*id) {
            Some(Entry::Accepted(accepted)) => now < accepted.end,
            Some(Entry::Refused { not_after, .. }) => not_after.is_some(),
            None => false,
        };
        let early = ids.iter().any(ends_later);
        let has_ended = |id: &&GrantId| self.has_ended(**id, now);
        let ended: Vec<GrantId> = ids.iter().filter(has_ended).copied().collect();
        let was_opened = |id: &&GrantId| self.was_opened(**id);
        let opened: Vec<GrantId> = ids.iter().filter(was_opened).copied().collect();
        ids.iter().for_each(|id| self.remove(*id));
        self.owe_receipts(&opened, &ended);
        let number = self.next_number();
        Record::Removed {
            number,
            early,
            ids,
            ended,
            opened,
        }
    }

    fn owe_receipts(&mut self, opened: &[GrantId], ended: &[GrantId]) {
        let ended: BTreeSet<&GrantId> = ended.iter().collect();
        for id in opened {
            let why = if ended.contains(id) {
                Closing::Expired
            } else {
                Closing::Removed
            };
            self.untold.insert(*id, why);
        }
    }

    fn owe_receipt(&mut self, id: GrantId, why: Closing) {
        if self.was_opened(id) {
            self.untold.insert(id, why);
        }
    }

    /// Closings before the end whose receipts may have been lost in a crash.
    pub fn untold(&self) -> impl Iterator<Item = (GrantId, Closing)> {
        self.untold.iter().map(|(id, why)| (*id, *why))
    }

    /// The receipts that a record of [`Self::reported`] is about are on disk.
    pub fn receipts_kept(&mut self, record: &Record) {
        if let Record::Reported { closed, refused, .. } = record {
            closed.iter().for_each(|id| {
                self.untold.remove(id);
            });
            refused.iter().for_each(|id| {
                self.untold_refusals.remove(id);
            });
        }
    }

    /// Refusals whose receipts may have been lost in a crash, each with its reason.
    pub fn untold_refusals(&self) -> impl Iterator<Item = (GrantId, &str)> {
        let ids = self.untold_refusals.iter();
        ids.filter_map(|id| Some((*id, self.refused_as(*id)?)))
    }

    fn remove(&mut self, id: GrantId) {
        self.owe_receipt(id, Closing::Removed);
        self.untold_refusals.remove(&id);
        let removed = self.entries.remove(id);
        if let Some(not_after) = removed.and_then(|entry| entry.not_after()) {
            self.revoked.insert(id, not_after);
        }
    }

    /// `not_after` if it is known; else what is known already stays known.
    fn refuse(&mut self, id: GrantId, code: String, not_after: Option<Timestamp>) {
        let known = || self.entries.get(id).and_then(Entry::not_after);
        let not_after = not_after.or_else(known);
        self.entries.insert(id, Entry::Refused { code, not_after });
    }

    /// What has ended by itself needs no remembering, and no server may fill the memory: the oldest ids go first.
    fn forget_revoked(&mut self, now: Timestamp) {
        self.revoked.retain(|_, not_after| *not_after > now);
        while self.revoked.len() > MOST_GRANTS {
            self.revoked.pop_first();
        }
    }

    /// The opening half. What it brings opens only when [`Self::recorded`] says that it may.
    pub fn commit(&mut self, change: Change) {
        self.close(&change);
        let Change {
            record,
            keys,
            policy,
            accepted,
            refused,
            ..
        } = change;
        self.forget_revoked(record.mark.time);
        self.generation = record.generation;
        self.number = self.number.max(record.number);
        self.numbers = record.numbers.or(self.numbers);
        self.keys = keys.or_else(|| self.keys.take());
        if let Some(policy) = policy {
            let before = self.policy.replace(policy);
            self.also_guard(
                before
                    .into_iter()
                    .flat_map(|before| before.policy().guarded.clone()),
            );
            self.also_until = Some(record.number);
        }
        if !accepted.is_empty() {
            let ids = accepted.iter().map(|(id, _)| *id).collect();
            self.unrecorded.insert(record.number, ids);
        }
        for (id, mut accepted) in accepted {
            accepted.grant.condense();
            self.entries.insert(id, Entry::Accepted(accepted));
        }
        let ends: BTreeMap<_, _> = record.refused_ends.into_iter().collect();
        for (id, rejected) in refused {
            if self.refused_as(id) != Some(rejected.code()) {
                self.untold_refusals.insert(id);
            }
            self.refuse(id, rejected.code().to_string(), ends.get(&id).copied());
        }
        self.entries.keep_digest();
    }

    /// Everything up to this number is on disk: what it lets in may open.
    pub fn recorded(&mut self, number: u64) {
        while let Some(first) = self
            .unrecorded
            .first_entry()
            .filter(|first| *first.key() <= number)
        {
            for id in first.remove() {
                self.entries.change(id, |accepted| accepted.is_recorded = true);
            }
        }
        if self.also_until.is_some_and(|until| until <= number) {
            self.also_until = None;
            self.also_guarded.clear();
        }
    }

    /// Everything up to here is known to be on disk.
    pub fn recorded_number(&self) -> u64 {
        let first = self.unrecorded.keys().chain(&self.also_until).min();
        first.map_or(self.number, |first| first.saturating_sub(1))
    }

    /// Numbers go on from here: records up to it were lost.
    pub fn skip_to(&mut self, number: u64) {
        self.number = self.number.max(number);
        self.recorded(self.number);
    }

    /// What should hold now: the host's own file, the policy's ports, and the grants that are open.
    pub fn ruleset(&self, host: &HostRules, now: BootTime) -> Ruleset {
        let mut ruleset = base_ruleset(host, self.guarded(host));
        for (_, accepted) in self.accepted().filter(|(_, accepted)| accepted.is_open(now)) {
            for opening in entries::openings(accepted.grant.grant()) {
                ruleset.open(opening, End::At(accepted.end()));
            }
        }
        ruleset
    }

    fn guarded(&self, host: &HostRules) -> BTreeSet<PortKey> {
        let spans = host.guarded.iter().chain(self.policy_ports());
        spans.flat_map(|span| span.keys()).collect()
    }

    fn policy_ports(&self) -> impl Iterator<Item = &PortSpan> {
        let policy = self.policy.iter().flat_map(|policy| &policy.policy().guarded);
        policy.chain(&self.also_guarded)
    }

    /// When the ruleset changes next by itself: a start or an end.
    pub fn next_deadline(&self, now: BootTime) -> Option<BootTime> {
        self.entries.next_moment(now)
    }

    /// Openings and ends that no receipt has been made for yet.
    pub fn unreported(&self, now: BootTime) -> Unreported {
        let mut unreported = Unreported::default();
        for id in self.entries.due(now) {
            let Some(accepted) = self.entries.accepted(id) else {
                continue;
            };
            if accepted.is_open(now) && !accepted.opened {
                unreported.opened.push(id);
            }
            if accepted.end() <= now && !accepted.closed {
                unreported.closed.push(id);
            }
        }
        unreported
    }

    /// Receipts were made; the record for the ledger's file, which may be written late.
    pub fn reported(&mut self, unreported: Unreported) -> Record {
        let Unreported {
            opened,
            closed,
            refused,
        } = unreported;
        self.mark_reported(&opened, &closed);
        Record::Reported {
            opened,
            closed,
            refused,
        }
    }

    fn mark_reported(&mut self, opened: &[GrantId], closed: &[GrantId]) {
        for id in opened {
            self.entries.change(*id, |accepted| accepted.opened = true);
        }
        for id in closed {
            self.entries.change(*id, |accepted| accepted.closed = true);
        }
    }

    /// Whether a grant is in the ledger and has not been reported as closed.
    pub fn was_opened(&self, id: GrantId) -> bool {
        self.entries
            .accepted(id)
            .is_some_and(|accepted| accepted.opened && !accepted.closed)
    }

    /// Whether a grant in the ledger has come to its own end, and has not been reported as closed.
    pub fn has_ended(&self, id: GrantId, now: BootTime) -> bool {
        self.entries
            .accepted(id)
            .is_some_and(|accepted| accepted.end <= now && !accepted.closed)
    }

    /// The server was heard: after a reboot what it says of the time takes the wall clock's place, and ends that
    /// its word shows to be late are mended. They only get shorter. Gives a record if anything changed.
    pub fn settle(&mut self, clock: &HostClock, now: BootTime) -> Option<Record> {
        let (latest, mark) = (clock.latest(now)?, clock.mark(now)?);
        // Most words change nothing, and looking is cheaper than changing.
        let late: Vec<GrantId> = self
            .accepted()
            .filter(|(_, accepted)| accepted.wall_end.is_some() || accepted.is_late(mark))
            .map(|(id, _)| id)
            .collect();
        for id in &late {
            self.entries.change(*id, |accepted| {
                let left = accepted.grant.grant().not_after.since(latest);
                accepted.end = accepted.end.min(now.plus(left));
                accepted.wall_end = None;
                accepted.reopen(now);
            });
        }
        (!late.is_empty()).then(|| Record::Carried {
            number: self.next_number(),
            mark,
            ends: self.ends(),
            settled: true,
        })
    }

    fn ends(&self) -> Vec<(GrantId, BootTime, BootTime)> {
        self.accepted()
            .map(|(id, accepted)| (id, accepted.start, accepted.end))
            .collect()
    }

    /// What holds without any grant: keys, policy, and what is guarded besides. The generation is zero, so that the whole is sent again.
    #[must_use]
    pub fn without_grants(self) -> Self {
        Self {
            generation: Generation(0),
            entries: Entries::default(),
            unrecorded: BTreeMap::new(),
            in_force: None,
            ..self
        }
    }

    /// Whether the server had it closed before its end.
    pub fn was_revoked(&self, id: GrantId) -> bool {
        self.revoked.contains_key(&id)
    }

    /// The stable code of an assigned grant that was refused.
    pub fn refused_as(&self, id: GrantId) -> Option<&str> {
        match self.entries.get(id)? {
            Entry::Refused { code, .. } => Some(code),
            Entry::Accepted(_) => None,
        }
    }
}

/// Openings, ends and refusals without a receipt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreported {
    pub opened: Vec<GrantId>,
    pub closed: Vec<GrantId>,
    /// [`Ledger::unreported`] names none: they are known when they are made, and [`Ledger::untold_refusals`] after a
    /// restart.
    pub refused: Vec<GrantId>,
}

impl Unreported {
    pub fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.closed.is_empty() && self.refused.is_empty()
    }
}

pub(crate) fn base_ruleset(host: &HostRules, guarded: BTreeSet<PortKey>) -> Ruleset {
    let mut ruleset = Ruleset::new(guarded.clone(), host.unguarded_interfaces.clone(), host.udp_grace);
    for source in &host.trusted_sources {
        for key in &guarded {
            ruleset.open(
                OpeningKey {
                    source: *source,
                    key: *key,
                },
                End::Never,
            );
        }
    }
    ruleset
}
