//! A ledger's grants by id, and beside them what is asked of all together, kept up with each change.

use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::Bound;

use uuid::Uuid;

use super::milestones::Milestones;
use super::{Accepted, Entry};
use crate::assignment::Digest;
use crate::grant::Grant;
use crate::id::GrantId;
use crate::ruleset::{End, OpeningKey};
use crate::time::BootTime;

const FIRST: GrantId = GrantId::new(Uuid::nil());
const LAST: GrantId = GrantId::new(Uuid::max());

#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    by_id: BTreeMap<GrantId, Entry>,
    index: Index,
    milestones: Milestones,
}

#[derive(Clone, Debug, Default)]
struct Index {
    by_opening: BTreeSet<(OpeningKey, GrantId)>,
    /// Starts and ends that no receipt was made for yet.
    moments: BTreeSet<(BootTime, GrantId)>,
    /// What may have another end than when it was last taken.
    touched: BTreeSet<OpeningKey>,
}

impl Entries {
    pub(super) fn get(&self, id: GrantId) -> Option<&Entry> {
        self.by_id.get(&id)
    }

    pub(super) fn accepted(&self, id: GrantId) -> Option<&Accepted> {
        match self.by_id.get(&id)? {
            Entry::Accepted(accepted) => Some(accepted),
            Entry::Refused { .. } => None,
        }
    }

