//! Requests that wait for their machine: signed when it connects, so that no stock of signed grants lies about.

use std::collections::BTreeMap;
use std::time::Duration;

use nightlatch_core::assignment::Generation;
use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::ceiling::HostCeiling;
use nightlatch_core::id::{MachineId, MachineName, RequestId, Subject};
use nightlatch_core::request::{Denial, DenialReason, Span};
use nightlatch_core::rights::{Caller, Permission};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::resource::MachineRef;
use tracing::warn;

use super::bounds::{most_bytes, too_much};
use super::deciding::decide;
use super::{Issuer, Signed};
use crate::audit;
use crate::causes::in_one_line;
use crate::refusal::{PERMISSION_MISSING, Refusal, lapsed};
use crate::store::machines::Machine;
use crate::store::requests::{Fate, Outcome, Request};
use crate::store::{Change, StoreError, held, requests, users};

/// Whoever asked has long turned to something else then.
pub(super) const WAITS_AT_MOST: Duration = Duration::from_secs(24 * 3600);

/// Of the requests that wait for a machine, settled in one change: others' changes get their turn in between.
pub(crate) const SIGNED_TOGETHER: usize = 500;

/// What becomes of a request that can't succeed any more, whoever connects.
pub(super) fn given_up(request: &Request, now: Timestamp) -> Option<Fate> {
    match request.span {
        Span::Until(end) if end <= now => Some(denied(&Denial {
            field: "end_time".to_owned(),
            reason: DenialReason::EndPassed(end),
        })),
        Span::Until(_) | Span::For(_) => {
            (now.since(request.created_at) >= WAITS_AT_MOST).then(has_waited_too_long)
        }
    }
}

/// Whatever was asked for up to this moment no longer waits.
pub fn not_lapsed_after(now: Timestamp) -> Timestamp {
    now.checked_sub(WAITS_AT_MOST).unwrap_or(now)
}

/// What became of all that has waited for a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Nothing,
    /// None of it was signed.
    Denied,
    /// The machine's assignment has changed.
    Signed,
}

/// Settles what waits for a machine that another one has replaced.
pub(crate) async fn deny_waiting(
    change: &mut Change,
    machine: &Machine,
    now: Timestamp,
) -> Result<(), StoreError> {
    let reason = "MACHINE_REPLACED";
    let message = format!(
        "another machine has taken the place of {}: ask again",
        machine.name
    );
    for request in requests::waiting_for(change.connection(), machine.id, usize::MAX).await? {
        let fate = Fate::Denied {
            reason: reason.to_owned(),
            message: message.clone(),
        };
        settle(change, (machine.id, &machine.name), &request, &fate, now).await?;
    }
    Ok(())
}

pub(super) async fn settle(
    change: &mut Change,
    (machine, name): (MachineId, &MachineName),
    request: &Request,
    fate: &Fate,
    now: Timestamp,
) -> Result<(), StoreError> {
    requests::settle(change.connection(), request, machine, fate).await?;
    let Fate::Denied { reason, message } = fate else {
        return Ok(());
    };
    let actor = audit::SERVER.to_owned();
    let event = Event::new(now, EventKind::AccessDenied, actor, message.clone());
    let mut event = audit::about(event, machine, name);
    event.request = Some(request.id);
    event.reason = Some(reason.clone());
    change.record(&event, Some(&request.subject));
    Ok(())
}

