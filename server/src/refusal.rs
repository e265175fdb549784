//! Why a call was not done, in the words of the domain.

use nightlatch_core::grant::Lapsed;
use nightlatch_core::id::{GrantId, MachineId, MachineName, RequestId};
use nightlatch_core::request::{Denial, DenialReason};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::resource::MachineRef;

use crate::identity::ca::CertificateError;
use crate::store::StoreError;

/// The code of a refusal for want of a permission.
pub const PERMISSION_MISSING: &str = "PERMISSION_MISSING";

/// One variant per thing that a caller would do differently.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    #[error("there is no machine `{machine}`: `nightlatch list machines` shows all")]
    UnknownMachine { field: String, machine: MachineRef },
    #[error(
        "the request_id was used for another request before: give each request its own, and repeat one only unchanged"
    )]
    RequestIdReused,
    #[error("this was asked for from {sources} before: ask anew with a new request_id")]
    AskedFromElsewhere { request: RequestId, sources: String },
    #[error("there is no grant {0}")]
    UnknownGrant(GrantId),
    #[error("there is no access request {0}")]
    UnknownRequest(RequestId),
    #[error(
        "the access request {request} is not for the machine `{machine}`: \
         `nightlatch grant show accessRequests/{request}` shows what it is for"
    )]
    NotForMachine { request: RequestId, machine: MachineRef },
    #[error("the machine {0} has no policy")]
    NoPolicy(MachineName),
    #[error("{}", in_words(.0))]
    Denied(Vec<Denied>),
    #[error("this belongs to someone else: it takes the permission {needed}")]
    NotYours {
        needed: nightlatch_core::rights::Permission,
    },
    #[error("the policy has changed since etag {given}: read it again, it has etag {current} now")]
    StaleEtag { given: String, current: String },
    #[error("the enrolment token {}: create a new one with `nightlatch-server token create`", .0.in_words())]
    Token(BadToken),
    #[error("the token is for the machine {0} only")]
    TokenForOther(MachineName),
    #[error(
        "the name {0} is taken: choose another with --name, or create a token that may replace the machine: \
         `nightlatch-server token create --machine {0} --replace`"
    )]
    NameTaken(MachineName),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Why an enrolment token doesn't count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadToken {
    Unknown,
    Expired,
    Used,
}

impl BadToken {
    /// For programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Used => "used",
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Self::Unknown => "is not known here",
            Self::Expired => "has expired",
            Self::Used => "was used before",
        }
    }
}

/// A denial for one of the machines of a request.
#[derive(Debug)]
pub struct Denied {
    /// Of the machine, in the order they were named.
    pub position: usize,
    pub machine: MachineId,
    pub name: MachineName,
    pub denial: Denial,
}

impl Denied {
    /// The field of the call that is at fault.
    pub fn field(&self) -> String {
        match self.denial.field.as_str() {
            "machine" => format!("machines[{}]", self.position),
            field => field.to_owned(),
        }
    }
}

fn in_words(denied: &[Denied]) -> String {
    let sentences: Vec<String> = denied
        .iter()
        .map(|Denied { name, denial, .. }| format!("{name}: {}", denial.reason))
        .collect();
    sentences.join("; ")
}

/// An approved end that has passed is a denial like one that has passed before.
pub fn lapsed(_: Lapsed, now: Timestamp) -> Denial {
    Denial {
        field: "end_time".to_owned(),
        reason: DenialReason::EndPassed(now),
    }
}
