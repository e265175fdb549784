//! Judging an assignment against what the host has.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use super::judging::{Judged, Refusal, authenticate, fix};
use super::record::Envelope;
use super::{Accepted, AssignedRecord, Closing, Ledger, MOST_GRANTS, Numbers, Record};
use crate::assignment::{Assignment, Generation};
use crate::ceiling::Ceiling;
use crate::clock::{HostClock, Mark};
use crate::grant::GrantRejected;
use crate::id::GrantId;
use crate::keys::{ListNumber, VerifiedKeys};
use crate::policy::{PolicyRejected, VerifiedPolicy};
use crate::signing::EnvelopeRejected;
use crate::time::{BootTime, Timestamp};

/// How far ahead of the host's time a generation (microseconds since 1970) may lie.
const GENERATION_AHEAD: Duration = Duration::from_secs(24 * 3600);

/// Why an assignment is not taken. The host keeps what it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentRefused {
    #[error("generation {offered} is not later than {held}, which the host already has")]
    Stale { offered: Generation, held: Generation },
    #[error("generation {offered} lies more than a day ahead of the host's time")]
    AheadOfTime { offered: Generation },
    #[error("the host has not heard the server's time yet")]
    TimeUnknown,
    #[error("the change starts from generation {base}, the host has {held}: send the whole")]
    OtherBase { base: Generation, held: Generation },
    #[error("the machine would have {0} grants, at most {MOST_GRANTS} are taken")]
    TooMany(usize),
    #[error("count or digest of the grants does not fit: send the whole")]
    DigestDiffers,
}

impl AssignmentRefused {
    /// Whether the whole assignment would help.
    pub const fn needs_whole(&self) -> bool {
        matches!(self, Self::OtherBase { .. } | Self::DigestDiffers)
    }
}

/// Something of an assignment that was left out, while the rest was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    #[error("key list refused: {0}")]
    Keys(#[source] EnvelopeRejected),
    #[error("key list {offered:?} refused: the host already has {held:?}")]
    OlderKeys { offered: ListNumber, held: ListNumber },
    #[error("policy refused: {0}")]
    Policy(#[source] PolicyRejected),
    #[error("policy refused: no key list is known to check it with")]
    NoKeys,
}

impl LeftOut {
    /// The stable code that events and logs carry.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Keys(rejected) => rejected.code(),
            Self::OlderKeys { .. } => "KEYS_OLDER",
            Self::Policy(rejected) => rejected.code(),
            Self::NoKeys => "KEYS_MISSING",
        }
    }
}

/// A considered assignment: what goes to disk, and what becomes of it once it is there.
#[derive(Clone, Debug)]
pub struct Change {
    pub(super) record: AssignedRecord,
    pub(super) keys: Option<VerifiedKeys>,
    pub(super) policy: Option<VerifiedPolicy>,
    pub(super) closing: Vec<(GrantId, Closing)>,
    pub(super) accepted: Vec<(GrantId, Box<Accepted>)>,
    pub(super) refused: Vec<(GrantId, GrantRejected)>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Change {
    /// How many grants open with it, once its record is on disk.
    pub fn opening(&self, now: BootTime) -> usize {
        let accepted = self.accepted.iter();
        accepted.filter(|(_, accepted)| accepted.start <= now).count()
    }

    /// With its record, receipts up to this number may be sent before they are on disk themselves.
    pub const fn give_numbers(&mut self, numbers: Numbers) {
        self.record.numbers = Some(numbers);
    }

    /// For the ledger's file, before [`Ledger::commit`].
    pub fn record(&self) -> Record {
        Record::Assigned(self.record.clone())
    }

    /// Grants that close with it, if they were open.
    pub fn closing(&self) -> &[(GrantId, Closing)] {
        &self.closing
    }

    pub fn refused(&self) -> &[(GrantId, GrantRejected)] {
        &self.refused
    }

    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }
}

