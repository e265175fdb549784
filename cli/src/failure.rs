//! How a command ends: its exit code, or what went wrong and what to do next.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use crate::client::refusal::Refusal;
use crate::client::unreachable::Unreachable;
use crate::naming::UnknownName;
use crate::output::plain;
use crate::policy_file::InvalidPolicyFile;
use crate::record::ErrorRecord;
use crate::settings::InvalidSettings;
use crate::when;

/// The next step where what became of grants could not be written.
pub(crate) const SHOWS_GRANTS: &str =
    "`nightlatch list grants --live` shows what is open, `nightlatch done` ends it";

/// Scripts rely on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    /// Taken, but not in effect on the host yet.
    NotYet,
    /// Done, but the result could not be written.
    Untold,
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotYet => 3,
            Exit::Untold => 4,
            // 128 + SIGINT, as a shell has it.
            Exit::Interrupted => 130,
        })
    }
}

/// Why a command failed. `Display` is for the `error:` line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the command could not start: {0}")]
    Start(#[source] io::Error),
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the server did not answer within {}", when::length_in_words(*.0))]
    NoAnswer(Duration),
    #[error(transparent)]
    UnknownName(#[from] UnknownName),
    #[error(transparent)]
    PolicyFile(#[from] InvalidPolicyFile),
    #[error("{option}: {given} are named, at most {most} are taken in one request")]
    TooMany {
        option: &'static str,
        given: usize,
        most: usize,
    },
    #[error("MACHINE: {0} is named twice")]
    NamedTwice(String),
    #[error("the end {0} has passed")]
    EndPassed(String),
    #[error("nothing was ended: {name} is for {at}, not for {machine}")]
    Elsewhere {
        name: String,
        at: String,
        /// Where it was said to be.
        machine: String,
    },
    #[error("{name} may still wait for {machines}: the server does not say that it is withdrawn there")]
    NotWithdrawn { name: String, machines: String },
    #[error("nothing was ended")]
    Declined,
    #[error("the answer cannot be read: {0}")]
    Ask(#[source] io::Error),
    #[error("the result cannot be written: {0}")]
    Write(#[source] io::Error),
    #[error("the result cannot be written: {error}; {stands}")]
    Untold {
        #[source]
        error: io::Error,
        /// What was done all the same.
        stands: String,
        /// The next step.
        next: String,
    },
    #[error("interrupted while waiting for the server's answer")]
    Interrupted,
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Settings(
                InvalidSettings::Missing { .. }
                | InvalidSettings::NotAServer(_)
                | InvalidSettings::NotSettings { .. },
            )
            | Self::PolicyFile(InvalidPolicyFile::Options(_))
            | Self::TooMany { .. }
            | Self::NamedTwice(_) => Exit::Usage,
            Self::Untold { .. } => Exit::Untold,
            Self::Interrupted => Exit::Interrupted,
            _ => Exit::Failed,
        }
    }

    /// The next step, where there is one.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Settings(invalid) => Some(invalid.hint()),
            Self::Unreachable(unreachable) => Some(unreachable.hint()),
            Self::Refused(refusal) => refusal.hint(),
            Self::NoAnswer(_) => Some(
                "whether it took the command is not known: `nightlatch list grants` and `nightlatch list requests --waiting` show what holds"
                    .to_string(),
            ),
            Self::UnknownName(unknown) => Some(unknown.hint()),
            Self::PolicyFile(invalid) => Some(invalid.hint()),
            Self::EndPassed(_) => Some("name a later moment with --until, or a length with --for".to_string()),
            Self::TooMany { .. } => Some("ask for some of them first".to_string()),
            Self::NamedTwice(_) => Some("name each machine once".to_string()),
            Self::Untold { next, .. } => Some(next.clone()),
            Self::Elsewhere { machine, .. } => Some(format!(
                "name what is there (`nightlatch list grants --live --mine --machine {machine}`), or leave out --machine"
            )),
            Self::NotWithdrawn { name, .. } => {
                Some(format!("`nightlatch grant show {name}` shows what became of it"))
            }
            Self::Interrupted => Some(
                "the server may have taken it: `nightlatch list grants` and `nightlatch list requests --waiting` show what holds, `nightlatch done` ends it"
                    .to_string(),
            ),
            Self::Start(_) | Self::Declined | Self::Ask(_) | Self::Write(_) => None,
        }
    }

    /// Says what stands all the same and the next step, where no more than the result could not be written.
    pub(crate) fn or_untold(self, stands: impl FnOnce() -> Option<(String, String)>) -> Self {
        match self {
            Self::Write(error) => match stands() {
                Some((stands, next)) => Self::Untold { error, stands, next },
                None => Self::Write(error),
            },
            other => other,
        }
    }

    pub(crate) fn record(&self) -> ErrorRecord {
        let (field, machine) = match self {
            Self::Refused(refusal) => (refusal.field(), refusal.machine()),
            Self::Settings(invalid) => (invalid.option(), ""),
            Self::TooMany { option, .. } => (*option, ""),
            Self::NamedTwice(machine) => ("MACHINE", machine.as_str()),
            Self::UnknownName(_) => ("GRANT", ""),
            Self::Elsewhere { machine, .. } => ("GRANT", machine.as_str()),
            Self::PolicyFile(InvalidPolicyFile::Options(_)) => ("--port", ""),
            Self::PolicyFile(_) => ("--file", ""),
            Self::EndPassed(_) => ("--until", ""),
            _ => ("", ""),
        };
        ErrorRecord {
            code: self.code(),
            message: plain(&self.to_string()),
            field: field.to_string(),
            machine: machine.to_string(),
            hint: self.hint().map(|hint| plain(&hint)).unwrap_or_default(),
        }
    }

    /// Stable: the server's own code, or one of ours.
    fn code(&self) -> String {
        let code = match self {
            Self::Refused(refusal) => return refusal.code(),
            Self::Start(_) => "START_FAILED",
            Self::Settings(InvalidSettings::Missing { .. }) => "SETTING_MISSING",
            Self::Settings(_) => "SETTINGS_INVALID",
            Self::Unreachable(_) => "SERVER_UNREACHABLE",
            Self::NoAnswer(_) => "NO_ANSWER",
            Self::UnknownName(UnknownName::NoGrant(_)) => "GRANT_UNKNOWN",
            Self::UnknownName(UnknownName::SeveralGrants { .. }) => "GRANT_AMBIGUOUS",
            Self::PolicyFile(_) => "POLICY_INVALID",
            Self::TooMany { .. } => "TOO_MANY",
            Self::NamedTwice(_) => "NAMED_TWICE",
            Self::EndPassed(_) => "END_PASSED",
            Self::Elsewhere { .. } => "NOT_ON_MACHINE",
            Self::NotWithdrawn { .. } => "NOT_WITHDRAWN",
            Self::Declined => "DECLINED",
            Self::Ask(_) => "ASK_FAILED",
            Self::Write(_) => "WRITE_FAILED",
            Self::Untold { .. } => "RESULT_UNWRITTEN",
            Self::Interrupted => "INTERRUPTED",
        };
        code.to_string()
    }
}
