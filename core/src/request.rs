//! Access requests, and what becomes of them: an approval or a denial.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ceiling::CeilingExceeded;
use crate::grant;
use crate::id::{MachineId, MachineName, RequestId, Subject};
use crate::port::{PortKey, PortPattern, PortSpan};
use crate::prefix::{NobodyThere, Prefix};
use crate::time::{Timestamp, format_iso8601};

/// How long access is wanted: for a length that starts when the host opens, or until a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    For(Duration),
    Until(Timestamp),
}

impl Span {
    /// The end of the span if it starts at `start`; `None` past the year 9999.
    pub fn end(self, start: Timestamp) -> Option<Timestamp> {
        match self {
            Self::For(length) => start.checked_add(length),
            Self::Until(end) => Some(end),
        }
    }

    /// The length of the span if it starts at `start`.
    pub fn length(self, start: Timestamp) -> Duration {
        match self {
            Self::For(length) => length,
            Self::Until(end) => end.since(start),
        }
    }
}

/// Why a text is no justification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a reason has 1 to {} characters and no control characters",
    Justification::LONGEST
)]
pub struct InvalidJustification;

/// Why someone wants in, in their own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Justification(String);

impl Justification {
    /// In characters.
    pub const LONGEST: usize = 1000;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Justification {
    type Error = InvalidJustification;

    fn try_from(text: String) -> Result<Self, InvalidJustification> {
        let text = text.trim();
        if (1..=Self::LONGEST).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_string()))
        } else {
            Err(InvalidJustification)
        }
    }
}

impl From<Justification> for String {
    fn from(justification: Justification) -> Self {
        justification.0
    }
}

/// What a person asks for on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRequest {
    pub id: RequestId,
    pub machine: MachineId,
    pub subject: Subject,
    /// A port without a protocol means the protocols of the policy.
    pub ports: Vec<PortPattern>,
    pub sources: Vec<Prefix>,
    pub span: Span,
    pub justification: Justification,
}

/// What was approved. Only [`crate::policy::Policy::decide`] makes one, and it is spent by issuing a grant.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Approval {
    pub(crate) request: RequestId,
    pub(crate) machine: MachineId,
    pub(crate) subject: Subject,
    pub(crate) ports: Vec<PortSpan>,
    pub(crate) sources: Vec<Prefix>,
    pub(crate) span: Span,
}

/// A refusal: the field of the request that is at fault, and why.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Denial {
    pub field: String,
    pub reason: DenialReason,
}

/// Why a request was denied. `Display` names the limit and what would be allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DenialReason {
    #[error(
        "the machine {0} has no policy, so nothing can be asked for: an administrator sets one with `nightlatch policy set`"
    )]
    NoPolicy(MachineName),
    #[error("name at least one port")]
    NoPorts,
    #[error("name at least one source address")]
    NoSources,
    #[error("at most {} are taken in one request", grant::MOST_PARTS)]
    TooManyParts,
    #[error(
        "the request would make more than {} openings: ask for fewer ports or sources",
        grant::MOST_OPENINGS
    )]
    TooManyOpenings,
    #[error("port {0} is not in the machine's policy: ask for {1}")]
    PortNotInPolicy(PortKey, String),
    #[error("port {0} is not in the machine's policy under any protocol: ask for {1}")]
    PortUnknown(u16, String),
    #[error(transparent)]
    SourceCannotSend(#[from] NobodyThere),
    #[error("the source {source_} is not allowed for port {port}: the policy allows {allowed}")]
    SourceNotAllowed {
        source_: Prefix,
        port: PortKey,
        allowed: String,
    },
    #[error("{} is longer than the {} that the policy allows for port {port}", format_iso8601(*asked), format_iso8601(*longest))]
    TooLong {
        asked: Duration,
        longest: Duration,
        port: PortKey,
    },
    #[error("a request lasts at least one second")]
    TooShort,
    #[error("the end {0:.0} has passed: ask until a later moment")]
    EndPassed(Timestamp),
    #[error(transparent)]
    BeyondCeiling(#[from] CeilingExceeded),
    #[error(
        "you have {0} live grants and waiting requests on this machine, the most one may have: end some with \
         `nightlatch done`"
    )]
    TooManyOwn(u64),
    #[error(
        "the machine has {0} live grants and waiting requests, the most it may have: wait until some end, or have \
         an administrator end them with `nightlatch revoke`"
    )]
    TooMany(u64),
    #[error(
        "the machine's live grants are longer than {0} bytes together, the most it takes: wait until some end, or \
         have an administrator end them with `nightlatch revoke`"
    )]
    TooLongTogether(u64),
    #[error("the host's file has no [ceiling], so the host takes no grant: add one to its agent.toml")]
    NoCeiling,
}

impl DenialReason {
    /// The stable code that answers, events and logs carry.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoPolicy(_) => "NO_POLICY",
            Self::NoPorts => "NO_PORTS",
            Self::NoSources => "NO_SOURCES",
            Self::TooManyParts => "TOO_MANY_PARTS",
            Self::TooManyOpenings => "TOO_MANY_OPENINGS",
            Self::PortNotInPolicy(..) | Self::PortUnknown(..) => "PORT_NOT_IN_POLICY",
            Self::SourceCannotSend(_) => "SOURCE_CANNOT_SEND",
            Self::SourceNotAllowed { .. } => "SOURCE_NOT_ALLOWED",
            Self::TooLong { .. } => "DURATION_TOO_LONG",
            Self::TooShort => "DURATION_TOO_SHORT",
            Self::EndPassed(_) => "END_PASSED",
            Self::BeyondCeiling(exceeded) => exceeded.code(),
            Self::TooManyOwn(_) => "TOO_MANY_OWN_GRANTS",
            Self::TooMany(_) => "TOO_MANY_GRANTS",
            Self::TooLongTogether(_) => "GRANTS_TOO_LONG",
            Self::NoCeiling => "NO_CEILING",
        }
    }
}
