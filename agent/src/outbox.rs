//! Receipts that the server hasn't stored yet, in their order, in their file before they are sent.
//!
//! A receipt never holds up an enforcement step: this is what memory knows, and the writer has the file. A number
//! is never used for two contents, crash or not: either the receipt is on disk before it is sent, or the ledger
//! has its number there (docs/adr/0006-numbers-of-receipts.md).

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use nightlatch_core::id::MachineId;
use nightlatch_core::ledger::Numbers;
use nightlatch_core::receipt::{Happening, Receipt};
use nightlatch_core::signing::{SigningKey, base64_bytes, hex, sha256};
use nightlatch_core::time::{BootId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::frame_file::{Damage, Fault, FrameFile, NotWritten};
use crate::writer::Sink;

const HEADER: &[u8] = b"nightlatch-receipts 1\n";
/// The most receipts that wait for the server.
pub const MOST_WAITING: usize = 20_000;
/// The most receipts that are sent together.
const MOST_OF_A_BATCH: usize = 1_000;
/// What a receipt takes in a message besides its bytes.
const FRAMING: usize = 8;
/// What the numbers skip when the file was damaged, so that none comes twice.
const SKIPPED_AFTER_DAMAGE: u64 = 1_000_000;

/// What goes into the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    Receipt {
        sequence: u64,
        #[serde(with = "base64_bytes")]
        envelope: Arc<[u8]>,
    },
    /// Everything up to this number is done with.
    Done {
        sequence: u64,
        /// Hex SHA-256 of that receipt's envelope, for the next one to name.
        previous: String,
        /// How many were given up for lack of room since the server was last told.
        given_up: u64,
    },
}

#[derive(Clone, Debug)]
struct Waiting {
    sequence: u64,
    envelope: Arc<[u8]>,
}

/// Who signs receipts, and where they are made.
pub struct Signer {
    pub key: SigningKey,
    pub machine: MachineId,
    pub boot_id: BootId,
}

/// The receipts' file.
#[derive(Debug)]
pub struct ReceiptsFile {
    file: FrameFile,
}

/// See the module's documentation.
pub struct Outbox {
    signer: Signer,
    /// At most [`MOST_WAITING`], oldest first.
    waiting: VecDeque<Waiting>,
    /// The last number that was given.
    last: u64,
    /// Numbers that may have been given before this boot, whatever the file says.
    before: u64,
    /// Hex SHA-256 of the last envelope; empty before the first.
    previous: String,
    /// The last number that may be sent.
    ready: u64,
    given_up: u64,
}

