//! Signatures: DSSE envelopes with Ed25519 (github.com/secure-systems-lab/dsse, protocol version 1).
//!
//! The exact signed bytes are stored and carried. Nothing is parsed out of a payload before its signature holds.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use ed25519_dalek::{Signature, Signer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The longest envelope that is read, in bytes, but for those that say so themselves.
pub const LONGEST_ENVELOPE: usize = 16 * 1024;

/// Hex SHA-256 of a public key's SPKI DER.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower-case hex of bytes.
pub fn hex(bytes: &[u8]) -> String {
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles
        .filter_map(|nibble| char::from_digit(nibble.into(), 16))
        .collect()
}

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Why a text holds no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("not an Ed25519 private key in PEM (PKCS #8)")]
    Private,
    #[error("not an Ed25519 public key in PEM or DER (SPKI)")]
    Public,
}

/// A private Ed25519 key. Its memory is wiped when it is dropped; it has no `Debug`.
pub struct SigningKey {
    key: ed25519_dalek::SigningKey,
    id: KeyId,
}

impl SigningKey {
    fn new(key: ed25519_dalek::SigningKey) -> Self {
        let id = PublicKey(key.verifying_key()).id();
        Self { key, id }
    }

    /// `seed` must come from the operating system's random numbers.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::new(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.key.verifying_key())
    }

    /// # Errors
    /// Anything but one PKCS #8 PEM block with an Ed25519 key.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem)
            .map(Self::new)
            .ok()
            .ok_or(InvalidKey::Private)
    }

    /// # Errors
    /// None for a key that was made or read here.
    pub fn to_pem(&self) -> Result<String, InvalidKey> {
        let pem = self
            .key
            .to_pkcs8_pem(LineEnding::LF)
            .ok()
            .ok_or(InvalidKey::Private)?;
        Ok(pem.as_str().to_owned())
    }

    /// Signs `payload` under `payload_type` and gives the envelope's bytes.
    pub fn seal(&self, payload_type: &str, payload: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(&pre_authentication_encoding(payload_type, payload));
        envelope(payload_type, payload, self.id.clone(), &signature.to_bytes())
    }
}

fn envelope(payload_type: &str, payload: &[u8], keyid: KeyId, signature: &[u8; 64]) -> Vec<u8> {
    let envelope = RawEnvelope {
        payload_type: payload_type.to_owned(),
        payload: BASE64.encode(payload),
        signatures: alloc::vec![RawSignature {
            keyid,
            sig: BASE64.encode(signature),
        }],
    };
    // Strings only: serialising them can't fail.
    serde_json::to_vec(&envelope).unwrap_or_default()
}

/// What an envelope has besides its payload, for those who can make that again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    /// The SHA-256 that a key's id is.
    key: [u8; 32],
    signature: [u8; 64],
}

impl Seal {
    /// `None` if just these bytes would not be made of it and the payload again.
    pub(crate) fn of(sealed: &[u8], payload_type: &str, payload: &[u8]) -> Option<Self> {
        let raw: RawEnvelope = serde_json::from_slice(sealed).ok()?;
        let [RawSignature { keyid, sig }] = raw.signatures.as_slice() else {
            return None;
        };
        let seal = Self {
            key: unhex(&keyid.0)?,
            signature: decode_base64(sig)?.try_into().ok()?,
        };
        (seal.envelope(payload_type, payload) == sealed).then_some(seal)
    }

    pub(crate) fn envelope(&self, payload_type: &str, payload: &[u8]) -> Vec<u8> {
        envelope(payload_type, payload, KeyId(hex(&self.key)), &self.signature)
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let nibbles: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|nibble| u8::try_from(nibble).ok()))
        .collect();
    let nibbles = nibbles?;
    let (pairs, []) = nibbles.as_chunks() else {
        return None;
    };
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| (high << 4) | low).collect();
    bytes.try_into().ok()
}

/// A public Ed25519 key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    pub fn id(&self) -> KeyId {
        KeyId(hex(&sha256(&self.to_spki())))
    }

    /// SubjectPublicKeyInfo, DER (RFC 8410).
    pub fn to_spki(&self) -> Vec<u8> {
        self.0
            .to_public_key_der()
            .map(|der| der.as_bytes().to_vec())
            .unwrap_or_default()
    }

    /// # Errors
    /// Anything but the SPKI of an Ed25519 key.
    pub fn from_spki(der: &[u8]) -> Result<Self, InvalidKey> {
        ed25519_dalek::VerifyingKey::from_public_key_der(der)
            .map(Self)
            .ok()
            .ok_or(InvalidKey::Public)
    }

    /// # Errors
    /// Anything but one SPKI PEM block with an Ed25519 key.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        ed25519_dalek::VerifyingKey::from_public_key_pem(pem)
            .map(Self)
            .ok()
            .ok_or(InvalidKey::Public)
    }

    /// # Errors
    /// None for a key that was made or read here.
    pub fn to_pem(&self) -> Result<String, InvalidKey> {
        self.0
            .to_public_key_pem(LineEnding::LF)
            .ok()
            .ok_or(InvalidKey::Public)
    }

    /// # Errors
    /// Any other signature than this key's over just these bytes, malleable or of low order included.
    fn verify(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), EnvelopeRejected> {
        let signature = Signature::from_bytes(signature);
        self.0
            .verify_strict(message, &signature)
            .ok()
            .ok_or(EnvelopeRejected::BadSignature)
    }
}

