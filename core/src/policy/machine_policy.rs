//! The host's part of a policy, signed.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{MOST_GUARDED, Policy};
use crate::grant::Version1;
use crate::id::MachineId;
use crate::keys::VerifiedKeys;
use crate::port::PortSpan;
use crate::signing::{self, EnvelopeRejected, SigningKey};
use crate::time::Timestamp;

/// The payload type in a machine policy's DSSE envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.nightlatch.policy.v1+json";

/// The longest policy envelope, in bytes: room for [`MOST_GUARDED`] ports that don't neighbour one another.
pub const LONGEST_POLICY: usize = 96 * 1024;

/// The host's part of a policy: what it guards. Signed like a grant, so that a thief without the key can't
/// unguard a port. No ports: the machine has no policy (any more).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePolicy {
    version: Version1,
    pub machine: MachineId,
    pub epoch: u64,
    /// Rises with each change; a host refuses a lower one.
    pub number: u64,
    pub guarded: Vec<PortSpan>,
    pub issued_at: Timestamp,
}

impl MachinePolicy {
    pub fn new(
        machine: MachineId,
        epoch: u64,
        number: u64,
        policy: Option<&Policy>,
        issued_at: Timestamp,
    ) -> Self {
        let guarded = policy
            .map(|policy| policy.guarded().collect())
            .unwrap_or_default();
        Self {
            version: Version1,
            machine,
            epoch,
            number,
            guarded,
            issued_at,
        }
    }

    /// Signs it and gives the envelope's bytes.
    pub fn seal(&self, key: &SigningKey) -> Vec<u8> {
        key.seal(PAYLOAD_TYPE, &serde_json::to_vec(self).unwrap_or_default())
    }
}

/// Why a host does not take a machine policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRejected {
    #[error(transparent)]
    Envelope(#[from] EnvelopeRejected),
    #[error("the policy is for the machine {0}, not for this one")]
    OtherMachine(MachineId),
    #[error("the policy has number {offered} of epoch {epoch}, the host already has a later one")]
    Older { epoch: u64, offered: u64 },
    #[error("the policy guards {0} ports, at most {MOST_GUARDED} are taken")]
    TooManyPorts(usize),
}

impl PolicyRejected {
    /// The stable code that events and logs carry.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Envelope(rejected) => rejected.code(),
            Self::OtherMachine(_) => "OTHER_MACHINE",
            Self::Older { .. } => "POLICY_OLDER",
            Self::TooManyPorts(_) => "TOO_MANY_PORTS",
        }
    }
}

/// A machine policy that this host may follow, with the bytes that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPolicy {
    policy: MachinePolicy,
    envelope: Vec<u8>,
}

impl VerifiedPolicy {
    /// # Errors
    /// The first thing that speaks against it; its age against what the host has is the ledger's to judge.
    pub fn verify(envelope: &[u8], keys: &VerifiedKeys, machine: MachineId) -> Result<Self, PolicyRejected> {
        let policy: MachinePolicy =
            signing::open_json(envelope, PAYLOAD_TYPE, LONGEST_POLICY, |id| keys.key(id))?;
        let count = policy.guarded.iter().map(|span| span.keys().count()).sum();
        if policy.machine != machine {
            Err(PolicyRejected::OtherMachine(policy.machine))
        } else if count > MOST_GUARDED {
            Err(PolicyRejected::TooManyPorts(count))
        } else {
            Ok(Self {
                policy,
                envelope: envelope.to_vec(),
            })
        }
    }

    pub const fn policy(&self) -> &MachinePolicy {
        &self.policy
    }

    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    /// Which of two is later: (epoch, number).
    pub const fn rank(&self) -> (u64, u64) {
        (self.policy.epoch, self.policy.number)
    }
}
