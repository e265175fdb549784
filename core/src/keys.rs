//! The numbered list of signing keys, signed by the root key that a host pins at enrolment.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::grant::Version1;
use crate::id::InstallationId;
use crate::signing::{self, EnvelopeRejected, KeyId, PublicKey, SigningKey};
use crate::time::Timestamp;

/// The payload type in a key list's DSSE envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.nightlatch.keys.v1+json";

/// Which list is newer: a later epoch (after a theft) beats any number of an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListNumber {
    pub epoch: u64,
    pub number: u64,
}

/// What a key list says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyList {
    version: Version1,
    pub installation: InstallationId,
    pub epoch: u64,
    pub number: u64,
    pub keys: Vec<PublicKey>,
    pub issued_at: Timestamp,
}

impl KeyList {
    pub const fn new(
        installation: InstallationId,
        number: ListNumber,
        keys: Vec<PublicKey>,
        issued_at: Timestamp,
    ) -> Self {
        Self {
            version: Version1,
            installation,
            epoch: number.epoch,
            number: number.number,
            keys,
            issued_at,
        }
    }

    /// Signs the list with the root key and gives the envelope's bytes.
    pub fn seal(&self, root: &SigningKey) -> Vec<u8> {
        root.seal(PAYLOAD_TYPE, &serde_json::to_vec(self).unwrap_or_default())
    }
}

/// A key list that the root signed, with the bytes that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedKeys {
    list: KeyList,
    ids: Vec<KeyId>,
    envelope: Vec<u8>,
}

impl VerifiedKeys {
    /// # Errors
    /// Anything but an envelope that `root` signed over a key list.
    pub fn verify(envelope: &[u8], root: &PublicKey) -> Result<Self, EnvelopeRejected> {
        let trusted = |id: &KeyId| (*id == root.id()).then_some(root);
        let list: KeyList = signing::open_json(envelope, PAYLOAD_TYPE, signing::LONGEST_ENVELOPE, trusted)?;
        let ids = list.keys.iter().map(PublicKey::id).collect();
        Ok(Self {
            list,
            ids,
            envelope: envelope.to_vec(),
        })
    }

    pub fn key(&self, id: &KeyId) -> Option<&PublicKey> {
        self.ids
            .iter()
            .zip(&self.list.keys)
            .find(|(known, _)| *known == id)
            .map(|(_, key)| key)
    }

    pub const fn number(&self) -> ListNumber {
        ListNumber {
            epoch: self.list.epoch,
            number: self.list.number,
        }
    }

    pub const fn list(&self) -> &KeyList {
        &self.list
    }

    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }
}
