//! The ledger on disk: what is written, and how it is read back.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Accepted, Closing, Entry, Ledger, LeftOut};
use crate::assignment::Generation;
use crate::ceiling::Ceiling;
use crate::clock::Mark;
use crate::grant::SignedGrant;
use crate::id::{GrantId, MachineId};
use crate::keys::VerifiedKeys;
use crate::policy::VerifiedPolicy;
use crate::port::PortSpan;
use crate::signing::{PublicKey, base64_bytes};
use crate::time::{BootId, BootTime, Timestamp};

/// One line of the ledger's file, written and read as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    clippy::large_enum_variant,
    reason = "records are made and written one at a time"
)]
pub enum Record {
    Assigned(AssignedRecord),
    /// What an assignment took away, at once and whatever else became of it.
    Removed {
        number: u64,
        /// Whether one of them would be open later on.
        early: bool,
        ids: Vec<GrantId>,
        /// Those of them that had come to their own end.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ended: Vec<GrantId>,
        /// Those of them that were open by a receipt, whether or not it was on disk.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        opened: Vec<GrantId>,
    },
    /// Ends on the clock of a new boot.
    Carried {
        #[serde(default)]
        number: u64,
        mark: Mark,
        ends: Vec<(GrantId, BootTime, BootTime)>,
        /// Whether the server was heard in that boot; until then the wall clock bounds them too.
        settled: bool,
    },
    /// Receipts were made for these.
    Reported {
        opened: Vec<GrantId>,
        closed: Vec<GrantId>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        refused: Vec<GrantId>,
    },
    Marked(Mark),
}

/// An assignment as the host took it. One record, so that it holds whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignedRecord {
    #[serde(default)]
    pub(super) number: u64,
    pub(super) generation: Generation,
    /// What isn't named here goes.
    pub(super) whole: bool,
    pub(super) mark: Mark,
    pub(super) keys: Option<Envelope>,
    pub(super) policy: Option<Envelope>,
    /// The policy's ports: they stay shut also if its key is trusted no more when this is read.
    #[serde(default)]
    pub(super) guarded: Vec<PortSpan>,
    pub(super) removed: Vec<GrantId>,
    pub(super) accepted: Vec<Kept>,
    pub(super) refused: Vec<(GrantId, String)>,
    /// The ends of those of them that must not come back once they were removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) refused_ends: Vec<(GrantId, Timestamp)>,
    /// With `whole`: what was closed before its end, with that end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) revoked: Vec<(GrantId, Timestamp)>,
    /// With `whole`: closed before their end, without a receipt on disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) untold: Vec<GrantId>,
    /// The same at their end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) untold_ended: Vec<GrantId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) numbers: Option<Numbers>,
}

/// Receipts up to this number may have been sent in that boot and not be on disk: after it they are not given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    pub upto: u64,
    pub boot_id: BootId,
    /// Up to here the same holds of earlier boots.
    pub before: u64,
}

impl Record {
    /// Its place among those that change what holds. Compaction leaves gaps.
    pub const fn number(&self) -> Option<u64> {
        match self {
            Self::Assigned(AssignedRecord { number, .. })
            | Self::Removed { number, .. }
            | Self::Carried { number, .. } => Some(*number),
            Self::Reported { .. } | Self::Marked(_) => None,
        }
    }

    /// Whether more would be open, or less guarded, without it: a ledger that lost it must not be trusted.
    pub fn must_stay(&self) -> bool {
        match self {
            Self::Assigned(assigned) => {
                assigned.whole
                    || assigned.keys.is_some()
                    || assigned.policy.is_some()
                    || !assigned.removed.is_empty()
            }
            Self::Removed { early, .. } => *early,
            Self::Carried { .. } => true,
            Self::Reported { .. } | Self::Marked(_) => false,
        }
    }