    pub(super) fn contains(&self, id: GrantId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// In the order of their ids.
    pub(super) fn ids(&self) -> impl Iterator<Item = &GrantId> {
        self.by_id.keys()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (GrantId, &Entry)> {
        self.by_id.iter().map(|(id, entry)| (*id, entry))
    }

    /// Source and port with each grant that opens it.
    pub(super) fn openings(&self) -> usize {
        self.index.by_opening.len()
    }

    /// Over the ids that there are without those that go and with those that come.
    pub(super) fn digest_after(&self, gone: &BTreeSet<GrantId>, added: &BTreeSet<GrantId>) -> Digest {
        let first = gone.first().into_iter().chain(added.first()).min();
        let (mut digest, from) = self.milestones.before(first.copied());
        let mut coming = added.iter().copied().peekable();
        for (id, _) in self.by_id.range((from, Bound::Unbounded)) {
            while let Some(before) = coming.next_if(|coming| coming < id) {
                digest.add(before);
            }
            if coming.next_if_eq(id).is_some() || !gone.contains(id) {
                digest.add(*id);
            }
        }
        coming.for_each(|id| digest.add(id));
        digest.finish()
    }

    /// The next digest will cost what changes until then.
    pub(super) fn keep_digest(&mut self) {
        let (_, from) = self.milestones.before(None);
        let rest = self.by_id.range((from, Bound::Unbounded));
        self.milestones.extend(rest.map(|(id, _)| *id));
    }

    pub(super) fn insert(&mut self, id: GrantId, entry: Entry) {
        self.remove(id);
        self.milestones.forget_from(id);
        if let Entry::Accepted(accepted) = &entry {
            self.index.enter(id, accepted);
        }
        self.by_id.insert(id, entry);
    }

    pub(super) fn remove(&mut self, id: GrantId) -> Option<Entry> {
        let entry = self.by_id.remove(&id)?;
        self.milestones.forget_from(id);
        if let Entry::Accepted(accepted) = &entry {
            self.index.leave(id, accepted);
        }
        Some(entry)
    }

    pub(super) fn clear(&mut self) {
        self.by_id.clear();
        self.milestones = Milestones::default();
        self.index.clear();
    }

    /// Changes a grant that was accepted.
    pub(super) fn change(&mut self, id: GrantId, change: impl FnOnce(&mut Accepted)) {
        if let Some(Entry::Accepted(accepted)) = self.by_id.get_mut(&id) {
            self.index.change(id, accepted, change);
        }
    }

    pub(super) fn change_all(&mut self, mut change: impl FnMut(&mut Accepted)) {
        for (id, entry) in &mut self.by_id {
            if let Entry::Accepted(accepted) = entry {
                self.index.change(*id, accepted, &mut change);
            }
        }
    }

    /// The next start or end after `now`.
    pub(super) fn next_moment(&self, now: BootTime) -> Option<BootTime> {
        let later = (Bound::Excluded((now, LAST)), Bound::Unbounded);
        self.index.moments.range(later).next().map(|(moment, _)| *moment)
    }

    /// Those that have started or ended by `now` without a receipt for it.
    pub(super) fn due(&self, now: BootTime) -> BTreeSet<GrantId> {
        let due = self.index.moments.range(..=(now, LAST));
        due.map(|(_, id)| *id).collect()
    }

    /// The openings whose end at `now` may be another than it was at `then`, when this was last asked.
    pub(super) fn take_touched(&mut self, then: BootTime, now: BootTime) -> BTreeSet<OpeningKey> {
        let mut touched = core::mem::take(&mut self.index.touched);
        let between = (Bound::Excluded((then, LAST)), Bound::Included((now, LAST)));
        if then < now {
            for (_, id) in self.index.moments.range(between) {
                touched.extend(
                    self.accepted(*id)
                        .into_iter()
                        .flat_map(|held| openings(held.grant.grant())),
                );
            }
        }
        touched
    }

    /// Everything will be looked at anyway.
    pub(super) fn forget_touched(&mut self) {
        self.index.touched.clear();
    }

    /// The latest end of the grants that hold it open.
    pub(super) fn end_of(&self, key: OpeningKey, now: BootTime) -> Option<End> {
        let grants = self.index.by_opening.range((key, FIRST)..=(key, LAST));
        let open = grants
            .filter_map(|(_, id)| self.accepted(*id))
            .filter(|accepted| accepted.is_open(now));
        open.map(|accepted| End::At(accepted.end())).max()
    }
}

impl Index {
    fn enter(&mut self, id: GrantId, accepted: &Accepted) {
        for key in openings(accepted.grant.grant()) {
            self.by_opening.insert((key, id));
            self.touched.insert(key);
        }
        self.await_moments(id, accepted);
    }

    fn leave(&mut self, id: GrantId, accepted: &Accepted) {
        for key in openings(accepted.grant.grant()) {
            self.by_opening.remove(&(key, id));
            self.touched.insert(key);
        }
        self.forget_moments(id, accepted);
    }

    fn change(&mut self, id: GrantId, accepted: &mut Accepted, change: impl FnOnce(&mut Accepted)) {
        let state = |held: &Accepted| (held.is_recorded, held.start, held.end());
        let before = state(accepted);
        self.forget_moments(id, accepted);
        change(accepted);
        self.await_moments(id, accepted);
        if before != state(accepted) {
            self.touched.extend(openings(accepted.grant.grant()));
        }
    }

    fn clear(&mut self) {
        let openings = core::mem::take(&mut self.by_opening);
        self.touched.extend(openings.into_iter().map(|(key, _)| key));
        self.moments.clear();
    }

    fn await_moments(&mut self, id: GrantId, accepted: &Accepted) {
        if !accepted.opened {
            self.moments.insert((accepted.start, id));
        }
        if !accepted.closed {
            self.moments.insert((accepted.end(), id));
        }
    }

    fn forget_moments(&mut self, id: GrantId, accepted: &Accepted) {
        self.moments.remove(&(accepted.start, id));
        self.moments.remove(&(accepted.end(), id));
    }
}

/// How many of its openings differ: its sources and ports may overlap.
pub(super) fn count(grant: &Grant) -> usize {
    openings(grant).collect::<BTreeSet<_>>().len()
}

pub(super) fn openings(grant: &Grant) -> impl Iterator<Item = OpeningKey> {
    grant.sources.iter().flat_map(|source| {
        let keys = grant.ports.iter().flat_map(|span| span.keys());
        keys.map(|key| OpeningKey { source: *source, key })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_same_from_its_milestones_as_from_the_start() {
        let id = |number: u128| GrantId::new(Uuid::from_u128(number));
        let refused = || Entry::Refused {
            code: alloc::string::String::new(),
            not_after: None,
        };
        let mut entries = Entries::default();
        let mut seed: u128 = 1;
        let mut random = |below: u128| {
            seed = seed
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f)
                % (1 << 64);
            (seed >> 20) % below
        };
        for round in 0..400 {
            let gone: BTreeSet<GrantId> = (0..random(4)).map(|_| id(random(3_000) + round)).collect();
            let added: BTreeSet<GrantId> = (0..random(20)).map(|_| id(random(2_000) + 5 * round)).collect();
            let mut after: BTreeSet<GrantId> = entries.ids().copied().collect();
            after.retain(|id| !gone.contains(id));
            after.extend(&added);
            assert_eq!(entries.digest_after(&gone, &added), Digest::of(&after), "{round}");
            gone.iter().for_each(|id| drop(entries.remove(*id)));
            added.iter().for_each(|id| entries.insert(*id, refused()));
            if random(3) > 0 {
                entries.keep_digest();
            }
            let none = BTreeSet::new();
            assert_eq!(entries.digest_after(&none, &none), Digest::of(&after), "{round}");
        }
        assert!(entries.by_id.len() > 1_000);
    }
}
