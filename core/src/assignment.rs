//! Assignments: what the server wants a machine to have, as state with a generation.
//!
//! An assignment isn't signed: by itself it can only close. What it adds is signed piece by piece.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::grant::SignedGrant;
use crate::id::GrantId;

/// Rises with each change of a machine's assignment: the greater of (last + 1) and microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Count and SHA-256 over the sorted ids of a machine's grants, so that both ends know they agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub count: u32,
    pub sha256: [u8; 32],
}

impl Digest {
    pub fn of<'i>(ids: impl IntoIterator<Item = &'i GrantId>) -> Self {
        Self::of_sorted(ids.into_iter().collect::<BTreeSet<_>>())
    }

    /// Of ids that come in their order, each once.
    pub(crate) fn of_sorted<'i>(ids: impl IntoIterator<Item = &'i GrantId>) -> Self {
        let mut digest = UnfinishedDigest::default();
        ids.into_iter().for_each(|id| digest.add(*id));
        digest.finish()
    }
}

/// A digest of the first ids.
#[derive(Clone, Debug, Default)]
pub struct UnfinishedDigest {
    count: u32,
    hash: Sha256,
}

impl UnfinishedDigest {
    /// Ids come in their order, each once.
    pub fn add(&mut self, id: GrantId) {
        self.count = self.count.saturating_add(1);
        self.hash.update(id.uuid().as_bytes());
    }

    pub fn finish(self) -> Digest {
        Digest {
            count: self.count,
            sha256: self.hash.finalize().into(),
        }
    }
}

/// A grant as it travels: its id beside the signed bytes, so that one that can't be read still counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub id: GrantId,
    pub envelope: SignedGrant,
}

/// A change from one generation to a later one, or the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub generation: Generation,
    /// What the change starts from; `None`: this is the whole, and what it doesn't name goes.
    pub base: Option<Generation>,
    /// The root's key list, where it changed.
    pub keys: Option<Vec<u8>>,
    /// The machine's signed policy, where it changed.
    pub policy: Option<Vec<u8>>,
    pub added: Vec<Assigned>,
    pub removed: Vec<GrantId>,
    /// Over the grants that the machine has after the change.
    pub digest: Digest,
}
