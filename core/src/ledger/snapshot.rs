//! The records that rebuild a ledger, for compaction.

use alloc::vec::Vec;

use super::record::Envelope;
use super::{AssignedRecord, Closing, Entry, Ledger, Record};
use crate::assignment::Generation;
use crate::clock::Mark;
use crate::id::GrantId;
use crate::port::PortSpan;

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
            untold_openings: self.untold_openings.iter().copied().collect(),
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
}
