//! A small world for the tests: keys, a machine, and grants made the real way, by decision and signature.
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
use nightlatch_core::clock::HostClock;
use nightlatch_core::grant::{Authority, Grant, IssuedGrant, SignedGrant};
use nightlatch_core::host::HostRules;
use nightlatch_core::id::{GrantId, MachineId, RequestId};
use nightlatch_core::keys::{KeyList, ListNumber, VerifiedKeys};
use nightlatch_core::ledger::{AssignmentRefused, Change, Ledger, Record};
use nightlatch_core::policy::{AllowedSources, MachinePolicy, Policy, PortRule};
use nightlatch_core::port::{PortPattern, PortSpan, Protocols};
use nightlatch_core::request::{AccessRequest, Span};
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::{BootId, BootTime, Timestamp};
use uuid::Uuid;

pub const MACHINE: MachineId = MachineId::new(Uuid::from_u128(0x019a_a0b2_6a51_7c3e_9d6a_0f6d_1f6f_2b11));
pub const FIRST_BOOT: BootId = BootId(Uuid::from_u128(1));
pub const SECOND_BOOT: BootId = BootId(Uuid::from_u128(2));

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

pub fn keys_envelope() -> Vec<u8> {
    let number = ListNumber { epoch: 1, number: 1 };
    let installation = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b00".parse().unwrap();
    KeyList::new(installation, number, vec![authority().key().public()], at(0)).seal(&root())
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

pub fn host() -> HostRules {
    HostRules {
        guarded: spans(&["22/tcp", "3389"]),
        udp_grace: Duration::from_secs(3600),
        ceiling: Some(ceiling()),
        ..HostRules::default()
    }
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

/// A host: its ledger, clock and file, driven as the agent drives them.
pub struct Host {
    pub ledger: Ledger,
    pub clock: HostClock,
    pub rules: HostRules,
    pub file: Vec<Record>,
    generation: u64,
}

impl Host {
    /// Joined, and heard the server at second 0 without any delay.
    pub fn new() -> Self {
        let mut clock = HostClock::new(FIRST_BOOT, boot(0), None);
        clock.hear(at(0), boot(0), boot(0), at(0)).unwrap();
        let ledger = Ledger::new(MACHINE, root().public());
        Self {
            ledger,
            clock,
            rules: host(),
            file: Vec::new(),
            generation: at(0).micros().unsigned_abs(),
        }
    }

    /// A change from what the host has.
    pub fn delta(&mut self, added: &[IssuedGrant], removed: &[GrantId], live: &[GrantId]) -> Assignment {
        self.generation += 1;
        Assignment {
            generation: Generation(self.generation),
            base: Some(self.ledger.generation()).filter(|base| base.0 > 0),
            keys: Some(keys_envelope()),
            policy: None,
            added: added.iter().map(assigned).collect(),
            removed: removed.to_vec(),
            digest: Digest::of(live),
        }
    }

    pub fn whole(&mut self, grants: &[IssuedGrant]) -> Assignment {
        let live: Vec<GrantId> = grants.iter().map(|grant| grant.grant.id).collect();
        Assignment {
            base: None,
            ..self.delta(grants, &[], &live)
        }
    }

    pub fn consider(&self, assignment: &Assignment, second: u64) -> Result<Change, AssignmentRefused> {
        self.ledger
            .consider(assignment, self.rules.ceiling.as_ref(), &self.clock, boot(second))
    }

    /// As the agent does it: what goes goes first, and what comes once it is on disk.
    pub fn take(&mut self, assignment: &Assignment, second: u64) -> Result<Change, AssignmentRefused> {
        let gone = self.ledger.removals(assignment);
        if !gone.is_empty() {
            let record = self.ledger.remove_all(gone, boot(second));
            self.file.push(record);
        }
        let change = self.consider(assignment, second)?;
        self.ledger.close(&change);
        self.file.push(change.record());
        self.ledger.commit(change.clone());
        self.ledger.recorded(self.ledger.number());
        Ok(change)
    }

    pub fn allows(&self, source: &str, port: &str, second: u64) -> bool {
        let key = spans(&[port])[0].keys().next().unwrap();
        self.ledger
            .ruleset(&self.rules, boot(second))
            .allows(source.parse().unwrap(), key, boot(second))
    }
}

pub fn assigned(grant: &IssuedGrant) -> Assigned {
    Assigned {
        id: grant.grant.id,
        envelope: grant.envelope.clone(),
    }
}
