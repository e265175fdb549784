//! Reading a ledger back from its records.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::record::{Envelope, Kept};
use super::{Accepted, AssignedRecord, Closing, Entry, Ledger, LeftOut, Record};
use crate::ceiling::Ceiling;
use crate::clock::Mark;
use crate::id::{GrantId, MachineId};
use crate::keys::VerifiedKeys;
use crate::policy::VerifiedPolicy;
use crate::signing::PublicKey;
use crate::time::{BootId, BootTime, Timestamp};

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

/// A ledger as of the records read so far.
struct Replay<'c> {
    ledger: Ledger,
    ceiling: Option<&'c Ceiling>,
    mark: Option<Mark>,
    left_out: Vec<LeftOut>,
    fallen: BTreeSet<GrantId>,
    /// Carried over a reboot, and the server was not heard since.
    unsettled: BTreeSet<GrantId>,
}

impl Replay<'_> {
    fn take(&mut self, record: Record) {
        self.ledger.skip_to(record.number().unwrap_or_default());
        match record {
            Record::Assigned(assigned) => {
                self.mark = Some(assigned.mark);
                self.ledger
                    .replay_assigned(assigned, self.ceiling, &mut self.left_out);
            }
            Record::Removed {
                ids, ended, opened, ..
            } => self.ledger.remove_opened(&ids, &opened, &ended),
            Record::Carried {
                number: _,
                mark,
                ends,
                settled,
            } => self.carried(mark, ends, settled),
            Record::Reported {
                opened,
                closed,
                refused,
            } => self.reported(opened, closed, refused),
            Record::Marked(marked) => self.mark = Some(marked),
        }
    }

    fn carried(&mut self, mark: Mark, ends: Vec<(GrantId, BootTime, BootTime)>, settled: bool) {
        self.mark = Some(mark);
        self.unsettled.clear();
        for (id, start, end) in ends {
            self.ledger.entries.change(id, |accepted| {
                (accepted.start, accepted.end) = (start, end);
                accepted.opened &= start <= mark.at;
                if settled {
                    accepted.reopen(mark.at);
                }
                self.unsettled.extend((!settled).then_some(id));
            });
        }
    }

    fn reported(&mut self, opened: Vec<GrantId>, closed: Vec<GrantId>, refused: Vec<GrantId>) {
        let has_fallen = |id: &&GrantId| self.ledger.refused_as(**id).is_some();
        self.fallen.extend(opened.iter().filter(has_fallen).copied());
        self.fallen.retain(|id| !closed.contains(id));
        self.ledger.mark_reported(&opened, &closed);
        self.ledger.receipts_kept(&Record::Reported {
            opened,
            closed,
            refused,
        });
    }

    fn end_in(self, boot: Boot) -> Replayed {
        let Self {
            mut ledger,
            ceiling: _,
            mark,
            left_out,
            mut fallen,
            unsettled,
        } = self;
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
}

impl Ledger {
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
        let mut replay = Replay {
            ledger: Self::new(machine, root),
            ceiling,
            mark: None,
            left_out: Vec::new(),
            fallen: BTreeSet::new(),
            unsettled: BTreeSet::new(),
        };
        for record in records {
            replay.take(record);
        }
        replay.end_in(boot)
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
            // A refusal says why if it was that.
            let early = assigned.untold.into_iter().map(|id| (id, Closing::Removed));
            let ended = assigned.untold_ended.into_iter().map(|id| (id, Closing::Expired));
            self.untold = early.chain(ended).collect();
            self.untold_openings = assigned.untold_openings.into_iter().collect();
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
            self.replay_refused(id, code, ends.get(&id).copied(), &told);
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
        for kept in assigned.accepted {
            self.replay_kept(kept, &keys, ceiling);
        }
    }

    fn replay_refused(
        &mut self,
        id: GrantId,
        code: String,
        end: Option<Timestamp>,
        told: &BTreeMap<GrantId, String>,
    ) {
        if let Some(why) = self.untold.get_mut(&id) {
            *why = Closing::NoLongerValid;
        }
        self.owe_receipt(id, Closing::NoLongerValid);
        let known = self.refused_as(id).or_else(|| told.get(&id).map(String::as_str));
        if known != Some(code.as_str()) {
            self.untold_refusals.insert(id);
        }
        self.refuse(id, code, end);
    }

    fn replay_kept(&mut self, kept: Kept, keys: &VerifiedKeys, ceiling: Option<&Ceiling>) {
        let Kept {
            id,
            envelope,
            start,
            end,
        } = kept;
        let authentic = match envelope.authenticate(keys, self.machine) {
            Ok(authentic) if authentic.grant().id == id => authentic,
            Ok(_) => return self.refuse(id, "PAYLOAD_MALFORMED".to_string(), None),
            Err(rejected) => return self.refuse(id, rejected.code().to_string(), None),
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
