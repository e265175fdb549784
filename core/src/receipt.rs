//! Receipts: the host's signed word that it opened or closed.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::grant::Version1;
use crate::id::{GrantId, MachineId};
use crate::signing::{self, EnvelopeRejected, PublicKey, SigningKey};
use crate::time::{BootId, Timestamp};

/// The payload type in a receipt's DSSE envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.nightlatch.receipt.v1+json";

/// What the host did about a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Done {
    Opened,
    Closed,
    Refused,
}

/// What a receipt says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    version: Version1,
    pub grant: GrantId,
    pub machine: MachineId,
    pub event: Done,
    /// The host's best knowledge of true time.
    pub at: Timestamp,
    pub boot_id: BootId,
    /// Rises by one with each receipt of this machine, over restarts too.
    pub sequence: u64,
    /// A stable code: why it was refused, or closed (`EXPIRED`, `REMOVED`, `NO_LONGER_VALID`); empty for an opening.
    pub reason: String,
    /// Hex SHA-256 of the previous receipt's envelope, empty for the first.
    pub previous: String,
}

/// A receipt before it has its place in the host's sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    pub grant: GrantId,
    pub event: Done,
    pub at: Timestamp,
    pub reason: String,
}

impl Receipt {
    pub fn new(
        machine: MachineId,
        boot_id: BootId,
        happening: Happening,
        sequence: u64,
        previous: String,
    ) -> Self {
        let Happening {
            grant,
            event,
            at,
            reason,
        } = happening;
        Self {
            version: Version1,
            grant,
            machine,
            event,
            at,
            boot_id,
            sequence,
            reason,
            previous,
        }
    }

    /// Signs it with the machine's receipt key and gives the envelope's bytes.
    pub fn seal(&self, key: &SigningKey) -> Vec<u8> {
        key.seal(PAYLOAD_TYPE, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// # Errors
    /// Anything but a receipt that `key` signed.
    pub fn verify(envelope: &[u8], key: &PublicKey) -> Result<Self, EnvelopeRejected> {
        signing::open_json(envelope, PAYLOAD_TYPE, signing::LONGEST_ENVELOPE, |id| {
            (*id == key.id()).then_some(key)
        })
    }
}
