//! How much one person, and one machine, may have open or waiting at a time.

use nightlatch_core::request::{Denial, DenialReason};
use nightlatch_core::signing::LONGEST_ENVELOPE;
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::agent::LONGEST_ASSIGNMENT;

use super::{Issuer, next_generation};
use crate::refusal::Denied;
use crate::store::held::{self, Held};
use crate::store::machines::Machine;
use crate::store::requests::Request;
use crate::store::{Change, StoreError};

/// Of the grants in a machine's assignment and the requests that wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// One person's on one machine.
    pub per_caller: u64,
    /// Everyone's on one machine.
    pub per_machine: u64,
}

/// For an id and what frames it, of each grant.
const BESIDE_ENVELOPE: u64 = 64;
/// For the policy, the list of keys, and one grant more.
const BESIDE_GRANTS: u64 = 256 * 1024;

/// The longest that the envelopes of a machine's grants may be together, so that an assignment carries them all.
pub(super) fn most_bytes(grants: u64) -> u64 {
    let most = u64::try_from(LONGEST_ASSIGNMENT).unwrap_or(u64::MAX);
    most.saturating_sub(BESIDE_GRANTS)
        .saturating_sub(grants.saturating_mul(BESIDE_ENVELOPE))
}

impl Bounds {
    /// Why not one more may come.
    fn deny(&self, held: Held) -> Option<Denial> {
        let longest = most_bytes(held.all);
        let reason = if held.own >= self.per_caller {
            DenialReason::TooManyOwn(self.per_caller)
        } else if held.all >= self.per_machine {
            DenialReason::TooMany(self.per_machine)
        } else if held
            .bytes
            .saturating_add(u64::try_from(LONGEST_ENVELOPE).unwrap_or(u64::MAX))
            > longest
        {
            DenialReason::TooLongTogether(longest)
        } else {
            return None;
        };
        Some(too_much(reason))
    }
}

pub(super) fn too_much(reason: DenialReason) -> Denial {
    Denial {
        field: "machine".to_owned(),
        reason,
    }
}

impl Issuer {
    /// The machines that can't take one more of what is asked for.
    pub(super) async fn without_room(
        &self,
        change: &mut Change,
        machines: &[Machine],
        request: &Request,
        now: Timestamp,
    ) -> Result<Vec<Denied>, StoreError> {
        let mut full = Vec::new();
        for (position, machine) in machines.iter().enumerate() {
            let mut denial = self.room_on(change, machine, request).await?;
            if denial.is_some() {
                // What is past counts until a change takes it out.
                next_generation(change, machine, now).await?;
                self.settle_lapsed(change, machine, now).await?;
                denial = self.room_on(change, machine, request).await?;
            }
            full.extend(denial.map(|denial| Denied {
                position,
                machine: machine.id,
                name: machine.name.clone(),
                denial,
            }));
        }
        Ok(full)
    }

    async fn room_on(
        &self,
        change: &mut Change,
        machine: &Machine,
        request: &Request,
    ) -> Result<Option<Denial>, StoreError> {
        let held = held::of(change.connection(), machine.id, &request.subject).await?;
        Ok(self.bounds.deny(held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bound_that_is_met_is_named() {
        let bounds = Bounds {
            per_caller: 2,
            per_machine: 3,
        };
        let code = |own, all, bytes| {
            bounds
                .deny(Held { own, all, bytes })
                .map(|denial| denial.reason.code())
        };
        assert_eq!(code(1, 2, 1000), None);
        assert_eq!(code(2, 2, 0), Some("TOO_MANY_OWN_GRANTS"));
        assert_eq!(code(0, 3, 0), Some("TOO_MANY_GRANTS"));
        assert_eq!(code(0, 0, most_bytes(0)), Some("GRANTS_TOO_LONG"));
    }

    #[test]
    fn the_most_that_is_held_fits_into_one_assignment() {
        use nightlatch_core::assignment::{Assigned, Assignment, Digest, Generation};
        use nightlatch_core::grant::SignedGrant;
        use nightlatch_core::id::GrantId;
        use nightlatch_proto::convert::agent::{PartsInArrival, parts};
        let count: u64 = 12_000;
        let length = usize::try_from(most_bytes(count) / count).unwrap();
        let added: Vec<Assigned> = (0..count)
            .map(|number| Assigned {
                id: GrantId::new(uuid::Uuid::from_u128(number.into())),
                envelope: SignedGrant::from_bytes(vec![b'x'; length]),
            })
            .collect();
        let digest = Digest::of(added.iter().map(|added| &added.id));
        let assignment = Assignment {
            generation: Generation(1),
            base: None,
            keys: Some(vec![0; LONGEST_ENVELOPE]),
            policy: Some(vec![0; nightlatch_core::policy::LONGEST_POLICY]),
            added,
            removed: Vec::new(),
            digest,
        };
        let mut arrival = PartsInArrival::default();
        let mut whole = None;
        for part in parts(assignment.clone()) {
            whole = arrival.add(part).unwrap();
        }
        assert!(whole == Some(assignment));
    }
}
