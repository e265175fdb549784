//! The ledger on disk: what is written, and how it is read back.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Accepted;
use crate::assignment::Generation;
use crate::clock::Mark;
use crate::grant::SignedGrant;
use crate::id::GrantId;
use crate::port::PortSpan;
use crate::signing::base64_bytes;
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
        /// Those of them that were open. Where no record before says so, the receipt of it may be lost.
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
    /// Those of both whose opening has no receipt on disk either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) untold_openings: Vec<GrantId>,
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

    /// Says of no opening and no closing that it was reported where these alone report it.
    pub fn leave_out<'r>(&mut self, others: impl Iterator<Item = &'r Self>) {
        let (mut not_opened, mut not_closed) = (BTreeSet::<GrantId>::new(), BTreeSet::<GrantId>::new());
        for other in others {
            if let Self::Reported { opened, closed, .. } = other {
                not_opened.extend(opened);
                not_closed.extend(closed);
            }
        }
        match self {
            Self::Reported { opened, closed, .. } => {
                opened.retain(|id| !not_opened.contains(id));
                closed.retain(|id| !not_closed.contains(id));
            }
            Self::Assigned(assigned) => {
                let owed = assigned.untold.iter().chain(&assigned.untold_ended);
                let owed = owed.filter(|id| not_opened.contains(id)).copied();
                assigned.untold_openings.extend(owed);
            }
            Self::Removed { .. } | Self::Carried { .. } | Self::Marked(_) => {}
        }
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
    pub(super) id: GrantId,
    pub(super) envelope: SignedGrant,
    pub(super) start: BootTime,
    pub(super) end: BootTime,
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
