//! What the server says, turned into our records. A value that this version doesn't know is shown as unknown
//! rather than refused: a listing is no place to fail.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use nightlatch_core::policy::PortRule;
use nightlatch_core::port::{PortPattern, PortSpan};
use nightlatch_core::time::{Timestamp, format_iso8601};
use nightlatch_proto::convert::time::{read_duration, read_timestamp};
use nightlatch_proto::pb;

use crate::record::{
    CeilingRecord, EventRecord, GrantRecord, GrantState, KeyRecord, MachineRecord, MachineState,
    OutcomeRecord, OutcomeState, PolicyRecord, RequestRecord, RuleRecord,
};

impl From<pb::Grant> for GrantRecord {
    fn from(grant: pb::Grant) -> Self {
        let state = grant.state().into();
        let pb::Grant {
            name,
            id,
            machine,
            machine_display_name,
            subject,
            sources,
            ports,
            start_time,
            end_time,
            state: _,
            access_request,
            justification,
            open_time,
            close_time,
            reason,
            ended_by,
            envelope: _,
            message,
        } = grant;
        Self {
            name,
            id,
            machine: machine_display_name,
            machine_id: bare_id(&machine),
            state,
            subject,
            ports: words::<_, PortSpan>(ports),
            sources,
            start_time: moment(start_time),
            end_time: moment(end_time),
            open_time: moment(open_time),
            close_time: moment(close_time),
            access_request,
            justification,
            reason,
            ended_by,
            message,
        }
    }
}

impl From<pb::Machine> for MachineRecord {
    fn from(machine: pb::Machine) -> Self {
        let pb::Machine {
            name,
            id,
            display_name,
            connected,
            create_time,
            last_seen_time,
            address,
            agent_version,
            kernel_version,
            host_guarded,
            ceiling,
            configured,
            open_grants,
        } = machine;
        Self {
            name,
            id,
            machine: display_name,
            state: if connected {
                MachineState::Connected
            } else {
                MachineState::Away
            },
            configured,
            open_grants,
            address: plain_address(address),
            host_guarded: words::<_, PortSpan>(host_guarded),
            ceiling: ceiling.map(Into::into),
            agent_version,
            kernel_version,
            create_time: moment(create_time),
            last_seen_time: moment(last_seen_time),
        }
    }
}

impl From<pb::Ceiling> for CeilingRecord {
    fn from(ceiling: pb::Ceiling) -> Self {
        let pb::Ceiling {
            ports,
            longest,
            max_ahead,
            widest_ipv4,
            widest_ipv6,
        } = ceiling;
        let in_iso8601 = |of| length(of).map(format_iso8601).unwrap_or_default();
        Self {
            ports: words::<_, PortPattern>(ports),
            longest: in_iso8601(longest),
            max_ahead: in_iso8601(max_ahead),
            widest_ipv4,
            widest_ipv6,
        }
    }
}

