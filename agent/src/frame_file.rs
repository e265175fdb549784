//! One of the agent's append-only files, see [`frames`].

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nightlatch_core::time::Timestamp;
use nix::fcntl::OFlag;
use serde::Serialize;

use crate::causes::causes;
use crate::frames::{self, Ending, NoFrame, PayloadTooLong};
use crate::state::{self, NewFile};

/// Below this size a file is never rewritten.
const COMPACT_ABOVE: u64 = 1024 * 1024;
/// How much longer than what it says a file may get.
const COMPACT_FACTOR: u64 = 4;
/// What is written at a time.
const PIECE: usize = 64 * 1024;

/// Why something isn't on disk. The file must be rewritten before it takes anything again.
#[derive(Debug, thiserror::Error)]
pub enum NotWritten {
    #[error("cannot write {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    TooLong(#[from] PayloadTooLong),
    #[error("a record can't be put into JSON")]
    NotJson(#[from] serde_json::Error),
    #[error("{} must be written anew first", .0.display())]
    Unsound(PathBuf),
    #[error("nothing is written any more: start the agent again")]
    NoWriter,
}

/// What was found in a file.
#[derive(Debug)]
pub struct Found {
    pub payloads: Vec<Vec<u8>>,
    pub damage: Option<Damage>,
    /// There is no such file, or less than its header.
    pub is_blank: bool,
    ending: Ending,
    length: usize,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Damaged,
    /// Sound as far as it goes, but it went further once.
    Shortened,
}

impl Fault {
    /// What the name of a file that was set aside has behind its own.
    pub const fn mark(self) -> &'static str {
        match self {
            Self::Damaged => ".damaged-",
            Self::Shortened => ".shortened-",
        }
    }
}

/// A file that can't be trusted to be complete. What is sound in it is still given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub fault: Fault,
    pub why: String,
    /// Where the damaged file was put, for a person to look at.
    pub set_aside: Option<PathBuf>,
}

/// An open file. After a failed write it takes nothing until it is rewritten.
#[derive(Debug)]
pub struct FrameFile {
    path: PathBuf,
    header: &'static [u8],
    file: Option<File>,
    length: u64,
    /// What it had when it was last written anew.
    rewritten: u64,
}

