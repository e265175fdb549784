//! The grants that an agent is believed to have.

use std::collections::BTreeSet;

use nightlatch_core::assignment::{Digest, UnfinishedDigest};
use nightlatch_core::id::GrantId;

/// In their order, and digested as they come: ids rise with time, so that new ones go behind all others.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    ids: Vec<GrantId>,
    digest: UnfinishedDigest,
}

impl FromIterator<GrantId> for Holdings {
    fn from_iter<I: IntoIterator<Item = GrantId>>(ids: I) -> Self {
        Self::of(ids.into_iter().collect())
    }
}

impl Holdings {
    fn of(ids: BTreeSet<GrantId>) -> Self {
        let mut digest = UnfinishedDigest::default();
        ids.iter().for_each(|id| digest.add(*id));
        Self {
            ids: ids.into_iter().collect(),
            digest,
        }
    }

    pub fn digest(&self) -> Digest {
        self.digest.clone().finish()
    }

    /// Without some, and with others.
    #[must_use]
    pub fn changed(&self, removed: &[GrantId], added: impl Iterator<Item = GrantId>) -> Self {
        let removed: BTreeSet<&GrantId> = removed.iter().collect();
        let added: BTreeSet<GrantId> = added.collect();
        if removed.is_empty() && added.first() > self.ids.last() {
            let mut changed = self.clone();
            for id in added {
                changed.digest.add(id);
                changed.ids.push(id);
            }
            return changed;
        }
        let stay = self.ids.iter().filter(|id| !removed.contains(id));
        stay.copied().chain(added).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn however_they_come_and_go_the_digest_is_that_of_the_grants_that_are_left() {
        let ids = |numbers: &[u128]| -> Vec<GrantId> {
            numbers
                .iter()
                .map(|number| GrantId::new(Uuid::from_u128(*number)))
                .collect()
        };
        let check = |held: &Holdings, left: &[u128]| {
            assert_eq!(held.ids, ids(left));
            assert_eq!(held.digest(), Digest::of(&ids(left)));
        };
        let mut held = Holdings::default();
        for (removed, added, left) in [
            (&[][..], &[5, 7][..], &[5, 7][..]),
            (&[], &[9], &[5, 7, 9]),
            (&[], &[9, 8], &[5, 7, 8, 9]),
            (&[5, 6], &[], &[7, 8, 9]),
            (&[9], &[3, 9], &[3, 7, 8, 9]),
            (&[], &[], &[3, 7, 8, 9]),
        ] {
            held = held.changed(&ids(removed), ids(added).into_iter());
            check(&held, left);
        }
    }
}
