//! Grants: a signed word that some sources may reach some ports of one machine for a while.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ceiling::{Ceiling, CeilingExceeded};
use crate::id::{GrantId, MachineId, RequestId, Subject};
use crate::keys::VerifiedKeys;
use crate::port::PortSpan;
use crate::prefix::Prefix;
use crate::request::Approval;
use crate::signing::{self, EnvelopeRejected, Seal, SigningKey};
use crate::time::Timestamp;

/// The payload type in a grant's DSSE envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.nightlatch.grant.v1+json";

/// The most sources or port spans of one grant.
pub const MOST_PARTS: usize = 32;
/// The most openings (source and port) of one grant.
pub const MOST_OPENINGS: usize = 4096;

/// What happens to open connections when the grant ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtEnd {
    /// They live on.
    Keep,
}

/// What a grant says. One grant is one machine and one span of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    version: Version1,
    pub id: GrantId,
    /// The only machine that may enforce it.
    pub machine: MachineId,
    /// Who is let in.
    pub subject: Subject,
    pub sources: Vec<Prefix>,
    pub ports: Vec<PortSpan>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub at_end: AtEnd,
    pub request: RequestId,
    pub issued_at: Timestamp,
}

/// The number 1 and nothing else: a payload of another version is refused, not guessed at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct Version1;

impl From<Version1> for u32 {
    fn from(_: Version1) -> Self {
        1
    }
}

impl TryFrom<u32> for Version1 {
    type Error = &'static str;

    fn try_from(version: u32) -> Result<Self, &'static str> {
        if version == 1 {
            Ok(Self)
        } else {
            Err("a payload version other than 1")
        }
    }
}

impl Grant {
    /// The length of the grant.
    pub fn length(&self) -> Duration {
        self.not_after.since(self.not_before)
    }

    /// How many set elements it stands for: each source with each port.
    pub fn openings(&self) -> usize {
        let keys: usize = self.ports.iter().map(|span| span.keys().count()).sum();
        self.sources.len().saturating_mul(keys)
    }

    fn check_form(&self) -> Result<(), &'static str> {
        if self.sources.is_empty() || self.ports.is_empty() {
            Err("no source or no port")
        } else if self.sources.len() > MOST_PARTS || self.ports.len() > MOST_PARTS {
            Err("more than 32 sources or port ranges")
        } else if self.openings() > MOST_OPENINGS {
            Err("more than 4096 openings")
        } else if self.not_after <= self.not_before {
            Err("an end that is not after its start")
        } else {
            Ok(())
        }
    }
}

/// Why a host does not take a grant. `Display` says what would have to be otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantRejected {
    #[error(transparent)]
    Envelope(#[from] EnvelopeRejected),
    #[error("the grant is for the machine {0}, not for this one")]
    OtherMachine(MachineId),
    #[error("the grant ended at {0:.0}")]
    Expired(Timestamp),
    #[error("the grant starts at {not_before:.0}, more than the host's ceiling allows ahead (max_ahead)")]
    NotYetValid { not_before: Timestamp },
    #[error("the host's file has no [ceiling], so the host takes no grant")]
    NoCeiling,
    #[error(transparent)]
    BeyondCeiling(#[from] CeilingExceeded),
    #[error("the grant was ended before its time, and what was ended is not opened again")]
    Revoked,
    #[error(
        "the host already has as many openings as it takes: end grants, or ask for fewer ports or sources"
    )]
    TooManyOpenings,
    #[error("the host has no key list to check it with")]
    NoKeys,
}

impl GrantRejected {
    /// The stable code that events, answers and logs carry.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Envelope(rejected) => rejected.code(),
            Self::OtherMachine(_) => "OTHER_MACHINE",
            Self::Expired(_) => "EXPIRED",
            Self::NotYetValid { .. } => "NOT_YET_VALID",
            Self::NoCeiling => "NO_CEILING",
            Self::BeyondCeiling(exceeded) => exceeded.code(),
            Self::Revoked => "REVOKED",
            Self::TooManyOpenings => "TOO_MANY_OPENINGS",
            Self::NoKeys => "KEYS_MISSING",
        }
    }
}

/// The exact bytes of a grant's envelope, not yet believed. Copies share them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedGrant(#[serde(with = "signing::base64_bytes")] Arc<[u8]>);