impl Issuer {
    /// Signs what waits for a machine that has connected, the oldest [`SIGNED_TOGETHER`], decided again by the policy
    /// now in force.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub(crate) async fn sign_waiting(
        &self,
        change: &mut Change,
        machine: &Machine,
        ceiling: HostCeiling<'_>,
        generation: Generation,
        now: Timestamp,
    ) -> Result<Settled, StoreError> {
        let waiting = requests::waiting_for(change.connection(), machine.id, SIGNED_TOGETHER).await?;
        let Some(first) = waiting.first() else {
            return Ok(Settled::Nothing);
        };
        let held = held::of(change.connection(), machine.id, &first.subject).await?;
        let longest = most_bytes(held.all);
        let mut bytes = held.bytes;
        let mut settled = Settled::Denied;
        let mut may_ask = BTreeMap::new();
        for request in &waiting {
            let may = match may_ask.get(&request.subject) {
                Some(may) => *may,
                None => {
                    let may = may_request(change, &request.subject).await?;
                    may_ask.insert(&request.subject, may);
                    may
                }
            };
            let fate = if bytes > longest {
                denied(&too_much(DenialReason::TooLongTogether(longest)))
            } else {
                match self
                    .decide_again(change, (machine, ceiling), request, may, generation, now)
                    .await?
                {
                    Ok(signed) => {
                        bytes = bytes.saturating_add(signed.bytes);
                        settled = Settled::Signed;
                        Fate::Signed(signed.grant)
                    }
                    Err(fate) => fate,
                }
            };
            settle(change, (machine.id, &machine.name), request, &fate, now).await?;
        }
        Ok(settled)
    }

    /// Settles what has waited for a machine too long.
    pub(super) async fn settle_lapsed(
        &self,
        change: &mut Change,
        machine: &Machine,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lapsed = requests::waiting_since(change.connection(), machine.id, not_lapsed_after(now)).await?;
        for request in lapsed {
            let fate = has_waited_too_long();
            settle(change, (machine.id, &machine.name), &request, &fate, now).await?;
        }
        Ok(())
    }

    async fn decide_again(
        &self,
        change: &mut Change,
        (machine, ceiling): (&Machine, HostCeiling<'_>),
        request: &Request,
        may: bool,
        generation: Generation,
        now: Timestamp,
    ) -> Result<Result<Signed, Fate>, StoreError> {
        if let Some(fate) = given_up(request, now) {
            return Ok(Err(fate));
        }
        if !may {
            let message = format!(
                "{} may no longer ask for access: it takes the permission {}",
                request.subject,
                Permission::RequestAccess
            );
            return Ok(Err(Fate::Denied {
                reason: PERMISSION_MISSING.to_owned(),
                message,
            }));
        }
        let approval = match decide(machine, ceiling, request, now) {
            Ok(approval) => approval,
            Err(denial) => return Ok(Err(denied(&denial))),
        };
        let signed = self
            .sign(change, machine, request, approval, generation, now)
            .await?;
        Ok(signed.map_err(|error| denied(&lapsed(error, now))))
    }

    /// Withdraws a request where it still waits, or on one of its machines only: the caller's own, or anyone's by
    /// whoever may revoke grants. Elsewhere nothing changes.
    ///
    /// # Errors
    /// No such request that the caller may withdraw, one that isn't for the machine, a store that doesn't answer.
    pub async fn withdraw(
        &self,
        caller: &Caller,
        id: RequestId,
        machine: Option<MachineRef>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut change = self.store.change().await?;
        let request = requests::find(change.connection(), id).await?;
        let request = request
            .filter(|request| request.subject == caller.subject || caller.may(Permission::RevokeGrants))
            .ok_or(Refusal::UnknownRequest(id))?;
        let message = if request.subject == caller.subject {
            "withdrawn by its requester".to_owned()
        } else {
            format!("withdrawn by {}", caller.subject)
        };
        let withdrawn = Fate::Withdrawn {
            message: message.clone(),
        };
        let mut outcomes = requests::outcomes(change.connection(), id).await?;
        if let Some(machine) = machine {
            outcomes.retain(|outcome| is_on(outcome, &machine));
            if outcomes.is_empty() {
                return Err(Refusal::NotForMachine { request: id, machine });
            }
        }
        for outcome in outcomes.iter().filter(|outcome| outcome.fate == Fate::Waiting) {
            requests::settle(change.connection(), &request, outcome.machine, &withdrawn).await?;
            let event = audit::by(caller, now, EventKind::AccessWithdrawn, message.clone());
            let mut event = audit::about(event, outcome.machine, &outcome.machine_name);
            event.request = Some(id);
            change.record(&event, Some(&request.subject));
        }
        change.commit().await?;
        self.fleet.tell_of(&[id]);
        Ok(())
    }
}

fn is_on(outcome: &Outcome, machine: &MachineRef) -> bool {
    match machine {
        MachineRef::Id(id) => outcome.machine == *id,
        MachineRef::Name(name) => outcome.machine_name == *name,
    }
}

/// Of whom nobody can read what they may, nothing is known that they may.
async fn may_request(change: &mut Change, subject: &Subject) -> Result<bool, StoreError> {
    match users::find(change.connection(), subject).await {
        Ok(user) => Ok(user.is_some_and(|user| {
            let mut roles = user.roles.iter();
            roles.any(|role| role.allows(Permission::RequestAccess))
        })),
        Err(error) if error.is_damage() => {
            let error = in_one_line(&error);
            warn!(%subject, error, "a person's roles can't be read, so what they wait for is denied");
            Ok(false)
        }
        Err(other) => Err(other),
    }
}

fn denied(denial: &Denial) -> Fate {
    Fate::Denied {
        reason: denial.reason.code().to_owned(),
        message: denial.to_string(),
    }
}

fn has_waited_too_long() -> Fate {
    Fate::Denied {
        reason: "LAPSED".to_owned(),
        message: "it has waited for the machine for a day: ask again".to_owned(),
    }
}
