//! From refusals to statuses, once.

use nightlatch_core::request::DenialReason;
use nightlatch_proto::error::{ASKED_FROM_ELSEWHERE, Problem, TOKEN};
use tonic::{Code, Status};
use tracing::error;

use crate::causes::in_one_line;
use crate::refusal::{Denied, PERMISSION_MISSING, Refusal};

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let problem = |code, reason: &str| Problem::new(code, reason, message.clone());
        match &refusal {
            Refusal::Store(store) => {
                // What went wrong inside is the operator's to know.
                error!(error = %in_one_line(store), "the store failed");
                let message = "the server's store is not available: try again";
                Problem::new(Code::Unavailable, "STORE_UNAVAILABLE", message)
            }
            Refusal::Invalid(invalid) => invalid.clone().into(),
            Refusal::UnknownMachine { field, machine } => problem(Code::NotFound, "MACHINE_UNKNOWN")
                .at(field, &message)
                .with("machine", machine.to_string()),
            Refusal::RequestIdReused => {
                problem(Code::AlreadyExists, "REQUEST_ID_REUSED").at("request_id", &message)
            }
            Refusal::AskedFromElsewhere { request, .. } => problem(Code::AlreadyExists, ASKED_FROM_ELSEWHERE)
                .at("request_id", &message)
                .with("access_request", format!("accessRequests/{request}")),
            Refusal::UnknownGrant(_) => problem(Code::NotFound, "GRANT_UNKNOWN").at("name", &message),
            Refusal::UnknownRequest(_) => {
                problem(Code::NotFound, "ACCESS_REQUEST_UNKNOWN").at("name", &message)
            }
            Refusal::NotForMachine { machine, .. } => {
                problem(Code::InvalidArgument, "MACHINE_NOT_IN_REQUEST")
                    .at("machine", &message)
                    .with("machine", machine.to_string())
            }
            Refusal::NoPolicy(machine) => problem(Code::NotFound, "NO_POLICY")
                .at("name", &message)
                .with("machine", machine.as_str()),
            Refusal::Denied(denied) => denial(denied, &message),
            Refusal::NotYours { needed } => {
                problem(Code::PermissionDenied, PERMISSION_MISSING).with("permission", needed.to_string())
            }
            Refusal::StaleEtag { .. } => problem(Code::Aborted, "ETAG_STALE").at("etag", &message),
            Refusal::Token(why) => problem(Code::PermissionDenied, "TOKEN_INVALID")
                .at("secret", &message)
                .with(TOKEN, why.code()),
            Refusal::TokenForOther(name) => problem(Code::PermissionDenied, "TOKEN_FOR_OTHER_NAME")
                .at("machine_name", &message)
                .with("machine", name.as_str()),
            Refusal::NameTaken(name) => problem(Code::AlreadyExists, "NAME_TAKEN")
                .at("machine_name", &message)
                .with("machine", name.as_str()),
            Refusal::Certificate(_) => problem(Code::InvalidArgument, "CERTIFICATE_REQUEST_INVALID")
                .at("certificate_request_pem", &message),
        }
        .into()
    }
}

/// The first denial gives the code; all are told.
fn denial(denied: &[Denied], message: &str) -> Problem {
    let first = denied.first().map(|denied| &denied.denial.reason);
    let (code, reason) = first.map_or((Code::PermissionDenied, ""), |reason| {
        (code(reason), reason.code())
    });
    let mut problem = Problem::new(code, reason, message);
    if let Some(first) = denied.first() {
        problem = problem.with("machine", first.name.as_str());
    }
    for one in denied {
        problem = problem.at(one.field(), format!("{}: {}", one.name, one.denial.reason));
    }
    problem
}

const fn code(reason: &DenialReason) -> Code {
    match reason {
        DenialReason::NoPolicy(_) | DenialReason::NoCeiling => Code::FailedPrecondition,
        DenialReason::TooManyOwn(_) | DenialReason::TooMany(_) | DenialReason::TooLongTogether(_) => {
            Code::ResourceExhausted
        }
        DenialReason::NoPorts
        | DenialReason::NoSources
        | DenialReason::SourceCannotSend(_)
        | DenialReason::TooManyParts
        | DenialReason::TooManyOpenings
        | DenialReason::TooShort
        | DenialReason::EndPassed(_) => Code::InvalidArgument,
        DenialReason::PortNotInPolicy(..)
        | DenialReason::PortUnknown(..)
        | DenialReason::SourceNotAllowed { .. }
        | DenialReason::TooLong { .. }
        | DenialReason::BeyondCeiling(_) => Code::PermissionDenied,
    }
}