/// Reads without changing anything. A missing file is an empty one.
pub fn read(path: &Path, header: &'static [u8]) -> Found {
    match read_bytes(path) {
        Ok(bytes) => {
            let contents = frames::read(&bytes, header);
            let damage = match contents.ending {
                Ending::Whole | Ending::Torn { .. } => None,
                Ending::Damaged { at } => Some(Damage {
                    fault: Fault::Damaged,
                    why: format!("it is damaged at byte {at}"),
                    set_aside: None,
                }),
            };
            let payloads = contents.payloads.into_iter().map(<[u8]>::to_vec).collect();
            Found {
                payloads,
                damage,
                is_blank: contents.ending == Ending::Torn { sound: 0 },
                ending: contents.ending,
                length: bytes.len(),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found {
            payloads: Vec::new(),
            damage: None,
            is_blank: true,
            ending: Ending::Torn { sound: 0 },
            length: 0,
        },
        Err(error) => Found {
            payloads: Vec::new(),
            damage: Some(Damage {
                fault: Fault::Damaged,
                why: format!("it can't be read: {error}"),
                set_aside: None,
            }),
            is_blank: false,
            ending: Ending::Damaged { at: 0 },
            length: 0,
        },
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl FrameFile {
    /// Opens a file for appending and cuts a torn end. A damaged file is set aside, so that the caller can
    /// write a new one from what it knows; until then nothing can be appended.
    pub fn open(path: PathBuf, header: &'static [u8], wall: Timestamp) -> (Self, Found) {
        let mut found = read(&path, header);
        let mut file = Self {
            path,
            header,
            file: None,
            length: 0,
            rewritten: 0,
        };
        if let Some(damage) = &mut found.damage {
            damage.set_aside = file.set_aside(damage.fault, wall);
            return (file, found);
        }
        let opened = match found.ending {
            Ending::Torn { sound: 0 } => file.rewrite(&[(); 0]),
            Ending::Whole => file.reopen(found.length, false),
            Ending::Torn { sound } => file.reopen(sound, true),
            Ending::Damaged { .. } => Ok(()),
        };
        if let Err(error) = opened {
            tracing::error!(
                error = %causes(&error),
                "the file can't be written for now"
            );
        }
        (file, found)
    }

    /// A file whose frames are sound but make no sense is no better than a damaged one.
    pub fn give_up(&mut self, fault: Fault, wall: Timestamp) -> Option<PathBuf> {
        self.distrust();
        self.set_aside(fault, wall)
    }

    /// It takes nothing until it is rewritten.
    pub fn distrust(&mut self) {
        self.file = None;
    }

    fn set_aside(&self, fault: Fault, wall: Timestamp) -> Option<PathBuf> {
        let name = self.path.file_name()?.to_string_lossy().into_owned();
        let folder = self.path.parent()?;
        // One is enough to look at; more of them could fill the disk.
        let marks = [Fault::Damaged, Fault::Shortened].map(|fault| format!("{name}{}", fault.mark()));
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let found = entry.file_name();
            if marks.iter().any(|mark| found.to_string_lossy().starts_with(mark)) {
                drop(std::fs::remove_file(entry.path()));
            }
        }
        let moment = wall.to_string().replace(':', "");
        let aside = folder.join(format!("{name}{}{moment}", fault.mark()));
        // A second name: until a new file is in its place, the damaged one still proves that something was lost.
        std::fs::hard_link(&self.path, &aside).ok()?;
        state::sync_folder_of(&aside).ok()?;
        Some(aside)
    }

    fn reopen(&mut self, sound: usize, cut: bool) -> Result<(), NotWritten> {
        let length = u64::try_from(sound).unwrap_or(u64::MAX);
        let open = || -> io::Result<File> {
            // The folder may be another user's, who could point root to any file of the host.
            let flags = OFlag::O_NOFOLLOW.bits();
            let file = OpenOptions::new()
                .append(true)
                .custom_flags(flags)
                .open(&self.path)?;
            if cut {
                file.set_len(length)?;
            }
            // What was read may be in memory alone, if whoever wrote it was killed before it was on disk.
            file.sync_all()?;
            Ok(file)
        };
        self.file = Some(open().map_err(|source| self.io(source))?);
        self.length = length;
        Ok(())
    }

    /// Whether it takes records.
    pub const fn is_sound(&self) -> bool {
        self.file.is_some()
    }

    /// Adds items, and waits for the disk if `durably`.
    ///
    /// # Errors
    /// Whatever the disk says. None of the items counts as written then.
    pub fn append(&mut self, items: &[impl Serialize], durably: bool) -> Result<(), NotWritten> {
        let Some(file) = self.file.take() else {
            return Err(NotWritten::Unsound(self.path.clone()));
        };
        let written = write_frames(&file, &[], items).and_then(|length| {
            if durably {
                file.sync_data()?;
            }
            Ok(length)
        });
        let length = written.map_err(|error| {
            // Half a frame with others behind it would be damage. A rewrite follows in any case.
            drop(file.set_len(self.length));
            self.because(error)
        })?;
        self.length = self.length.saturating_add(length);
        self.file = Some(file);
        Ok(())
    }

    /// Writes the file anew.
    ///
    /// # Errors
    /// Whatever the disk says. Unless the new file was written whole, the old one stays and can be used.
    pub fn rewrite(&mut self, items: &[impl Serialize]) -> Result<(), NotWritten> {
        self.replace(items, state::sync_folder_of)
    }

    fn replace(
        &mut self,
        items: &[impl Serialize],
        sync: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), NotWritten> {
        let mut length = 0;
        let new = NewFile::write_by(&self.path, |file| {
            length = write_frames(file, self.header, items)?;
            Ok(())
        });
        let new = new.map_err(|error| self.because(error))?;
        // Once the new one may be in its place, nothing may go into the old one.
        self.file = None;
        let file = new
            .put_in_place(&self.path, sync)
            .map_err(|source| self.io(source))?;
        self.file = Some(file);
        self.length = length;
        self.rewritten = self.length;
        Ok(())
    }

    /// Whether it is worth a look at how short it could be.
    pub const fn is_long(&self) -> bool {
        self.length > COMPACT_ABOVE && self.length > self.rewritten.saturating_mul(COMPACT_FACTOR)
    }

    /// Rewrites a long file if that makes it much shorter.
    ///
    /// # Errors
    /// As [`Self::rewrite`].
    pub fn compact(&mut self, items: &[impl Serialize]) -> Result<(), NotWritten> {
        let short = frames::length_of(items).map_err(|error| self.because(error))?;
        if self.length > short.saturating_mul(COMPACT_FACTOR) {
            self.rewrite(items)
        } else {
            self.rewritten = short;
            Ok(())
        }
    }

    fn because(&self, error: NoFrame) -> NotWritten {
        match error {
            NoFrame::TooLong(error) => error.into(),
            NoFrame::NotJson(error) => error.into(),
            NoFrame::Io(source) => self.io(source),
        }
    }

    fn io(&self, source: io::Error) -> NotWritten {
        NotWritten::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Gives the length of what was written.
fn write_frames(file: &File, header: &[u8], items: &[impl Serialize]) -> Result<u64, NoFrame> {
    let mut out = BufWriter::with_capacity(PIECE, file);
    let mut write = || {
        out.write_all(header)?;
        let mut length = u64::try_from(header.len()).unwrap_or(u64::MAX);
        for item in items {
            length = length.saturating_add(frames::write_json(&mut out, item)?);
        }
        out.flush()?;
        Ok(length)
    };
    let written = write();
    // What is left of a failed attempt must not be written after all.
    drop(out.into_parts());
    written
}

#[cfg(test)]
mod tests;