    /// Of the openings and closings that it reports, takes out what these report.
    pub fn leave_out<'r>(&mut self, others: impl Iterator<Item = &'r Self>) {
        let Self::Reported { opened, closed, .. } = self else {
            return;
        };
        let (mut not_opened, mut not_closed) = (BTreeSet::<GrantId>::new(), BTreeSet::<GrantId>::new());
        for other in others {
            if let Self::Reported { opened, closed, .. } = other {
                not_opened.extend(opened);
                not_closed.extend(closed);
            }
        }
        opened.retain(|id| !not_opened.contains(id));
        closed.retain(|id| !not_closed.contains(id));
    }

    /// Reports what the other does as well.
    pub fn add_reports(&mut self, other: Self) {
        let Self::Reported {
            opened,
            closed,
            refused,
        } = self
        else {
            return;
        };
        if let Self::Reported {
            opened: also_opened,
            closed: also_closed,
            refused: also_refused,
        } = other
        {
            opened.extend(also_opened);
            closed.extend(also_closed);
            refused.extend(also_refused);
        }
    }

    /// The ports of the policy that it brings.
    pub fn guarded(&self) -> Option<&[PortSpan]> {
        match self {
            Self::Assigned(assigned) if assigned.whole || assigned.policy.is_some() => {
                Some(&assigned.guarded)
            }
            Self::Assigned(_)
            | Self::Removed { .. }
            | Self::Carried { .. }
            | Self::Reported { .. }
            | Self::Marked(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Envelope(#[serde(with = "base64_bytes")] pub(super) Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    id: GrantId,
    envelope: SignedGrant,
    start: BootTime,
    end: BootTime,
}

/// The start of the host that a ledger is read in.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    pub id: BootId,
    pub now: BootTime,
    /// What the wall clock says; it may be wrong.
    pub wall: Timestamp,
}

/// A ledger read back from its file.
#[derive(Debug)]
pub struct Replayed {
    pub ledger: Ledger,
    /// The last mark on disk, for [`crate::clock::HostClock::new`].
    pub mark: Option<Mark>,
    /// After a reboot: the record of the new ends. Nothing opens until [`Ledger::recorded`] has its number.
    pub carried: Option<Record>,
    /// What no longer verified.
    pub left_out: Vec<LeftOut>,
    /// Grants that were reported as open and that no longer verify, for instance after the ceiling was lowered.
    pub fallen: Vec<GrantId>,
}

impl Ledger {
    /// What rebuilds this ledger but for its grants. The generation is zero, so that the whole is sent again.
    pub fn snapshot_without_grants(&self, mark: Mark) -> Record {
        Record::Assigned(AssignedRecord {
            number: self.number,
            generation: Generation(0),
            whole: true,
            mark,
            keys: self.keys.as_ref().map(|keys| Envelope(keys.envelope().to_vec())),
            policy: self
                .policy
                .as_ref()
                .map(|policy| Envelope(policy.envelope().to_vec())),
            guarded: self.guarded_for_good(),
            removed: Vec::new(),
            accepted: Vec::new(),
            refused: Vec::new(),
            refused_ends: Vec::new(),
            revoked: self
                .revoked
                .iter()
                .map(|(id, not_after)| (*id, *not_after))
                .collect(),
            untold: self.owed(|why| why != Closing::Expired),
            untold_ended: self.owed(|why| why == Closing::Expired),
            numbers: self.numbers,
        })
    }

    /// The fewest records that rebuild this ledger, for compaction.
    pub fn snapshot(&self, mark: Mark) -> Vec<Record> {
        let mut first = self.snapshot_without_grants(mark);
        if let Record::Assigned(assigned) = &mut first {
            self.add_grants(assigned);
        }
        let opened = self
            .accepted()
            .filter(|(_, accepted)| accepted.opened)
            .map(|(id, _)| id)
            .collect();
        let closed = self
            .accepted()
            .filter(|(_, accepted)| accepted.closed)
            .map(|(id, _)| id)
            .collect();
        let told = |(id, entry): (GrantId, &Entry)| {
            let is_told = matches!(entry, Entry::Refused { .. }) && !self.untold_refusals.contains(&id);
            is_told.then_some(id)
        };
        let reported = Record::Reported {
            opened,
            closed,
            refused: self.entries.iter().filter_map(told).collect(),
        };
        let mut records = alloc::vec![first, reported];
        let unsettled: Vec<_> = self
            .accepted()
            .filter(|(_, accepted)| accepted.wall_end.is_some())
            .map(|(id, accepted)| (id, accepted.start, accepted.end))
            .collect();
        if !unsettled.is_empty() {
            records.push(Record::Carried {
                number: self.number,
                mark,
                ends: unsettled,
                settled: false,
            });
        }
        records
    }

    fn add_grants(&self, to: &mut AssignedRecord) {
        to.generation = self.generation;
        for (id, entry) in self.entries.iter() {
            match entry {
                Entry::Accepted(accepted) => to.accepted.push(accepted.kept(id)),
                Entry::Refused { code, not_after } => {
                    to.refused.push((id, code.clone()));
                    to.refused_ends.extend(not_after.map(|not_after| (id, not_after)));
                }
            }
        }
    }

    fn owed(&self, is_such: impl Fn(Closing) -> bool) -> Vec<GrantId> {
        let owed = self.untold.iter().filter(|(_, why)| is_such(**why));
        owed.map(|(id, _)| *id).collect()
    }

    /// A policy that is on disk with these records ends what those before it guarded.
    fn guarded_for_good(&self) -> Vec<PortSpan> {
        match (&self.policy, self.also_until) {
            (Some(policy), Some(_)) => policy.policy().guarded.clone(),
            _ => self.policy_ports().copied().collect(),
        }
    }

    /// Rebuilds the ledger from its file. What no longer verifies (keys, machine, ceiling) is refused.
    ///
    /// In another boot than the file's last, each grant has at most what remained to it at the last mark, and
    /// until the server is heard no more than the wall clock leaves it, if that isn't plainly behind.
    pub fn replay(
        machine: MachineId,
        root: PublicKey,
        records: impl IntoIterator<Item = Record>,
        ceiling: Option<&Ceiling>,
        boot: Boot,
    ) -> Replayed {
        let mut ledger = Self::new(machine, root);
        let mut mark: Option<Mark> = None;
        let mut left_out = Vec::new();
        let mut fallen = BTreeSet::new();
        let mut unsettled = BTreeSet::new();
        for record in records {
            ledger.skip_to(record.number().unwrap_or_default());
            match record {
                Record::Assigned(assigned) => {
                    mark = Some(assigned.mark);
                    ledger.replay_assigned(assigned, ceiling, &mut left_out);
                }
                Record::Removed {
                    ids, ended, opened, ..
                } => {
                    ids.into_iter().for_each(|id| ledger.remove(id));
                    ledger.owe_receipts(&opened, &ended);
                }
                Record::Carried {
                    number: _,
                    mark: carried,
                    ends,
                    settled,
                } => {
                    mark = Some(carried);
                    unsettled.clear();
                    for (id, start, end) in ends {
                        ledger.entries.change(id, |accepted| {
                            (accepted.start, accepted.end) = (start, end);
                            accepted.opened &= start <= carried.at;
                            if settled {
                                accepted.reopen(carried.at);
                            }
                            unsettled.extend((!settled).then_some(id));
                        });
                    }
                }
                Record::Reported {
                    opened,
                    closed,
                    refused,
                } => {
                    fallen.extend(
                        opened
                            .iter()
                            .filter(|id| ledger.refused_as(**id).is_some())
                            .copied(),
                    );
                    fallen.retain(|id| !closed.contains(id));
                    ledger.mark_reported(&opened, &closed);
                    ledger.receipts_kept(&Record::Reported {
                        opened,
                        closed,
                        refused,
                    });
                }
                Record::Marked(marked) => mark = Some(marked),
            }
        }
        fallen.retain(|id| ledger.refused_as(*id).is_some());
        let carried = match mark {
            Some(mark) if mark.boot_id != boot.id => Some(ledger.carry(mark, boot)),
            Some(mark) => {
                let earliest = mark
                    .time
                    .checked_add(boot.now.since(mark.at))
                    .unwrap_or(mark.time);
                ledger.bound_by_wall(&unsettled, earliest, boot);
                None
            }
            None => None,
        };
        Replayed {
            ledger,
            mark,
            carried,
            left_out,
            fallen: fallen.into_iter().collect(),
        }
    }

    /// Until the server is heard, the wall clock counts too, if it isn't plainly behind.
    fn bound_by_wall(&mut self, ids: &BTreeSet<GrantId>, earliest: Timestamp, boot: Boot) {
        for id in ids {
            self.entries.change(*id, |accepted| {
                let left = accepted.grant.grant().not_after.since(boot.wall);
                // Also without a word of the wall clock, the server's will settle it.
                accepted.wall_end = Some(if boot.wall >= earliest {
                    boot.now.plus(left)
                } else {
                    accepted.end
                });
            });
        }
    }

    /// Those that the whole, which names all of them once more, need not tell again.
    fn told_refusals(&self, is_whole: bool) -> BTreeMap<GrantId, String> {
        let told = |(id, entry): (GrantId, &Entry)| match entry {
            Entry::Refused { code, .. } if !self.untold_refusals.contains(&id) => Some((id, code.clone())),
            Entry::Refused { .. } | Entry::Accepted(_) => None,
        };
        let entries = is_whole.then(|| self.entries.iter());
        entries.into_iter().flatten().filter_map(told).collect()
    }

    fn replay_assigned(
        &mut self,
        assigned: AssignedRecord,
        ceiling: Option<&Ceiling>,
        left_out: &mut Vec<LeftOut>,
    ) {
        let told = self.told_refusals(assigned.whole);
        if assigned.whole {
            self.entries.clear();
            self.untold_refusals.clear();
            self.revoked = assigned.revoked.into_iter().collect();
            // A refusal below says why if it was that.
            let early = assigned.untold.into_iter().map(|id| (id, Closing::Removed));
            let ended = assigned.untold_ended.into_iter().map(|id| (id, Closing::Expired));
            self.untold = early.chain(ended).collect();
        }
        self.generation = assigned.generation;
        self.numbers = assigned.numbers.or(self.numbers);
        if let Some(Envelope(envelope)) = assigned.keys {
            match VerifiedKeys::verify(&envelope, &self.root) {
                Ok(keys) => self.keys = Some(keys),
                Err(rejected) => left_out.push(LeftOut::Keys(rejected)),
            }
        }
        for id in assigned.removed {
            self.remove(id);
        }
        self.forget_revoked(assigned.mark.time);
        let ends: BTreeMap<_, _> = assigned.refused_ends.into_iter().collect();
        for (id, code) in assigned.refused {
            if let Some(why) = self.untold.get_mut(&id) {
                *why = Closing::NoLongerValid;
            }
            self.owe_receipt(id, Closing::NoLongerValid);
            let known = self.refused_as(id).or_else(|| told.get(&id).map(String::as_str));
            if known != Some(code.as_str()) {
                self.untold_refusals.insert(id);
            }
            self.refuse(id, code, ends.get(&id).copied());
        }
        if !assigned.guarded.is_empty() {
            self.also_guarded = assigned.guarded;
        }
        let Some(keys) = self.keys.clone() else { return };
        if let Some(Envelope(envelope)) = assigned.policy {
            match VerifiedPolicy::verify(&envelope, &keys, self.machine) {
                Ok(policy) => {
                    self.policy = Some(policy);
                    self.also_guarded.clear();
                }
                Err(rejected) => left_out.push(LeftOut::Policy(rejected)),
            }
        }
        for Kept {
            id,
            envelope,
            start,
            end,
        } in assigned.accepted
        {
            let authentic = match envelope.authenticate(&keys, self.machine) {
                Ok(authentic) if authentic.grant().id == id => authentic,
                Ok(_) => {
                    self.refuse(id, "PAYLOAD_MALFORMED".to_string(), None);
                    continue;
                }
                Err(rejected) => {
                    self.refuse(id, rejected.code().to_string(), None);
                    continue;
                }
            };
            let not_after = authentic.grant().not_after;
            match authentic.verify_timeless(ceiling) {
                Ok(mut grant) => {
                    grant.condense();
                    let accepted = Accepted {
                        grant,
                        is_recorded: true,
                        start,
                        end,
                        wall_end: None,
                        opened: false,
                        closed: false,
                    };
                    self.entries.insert(id, Entry::Accepted(Box::new(accepted)));
                }
                Err(rejected) => self.refuse(id, rejected.code().to_string(), Some(not_after)),
            }
        }
    }

    /// Nothing opens before the record is on disk: without it the next reboot would count from the same mark.
    fn carry(&mut self, mark: Mark, boot: Boot) -> Record {
        self.entries.change_all(|accepted| {
            accepted.is_recorded = false;
            accepted.start = boot.now.plus(accepted.start.since(mark.at));
            accepted.opened &= accepted.start <= boot.now;
            // What has ended stays ended, although the last mark may be from before.
            accepted.end = if accepted.closed {
                boot.now
            } else {
                boot.now.plus(accepted.end.since(mark.at))
            };
        });
        let ids: BTreeSet<GrantId> = self.accepted().map(|(id, _)| id).collect();
        self.bound_by_wall(&ids, mark.time, boot);
        let number = self.next_number();
        self.unrecorded.insert(number, ids.into_iter().collect());
        Record::Carried {
            number,
            mark: mark.in_boot(boot.id, boot.now),
            ends: self.ends(),
            settled: false,
        }
    }
}

impl Accepted {
    pub(super) fn kept(&self, id: GrantId) -> Kept {
        Kept {
            id,
            envelope: self.grant.envelope(),
            start: self.start,
            end: self.end,
        }
    }
}
