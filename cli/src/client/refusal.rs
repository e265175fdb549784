//! The server's refusals, in the words of the command line.

use std::fmt;

use nightlatch_proto::error::{ASKED_FROM_ELSEWHERE, Problem, Violation};
use tonic::{Code, Status};

/// A call that the server answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(Problem);

impl Refusal {
    pub(crate) fn is_unknown(&self) -> bool {
        self.0.code == Code::NotFound
    }

    /// The machine is there, and has no policy.
    pub(crate) fn is_without_policy(&self) -> bool {
        self.0.reason == "NO_POLICY"
    }

    /// The answer to an earlier try of this call was lost, and the server sees us at another address now.
    pub(crate) fn is_from_elsewhere(&self) -> bool {
        self.0.reason == ASKED_FROM_ELSEWHERE
    }

    /// The request that the earlier try has made.
    pub(crate) fn earlier_request(&self) -> Option<&str> {
        self.0.metadata.get("access_request").map(String::as_str)
    }

    /// Worth another attempt a little later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self.0.code,
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted
        )
    }

    /// The server's stable code, or that of gRPC where it gives none.
    pub(crate) fn code(&self) -> String {
        if self.0.reason.is_empty() {
            in_capitals(&format!("{:?}", self.0.code))
        } else {
            self.0.reason.clone()
        }
    }

    /// What people write for the first field that is wrong.
    pub(crate) fn field(&self) -> &str {
        let first = self.0.violations.first();
        first
            .and_then(|violation| option_for(&violation.field))
            .unwrap_or_default()
    }

    pub(crate) fn machine(&self) -> &str {
        self.0.metadata.get("machine").map_or("", String::as_str)
    }

    pub(crate) fn hint(&self) -> Option<String> {
        let machine = self.0.metadata.get("machine").map_or("MACHINE", String::as_str);
        let hint = match self.0.reason.as_str() {
            "PORT_NOT_IN_POLICY" | "SOURCE_NOT_ALLOWED" | "DURATION_TOO_LONG" => {
                format!("`nightlatch policy show {machine}` shows what may be asked for")
            }
            "NO_POLICY" => format!("`nightlatch policy set {machine} --port 22/tcp` sets one"),
            "NO_CEILING" | "CEILING_PORT" | "CEILING_DURATION" | "CEILING_SOURCE" => {
                "the host's own agent.toml sets this limit: only its administrator can widen it".to_string()
            }
            _ => match self.0.code {
                Code::NotFound => {
                    "`nightlatch list machines` and `nightlatch list grants` show what there is".to_string()
                }
                Code::PermissionDenied => {
                    "an administrator gives roles with `nightlatch-server user issue`".to_string()
                }
                Code::Unauthenticated => {
                    "use a client certificate that this server issued (`nightlatch-server user issue`)"
                        .to_string()
                }
                Code::Aborted => "someone changed it meanwhile: look at it again, then repeat".to_string(),
                Code::Unavailable | Code::ResourceExhausted => "try again in a moment".to_string(),
                Code::Unimplemented => "name the server's port for people (7443), or update the server: it may be older than this command".to_string(),
                Code::Internal | Code::Unknown | Code::DataLoss => {
                    "the server's log says more: `journalctl -u nightlatch-server`".to_string()
                }
                _ => return None,
            },
        };
        // Some messages end with the step already.
        (!self.0.message.contains("nightlatch ")).then_some(hint)
    }
}

impl From<&Status> for Refusal {
    fn from(status: &Status) -> Self {
        Self(Problem::from_status(status))
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem {
            code,
            reason,
            message,
            violations,
            metadata,
        } = &self.0;
        let mut text = message.clone();
        for Violation { field, description } in violations {
            text = with_option(&text, field, description);
        }
        if text.is_empty() {
            text = without_words(*code).to_string();
        }
        if let Some(machine) = metadata.get("machine").filter(|machine| !text.contains(*machine)) {
            text = format!("{machine}: {text}");
        }
        if reason.is_empty() {
            f.write_str(&text)
        } else {
            write!(f, "{text} ({reason})")
        }
    }
}

