//! How grants, requests and machines are shown.

use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::prefix::prefixes;
use nightlatch_proto::convert::time::{duration, timestamp};
use nightlatch_proto::convert::{policy, resource};
use nightlatch_proto::pb;

use crate::audit::to_the_second;
use crate::fleet::Fleet;
use crate::issuer::{Standing, waits_until};
use crate::policies::etag;
use crate::store::grants::{self, Grant, State};
use crate::store::machines::{self, Machine};
use crate::store::requests::{Fate, Outcome, Request};

pub(super) fn grant(listed: grants::Listed, fleet: &Fleet, now: Timestamp) -> pb::Grant {
    let grants::Listed {
        grant,
        machine_name,
        justification,
        envelope,
    } = listed;
    let state = grant.state(now);
    let message = grant_message(
        &grant,
        machine_name.as_str(),
        fleet.is_connected(grant.machine),
        now,
    );
    let Grant {
        id,
        machine,
        request,
        subject,
        sources,
        ports,
        not_before,
        not_after,
        ended,
        opened_at,
        closed,
        refused,
    } = grant;
    let early = ended.as_ref().map(|ended| ended.reason.clone());
    let closed_for = closed.as_ref().map(|(_, reason)| reason.clone());
    let refused_for = refused.map(|(_, reason)| reason);
    pb::Grant {
        name: resource::grant(id),
        id: id.to_string(),
        machine: resource::machine(machine),
        machine_display_name: machine_name.to_string(),
        subject: subject.to_string(),
        sources: prefixes(&sources),
        ports: ports.into_iter().map(Into::into).collect(),
        start_time: Some(timestamp(not_before)),
        end_time: Some(timestamp(not_after)),
        state: grant_state(state).into(),
        access_request: resource::request(request),
        justification,
        open_time: opened_at.map(timestamp),
        close_time: closed.map(|(at, _)| timestamp(at)),
        reason: refused_for.or(early).or(closed_for).unwrap_or_default(),
        ended_by: ended.map(|ended| ended.by).unwrap_or_default(),
        envelope: envelope.unwrap_or_default(),
        message,
    }
}

const fn grant_state(state: State) -> pb::GrantState {
    match state {
        State::Opening => pb::GrantState::Opening,
        State::Open => pb::GrantState::Open,
        State::Refused => pb::GrantState::Refused,
        State::Closing => pb::GrantState::Closing,
        State::Ended => pb::GrantState::Ended,
    }
}

fn grant_message(grant: &Grant, machine: &str, is_connected: bool, now: Timestamp) -> String {
    let end = to_the_second(grant.not_after);
    match (grant.state(now), is_connected) {
        (State::Opening, true) => format!("signed; {machine} has not confirmed yet"),
        (State::Opening, false) => {
            format!("signed, but {machine} is away: it opens when it connects, until {end} at most")
        }
        (State::Open, true) => format!("open until {end}"),
        (State::Open, false) => format!("open until {end}; {machine} is away and shuts by itself then"),
        (State::Refused, _) => "the host has refused the grant".to_owned(),
        (State::Closing, true) => format!(
            "ended, but {machine} has not confirmed: until it does, the grant runs on there, to its end at {end}"
        ),
        (State::Closing, false) => format!(
            "ended, but {machine} is away: on the host the grant runs to its end at {end}, unless it connects earlier"
        ),
        (State::Ended, _) => String::new(),
    }
}

pub(super) fn access_request(standing: Standing, fleet: &Fleet) -> pb::AccessRequest {
    let shown = |outcome| shown_outcome(outcome, &standing, fleet);
    let outcomes = standing.outcomes.iter().map(shown).collect();
    let Request {
        id,
        subject,
        created_at,
        ports,
        sources,
        span,
        justification,
    } = standing.request;
    pb::AccessRequest {
        name: resource::request(id),
        id: id.to_string(),
        subject: subject.to_string(),
        ports: ports.into_iter().map(Into::into).collect(),
        sources: prefixes(&sources),
        span: Some(match span {
            nightlatch_core::request::Span::For(length) => {
                pb::access_request::Span::Duration(duration(length))
            }
            nightlatch_core::request::Span::Until(end) => pb::access_request::Span::EndTime(timestamp(end)),
        }),
        justification: justification.into(),
        create_time: Some(timestamp(created_at)),
        outcomes,
    }
}