impl Ledger {
    /// Judges an assignment against what the host has. Nothing changes yet.
    ///
    /// # Errors
    /// What is older, too far ahead, or doesn't fit the grants that the host has.
    pub fn consider(
        &self,
        assignment: &Assignment,
        ceiling: Option<&Ceiling>,
        clock: &HostClock,
        now: BootTime,
    ) -> Result<Change, AssignmentRefused> {
        let latest = clock.latest(now).ok_or(AssignmentRefused::TimeUnknown)?;
        let mark = clock.mark(now).ok_or(AssignmentRefused::TimeUnknown)?;
        let mut left_out = Vec::new();
        let keys = self.newer_keys(assignment, &mut left_out);
        let known = keys.as_ref().or(self.keys.as_ref());
        self.check_generation(assignment, keys.as_ref(), latest)?;
        let policy = self.newer_policy(assignment, known, &mut left_out);

        let gone = self.gone(assignment, assignment.base.is_none());
        let added: BTreeSet<GrantId> = assignment.added.iter().map(|added| added.id).collect();
        self.check_outcome(assignment, &gone, &added)?;
        let judged = self.judge_added(assignment, &gone, |added| {
            let authentic = authenticate(added, known, self.machine)?;
            let not_after = Some(authentic.grant().not_after);
            match authentic.verify(ceiling, latest) {
                Ok(grant) => Ok(fix(grant, latest, now)),
                Err(rejected) => Err(Refusal { rejected, not_after }),
            }
        });
        let mut closing: Vec<_> = gone.iter().map(|id| (*id, Closing::Removed)).collect();
        if let Some(keys) = &keys {
            let stays = |id: &GrantId| !gone.contains(id) || added.contains(id);
            let fallen = self.fallen_with(keys, ceiling).filter(stays);
            closing.extend(fallen.map(|id| (id, Closing::NoLongerValid)));
        }
        let record = record(
            assignment.generation,
            mark,
            keys.as_ref(),
            policy.as_ref(),
            &closing,
            &judged,
        );
        let Judged {
            accepted, refused, ..
        } = judged;
        Ok(Change {
            record: AssignedRecord {
                number: self.number.saturating_add(1),
                ..record
            },
            keys,
            policy,
            closing,
            accepted,
            refused,
            left_out,
        })
    }

    /// Whether the machine has the grants after it that the server means.
    fn check_outcome(
        &self,
        assignment: &Assignment,
        gone: &BTreeSet<GrantId>,
        added: &BTreeSet<GrantId>,
    ) -> Result<(), AssignmentRefused> {
        let digest = self.entries.digest_after(gone, added);
        let count = usize::try_from(digest.count).unwrap_or(usize::MAX);
        if count > MOST_GRANTS {
            return Err(AssignmentRefused::TooMany(count));
        }
        if digest != assignment.digest {
            return Err(AssignmentRefused::DigestDiffers);
        }
        Ok(())
    }

    /// Keys that left the list take their grants with them.
    fn fallen_with(&self, keys: &VerifiedKeys, ceiling: Option<&Ceiling>) -> impl Iterator<Item = GrantId> {
        let verifies = move |held: &Accepted| {
            let envelope = held.grant.envelope();
            envelope.verify_timeless(keys, self.machine, ceiling).is_ok()
        };
        let fallen = self.accepted().filter(move |(_, held)| !verifies(held));
        fallen.map(|(id, _)| id)
    }

    /// What the assignment says is gone, and if `is_whole` what it doesn't name.
    pub(super) fn gone(&self, assignment: &Assignment, is_whole: bool) -> BTreeSet<GrantId> {
        let removed = assignment.removed.iter().copied();
        let mut gone: BTreeSet<GrantId> = removed.filter(|id| self.entries.contains(*id)).collect();
        if is_whole {
            let added: BTreeSet<&GrantId> = assignment.added.iter().map(|added| &added.id).collect();
            gone.extend(self.entries.ids().filter(|id| !added.contains(id)));
        }
        gone
    }

    fn newer_keys(&self, assignment: &Assignment, left_out: &mut Vec<LeftOut>) -> Option<VerifiedKeys> {
        let envelope = assignment.keys.as_ref()?;
        let held = self.keys.as_ref().map(VerifiedKeys::number);
        match VerifiedKeys::verify(envelope, &self.root) {
            Err(rejected) => left_out.push(LeftOut::Keys(rejected)),
            Ok(keys) => match held {
                Some(held) if keys.number() < held => {
                    left_out.push(LeftOut::OlderKeys {
                        offered: keys.number(),
                        held,
                    });
                }
                Some(held) if keys.number() == held => {}
                Some(_) | None => return Some(keys),
            },
        }
        None
    }

