//! The digest of a ledger's ids, kept at some of them: ids rise with time, so one more comes behind nearly all.

use alloc::vec::Vec;
use core::ops::Bound;

use crate::assignment::UnfinishedDigest;
use crate::id::GrantId;

/// How many ids lie between two of them at most.
const DISTANCE: usize = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct Milestones(Vec<(GrantId, UnfinishedDigest)>);

impl Milestones {
    /// An id came or went: what was kept at it and behind it is void.
    pub(super) fn forget_from(&mut self, id: GrantId) {
        let sound = self.0.partition_point(|(last, _)| *last < id);
        self.0.truncate(sound);
    }

    /// The digest of what lies before `id`, as far as it is kept, and where the other ids begin.
    pub(super) fn before(&self, id: Option<GrantId>) -> (UnfinishedDigest, Bound<GrantId>) {
        let sound = self.0.partition_point(|(last, _)| id.is_none_or(|id| *last < id));
        let kept = sound.checked_sub(1).and_then(|place| self.0.get(place));
        kept.map_or_else(
            || (UnfinishedDigest::default(), Bound::Unbounded),
            |(last, digest)| (digest.clone(), Bound::Excluded(*last)),
        )
    }

    /// Goes on behind the last one. `rest` are the ids behind it.
    pub(super) fn extend(&mut self, rest: impl Iterator<Item = GrantId>) {
        let (mut digest, _) = self.before(None);
        for (count, id) in (1_usize..).zip(rest) {
            digest.add(id);
            if count.is_multiple_of(DISTANCE) {
                self.0.push((id, digest.clone()));
            }
        }
    }
}