fn shown_outcome(outcome: &Outcome, standing: &Standing, fleet: &Fleet) -> pb::Outcome {
    let Outcome {
        machine,
        machine_name,
        address,
        last_seen_at,
        fate,
        grant,
    } = outcome;
    let now = standing.at;
    let is_connected = fleet.is_connected(*machine);
    let given_up = standing.given_up();
    let fate = match fate {
        // Also before that is recorded.
        Fate::Waiting => given_up.as_ref().unwrap_or(fate),
        settled => settled,
    };
    let (state, reason, message) = match (fate, grant) {
        (Fate::Signed(_), Some(grant)) => signed(grant, machine_name.as_str(), is_connected, now),
        (Fate::Signed(_), None) => (pb::OutcomeState::Ended, String::new(), String::new()),
        (Fate::Waiting, _) => (
            pb::OutcomeState::Waiting,
            String::new(),
            waiting(standing, machine_name.as_str(), *last_seen_at),
        ),
        (Fate::Withdrawn { message }, _) => {
            (pb::OutcomeState::Ended, "WITHDRAWN".to_owned(), message.clone())
        }
        (Fate::Denied { reason, message }, _) => (pb::OutcomeState::Refused, reason.clone(), message.clone()),
    };
    pb::Outcome {
        machine: resource::machine(machine),
        machine_display_name: machine_name.to_string(),
        state: state.into(),
        grant: grant
            .as_ref()
            .map(|grant| resource::grant(grant.id))
            .unwrap_or_default(),
        end_time: grant.as_ref().map(|grant| timestamp(grant.not_after)),
        reason,
        message,
        address: address.clone().unwrap_or_default(),
        offline_since: last_seen_at.filter(|_| !is_connected).map(timestamp),
    }
}

fn signed(
    grant: &Grant,
    machine: &str,
    is_connected: bool,
    now: Timestamp,
) -> (pb::OutcomeState, String, String) {
    let message = grant_message(grant, machine, is_connected, now);
    let reason = |word: &Option<(Timestamp, String)>| word.as_ref().map(|(_, reason)| reason.clone());
    match grant.state(now) {
        State::Opening => (pb::OutcomeState::Opening, String::new(), message),
        State::Open => (pb::OutcomeState::Open, String::new(), message),
        State::Refused => (
            pb::OutcomeState::Refused,
            reason(&grant.refused).unwrap_or_default(),
            message,
        ),
        State::Closing | State::Ended => {
            let early = grant.ended.as_ref().map(|ended| ended.reason.clone());
            let why = early
                .or_else(|| reason(&grant.closed))
                .unwrap_or_else(|| "EXPIRED".to_owned());
            (pb::OutcomeState::Ended, why, message)
        }
    }
}

fn waiting(standing: &Standing, machine: &str, last_seen_at: Option<Timestamp>) -> String {
    let since = match last_seen_at {
        None => "has never been connected".to_owned(),
        Some(at) => format!("is away since {}", to_the_second(at)),
    };
    let by = to_the_second(waits_until(&standing.request));
    format!("approved; {machine} {since}: the grant is signed when it connects, if it does by {by}")
}

pub(super) fn machine(listed: machines::Listed, fleet: &Fleet) -> pb::Machine {
    let machines::Listed { machine, open_grants } = listed;
    let is_connected = fleet.is_connected(machine.id);
    let (agent_version, kernel_version, guarded, ceiling) = match machine.host {
        None => Default::default(),
        Some(host) => (
            host.agent_version,
            host.kernel_version,
            host.guarded,
            host.ceiling,
        ),
    };
    pb::Machine {
        name: resource::machine(machine.id),
        id: machine.id.to_string(),
        display_name: machine.name.to_string(),
        connected: is_connected,
        create_time: Some(timestamp(machine.created_at)),
        last_seen_time: machine.last_seen_at.map(timestamp),
        address: machine.address.unwrap_or_default(),
        agent_version,
        kernel_version,
        host_guarded: guarded.into_iter().map(Into::into).collect(),
        ceiling: ceiling.map(Into::into),
        configured: machine.policy.is_some(),
        open_grants: u32::try_from(open_grants).unwrap_or(u32::MAX),
    }
}

/// A machine's policy, if it has one.
pub(super) fn machine_policy(machine: &Machine) -> Option<pb::Policy> {
    let rules = policy::rules(machine.policy.as_ref()?);
    Some(pb::Policy {
        name: resource::policy(machine.id),
        rules,
        etag: etag(machine),
        update_time: machine.policy_updated_at.map(timestamp),
        machine_display_name: machine.name.to_string(),
    })
}
