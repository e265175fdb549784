//! The floor: what the ledger must at least have, in a small file of its own.
//!
//! A ledger that is cut between two frames looks whole. It may lose what opens more without harm, but not a
//! revoke, a key list or a policy; so only records that must stay raise the floor, and opening costs nothing.

use std::io;
use std::path::{Path, PathBuf};

use nightlatch_core::ledger::Record;
use nightlatch_core::port::PortSpan;
use serde::{Deserialize, Serialize};

use crate::frame_file::NotWritten;
use crate::frames::{self, Ending};
use crate::state::{self, NewFile};

const HEADER: &[u8] = b"nightlatch-ledger-floor 1\n";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Floor {
    /// Of the last record that must stay.
    pub(super) number: u64,
    /// The ports of the last policy: they stay shut also if the ledger is lost.
    pub(super) guarded: Vec<PortSpan>,
}

impl Floor {
    pub(super) fn path(ledger: &Path) -> PathBuf {
        ledger.with_added_extension("floor")
    }

    pub(super) fn read(ledger: &Path) -> Result<Self, String> {
        let bytes = match std::fs::read(Self::path(ledger)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("its floor is missing".to_owned());
            }
            Err(error) => return Err(format!("its floor can't be read: {error}")),
        };
        let contents = frames::read(&bytes, HEADER);
        match (contents.ending, contents.payloads.as_slice()) {
            (Ending::Whole, [payload]) => {
                serde_json::from_slice(payload).map_err(|error| format!("its floor can't be read: {error}"))
            }
            _ => Err("its floor is damaged".to_owned()),
        }
    }

    /// What it is after these records, if that is something else.
    pub(super) fn raised_by<'r>(&self, records: impl IntoIterator<Item = &'r Record>) -> Option<Self> {
        let mut must_stay = records.into_iter().filter(|record| record.must_stay()).peekable();
        must_stay.peek()?;
        let mut raised = self.clone();
        for record in must_stay {
            raised.number = raised.number.max(record.number().unwrap_or_default());
            if let Some(guarded) = record.guarded() {
                raised.guarded = guarded.to_vec();
            }
        }
        (raised != *self).then_some(raised)
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>, NotWritten> {
        let mut bytes = HEADER.to_vec();
        frames::write(&mut bytes, &serde_json::to_vec(self)?)?;
        Ok(bytes)
    }

    /// After the ledger's record is on disk, and before anybody is told: a crash in between leaves a ledger
    /// that has more than it must.
    pub(super) fn write(&self, ledger: &Path) -> Result<(), NotWritten> {
        let path = Self::path(ledger);
        let bytes = self.bytes()?;
        NewFile::write(&path, &bytes)
            .and_then(|new| new.put_in_place(&path, state::sync_folder_of))
            .map(drop)
            .map_err(|source| NotWritten::Io { path, source })
    }
}
