//! Keys, a machine, and grants made the real way, by decision and signature. The agent's tests live in it too.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses its own part of it"
)]

use std::time::Duration;

use nightlatch_core::assignment::{Assigned, Assignment, Digest, Generation};
use nightlatch_core::ceiling::{Ceiling, HostCeiling};
use nightlatch_core::grant::{Authority, Grant, IssuedGrant, SignedGrant};
use nightlatch_core::id::{GrantId, InstallationId, MachineId, RequestId};
use nightlatch_core::keys::{KeyList, ListNumber, VerifiedKeys};
use nightlatch_core::policy::{AllowedSources, MachinePolicy, Policy, PortRule};
use nightlatch_core::port::{PortPattern, PortSpan, Protocols};
use nightlatch_core::request::{AccessRequest, Span};
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::{BootTime, Timestamp};
use uuid::Uuid;

pub const MACHINE: MachineId = MachineId::new(Uuid::from_u128(0x019a_a0b2_6a51_7c3e_9d6a_0f6d_1f6f_2b11));

pub fn root() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

pub fn authority() -> Authority {
    Authority::new(SigningKey::from_seed(&[2; 32]))
}

/// Second 0 of the tests' time is the start of the host's first boot.
pub fn at(second: u64) -> Timestamp {
    let start: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    start.checked_add(Duration::from_secs(second)).unwrap()
}

pub fn boot(second: u64) -> BootTime {
    BootTime::new(Duration::from_secs(second))
}

pub fn installation() -> InstallationId {
    "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b00".parse().unwrap()
}

pub fn keys_envelope() -> Vec<u8> {
    let number = ListNumber { epoch: 1, number: 1 };
    KeyList::new(installation(), number, vec![authority().key().public()], at(0)).seal(&root())
}

pub fn keys() -> VerifiedKeys {
    VerifiedKeys::verify(&keys_envelope(), &root().public()).unwrap()
}

pub fn ceiling() -> Ceiling {
    Ceiling {
        ports: vec!["22".parse().unwrap(), "3389".parse().unwrap()],
        longest: Duration::from_secs(24 * 3600),
        max_ahead: Duration::from_secs(3600),
        widest_ipv4: 8,
        widest_ipv6: 32,
    }
}

pub fn spans(ports: &[&str]) -> Vec<PortSpan> {
    ports
        .iter()
        .flat_map(|port| port.parse::<PortPattern>().unwrap().spans())
        .collect()
}

/// 22 to 3389 from anywhere, three hours at most.
pub fn policy() -> Policy {
    let rule = |range: &str, protocols| {
        PortRule::new(
            range.parse().unwrap(),
            protocols,
            AllowedSources::Any,
            PortRule::DEFAULT_LIMIT,
        )
        .unwrap()
    };
    Policy::new(vec![rule("22", Protocols::Tcp), rule("3389", Protocols::Both)]).unwrap()
}

/// Only 22/tcp.
pub fn ssh_policy() -> Policy {
    Policy::new(policy().rules()[..1].to_vec()).unwrap()
}

pub fn policy_envelope(number: u64, policy: Option<&Policy>) -> Vec<u8> {
    MachinePolicy::new(MACHINE, 1, number, policy, at(0)).seal(authority().key())
}

pub fn wish(ports: &[&str], sources: &[&str], seconds: u64) -> AccessRequest {
    AccessRequest {
        id: RequestId::new(Uuid::from_u128(7)),
        machine: MACHINE,
        subject: "alice".parse().unwrap(),
        ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
        sources: sources.iter().map(|source| source.parse().unwrap()).collect(),
        span: Span::For(Duration::from_secs(seconds)),
        justification: "mend the disk".to_string().try_into().unwrap(),
    }
}

/// A grant with number `id` that starts at second `start` and lasts `seconds`.
pub fn grant(id: u128, ports: &[&str], sources: &[&str], start: u64, seconds: u64) -> IssuedGrant {
    let approval = policy()
        .decide(wish(ports, sources, seconds), HostCeiling::Unheard, at(start))
        .unwrap();
    authority()
        .issue(approval, GrantId::new(Uuid::from_u128(id)), at(start))
        .unwrap()
}

pub const ALICE: &str = "192.0.2.7";

/// The first grant: Alice may reach SSH from now on.
pub fn alice(seconds: u64) -> IssuedGrant {
    grant(1, &["22"], &[ALICE], 0, seconds)
}

/// The grant's payload with some members replaced or added, signed again.
pub fn forged(grant: &Grant, members: &[(&str, serde_json::Value)]) -> SignedGrant {
    let mut payload = serde_json::to_value(grant).unwrap();
    for (name, value) in members {
        payload[*name] = value.clone();
    }
    let payload = serde_json::to_vec(&payload).unwrap();
    SignedGrant::from_bytes(
        authority()
            .key()
            .seal(nightlatch_core::grant::PAYLOAD_TYPE, &payload),
    )
}

pub fn assigned(grant: &IssuedGrant) -> Assigned {
    Assigned {
        id: grant.grant.id,
        envelope: grant.envelope.clone(),
    }
}

/// All grants of the machine, and a policy for it.
pub fn whole(generation: u64, grants: &[IssuedGrant], policy: &Policy) -> Assignment {
    Assignment {
        generation: Generation(generation),
        base: None,
        keys: Some(keys_envelope()),
        policy: Some(policy_envelope(1, Some(policy))),
        added: grants.iter().map(assigned).collect(),
        removed: Vec::new(),
        digest: Digest::of(grants.iter().map(|grant| &grant.grant.id)),
    }
}
