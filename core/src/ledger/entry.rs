//! One grant of a ledger, taken or refused.

use alloc::boxed::Box;
use alloc::string::String;
use core::time::Duration;

use crate::clock::Mark;
use crate::grant::{Grant, VerifiedGrant};
use crate::time::{BootTime, Timestamp};

/// How late an end may become, by a slow clock of the host, before it is mended.
const TOLERATED_DRIFT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) grant: VerifiedGrant,
    /// Whether the record that brought it is on disk; until then it does not open.
    pub(super) is_recorded: bool,
    pub(super) start: BootTime,
    /// Fixed at the first acceptance; whatever comes later only shortens it.
    pub(super) end: BootTime,
    /// After a reboot, until the server is heard: what the wall clock says at the least.
    pub(super) wall_end: Option<BootTime>,
    pub(super) opened: bool,
    pub(super) closed: bool,
}

impl Accepted {
    pub(super) fn end(&self) -> BootTime {
        self.wall_end.map_or(self.end, |wall_end| wall_end.min(self.end))
    }

    pub(super) fn is_open(&self, now: BootTime) -> bool {
        self.is_recorded && self.start <= now && now < self.end()
    }

    /// Whether its end lies past the true one for sure, and by more than is worth a word to the disk.
    pub(super) fn is_late(&self, mark: Mark) -> bool {
        let at_most = self.grant.grant().not_after.since(mark.time);
        mark.at < self.end && mark.at.plus(at_most).plus(TOLERATED_DRIFT) < self.end
    }

    /// A wall clock that ran ahead had closed it: both are reported anew.
    pub(super) fn reopen(&mut self, now: BootTime) {
        if self.closed && now < self.end {
            (self.opened, self.closed) = (false, false);
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Entry {
    Accepted(Box<Accepted>),
    /// Kept for the digest, and so that it is judged again only when the whole comes.
    Refused {
        code: String,
        /// Its end, if a listed key signed it for this machine: once removed, it must not come back.
        not_after: Option<Timestamp>,
    },
}

impl Entry {
    pub(super) fn not_after(&self) -> Option<Timestamp> {
        match self {
            Self::Accepted(accepted) => Some(accepted.grant.grant().not_after),
            Self::Refused { not_after, .. } => *not_after,
        }
    }
}

/// A grant as the ledger holds it, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<'l> {
    pub grant: &'l Grant,
    pub start: BootTime,
    pub end: BootTime,
}
