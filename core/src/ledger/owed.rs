//! Receipts that are owed: for openings, ends and refusals that none was made for, or none is known to be on disk.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{Closing, Ledger, Record};
use crate::id::GrantId;
use crate::time::BootTime;

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

impl Ledger {
    pub(super) fn owe_receipts(&mut self, opened: &[GrantId], ended: &[GrantId]) {
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

    pub(super) fn owe_receipt(&mut self, id: GrantId, why: Closing) {
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

    pub(super) fn mark_reported(&mut self, opened: &[GrantId], closed: &[GrantId]) {
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
}
