//! Policies: set and deleted, signed for the host, published.

use std::sync::Arc;

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::grant::Authority;
use nightlatch_core::policy::{MachinePolicy, Policy};
use nightlatch_core::rights::Caller;
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::resource::MachineRef;

use crate::audit;
use crate::fleet::Fleet;
use crate::issuer::next_generation;
use crate::refusal::Refusal;
use crate::store::grants::{self, Ended};
use crate::store::machines::{self, Machine, SignedPolicy};
use crate::store::{Change, Store, StoreError};

/// Sets and deletes policies.
pub struct Policies {
    pub store: Store,
    pub fleet: Arc<Fleet>,
    pub authority: Arc<Authority>,
    /// Of the key list: a policy of an earlier epoch counts for less.
    pub epoch: u64,
}

/// Changes with each edit.
pub fn etag(machine: &Machine) -> String {
    let (epoch, number) = machine.policy_rank;
    format!("{epoch}.{number}")
}

impl Policies {
    /// Sets a machine's policy. An empty etag isn't checked. Grants that run are left alone.
    ///
    /// # Errors
    /// No such machine, another etag, a store that doesn't answer.
    pub async fn set(
        &self,
        caller: &Caller,
        which: &MachineRef,
        policy: &Policy,
        given: &str,
        now: Timestamp,
    ) -> Result<Machine, Refusal> {
        let mut change = self.store.change().await?;
        let machine = edited(&mut change, which, "policy.name", given).await?;
        self.put(&mut change, &machine, Some(policy), now).await?;
        let rules: Vec<String> = policy.rules().iter().map(ToString::to_string).collect();
        let event = audit::by(caller, now, EventKind::PolicySet, rules.join("; "));
        let event = audit::about(event, machine.id, &machine.name);
        change.record(&event, Some(&caller.subject));
        let machine = machines::by_id(change.connection(), machine.id).await?;
        change.commit().await?;
        self.fleet.publish(machine.id);
        Ok(machine)
    }

    /// Deletes a machine's policy and ends its grants.
    ///
    /// # Errors
    /// No such machine, no policy, another etag, a store that doesn't answer.
    pub async fn delete(
        &self,
        caller: &Caller,
        which: &MachineRef,
        given: &str,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut change = self.store.change().await?;
        let machine = edited(&mut change, which, "name", given).await?;
        if machine.policy.is_none() {
            change.commit().await?;
            return Err(Refusal::NoPolicy(machine.name));
        }
        self.put(&mut change, &machine, None, now).await?;
        let message =
            "the policy was deleted: its ports are guarded only where the host's own file lists them";
        let event = audit::by(caller, now, EventKind::PolicyDeleted, message.to_owned());
        let event = audit::about(event, machine.id, &machine.name);
        change.record(&event, Some(&caller.subject));
        end_all(
            &mut change,
            &audit::person(caller),
            &machine,
            "POLICY_DELETED",
            now,
        )
        .await?;
        change.commit().await?;
        self.fleet.publish(machine.id);
        self.fleet.tell(machine.id);
        Ok(())
    }

    async fn put(
        &self,
        change: &mut Change,
        machine: &Machine,
        policy: Option<&Policy>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let generation = next_generation(change, machine, now).await?;
        let rank = self.rank_after(machine.policy_rank);
        let signed = sign(&self.authority, machine, rank, policy, now);
        let signed = SignedPolicy {
            policy,
            rank,
            envelope: signed,
            generation,
        };
        machines::set_policy(change.connection(), machine.id, signed, now).await
    }

    /// The rank of the next policy of a machine whose last one is `rank`.
    pub(crate) fn rank_after(&self, (epoch, number): (u64, u64)) -> (u64, u64) {
        (self.epoch.max(epoch), number.saturating_add(1))
    }
}

/// A policy as its host takes it.
pub(crate) fn sign(
    authority: &Authority,
    machine: &Machine,
    (epoch, number): (u64, u64),
    policy: Option<&Policy>,
    now: Timestamp,
) -> Vec<u8> {
    MachinePolicy::new(machine.id, epoch, number, policy, now).seal(authority.key())
}

async fn edited(
    change: &mut Change,
    which: &MachineRef,
    field: &str,
    given: &str,
) -> Result<Machine, Refusal> {
    let machine = machines::find(change.connection(), which)
        .await?
        .filter(|machine| !machine.is_retired);
    let unknown = || Refusal::UnknownMachine {
        field: field.to_owned(),
        machine: which.clone(),
    };
    let machine = machine.ok_or_else(unknown)?;
    let current = etag(&machine);
    if given.is_empty() || given == current {
        Ok(machine)
    } else {
        Err(Refusal::StaleEtag {
            given: given.to_owned(),
            current,
        })
    }
}

/// Ends all running grants of a machine. Its next generation has begun in the same change.
pub(crate) async fn end_all(
    change: &mut Change,
    actor: &str,
    machine: &Machine,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let generation = machines::by_id(change.connection(), machine.id).await?.generation;
    for grant in grants::running(change.connection(), machine.id, now).await? {
        let ended = Ended {
            at: now,
            by: actor.to_owned(),
            reason: reason.to_owned(),
        };
        grants::end(change.connection(), grant.id, &ended, generation).await?;
        let message = format!(
            "ended early, until {} otherwise",
            audit::to_the_second(grant.not_after)
        );
        let event = Event::new(now, EventKind::GrantRevoked, actor.to_owned(), message);
        let mut event = audit::about(event, machine.id, &machine.name);
        event.grant = Some(grant.id);
        event.request = Some(grant.request);
        event.reason = Some(reason.to_owned());
        change.record(&event, Some(&grant.subject));
    }
    Ok(())
}