impl Outbox {
    /// Reads what waited; the caller holds the directory's lock. A damaged file is set aside. `numbers` are those
    /// that the ledger knows to have been given.
    pub fn open(
        path: PathBuf,
        signer: Signer,
        numbers: Option<Numbers>,
        wall: Timestamp,
    ) -> (Self, ReceiptsFile, Option<Damage>) {
        let (mut file, found) = FrameFile::open(path, HEADER, wall);
        let mut damage = found.damage;
        let mut entries = Vec::new();
        for payload in found.payloads {
            match serde_json::from_slice(&payload) {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    damage.get_or_insert_with(|| Damage {
                        fault: Fault::Damaged,
                        why: format!("it has a receipt that this version can't read: {error}"),
                        set_aside: file.give_up(Fault::Damaged, wall),
                    });
                }
            }
        }
        let mut outbox = Self {
            signer,
            waiting: VecDeque::new(),
            last: 0,
            before: 0,
            previous: String::new(),
            ready: 0,
            given_up: 0,
        };
        entries.into_iter().for_each(|entry| outbox.recall(entry));
        // In the same boot the kernel still has what was written.
        outbox.before = match numbers {
            Some(numbers) if numbers.boot_id == outbox.signer.boot_id => numbers.before,
            Some(numbers) => numbers.upto,
            None => 0,
        };
        outbox.last = outbox.last.max(outbox.before);
        if damage.is_some() {
            let skipped = outbox.last.saturating_add(SKIPPED_AFTER_DAMAGE);
            outbox.last = skipped.max(u64::try_from(wall.micros()).unwrap_or(0));
        } else if file.is_sound() {
            outbox.ready = outbox.last;
        }
        (outbox, ReceiptsFile { file }, damage)
    }

    fn recall(&mut self, entry: Entry) {
        match entry {
            Entry::Receipt { sequence, envelope } => {
                self.previous = hex(&sha256(&envelope));
                self.last = self.last.max(sequence);
                self.waiting.push_back(Waiting { sequence, envelope });
            }
            Entry::Done {
                sequence,
                previous,
                given_up,
            } => {
                self.waiting.retain(|waiting| waiting.sequence > sequence);
                if sequence >= self.last {
                    (self.last, self.previous) = (sequence, previous);
                }
                self.given_up = given_up;
            }
        }
    }

    /// Signs receipts. Gives what must be written, or `None` if all must be written anew.
    #[must_use]
    pub fn add(&mut self, happenings: Vec<Happening>) -> Option<Vec<Entry>> {
        let mut entries = Vec::with_capacity(happenings.len());
        for happening in happenings {
            self.last = self.last.saturating_add(1);
            let Signer {
                key,
                machine,
                boot_id,
            } = &self.signer;
            let previous = std::mem::take(&mut self.previous);
            let envelope = Receipt::new(*machine, *boot_id, happening, self.last, previous).seal(key);
            let envelope: Arc<[u8]> = envelope.into();
            self.previous = hex(&sha256(&envelope));
            let sequence = self.last;
            entries.push(Entry::Receipt {
                sequence,
                envelope: envelope.clone(),
            });
            self.waiting.push_back(Waiting { sequence, envelope });
        }
        let mut is_over = false;
        while self.waiting.len() > MOST_WAITING {
            self.waiting.pop_front();
            self.given_up = self.given_up.saturating_add(1);
            is_over = true;
        }
        (!is_over).then_some(entries)
    }

    /// The last number that was given.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// For [`Numbers`].
    pub const fn before(&self) -> u64 {
        self.before
    }

    /// The last number that may be sent.
    pub const fn ready(&self) -> u64 {
        self.ready
    }

    /// Everything up to this number may be sent.
    pub fn written(&mut self, upto: u64) {
        self.ready = self.ready.max(upto);
    }

    /// The server has stored everything up to `sequence`. Gives what must be written, if anything. Without it
    /// the receipts are sent once more after a restart, which does no harm.
    #[must_use]
    pub fn stored(&mut self, sequence: u64) -> Option<Entry> {
        let sequence = sequence.min(self.ready);
        let mut previous = None;
        while let Some(first) = self.waiting.pop_front_if(|first| first.sequence <= sequence) {
            previous = Some(hex(&sha256(&first.envelope)));
        }
        Some(Entry::Done {
            sequence,
            previous: previous?,
            given_up: self.given_up,
        })
    }

    /// All that must be in the file.
    pub fn entries(&self) -> Vec<Entry> {
        let done = Entry::Done {
            sequence: self.stored_upto(),
            // Only asked for when nothing waits.
            previous: self.previous.clone(),
            given_up: self.given_up,
        };
        let waiting = self
            .waiting
            .iter()
            .map(|Waiting { sequence, envelope }| Entry::Receipt {
                sequence: *sequence,
                envelope: envelope.clone(),
            });
        std::iter::once(done).chain(waiting).collect()
    }

    /// Receipts behind `after` that may be sent, with the number of the last: at least one, and no more than `most`
    /// bytes have room for.
    pub fn sendable(&self, after: u64, most: usize) -> Option<(u64, Vec<Vec<u8>>)> {
        let first = self.waiting.partition_point(|waiting| waiting.sequence <= after);
        let ready = self
            .waiting
            .range(first..)
            .take_while(|waiting| waiting.sequence <= self.ready)
            .take(MOST_OF_A_BATCH);
        let (mut last, mut envelopes, mut length) = (None, Vec::new(), 0_usize);
        for Waiting { sequence, envelope } in ready {
            length = length.saturating_add(envelope.len()).saturating_add(FRAMING);
            if length > most && last.is_some() {
                break;
            }
            last = Some(*sequence);
            envelopes.push(envelope.to_vec());
        }
        last.map(|last| (last, envelopes))
    }

    /// Behind this number receipts wait for the server.
    pub fn stored_upto(&self) -> u64 {
        let first = self.waiting.front();
        first.map_or(self.last, |first| first.sequence.saturating_sub(1))
    }

    /// How many receipts were given up for lack of room, once.
    pub fn take_given_up(&mut self) -> u64 {
        std::mem::take(&mut self.given_up)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

impl Sink<Entry> for ReceiptsFile {
    fn append(&mut self, entries: &[Entry], durably: bool) -> Result<(), NotWritten> {
        self.file.append(entries, durably)
    }

    fn rewrite(&mut self, entries: &[Entry]) -> Result<(), NotWritten> {
        self.file.rewrite(entries)
    }

    fn compact(&mut self, entries: &[Entry]) -> Result<(), NotWritten> {
        self.file.compact(entries)
    }

    fn is_sound(&self) -> bool {
        self.file.is_sound()
    }

    fn is_long(&self) -> bool {
        self.file.is_long()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::id::GrantId;
    use nightlatch_core::receipt::Done;
    use std::path::Path;
    use uuid::Uuid;

    fn wall() -> Timestamp {
        "2026-11-22T09:30:00Z".parse().unwrap()
    }

    fn key() -> SigningKey {
        SigningKey::from_seed(&[3; 32])
    }

    /// An outbox that writes at once.
    struct InStep {
        outbox: Outbox,
        file: ReceiptsFile,
    }

    impl InStep {
        fn add(&mut self, happenings: Vec<Happening>) -> Result<(), NotWritten> {
            match self.outbox.add(happenings) {
                Some(entries) => self.file.append(&entries, true)?,
                None => self.file.rewrite(&self.outbox.entries())?,
            }
            self.outbox.written(self.outbox.last());
            Ok(())
        }

        fn retry(&mut self) -> Result<(), NotWritten> {
            self.file.rewrite(&self.outbox.entries())?;
            self.outbox.written(self.outbox.last());
            Ok(())
        }

        fn stored(&mut self, sequence: u64) {
            let done = self.outbox.stored(sequence);
            self.file.append(done.as_slice(), false).unwrap();
        }
    }

    fn open(path: &Path) -> (InStep, Option<Damage>) {
        open_after(path, None)
    }

    fn open_after(path: &Path, numbers: Option<Numbers>) -> (InStep, Option<Damage>) {
        let signer = Signer {
            key: key(),
            machine: MachineId::new(Uuid::from_u128(5)),
            boot_id: BootId(Uuid::from_u128(6)),
        };
        let (outbox, file, damage) = Outbox::open(path.to_owned(), signer, numbers, wall());
        (InStep { outbox, file }, damage)
    }

    fn happening(number: u128) -> Happening {
        Happening {
            grant: GrantId::new(Uuid::from_u128(number)),
            event: Done::Opened,
            at: wall(),
            reason: String::new(),
        }
    }

    fn receipts(outbox: &InStep, after: u64) -> Vec<Receipt> {
        let (_, envelopes) = outbox.outbox.sendable(after, usize::MAX).unwrap_or_default();
        envelopes
            .iter()
            .map(|envelope| Receipt::verify(envelope, &key().public()).unwrap())
            .collect()
    }

    #[test]
    fn receipts_are_numbered_and_chained_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts");
        let (mut outbox, _) = open(&path);
        outbox.add(vec![happening(1), happening(2)]).unwrap();
        outbox.stored(2);
        drop(outbox);
        let (mut outbox, damage) = open(&path);
        assert_eq!(damage, None);
        assert!(outbox.outbox.sendable(0, 64).is_none());
        outbox.add(vec![happening(3)]).unwrap();
        drop(outbox);
        let (mut outbox, _) = open(&path);
        outbox.add(vec![happening(4)]).unwrap();
        let found = receipts(&outbox, 0);
        assert_eq!(
            found.iter().map(|receipt| receipt.sequence).collect::<Vec<_>>(),
            [3, 4]
        );
        let (_, envelopes) = outbox.outbox.sendable(0, 1).unwrap();
        assert_eq!(found[1].previous, hex(&sha256(&envelopes[0])));
        assert_eq!(found[0].previous.len(), 64);
    }

    #[test]
    fn numbers_that_may_have_been_sent_before_the_power_was_cut_are_not_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts");
        let (mut outbox, _) = open(&path);
        outbox.add(vec![happening(1)]).unwrap();
        drop(outbox);
        let next_after = |boot, before| {
            let boot_id = BootId(Uuid::from_u128(boot));
            let numbers = Numbers {
                upto: 9,
                boot_id,
                before,
            };
            let (mut outbox, _) = open_after(&path, Some(numbers));
            outbox.add(vec![happening(2)]).unwrap();
            outbox.outbox.last()
        };
        assert_eq!(next_after(6, 0), 2, "in the same boot the file has them all");
        assert_eq!(next_after(6, 4), 5, "but for those of an earlier boot");
        assert_eq!(next_after(5, 4), 10);
        assert_eq!(next_after(5, 4), 11);
    }

    #[test]
    fn what_the_server_stored_is_forgotten_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (mut outbox, _) = open(&folder.path().join("receipts"));
        outbox.add((1..=5).map(happening).collect()).unwrap();
        outbox.stored(3);
        assert_eq!(receipts(&outbox, 0).len(), 2);
        assert_eq!(receipts(&outbox, 4).len(), 1);
        outbox.stored(2);
        outbox.stored(900);
        assert_eq!(outbox.outbox.waiting(), 0);
        outbox.add(vec![happening(6)]).unwrap();
        assert_eq!(receipts(&outbox, 0)[0].sequence, 6);
    }

    #[test]
    fn a_receipt_is_not_sent_before_it_is_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state").join("receipts");
        let (mut outbox, _) = open(&path);
        assert!(outbox.add(vec![happening(1)]).is_err());
        assert!(outbox.outbox.sendable(0, 64).is_none());
        assert!(outbox.retry().is_err());
        std::fs::create_dir(folder.path().join("state")).unwrap();
        outbox.retry().unwrap();
        assert_eq!(receipts(&outbox, 0).len(), 1);
    }

    #[test]
    fn a_full_outbox_keeps_the_newest_and_counts_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts");
        let (mut outbox, _) = open(&path);
        outbox.add((1..=20_003).map(happening).collect()).unwrap();
        drop(outbox);
        let (mut outbox, _) = open(&path);
        assert_eq!(
            (
                outbox.outbox.waiting(),
                outbox.outbox.take_given_up(),
                outbox.outbox.take_given_up()
            ),
            (20_000, 3, 0)
        );
        assert_eq!(receipts(&outbox, 20_000).len(), 3);
    }

    #[test]
    fn after_damage_no_number_comes_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts");
        let (mut outbox, _) = open(&path);
        outbox.add(vec![happening(1)]).unwrap();
        outbox.add(vec![happening(2)]).unwrap();
        drop(outbox);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER.len() + 40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (mut outbox, damage) = open(&path);
        assert!(damage.is_some());
        // The first write after damage makes the file anew.
        assert!(outbox.add(vec![happening(3)]).is_err());
        outbox.retry().unwrap();
        let numbers: Vec<u64> = receipts(&outbox, 0)
            .iter()
            .map(|receipt| receipt.sequence)
            .collect();
        assert_eq!(numbers.first(), Some(&2));
        assert!(*numbers.last().unwrap() > SKIPPED_AFTER_DAMAGE);
    }
}
