//! Errors on the wire: a gRPC status with a stable code, the fields at fault, and facts for programs.

use std::collections::BTreeMap;

use tonic::{Code, Status};
use tonic_types::{BadRequest, ErrorInfo, FieldViolation, StatusExt};

use crate::convert::InvalidField;

/// The domain of every reason code in a `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "nightlatch";

/// The reason for which a repeated request is refused whose caller has another address now.
pub const ASKED_FROM_ELSEWHERE: &str = "REQUEST_FROM_ELSEWHERE";
/// The metadata that says of an enrolment token that doesn't count whether it is `unknown`, `expired` or `used`.
pub const TOKEN: &str = "token";

/// A status travels in HTTP/2 trailers, which are small.
const LONGEST_TEXT: usize = 512;
const MOST_VIOLATIONS: usize = 8;

/// A field at fault, and what would have to be otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub description: String,
}

/// What went wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub code: Code,
    /// A stable code such as `NO_POLICY`; empty if the other side gave none.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    pub violations: Vec<Violation>,
    pub metadata: BTreeMap<String, String>,
}

impl Problem {
    pub fn new(code: Code, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            violations: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Names a field at fault.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        self.violations.push(Violation {
            field: field.into(),
            description: description.into(),
        });
        self
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The first field at fault.
    pub fn field(&self) -> Option<&str> {
        self.violations.first().map(|violation| violation.field.as_str())
    }

    /// Reads a status back. One from elsewhere (a proxy, the transport) has no reason.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let violations = details
            .bad_request()
            .map(|bad| bad.field_violations.as_slice())
            .unwrap_or_default();
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            violations: violations
                .iter()
                .map(
                    |FieldViolation {
                         field, description, ..
                     }| Violation {
                        field: field.clone(),
                        description: description.clone(),
                    },
                )
                .collect(),
            metadata: info
                .map(|info| {
                    info.metadata
                        .iter()
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect()
                })
                .unwrap_or_default(),
        }
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let Problem {
            code,
            reason,
            message,
            violations,
            mut metadata,
        } = problem;
        if let Some(first) = violations.first() {
            metadata
                .entry("field".to_owned())
                .or_insert_with(|| first.field.clone());
        }
        let metadata = metadata
            .into_iter()
            .map(|(key, value)| (key, safe(value)))
            .collect();
        let mut details = vec![
            ErrorInfo {
                reason,
                domain: DOMAIN.to_owned(),
                metadata,
            }
            .into(),
        ];
        if !violations.is_empty() {
            let violations = violations.into_iter().take(MOST_VIOLATIONS);
            let violations: Vec<FieldViolation> = violations
                .map(|Violation { field, description }| FieldViolation::new(safe(field), safe(description)))
                .collect();
            details.push(BadRequest::new(violations).into());
        }
        Self::with_error_details_vec(code, safe(message), details)
    }
}

impl From<InvalidField> for Problem {
    fn from(invalid: InvalidField) -> Self {
        let message = invalid.to_string();
        let InvalidField { field, reason } = invalid;
        Self::new(Code::InvalidArgument, "INVALID_FIELD", message).at(field, reason)
    }
}

impl From<InvalidField> for Status {
    fn from(invalid: InvalidField) -> Self {
        Problem::from(invalid).into()
    }
}

/// What callers sent may be in it: nothing of it moves a cursor, breaks a line or turns the reading direction.
fn safe(text: String) -> String {
    let is_short = text.len() <= LONGEST_TEXT;
    if is_short && !text.chars().any(acts) {
        return text;
    }
    let mut safe = String::with_capacity(LONGEST_TEXT);
    for char in text.chars() {
        let before = safe.len();
        if acts(char) {
            safe.extend(char.escape_default());
        } else {
            safe.push(char);
        }
        if safe.len() > LONGEST_TEXT {
            safe.truncate(before);
            safe.push('…');
            break;
        }
    }
    safe
}

/// Control characters, line and paragraph separators, and those that set the reading direction.
fn acts(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_wire() {
        let problem = Problem::new(Code::PermissionDenied, "DURATION_TOO_LONG", "too long")
            .at("duration", "at most PT3H")
            .with("machine", "web-1")
            .with("field", "duration");
        assert_eq!(Problem::from_status(&Status::from(problem.clone())), problem);
    }

    #[test]
    fn what_a_caller_sent_comes_back_without_effect() {
        let sent = "a\r\nb\u{1b}[2J\u{202e}c\u{2028}ü";
        let told = "a\\r\\nb\\u{1b}[2J\\u{202e}c\\u{2028}ü";
        let problem = Problem::new(Code::InvalidArgument, "INVALID_FIELD", sent)
            .at(sent, sent)
            .with("machine", sent);
        let found = Problem::from_status(&Status::from(problem));
        assert_eq!(
            [
                &found.message,
                &found.violations[0].field,
                &found.violations[0].description
            ],
            [told; 3]
        );
        assert_eq!(found.metadata["machine"], told);
    }

    #[test]
    fn what_others_say_has_no_reason() {
        let problem = Problem::from_status(&Status::unavailable("connection reset"));
        assert_eq!((problem.code, problem.reason.as_str()), (Code::Unavailable, ""));
    }

    #[test]
    fn a_status_stays_small_whatever_was_sent() {
        let long = "ü".repeat(100_000);
        let mut problem =
            Problem::new(Code::InvalidArgument, "INVALID_FIELD", &*long).with("machine", &*long);
        for _ in 0..100 {
            problem = problem.at("machines[0]", &*long);
        }
        let status = Status::from(problem);
        assert!(status.message().len() + status.details().len() < 7_000);
    }
}