    fn newer_policy(
        &self,
        assignment: &Assignment,
        keys: Option<&VerifiedKeys>,
        left_out: &mut Vec<LeftOut>,
    ) -> Option<VerifiedPolicy> {
        let envelope = assignment.policy.as_ref()?;
        let Some(keys) = keys else {
            left_out.push(LeftOut::NoKeys);
            return None;
        };
        match VerifiedPolicy::verify(envelope, keys, self.machine) {
            Err(rejected) => left_out.push(LeftOut::Policy(rejected)),
            Ok(policy) => match self.policy.as_ref().map(VerifiedPolicy::rank) {
                Some(held) if policy.rank() < held => {
                    let (epoch, offered) = policy.rank();
                    left_out.push(LeftOut::Policy(PolicyRejected::Older { epoch, offered }));
                }
                Some(held) if policy.rank() == held => {}
                Some(_) | None => return Some(policy),
            },
        }
        None
    }

    /// Whether it is not older than what the host has.
    pub(super) fn is_current(&self, assignment: &Assignment) -> bool {
        let keys = self.newer_keys(assignment, &mut Vec::new());
        assignment.generation >= self.generation || self.begins_epoch(keys.as_ref())
    }

    /// A key list of a later epoch (after a theft) starts the count anew.
    fn begins_epoch(&self, keys: Option<&VerifiedKeys>) -> bool {
        match (keys, &self.keys) {
            (Some(new), Some(old)) => new.number().epoch > old.number().epoch,
            _ => false,
        }
    }

    fn check_generation(
        &self,
        assignment: &Assignment,
        keys: Option<&VerifiedKeys>,
        latest: Timestamp,
    ) -> Result<(), AssignmentRefused> {
        let offered = assignment.generation;
        let held = self.generation;
        let reached = latest
            .checked_add(GENERATION_AHEAD)
            .map_or(i64::MAX, Timestamp::micros);
        if u64::try_from(reached).is_ok_and(|reached| offered.0 > reached) {
            return Err(AssignmentRefused::AheadOfTime { offered });
        }
        match assignment.base {
            // The whole of the same generation may come again: it is the answer to a doubt.
            None if offered >= held || self.begins_epoch(keys) => Ok(()),
            Some(base) if base == held && offered > held => Ok(()),
            Some(base) if offered > held => Err(AssignmentRefused::OtherBase { base, held }),
            None | Some(_) => Err(AssignmentRefused::Stale { offered, held }),
        }
    }
}

fn record(
    generation: Generation,
    mark: Mark,
    keys: Option<&VerifiedKeys>,
    policy: Option<&VerifiedPolicy>,
    closing: &[(GrantId, Closing)],
    judged: &Judged,
) -> AssignedRecord {
    let because = |cause: Closing| {
        closing
            .iter()
            .filter(move |(_, why)| *why == cause)
            .map(|(id, _)| *id)
    };
    let fallen = because(Closing::NoLongerValid).map(|id| (id, Closing::NoLongerValid.code().to_string()));
    let refused = judged
        .refused
        .iter()
        .map(|(id, rejected)| (*id, rejected.code().to_string()));
    AssignedRecord {
        number: 0,
        generation,
        whole: false,
        mark,
        keys: keys.map(|keys| Envelope(keys.envelope().to_vec())),
        policy: policy.map(|policy| Envelope(policy.envelope().to_vec())),
        guarded: policy
            .map(|policy| policy.policy().guarded.clone())
            .unwrap_or_default(),
        removed: because(Closing::Removed).collect(),
        accepted: judged.accepted.iter().map(|(id, held)| held.kept(*id)).collect(),
        refused: refused.chain(fallen).collect(),
        refused_ends: judged.refused_ends.clone(),
        revoked: Vec::new(),
        untold: Vec::new(),
        untold_ended: Vec::new(),
        untold_openings: Vec::new(),
        numbers: None,
    }
}
