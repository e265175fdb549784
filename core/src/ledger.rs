//! The ledger: the verified grants of this host, when each begins and ends on its clock, and the policy.
//!
//! Changes are considered first ([`Ledger::consider`]), so that the host can close at once, write to disk, and
//! only then open. Everything read back from disk is verified again.

mod change;
mod entries;
mod entry;
mod in_force;
mod judging;
mod milestones;
mod owed;
mod record;
mod replay;
mod snapshot;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::assignment::{Assignment, Digest, Generation};
use crate::clock::HostClock;
use crate::id::{GrantId, MachineId};
use crate::keys::VerifiedKeys;
use crate::policy::VerifiedPolicy;
use crate::port::PortSpan;
use crate::signing::PublicKey;
use crate::time::{BootTime, Timestamp};
use entries::Entries;
use entry::{Accepted, Entry};
use in_force::InForce;

pub(crate) use in_force::base_ruleset;

pub use change::{AssignmentRefused, Change, LeftOut};
pub use entry::Held;
pub use owed::Unreported;
pub use record::{AssignedRecord, Numbers, Record};
pub use replay::{Boot, Replayed};

/// The most grants that a host takes.
pub const MOST_GRANTS: usize = 20_000;

/// The most openings of all grants of a host together: what a stolen server can cost in memory.
pub const MOST_OPENINGS: usize = 100_000;

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
    /// Of those, the ones whose opening has no receipt that is known to be on disk either.
    untold_openings: BTreeSet<GrantId>,
    /// Open in the firewall, and no receipt was made of it yet.
    let_in: BTreeSet<GrantId>,
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
            untold_openings: BTreeSet::new(),
            let_in: BTreeSet::new(),
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
        self.remove_opened(&ids, &opened, &ended);
        let number = self.next_number();
        Record::Removed {
            number,
            early,
            ids,
            ended,
            opened,
        }
    }

    fn remove(&mut self, id: GrantId) {
        if !self.untold.contains_key(&id) {
            self.owe_receipt(id, Closing::Removed);
        }
        self.let_in.remove(&id);
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

    /// When the ruleset changes next by itself: a start or an end.
    pub fn next_deadline(&self, now: BootTime) -> Option<BootTime> {
        self.entries.next_moment(now)
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
            let_in: BTreeSet::new(),
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
