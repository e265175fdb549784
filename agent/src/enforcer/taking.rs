//! What the enforcer does with an assignment: what goes, goes at once; what comes, waits for its record.

use nightlatch_core::assignment::{Assignment, Generation};
use nightlatch_core::keys::{ListNumber, VerifiedKeys};
use nightlatch_core::ledger::{AssignmentRefused, Change, Closing, LeftOut, Numbers, Unreported};
use nightlatch_core::policy::VerifiedPolicy;
use nightlatch_core::time::BootTime;

use super::{Enforcer, Gate, MOST_WAITING};
use crate::clock::Clock;
use crate::server_link::Taken;
use crate::writer::Disk;

/// An assignment whose record isn't on disk yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unanswered {
    pub(super) number: u64,
    pub(super) generation: Generation,
    pub(super) is_whole: bool,
    pub(super) lacks_policy: bool,
}

impl Unanswered {
    /// Once this one's record is on disk, that of an earlier one is as well.
    fn includes(&mut self, earlier: Self) {
        self.lacks_policy = !(self.brings_policy() || earlier.brings_policy());
        self.is_whole |= earlier.is_whole;
    }

    const fn brings_policy(self) -> bool {
        self.is_whole && !self.lacks_policy
    }
}

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    pub(super) fn assigned(&mut self, assignment: Assignment) {
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

    /// What goes with it, whatever becomes of the rest.
    fn remove(&mut self, assignment: &Assignment, now: BootTime) {
        let gone = self.ledger.removals(assignment);
        if gone.is_empty() {
            return;
        }
        let mut told = Vec::new();
        for id in &gone {
            if self.ledger.has_ended(*id, now) {
                told.push((*id, Closing::Expired.code()));
            } else if self.ledger.was_opened(*id) {
                told.push((*id, Closing::Removed.code()));
            }
        }
        let weight = gone.len();
        let record = self.ledger.remove_all(gone, now);
        let number = self.ledger.number();
        self.closed
            .extend(told.into_iter().map(|(id, why)| (id, why, number)));
        self.enforce();
        self.record(record, weight, true);
    }

    pub(super) fn take(&mut self, assignment: &Assignment) {
        let now = self.clock.now();
        let generation = assignment.generation;
        let ceiling = self.rules.ceiling.as_ref();
        let considered = self.ledger.consider(assignment, ceiling, &self.time, now);
        let mut change = match considered {
            Ok(change) => change,
            Err(refused) => return self.not_taken(generation, &refused),
        };
        let closes = self.close(&change);
        self.tell_left_out(change.left_out());
        let lacks_policy = change.left_out().iter().any(|left_out| match left_out {
            LeftOut::Policy(_) | LeftOut::NoKeys => true,
            LeftOut::Keys(_) | LeftOut::OlderKeys { .. } => false,
        });
        let refused = self.newly_refused(&change);
        let guards = self.guards();
        self.give_numbers(&mut change, refused.len(), now);
        self.record(change.record(), assignment.added.len().saturating_add(1), true);
        self.ledger.commit(change);
        let has_guards = guards != self.guards();
        if has_guards {
            // Keys and policy are written twice, see `ledger_file::snapshot`.
            self.ledger_lane.lag();
        }
        if closes || has_guards {
            self.enforce();
        }
        let ids = refused.iter().map(|happening| happening.grant).collect();
        self.add_receipts(refused);
        self.note(Unreported {
            refused: ids,
            ..Unreported::default()
        });
        self.owe_answer(Unanswered {
            number: self.ledger.number(),
            generation,
            is_whole: assignment.base.is_none(),
            lacks_policy,
        });
    }

    fn not_taken(&mut self, generation: Generation, refused: &AssignmentRefused) {
        let taken = if refused.needs_whole() {
            Taken::NeedWhole
        } else {
            Taken::Refused
        };
        tracing::warn!(%generation, %refused, "assignment not taken");
        self.reply(generation, taken, &refused.to_string());
    }

    fn tell_left_out(&mut self, left_out: &[LeftOut]) {
        if left_out.is_empty() {
            self.forget_said_but(&[
                "FIREWALL_FAILED",
                "TIME_JUMP",
                "LEDGER_NOT_WRITTEN",
                "RECEIPTS_NOT_WRITTEN",
                "DISK_HANGS",
            ]);
        }
        for left_out in left_out {
            tracing::error!(code = left_out.code(), %left_out, "part of the assignment refused");
            self.report(left_out.code(), left_out.to_string());
        }
    }

    fn owe_answer(&mut self, unanswered: Unanswered) {
        self.unanswered.push_back(unanswered);
        if self.unanswered.len() > MOST_WAITING
            && let Some(overtaken) = self.unanswered.pop_front()
            && let Some(next) = self.unanswered.front_mut()
        {
            next.includes(overtaken);
        }
    }

    /// For the receipts that follow with this record: they needn't wait for the disk once more.
    fn give_numbers(&mut self, change: &mut Change, refused: usize, now: BootTime) {
        let openings = self.closed.iter();
        let openings = openings.filter(|(id, ..)| self.ledger.is_opening_untold(*id));
        let count = refused
            .saturating_add(openings.count())
            .saturating_add(self.closed.len())
            .saturating_add(change.opening(now));
        let last = self.giving.back().map_or(self.given, |(_, upto)| *upto);
        let upto = last
            .max(self.outbox.last())
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        change.give_numbers(Numbers {
            upto,
            boot_id: self.time.boot_id(),
            before: self.outbox.before(),
        });
        if self.giving.len() >= MOST_WAITING {
            self.giving.pop_front();
        }
        let number = self.ledger.number().saturating_add(1);
        self.giving.push_back((number, upto));
    }

    fn guards(&self) -> (Option<ListNumber>, Option<(u64, u64)>) {
        (
            self.ledger.keys().map(VerifiedKeys::number),
            self.ledger.policy().map(VerifiedPolicy::rank),
        )
    }

    fn close(&mut self, change: &Change) -> bool {
        let number = self.ledger.number().saturating_add(1);
        for (id, why) in change.closing() {
            if self.ledger.was_opened(*id) {
                self.closed.push((*id, why.code(), number));
            }
        }
        self.ledger.close(change);
        !change.closing().is_empty()
    }
}