impl From<pb::AccessRequest> for RequestRecord {
    fn from(request: pb::AccessRequest) -> Self {
        let pb::AccessRequest {
            name,
            id,
            subject,
            ports,
            sources,
            span,
            justification,
            create_time,
            outcomes,
        } = request;
        let (duration, end_time) = match span {
            Some(pb::access_request::Span::Duration(given)) => (length(Some(given)), None),
            Some(pb::access_request::Span::EndTime(end)) => (None, moment(Some(end))),
            None => (None, None),
        };
        Self {
            name,
            id,
            subject,
            ports: words::<_, PortPattern>(ports),
            sources,
            duration: duration.map(format_iso8601),
            end_time,
            justification,
            create_time: moment(create_time),
            outcomes: outcomes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<pb::Outcome> for OutcomeRecord {
    fn from(outcome: pb::Outcome) -> Self {
        let state = outcome.state().into();
        let pb::Outcome {
            machine,
            machine_display_name,
            state: _,
            grant,
            end_time,
            reason,
            message,
            address,
            offline_since,
        } = outcome;
        let address = plain_address(address);
        let is_known = !address.is_empty();
        Self {
            machine: machine_display_name,
            machine_id: bare_id(&machine),
            state,
            grant,
            end_time: moment(end_time),
            reason,
            message,
            addresses: is_known.then(|| address.clone()).into_iter().collect(),
            address,
            offline_since: moment(offline_since),
        }
    }
}

impl From<pb::Event> for EventRecord {
    fn from(event: pb::Event) -> Self {
        let pb::Event {
            sequence,
            time,
            kind,
            actor,
            address,
            machine,
            machine_display_name,
            grant,
            access_request,
            reason,
            message,
            details,
            json: _,
        } = event;
        Self {
            sequence,
            time: moment(time),
            kind,
            actor,
            address,
            machine: machine_display_name,
            machine_id: bare_id(&machine),
            grant,
            access_request,
            reason,
            message,
            details: details.into_iter().collect(),
        }
    }
}

impl From<pb::Policy> for PolicyRecord {
    fn from(policy: pb::Policy) -> Self {
        let pb::Policy {
            name,
            rules,
            etag,
            update_time,
            machine_display_name,
        } = policy;
        Self {
            name,
            machine: machine_display_name,
            rules: rules.into_iter().map(Into::into).collect(),
            etag,
            update_time: moment(update_time),
        }
    }
}

impl From<pb::PortRule> for RuleRecord {
    fn from(rule: pb::PortRule) -> Self {
        let pb::PortRule {
            range,
            protocol,
            allowed_sources,
            max_duration,
        } = rule;
        let pattern = pb::PortPattern {
            range,
            protocol: Some(protocol),
        };
        let longest = length(max_duration).unwrap_or(PortRule::DEFAULT_LIMIT);
        Self {
            port: in_words::<_, PortPattern>(pattern),
            from: allowed_sources,
            max: format_iso8601(longest),
        }
    }
}

impl From<pb::SigningKey> for KeyRecord {
    fn from(key: pb::SigningKey) -> Self {
        let pb::SigningKey {
            key_id,
            public_key_pem,
        } = key;
        Self {
            key_id,
            public_key_pem,
        }
    }
}

impl From<pb::GrantState> for GrantState {
    fn from(state: pb::GrantState) -> Self {
        match state {
            pb::GrantState::Unspecified => Self::Unknown,
            pb::GrantState::Opening => Self::Opening,
            pb::GrantState::Open => Self::Open,
            pb::GrantState::Refused => Self::Refused,
            pb::GrantState::Closing => Self::Closing,
            pb::GrantState::Ended => Self::Ended,
        }
    }
}

impl From<pb::OutcomeState> for OutcomeState {
    fn from(state: pb::OutcomeState) -> Self {
        match state {
            pb::OutcomeState::Unspecified => Self::Unknown,
            pb::OutcomeState::Open => Self::Open,
            pb::OutcomeState::Waiting => Self::Waiting,
            pb::OutcomeState::Opening => Self::Opening,
            pb::OutcomeState::Refused => Self::Refused,
            pb::OutcomeState::Ended => Self::Ended,
        }
    }
}

fn moment(at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    read_timestamp("", at).ok()
}

fn length(of: Option<prost_types::Duration>) -> Option<Duration> {
    read_duration("", of).ok()
}

fn words<T, U: TryFrom<T> + Display>(values: Vec<T>) -> Vec<String> {
    values.into_iter().map(in_words::<T, U>).collect()
}

fn in_words<T, U: TryFrom<T> + Display>(value: T) -> String {
    U::try_from(value).map_or_else(|_| "?".to_string(), |known| known.to_string())
}

fn bare_id(resource: &str) -> String {
    resource.rsplit('/').next().unwrap_or(resource).to_string()
}

/// An IPv4 address that a dual-stack socket saw is IPv4 again.
fn plain_address(address: String) -> String {
    let parsed = address.parse::<IpAddr>();
    parsed
        .map(|parsed| parsed.to_canonical().to_string())
        .unwrap_or(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> pb::Grant {
        pb::Grant {
            name: "grants/019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".to_string(),
            id: "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".to_string(),
            machine: "machines/019aa0b2-0000-7c3e-9d6a-0f6d1f6f2b11".to_string(),
            machine_display_name: "web-1".to_string(),
            state: pb::GrantState::Open.into(),
            ports: vec![pb::PortSpan {
                protocol: pb::Protocol::Tcp.into(),
                range: Some(pb::PortRange { first: 22, last: 22 }),
            }],
            end_time: Some(prost_types::Timestamp {
                seconds: 1_795_339_800,
                nanos: 0,
            }),
            ..pb::Grant::default()
        }
    }

    #[test]
    fn a_machine_that_was_never_seen_has_no_addresses() {
        let addresses = |address: &str| {
            let outcome = pb::Outcome {
                address: address.to_string(),
                ..pb::Outcome::default()
            };
            OutcomeRecord::from(outcome).addresses
        };
        assert!(addresses("").is_empty());
        assert_eq!(addresses("::ffff:192.0.2.10"), ["192.0.2.10"]);
    }

    #[test]
    fn the_json_of_a_grant_keeps_its_shape() {
        let json = serde_json::to_value(GrantRecord::from(grant())).unwrap();
        let expected = serde_json::json!({
            "name": "grants/019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11",
            "id": "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11",
            "machine": "web-1",
            "machine_id": "019aa0b2-0000-7c3e-9d6a-0f6d1f6f2b11",
            "state": "open",
            "subject": "",
            "ports": ["22/tcp"],
            "sources": [],
            "start_time": null,
            "end_time": "2026-11-22T09:30:00Z",
            "open_time": null,
            "close_time": null,
            "access_request": "",
            "justification": "",
            "reason": "",
            "ended_by": "",
            "message": "",
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_state_that_is_not_known_is_shown_as_unknown() {
        let stranger = pb::Grant { state: 99, ..grant() };
        assert_eq!(GrantRecord::from(stranger).state, GrantState::Unknown);
    }

    #[test]
    fn an_address_is_written_as_one_connects_to_it() {
        assert_eq!(plain_address("::ffff:192.0.2.7".to_string()), "192.0.2.7");
        assert_eq!(plain_address("2001:db8::7".to_string()), "2001:db8::7");
        assert_eq!(plain_address("web-1".to_string()), "web-1");
    }
}
