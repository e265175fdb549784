//! The ledger on disk: what was accepted is there before it opens, and everything read back is verified again.

mod floor;

use std::path::{Path, PathBuf};

use nightlatch_core::clock::HostClock;
use nightlatch_core::ledger::{Ledger, Record};
use nightlatch_core::port::PortSpan;
use nightlatch_core::time::{BootTime, Timestamp};

use crate::frame_file::{self, Damage, Fault, Found, FrameFile, NotWritten};
use crate::writer::Sink;
use floor::Floor;

const HEADER: &[u8] = b"nightlatch-ledger 1\n";

/// An empty ledger, as enrolment leaves it, with its floor. Where there is less, something was lost.
///
/// # Errors
/// One of the two can't be written.
pub fn write_blank<E: From<NotWritten>>(
    ledger: &Path,
    write: impl Fn(&Path, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    write(&Floor::path(ledger), &Floor::default().bytes()?)?;
    write(ledger, HEADER)
}

/// The ledger's file.
#[derive(Debug)]
pub struct LedgerFile {
    path: PathBuf,
    file: FrameFile,
    floor: Floor,
}

/// The records that were found.
#[derive(Debug)]
pub struct Records {
    pub records: Vec<Record>,
    /// If set, `records` has gaps: they prove signatures, but not what is in force.
    pub damage: Option<Damage>,
    /// The last number that was given, as far as it is known, and the ports of the policy by then.
    pub number: u64,
    pub guarded: Vec<PortSpan>,
}

impl LedgerFile {
    /// Opens it for writing; the caller holds the directory's lock. A damaged one is set aside.
    pub fn open(path: PathBuf, wall: Timestamp) -> (Self, Records) {
        let (mut file, found) = FrameFile::open(path.clone(), HEADER, wall);
        let floor = Floor::read(&path);
        let is_blank = found.is_blank;
        let mut records = Records::new(found, &floor);
        if let Some(damage) = &mut records.damage
            && damage.set_aside.is_none()
            && !is_blank
        {
            damage.set_aside = file.give_up(damage.fault, wall);
        }
        let floor = floor.unwrap_or_default();
        // One that was lost is made again, with the policy's ports, by the next record that must stay.
        let raised = floor.raised_by(&records.records);
        let floor = raised.filter(|_| records.damage.is_none()).unwrap_or(floor);
        (Self { path, file, floor }, records)
    }

    /// Looks at it without changing anything, also while an agent writes it.
    pub fn read(path: &Path) -> Records {
        // First: it is raised after the records that it counts.
        let floor = Floor::read(path);
        Records::new(frame_file::read(path, HEADER), &floor)
    }

    fn raise_floor(&mut self, records: &[Record]) -> Result<(), NotWritten> {
        let Some(raised) = self.floor.raised_by(records) else {
            return Ok(());
        };
        let written = raised.write(&self.path);
        match &written {
            Ok(()) => self.floor = raised,
            // Only a rewrite raises it again.
            Err(_) => self.file.distrust(),
        }
        written
    }
}

impl Records {
    fn new(found: Found, floor: &Result<Floor, String>) -> Self {
        let Found {
            payloads,
            mut damage,
            is_blank,
            ..
        } = found;
        let because = |fault, why| Damage {
            fault,
            why,
            set_aside: None,
        };
        if is_blank {
            damage = Some(because(Fault::Damaged, "it is missing or empty".to_owned()));
        }
        let mut records = Vec::new();
        for payload in payloads {
            match serde_json::from_slice(&payload) {
                Ok(record) => records.push(record),
                Err(error) => {
                    let why = format!("it has a record that this version can't read: {error}");
                    damage.get_or_insert_with(|| because(Fault::Damaged, why));
                }
            }
        }
        let number = records.iter().filter_map(Record::number).max().unwrap_or(0);
        let Floor {
            number: least,
            guarded,
        } = match floor {
            Ok(floor) => floor.clone(),
            Err(why) => {
                damage.get_or_insert_with(|| because(Fault::Damaged, why.clone()));
                Floor::default()
            }
        };
        if number < least {
            let why = format!("it ends at number {number}, and {least} was on disk already");
            damage.get_or_insert_with(|| because(Fault::Shortened, why));
        }
        Self {
            records,
            damage,
            number: number.max(least),
            guarded,
        }
    }
}

impl Sink<Record> for LedgerFile {
    fn append(&mut self, records: &[Record], durably: bool) -> Result<(), NotWritten> {
        let durably = durably || records.iter().any(Record::must_stay);
        self.file.append(records, durably)?;
        self.raise_floor(records)
    }

    fn rewrite(&mut self, records: &[Record]) -> Result<(), NotWritten> {
        self.file.rewrite(records)?;
        self.raise_floor(records)
    }

    fn compact(&mut self, records: &[Record]) -> Result<(), NotWritten> {
        self.file.compact(records)?;
        self.raise_floor(records)
    }

    fn is_sound(&self) -> bool {
        self.file.is_sound()
    }

    fn is_long(&self) -> bool {
        self.file.is_long()
    }
}

/// What rebuilds the ledger. Keys and policy stand in two frames, so that damage to one of them doesn't unguard
/// the policy's ports at the next boot.
pub fn snapshot(ledger: &Ledger, time: &HostClock, now: BootTime) -> Vec<Record> {
    let Some(mark) = time.mark(now) else {
        // There is nothing to keep but the count, so that reading it isn't another loss.
        return vec![Record::Removed {
            number: ledger.number(),
            early: true,
            ids: Vec::new(),
            ended: Vec::new(),
            opened: Vec::new(),
        }];
    };
    let mut records = vec![ledger.snapshot_without_grants(mark)];
    records.extend(ledger.snapshot(mark));
    records
}
