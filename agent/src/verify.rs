//! `verify`: whether this host would take a grant, and why not.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nightlatch_core::grant::{Grant, GrantRejected, SignedGrant};
use nightlatch_core::signing::LONGEST_ENVELOPE;
use nightlatch_core::time::Timestamp;
use serde::Serialize;

use crate::inspection::{Inspection, TimeSource};

/// What this host says to a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub accepted: bool,
    /// A stable code: `ACCEPTED`, or why not.
    pub code: &'static str,
    pub message: String,
    /// What the grant says, if it would be taken.
    pub grant: Option<Grant>,
    /// The moment it was judged at.
    pub time: Timestamp,
    /// `server` or `wall_clock`.
    pub time_source: &'static str,
}

/// The file holds nothing to judge.
#[derive(Debug, thiserror::Error)]
pub enum NoGrant {
    #[error("cannot read {}: name a file with what `nightlatch grant show ID --envelope` prints", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this host has not joined: run `nightlatch-agent enroll TOKEN` first")]
    NotEnrolled,
}

/// # Errors
/// No such file, or a host that hasn't joined. A grant that is refused is a verdict.
pub fn verify(file: &Path, inspection: &Inspection) -> Result<Verdict, NoGrant> {
    let envelope = read(file)?;
    let ledger = inspection.ledger.as_ref().ok_or(NoGrant::NotEnrolled)?;
    let (time, source) = inspection.time();
    let judged = ledger.keys().ok_or(GrantRejected::NoKeys).and_then(|keys| {
        SignedGrant::from_bytes(envelope).verify(
            keys,
            ledger.machine(),
            inspection.rules.ceiling.as_ref(),
            time,
        )
    });
    let judged = match judged {
        Ok(verified) if ledger.was_revoked(verified.grant().id) => Err(GrantRejected::Revoked),
        judged => judged,
    };
    let time_source = match source {
        TimeSource::Server => "server",
        TimeSource::WallClock => "wall_clock",
    };
    Ok(match judged {
        Ok(verified) => Verdict {
            accepted: true,
            code: "ACCEPTED",
            message: "this host would take it".to_owned(),
            grant: Some(verified.grant().clone()),
            time,
            time_source,
        },
        Err(rejected) => Verdict {
            accepted: false,
            code: rejected.code(),
            message: rejected.to_string(),
            grant: None,
            time,
            time_source,
        },
    })
}

fn read(path: &Path) -> Result<Vec<u8>, NoGrant> {
    let unreadable = |source| NoGrant::Unreadable {
        path: path.to_owned(),
        source,
    };
    let most = u64::try_from(LONGEST_ENVELOPE)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    // An editor or a shell may have added a line's end; it is no part of the envelope.
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(bytes)
}

/// For people.
///
/// # Errors
/// As `text` says.
pub fn write_verdict(text: &mut impl Write, verdict: &Verdict) -> std::fmt::Result {
    let Verdict {
        accepted,
        code,
        message,
        grant,
        time,
        time_source,
    } = verdict;
    if *accepted {
        writeln!(text, "accepted: {message}")?;
    } else {
        writeln!(text, "refused ({code}): {message}")?;
    }
    if let Some(grant) = grant {
        let sources: Vec<String> = grant.sources.iter().map(ToString::to_string).collect();
        let ports: Vec<String> = grant.ports.iter().map(ToString::to_string).collect();
        let (sources, ports) = (sources.join(", "), ports.join(", "));
        let (id, subject, end) = (grant.id, &grant.subject, grant.not_after);
        writeln!(
            text,
            "grant {id} lets {subject} from {sources} reach {ports} until {end:.0}"
        )?;
    }
    let clock = if *time_source == "server" {
        "as last heard from the server"
    } else {
        "by this host's wall clock"
    };
    writeln!(text, "judged at {time:.0}, {clock}")
}
