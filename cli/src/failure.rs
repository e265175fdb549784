//! How a command ends: its exit code, or what went wrong and what to do next.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use nightlatch_proto::convert::access::MOST_MACHINES;

use crate::client::refusal::Refusal;
use crate::client::unreachable::Unreachable;
use crate::naming::UnknownName;
use crate::policy_file::InvalidPolicyFile;
use crate::settings::InvalidSettings;
use crate::when;

/// Scripts rely on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    /// Taken, but not in effect on the host yet.
    NotYet,
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotYet => 3,
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
    #[error("MACHINE: {0} machines are named, at most {MOST_MACHINES} are taken in one request")]
    TooManyMachines(usize),
    #[error("the end {0} has passed")]
    EndPassed(String),
    #[error("nobody can be asked here: this would end {0} grants")]
    NotConfirmed(usize),
    #[error("nothing was ended")]
    Declined,
    #[error("the answer cannot be read: {0}")]
    Ask(#[source] io::Error),
    #[error("the result cannot be written: {0}")]
    Write(#[source] io::Error),
    #[error("interrupted while waiting for the server's answer")]
    Interrupted,
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Settings(InvalidSettings::Missing { .. })
            | Self::NotConfirmed(_)
            | Self::TooManyMachines(_) => Exit::Usage,
            Self::Interrupted => Exit::Interrupted,
            _ => Exit::Failed,
        }
    }

    /// The next step, where there is one.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Settings(invalid) => invalid.hint(),
            Self::Unreachable(unreachable) => Some(unreachable.hint()),
            Self::Refused(refusal) => refusal.hint(),
            Self::NoAnswer(_) => Some(
                "whether it took the command is not known: `nightlatch list grants` and `nightlatch list requests --waiting` show what holds"
                    .to_string(),
            ),
            Self::UnknownName(unknown) => Some(unknown.hint()),
            Self::PolicyFile(invalid) => Some(invalid.hint()),
            Self::EndPassed(_) => Some("name a later moment with --until, or a length with --for".to_string()),
            Self::TooManyMachines(_) => Some("ask for some of them first".to_string()),
            Self::NotConfirmed(_) => Some("name the grants or a --machine, or add --yes".to_string()),
            Self::Interrupted => Some(
                "the server may have taken it: `nightlatch list grants` and `nightlatch list requests --waiting` show what holds, `nightlatch done` ends it"
                    .to_string(),
            ),
            Self::Start(_) | Self::Declined | Self::Ask(_) | Self::Write(_) => None,
        }
    }
}
