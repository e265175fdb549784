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
    /// Takes them out, and owes the receipts of those that were open.
    pub(super) fn remove_opened(&mut self, ids: &[GrantId], opened: &[GrantId], ended: &[GrantId]) {
        let ended: BTreeSet<&GrantId> = ended.iter().collect();
        for id in opened {
            let why = if ended.contains(id) {
                Closing::Expired
            } else {
                Closing::Removed
            };
            self.owe(*id, why);
        }
        ids.iter().for_each(|id| self.remove(*id));
    }

    pub(super) fn owe_receipt(&mut self, id: GrantId, why: Closing) {
        if self.was_opened(id) {
            self.owe(id, why);
        }
    }

    fn owe(&mut self, id: GrantId, why: Closing) {
        self.untold.insert(id, why);
        let is_told = self.entries.accepted(id).is_some_and(|accepted| accepted.opened);
        if !is_told {
            self.untold_openings.insert(id);
        }
    }

    /// Closings before the end whose receipts may have been lost in a crash.
    pub fn untold(&self) -> impl Iterator<Item = (GrantId, Closing)> {
        self.untold.iter().map(|(id, why)| (*id, *why))
    }

    /// Whether the receipt of its opening may be lost as well, or was never made.
    pub fn is_opening_untold(&self, id: GrantId) -> bool {
        self.untold_openings.contains(&id)
    }

    /// The receipts that a record of [`Self::reported`] is about are on disk.
    pub fn receipts_kept(&mut self, record: &Record) {
        if let Record::Reported {
            opened,
            closed,
            refused,
        } = record
        {
            opened.iter().chain(closed).for_each(|id| {
                self.untold_openings.remove(id);
            });
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

    /// The firewall does what was due by then.
    pub fn enforced(&mut self, at: BootTime) {
        let opened = self.unreported(at).opened;
        self.let_in.extend(opened);
    }

    /// Openings and ends that no receipt has been made for yet. What has ended meanwhile is among both.
    pub fn unreported(&self, now: BootTime) -> Unreported {
        let mut unreported = Unreported::default();
        for id in self.entries.due(now) {
            let Some(accepted) = self.entries.accepted(id) else {
                continue;
            };
            let is_open = accepted.is_open(now) || self.let_in.contains(&id);
            if is_open && !accepted.opened && !accepted.closed {
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
            self.let_in.remove(id);
            self.entries.change(*id, |accepted| accepted.opened = true);
        }
        for id in closed {
            self.entries.change(*id, |accepted| accepted.closed = true);
        }
    }

    /// Whether a grant in the ledger was let in, by a receipt or by the firewall, and not been reported as closed.
    pub fn was_opened(&self, id: GrantId) -> bool {
        let is_let_in = || self.let_in.contains(&id);
        self.entries
            .accepted(id)
            .is_some_and(|accepted| (accepted.opened || is_let_in()) && !accepted.closed)
    }

    /// Whether a grant in the ledger has come to its own end, and has not been reported as closed.
    pub fn has_ended(&self, id: GrantId, now: BootTime) -> bool {
        self.entries
            .accepted(id)
            .is_some_and(|accepted| accepted.end <= now && !accepted.closed)
    }
}
