//! Judging the grants of an assignment one by one.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::{Accepted, Ledger, MOST_OPENINGS, entries};
use crate::assignment::{Assigned, Assignment};
use crate::grant::{AuthenticGrant, Grant, GrantRejected, VerifiedGrant};
use crate::id::{GrantId, MachineId};
use crate::keys::VerifiedKeys;
use crate::signing::EnvelopeRejected;
use crate::time::{BootTime, Timestamp};

pub(super) fn authenticate(
    added: &Assigned,
    keys: Option<&VerifiedKeys>,
    machine: MachineId,
) -> Result<AuthenticGrant, GrantRejected> {
    let keys = keys.ok_or(GrantRejected::NoKeys)?;
    let authentic = added.envelope.authenticate(keys, machine)?;
    if authentic.grant().id == added.id {
        Ok(authentic)
    } else {
        let why = "the assignment names it by another id".to_string();
        Err(EnvelopeRejected::PayloadMalformed(why).into())
    }
}

/// The end is the least of what the server's time leaves and the grant's own length; verification has held
/// the length against the ceiling.
pub(super) fn fix(grant: VerifiedGrant, latest: Timestamp, now: BootTime) -> Accepted {
    let Grant {
        not_before,
        not_after,
        ..
    } = *grant.grant();
    let start = now.plus(not_before.since(latest));
    let end = now
        .plus(not_after.since(latest))
        .min(start.plus(grant.grant().length()));
    Accepted {
        grant,
        is_recorded: false,
        start,
        end,
        wall_end: None,
        opened: false,
        closed: false,
    }
}

pub(super) struct Refusal {
    pub(super) rejected: GrantRejected,
    /// See [`Entry::Refused`](super::Entry::Refused).
    pub(super) not_after: Option<Timestamp>,
}

impl From<GrantRejected> for Refusal {
    fn from(rejected: GrantRejected) -> Self {
        let not_after = None;
        Self { rejected, not_after }
    }
}

#[derive(Default)]
pub(super) struct Judged {
    pub(super) accepted: Vec<(GrantId, Box<Accepted>)>,
    pub(super) refused: Vec<(GrantId, GrantRejected)>,
    pub(super) refused_ends: Vec<(GrantId, Timestamp)>,
}

impl Ledger {
    pub(super) fn judge_added(
        &self,
        assignment: &Assignment,
        gone: &BTreeSet<GrantId>,
        verdict: impl Fn(&Assigned) -> Result<Accepted, Refusal>,
    ) -> Judged {
        let mut judged = Judged::default();
        let gone = gone.iter().filter_map(|id| self.entries.accepted(*id));
        let gone = gone.fold(0, |sum: usize, gone| {
            sum.saturating_add(entries::count(gone.grant.grant()))
        });
        let mut openings = self.entries.openings().saturating_sub(gone);
        for added in &assignment.added {
            // An id is signed once: what is held stands, whatever comes under its name.
            if self.entries.accepted(added.id).is_some() {
                continue;
            }
            let verdict = match self.revoked.get(&added.id) {
                Some(not_after) => Err(Refusal {
                    rejected: GrantRejected::Revoked,
                    not_after: Some(*not_after),
                }),
                None => verdict(added),
            };
            let within = verdict.and_then(|accepted| {
                let grant = accepted.grant.grant();
                let with_it = openings.saturating_add(entries::count(grant));
                if with_it > MOST_OPENINGS {
                    Err(Refusal {
                        rejected: GrantRejected::TooManyOpenings,
                        not_after: Some(grant.not_after),
                    })
                } else {
                    Ok((with_it, accepted))
                }
            });
            match within {
                Ok((with_it, grant)) => {
                    openings = with_it;
                    judged.accepted.push((added.id, Box::new(grant)));
                }
                Err(Refusal { rejected, not_after }) => {
                    judged.refused.push((added.id, rejected));
                    judged.refused_ends.extend(not_after.map(|end| (added.id, end)));
                }
            }
        }
        judged
    }
}