/// In files and on the wire: standard base64 of the SPKI DER.
impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.to_spki()))
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let der = decode_base64(&text).ok_or_else(|| serde::de::Error::custom(InvalidKey::Public))?;
        Self::from_spki(&der).map_err(serde::de::Error::custom)
    }
}

/// Reads standard base64 in its one canonical form.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    BASE64
        .decode(text)
        .ok()
        .filter(|bytes| BASE64.encode(bytes) == text)
}

/// Writes standard base64.
pub fn encode_base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Bytes as base64 text in JSON, for `#[serde(with = "signing::base64_bytes")]`.
pub mod base64_bytes {
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::encode_base64(bytes))
    }

    pub fn deserialize<'de, T: From<Vec<u8>>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = super::decode_base64(&text);
        bytes
            .map(T::from)
            .ok_or_else(|| serde::de::Error::custom("not canonical base64"))
    }
}

/// Why an envelope was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeRejected {
    #[error("the envelope is longer than {0} bytes")]
    TooLong(usize),
    #[error("not a DSSE envelope with one signature in canonical base64: {0}")]
    Malformed(String),
    #[error("the payload type is `{found}`, expected `{expected}`")]
    WrongType { found: String, expected: &'static str },
    #[error("signed by the key {0}, which is not trusted here")]
    UnknownKey(KeyId),
    #[error("the signature does not fit the content")]
    BadSignature,
    #[error("the signed payload has a field that this version does not know: {0}")]
    UnknownField(String),
    #[error("the signed payload is not what its type says: {0}")]
    PayloadMalformed(String),
}

impl EnvelopeRejected {
    /// The stable code that events, answers and logs carry.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "ENVELOPE_TOO_LONG",
            Self::Malformed(_) => "ENVELOPE_MALFORMED",
            Self::WrongType { .. } => "PAYLOAD_TYPE_WRONG",
            Self::UnknownKey(_) => "KEY_UNKNOWN",
            Self::BadSignature => "SIGNATURE_INVALID",
            Self::UnknownField(_) => "FIELD_UNKNOWN",
            Self::PayloadMalformed(_) => "PAYLOAD_MALFORMED",
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEnvelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<RawSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSignature {
    keyid: KeyId,
    sig: String,
}

/// Checks an envelope and gives its payload. `key` finds a trusted key by its id.
///
/// One form only: one signature, canonical base64, no other members, the expected payload type, at most
/// `longest` bytes.
///
/// # Errors
/// The first thing that doesn't hold, the signature after the form.
fn open<'k>(
    envelope: &[u8],
    payload_type: &'static str,
    longest: usize,
    key: impl Fn(&KeyId) -> Option<&'k PublicKey>,
) -> Result<Vec<u8>, EnvelopeRejected> {
    if envelope.len() > longest {
        return Err(EnvelopeRejected::TooLong(longest));
    }
    let malformed = |why: &str| EnvelopeRejected::Malformed(why.to_string());
    let raw: RawEnvelope = serde_json::from_slice(envelope).map_err(|error| malformed(&error.to_string()))?;
    if raw.payload_type != payload_type {
        return Err(EnvelopeRejected::WrongType {
            found: raw.payload_type,
            expected: payload_type,
        });
    }
    let [signature] = raw.signatures.as_slice() else {
        return Err(malformed("not exactly one signature"));
    };
    let payload = decode_base64(&raw.payload).ok_or_else(|| malformed("payload is not canonical base64"))?;
    let sig: [u8; 64] = decode_base64(&signature.sig)
        .and_then(|sig| sig.try_into().ok())
        .ok_or_else(|| malformed("sig is not 64 bytes in canonical base64"))?;
    let key = key(&signature.keyid).ok_or_else(|| EnvelopeRejected::UnknownKey(signature.keyid.clone()))?;
    key.verify(&pre_authentication_encoding(payload_type, &payload), &sig)?;
    Ok(payload)
}

/// Opens an envelope and reads the payload, fields that this version does not know refused: a restriction
/// that an old host can't read must make it refuse, never open too much.
///
/// `key` finds a trusted key by its id; `longest` bounds the envelope, in bytes.
///
/// # Errors
/// The first thing that doesn't hold: the form, the signature, then the first field that doesn't fit.
pub fn open_json<'k, T: for<'de> Deserialize<'de>>(
    envelope: &[u8],
    payload_type: &'static str,
    longest: usize,
    key: impl Fn(&KeyId) -> Option<&'k PublicKey>,
) -> Result<T, EnvelopeRejected> {
    serde_json::from_slice(&open(envelope, payload_type, longest, key)?).map_err(|error| {
        let text = error.to_string();
        if text.starts_with("unknown field") {
            EnvelopeRejected::UnknownField(text)
        } else {
            EnvelopeRejected::PayloadMalformed(text)
        }
    })
}

/// PAE of the DSSE protocol: lengths before contents, so that no two pairs share an encoding.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let header = alloc::format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    let mut encoding = header.into_bytes();
    encoding.extend_from_slice(payload);
    encoding
}

#[cfg(test)]
mod tests;
