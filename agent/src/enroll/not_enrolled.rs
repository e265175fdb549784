//! Why a host did not join, and what to do about it.

use std::io;
use std::path::PathBuf;

use nightlatch_core::id::{InvalidId, MachineName};
use nightlatch_core::signing::InvalidKey;
use nightlatch_proto::error::{Problem, TOKEN as TOKEN_STATE};
use tonic::Status;

use super::CALL_PATIENCE;
use crate::frame_file::NotWritten;
use crate::server_tls::NoConnection;
use crate::token::MalformedToken;

/// Why this host did not join. Nothing is left behind, except where it may be taken in already.
#[derive(Debug, thiserror::Error)]
pub enum NotEnrolled {
    #[error(transparent)]
    Token(#[from] MalformedToken),
    #[error("this host has joined already ({}): remove that directory to join anew, or use another with --state", .0.display())]
    Already(PathBuf),
    #[error("{} is not empty: empty it or use another directory with --state", .0.display())]
    NotEmpty(PathBuf),
    #[error("this host's own name does not do: give one with --name")]
    HostName(#[source] InvalidId),
    #[error("--name: {0}")]
    Name(InvalidId),
    #[error("cannot read this host's name: give one with --name")]
    NoHostName(#[source] nix::Error),
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("cannot make a receipt key")]
    ReceiptKey(#[source] InvalidKey),
    #[error("the operating system gives no random numbers")]
    NoRandom(#[source] rand::rngs::SysError),
    #[error("cannot prepare TLS")]
    Tls(#[source] rustls::Error),
    #[error(transparent)]
    Connection(#[from] NoConnection),
    #[error("the connection failed before the server answered: try again")]
    Transport(#[source] tonic::transport::Error),
    #[error("the server did not answer within {} s", CALL_PATIENCE.as_secs())]
    Silent,
    #[error("the connection broke before the answer")]
    AnswerLost(#[source] Box<Status>),
    #[error(
        "the server may have taken this machine in: enrol again with the same token within its 24 hours, which \
         continues this enrolment with the keys kept in {}", kept.display()
    )]
    Unfinished {
        kept: PathBuf,
        #[source]
        reason: Box<Self>,
    },
    #[error(
        "an earlier try with another token may have had this machine taken in, with the keys kept in {}: enrol \
         with that token to continue it, or remove that directory to begin anew", .0.display()
    )]
    OtherToken(PathBuf),
    #[error(
        "--name: an earlier try with this token may have had this machine taken in as {name}, with the keys kept in \
         {}: enrol with --name {name} to continue it, or remove that directory to begin anew", kept.display()
    )]
    OtherName { name: MachineName, kept: PathBuf },
    #[error(
        "the keys of an earlier try, with which this machine may have been taken in, stay in {}: remove that \
         directory to begin anew", kept.display()
    )]
    StillKept {
        kept: PathBuf,
        #[source]
        reason: Box<Self>,
    },
    #[error("another enrolment is under way in {}: wait for its end", .0.display())]
    UnderWay(PathBuf),
    #[error("the server refused ({}): {}", .0.reason, .0.message)]
    Refused(Problem),
    #[error("the server's answer does not fit ({0}): update agent and server to the same version")]
    BadAnswer(&'static str),
    #[error(
        "cannot read {}, which an earlier try has left: remove its directory to begin anew", path.display()
    )]
    Kept {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} can't be replaced, and the state of an enrolment appears whole: it must be a plain directory, no mount \
         point and no link; use another with --state", path.display()
    )]
    Place {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make an empty ledger")]
    Ledger(#[from] NotWritten),
    #[error("cannot write {}", path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl NotEnrolled {
    /// Whether the server has said that it takes nobody in.
    pub(super) const fn is_final(&self) -> bool {
        use tonic::Code;
        let Self::Refused(problem) = self else {
            return false;
        };
        matches!(
            problem.code,
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::AlreadyExists
                | Code::NotFound
                | Code::FailedPrecondition
                | Code::ResourceExhausted
                | Code::Unauthenticated
                | Code::Unimplemented
        )
    }

    /// Whether no try with this token can bring anything any more.
    pub(super) fn says_that_nobody_joins(&self) -> bool {
        let Self::Refused(problem) = self else {
            return false;
        };
        let token = problem.metadata.get(TOKEN_STATE).map(String::as_str);
        matches!(token, Some("unknown" | "expired"))
    }
}