/// Puts the option's name, which people know, in the place of the field's, or tells what is missing.
fn with_option(text: &str, field: &str, description: &str) -> String {
    let option = match option_for(field) {
        Some(option) => format!("{option}: "),
        None => String::new(),
    };
    let prefix = format!("{field}: ");
    let description = description.strip_prefix(&prefix).unwrap_or(description);
    if text.contains(&prefix) {
        text.replace(&prefix, &option)
    } else if field.starts_with("machines[") && text.contains(": machine: ") {
        // Where the machine is named already.
        text.replace(": machine: ", ": ")
    } else if !option.is_empty() && text.contains(&option) {
        text.to_string()
    } else if text.contains(description) {
        format!("{option}{text}")
    } else {
        format!("{text}; {option}{description}")
    }
}

/// What people write for a field of a call. `None` where the sentence says it all.
fn option_for(field: &str) -> Option<&str> {
    let (first, rest) = field.split_once(['[', '.']).unwrap_or((field, ""));
    match first {
        "access_request" | "policy" if !rest.is_empty() => option_for(rest),
        "name" => None,
        "ports" => Some("--port"),
        "sources" => Some("--from"),
        "duration" | "span" => Some("--for"),
        "end_time" => Some("--until"),
        "justification" => Some("--reason"),
        "wait" => Some("--timeout"),
        "machine" | "machines" => Some("MACHINE"),
        "subject" => Some("--person"),
        "etag" => Some("--etag"),
        _ => Some(field),
    }
}

/// `NotFound` as `NOT_FOUND`.
fn in_capitals(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_uppercase());
    }
    text
}

fn without_words(code: Code) -> &'static str {
    match code {
        Code::NotFound => "there is no such thing",
        Code::PermissionDenied => "you may not do that",
        Code::Unauthenticated => "the server does not know you",
        Code::Unavailable => "the server cannot do that right now",
        Code::Unimplemented => "the server does not know this command",
        _ => "the server failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: Code, message: &str, reason: &str, field: &str) -> Refusal {
        let problem = Problem::new(code, reason, message).with("machine", "web-1");
        let problem = if field.is_empty() {
            problem
        } else {
            problem.at(field, message)
        };
        (&Status::from(problem)).into()
    }

    #[test]
    fn a_refusal_names_the_option_the_machine_and_the_code() {
        let message = "port 23/tcp is not in the machine's policy: ask for 22/tcp";
        let expected =
            "web-1: --port: port 23/tcp is not in the machine's policy: ask for 22/tcp (PORT_NOT_IN_POLICY)";
        for (prefix, field) in [
            ("", "ports[0]"),
            ("ports[0]: ", "ports[0]"),
            ("", "access_request.ports[0]"),
        ] {
            let text = format!("{prefix}{message}");
            let refusal = refusal(Code::PermissionDenied, &text, "PORT_NOT_IN_POLICY", field);
            assert_eq!(refusal.to_string(), expected);
            assert_eq!(
                refusal.hint().unwrap(),
                "`nightlatch policy show web-1` shows what may be asked for"
            );
        }
    }

    #[test]
    fn denials_of_several_machines_are_told_once_each() {
        let message =
            "web-1: machine: the machine web-1 has no policy; web-2: ports[0]: port 23/tcp is not allowed";
        let problem = Problem::new(Code::FailedPrecondition, "NO_POLICY", message)
            .with("machine", "web-1")
            .at("machines[0]", "web-1: the machine web-1 has no policy")
            .at("ports[0]", "web-2: port 23/tcp is not allowed");
        assert_eq!(
            Refusal::from(&Status::from(problem)).to_string(),
            "web-1: the machine web-1 has no policy; web-2: --port: port 23/tcp is not allowed (NO_POLICY)"
        );
    }

    #[test]
    fn an_error_without_details_still_says_what_to_do() {
        let refusal = Refusal::from(&Status::unavailable(""));
        assert_eq!(refusal.to_string(), "the server cannot do that right now");
        assert_eq!(refusal.code(), "UNAVAILABLE");
        assert_eq!(Refusal::from(&Status::not_found("")).code(), "NOT_FOUND");
        assert_eq!(refusal.hint().unwrap(), "try again in a moment");
    }

    #[test]
    fn a_message_that_names_the_step_gets_no_second_hint() {
        let message = "web-1 has no policy: set one with `nightlatch policy set`";
        assert_eq!(
            refusal(Code::FailedPrecondition, message, "NO_POLICY", "").hint(),
            None
        );
    }
}
