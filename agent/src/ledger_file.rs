//! The ledger on disk: what was accepted is there before it opens, and everything read back is verified again.

use std::path::{Path, PathBuf};

use nightlatch_core::clock::HostClock;
use nightlatch_core::ledger::{Ledger, Record};
use nightlatch_core::time::{BootTime, Timestamp};

use crate::frame_file::{self, Damage, Found, FrameFile, NotWritten};

/// An empty ledger, as enrolment leaves it. Where there is less than this, something was lost.
pub const HEADER: &[u8] = b"nightlatch-ledger 1\n";

/// Where the enforcer's records go.
pub trait RecordSink {
    /// Adds a record, and returns when it is on disk if `durably`.
    ///
    /// # Errors
    /// The record isn't there, and the sink takes nothing until it is rewritten.
    fn append(&mut self, record: &Record, durably: bool) -> Result<(), NotWritten>;

    /// Writes these records in the place of all that was there.
    ///
    /// # Errors
    /// What was there is there still.
    fn rewrite(&mut self, records: &[Record]) -> Result<(), NotWritten>;

    /// Whether it takes records without being rewritten first.
    fn is_sound(&self) -> bool;

    /// Rewrites what has grown far beyond what it says.
    ///
    /// # Errors
    /// As [`Self::rewrite`].
    fn compact(&mut self, snapshot: impl FnOnce() -> Vec<Record>) -> Result<(), NotWritten>;
}

/// The ledger's file.
#[derive(Debug)]
pub struct LedgerFile {
    file: FrameFile,
}

/// The records that were found.
#[derive(Debug)]
pub struct Records {
    pub records: Vec<Record>,
    /// If set, `records` has gaps: they prove signatures, but not what is in force.
    pub damage: Option<Damage>,
}

impl LedgerFile {
    /// Opens it for writing; the caller holds the directory's lock. A damaged one is set aside.
    pub fn open(path: PathBuf, wall: Timestamp) -> (Self, Records) {
        let (mut file, found) = FrameFile::open(path, HEADER, wall);
        let is_blank = found.is_blank;
        let mut records = Records::from(found);
        if let Some(damage) = &mut records.damage
            && damage.set_aside.is_none()
            && !is_blank
        {
            damage.set_aside = file.give_up(wall);
        }
        (Self { file }, records)
    }

    /// Looks at it without changing anything.
    pub fn read(path: &Path) -> Records {
        Records::from(frame_file::read(path, HEADER))
    }
}

impl From<Found> for Records {
    fn from(found: Found) -> Self {
        let Found {
            payloads,
            mut damage,
            is_blank,
            ..
        } = found;
        if is_blank {
            damage = Some(Damage {
                why: "it is missing or empty".to_owned(),
                set_aside: None,
            });
        }
        let mut records = Vec::new();
        for payload in payloads {
            match serde_json::from_slice(&payload) {
                Ok(record) => records.push(record),
                Err(error) => {
                    damage.get_or_insert_with(|| Damage {
                        why: format!("it has a record that this version can't read: {error}"),
                        set_aside: None,
                    });
                }
            }
        }
        Self { records, damage }
    }
}

impl RecordSink for LedgerFile {
    fn append(&mut self, record: &Record, durably: bool) -> Result<(), NotWritten> {
        self.file.append(&[serde_json::to_vec(record)?], durably)
    }

    fn rewrite(&mut self, records: &[Record]) -> Result<(), NotWritten> {
        self.file.rewrite(&payloads(records)?)
    }

    fn is_sound(&self) -> bool {
        self.file.is_sound()
    }

    fn compact(&mut self, snapshot: impl FnOnce() -> Vec<Record>) -> Result<(), NotWritten> {
        if self.file.is_long() {
            self.file.compact(&payloads(&snapshot())?)
        } else {
            Ok(())
        }
    }
}

/// What rebuilds the ledger. Keys and policy stand in two frames, so that damage to one of them doesn't unguard
/// the policy's ports at the next boot.
pub fn snapshot(ledger: &Ledger, time: &HostClock, now: BootTime) -> Vec<Record> {
    let Some(mark) = time.mark(now) else {
        return Vec::new();
    };
    let mut records = ledger.clone().without_grants().snapshot(mark);
    records.extend(ledger.snapshot(mark));
    records
}

fn payloads(records: &[Record]) -> Result<Vec<Vec<u8>>, NotWritten> {
    records
        .iter()
        .map(|record| serde_json::to_vec(record).map_err(NotWritten::from))
        .collect()
}