impl SignedGrant {
    pub fn from_bytes(envelope: Vec<u8>) -> Self {
        Self(envelope.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Checks signature, form, machine, ceiling and time, in that order; nothing is parsed before the
    /// signature holds. `now` is the latest that true time can be.
    ///
    /// # Errors
    /// The first thing that speaks against it.
    pub fn verify(
        &self,
        keys: &VerifiedKeys,
        machine: MachineId,
        ceiling: Option<&Ceiling>,
        now: Timestamp,
    ) -> Result<VerifiedGrant, GrantRejected> {
        self.authenticate(keys, machine)?.verify(ceiling, now)
    }

    /// The same for a grant whose time was fixed at an earlier acceptance: the ledger's ends rule it.
    pub(crate) fn verify_timeless(
        &self,
        keys: &VerifiedKeys,
        machine: MachineId,
        ceiling: Option<&Ceiling>,
    ) -> Result<VerifiedGrant, GrantRejected> {
        self.authenticate(keys, machine)?.verify_timeless(ceiling)
    }

    /// Checks signature, form and machine.
    pub(crate) fn authenticate(
        &self,
        keys: &VerifiedKeys,
        machine: MachineId,
    ) -> Result<AuthenticGrant, GrantRejected> {
        let grant: Grant = signing::open_json(&self.0, PAYLOAD_TYPE, signing::LONGEST_ENVELOPE, |id| {
            keys.key(id)
        })?;
        grant
            .check_form()
            .map_err(|why| EnvelopeRejected::PayloadMalformed(why.to_string()))?;
        if grant.machine != machine {
            return Err(GrantRejected::OtherMachine(grant.machine));
        }
        let signed = Signed::Whole(self.clone());
        Ok(AuthenticGrant(VerifiedGrant { grant, signed }))
    }
}

/// A grant that a listed key signed for this machine. The host's ceiling wasn't asked yet.
pub(crate) struct AuthenticGrant(VerifiedGrant);

impl AuthenticGrant {
    pub(crate) const fn grant(&self) -> &Grant {
        &self.0.grant
    }

    pub(crate) fn verify(
        self,
        ceiling: Option<&Ceiling>,
        now: Timestamp,
    ) -> Result<VerifiedGrant, GrantRejected> {
        let verified = self.verify_timeless(ceiling)?;
        let Grant {
            not_before,
            not_after,
            ..
        } = verified.grant;
        if not_after <= now {
            Err(GrantRejected::Expired(not_after))
        } else if ceiling.is_none_or(|ceiling| not_before.since(now) > ceiling.max_ahead) {
            Err(GrantRejected::NotYetValid { not_before })
        } else {
            Ok(verified)
        }
    }

    pub(crate) fn verify_timeless(self, ceiling: Option<&Ceiling>) -> Result<VerifiedGrant, GrantRejected> {
        let Self(verified) = self;
        let grant = &verified.grant;
        let ceiling = ceiling.ok_or(GrantRejected::NoCeiling)?;
        grant
            .ports
            .iter()
            .try_for_each(|span| ceiling.check_ports(*span))?;
        grant
            .sources
            .iter()
            .try_for_each(|source| ceiling.check_source(*source))?;
        ceiling.check_length(grant.length())?;
        Ok(verified)
    }
}

/// A grant that this host may enforce. Only a [`SignedGrant`] that was verified becomes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedGrant {
    grant: Grant,
    signed: Signed,
}

/// The signed bytes, or what makes them again with the grant.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Signed {
    Whole(SignedGrant),
    Seal(Seal),
}

impl VerifiedGrant {
    pub const fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The bytes that were signed.
    pub fn envelope(&self) -> SignedGrant {
        match &self.signed {
            Signed::Whole(envelope) => envelope.clone(),
            Signed::Seal(seal) => SignedGrant::from_bytes(seal.envelope(PAYLOAD_TYPE, &self.payload())),
        }
    }

    fn payload(&self) -> Vec<u8> {
        // Serialising strings, numbers and lists can't fail.
        serde_json::to_vec(&self.grant).unwrap_or_default()
    }

    /// Keeps of the signed bytes only what can't be made again: a host may hold thousands.
    pub(crate) fn condense(&mut self) {
        self.grant.sources.shrink_to_fit();
        self.grant.ports.shrink_to_fit();
        if let Signed::Whole(envelope) = &self.signed
            && let Some(seal) = Seal::of(envelope.as_bytes(), PAYLOAD_TYPE, &self.payload())
        {
            self.signed = Signed::Seal(seal);
        }
    }
}

/// Holds the signing key. The only maker of grants, and only from an approval.
pub struct Authority {
    key: SigningKey,
}

impl Authority {
    pub const fn new(key: SigningKey) -> Self {
        Self { key }
    }

    pub const fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Signs what was approved. The grant's time starts now, or ends at the moment that was asked for.
    ///
    /// # Errors
    /// An approved end that has passed while the request waited, or one past the year 9999.
    pub fn issue(&self, approval: Approval, id: GrantId, now: Timestamp) -> Result<IssuedGrant, Lapsed> {
        let not_after = approval.span.end(now).filter(|end| *end > now).ok_or(Lapsed)?;
        let grant = Grant {
            version: Version1,
            id,
            machine: approval.machine,
            subject: approval.subject,
            sources: approval.sources,
            ports: approval.ports,
            not_before: now,
            not_after,
            at_end: AtEnd::Keep,
            request: approval.request,
            issued_at: now,
        };
        // Serialising strings, numbers and lists can't fail.
        let payload = serde_json::to_vec(&grant).unwrap_or_default();
        let envelope = SignedGrant::from_bytes(self.key.seal(PAYLOAD_TYPE, &payload));
        Ok(IssuedGrant { grant, envelope })
    }
}

/// The approved end has passed before the grant could be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the end that was asked for has passed: ask again")]
pub struct Lapsed;

/// A grant as the server made it, with the bytes that it signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedGrant {
    pub grant: Grant,
    pub envelope: SignedGrant,
}
