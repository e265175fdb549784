//! The state directory: where the agent keeps what must outlive it, and who may write there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::frame_file::Fault;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The ledger's file.
pub const LEDGER: &str = "ledger";

/// A starting agent waits two seconds for a look of `status` to end.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The folder with the agent's keys, ledger and receipts.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("there is no {}: join an installation with `nightlatch-agent enroll TOKEN` first", .0.display())]
    Missing(PathBuf),
    #[error("another nightlatch-agent works in {}: stop it or name another directory with --state", .0.display())]
    InUse(PathBuf),
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Held while the agent runs, so that two never write one ledger.
#[derive(Debug)]
pub struct StateLock {
    _held: Flock<File>,
}

impl StateDir {
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn ledger(&self) -> PathBuf {
        self.file(LEDGER)
    }

    pub fn receipts(&self) -> PathBuf {
        self.file("receipts")
    }

    /// Where a file with that fault was put, if it was.
    pub fn set_aside(&self, name: &str, fault: Fault) -> Option<PathBuf> {
        let prefix = format!("{name}{}", fault.mark());
        let entries = std::fs::read_dir(&self.0).ok()?.flatten();
        let found = entries
            .into_iter()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        found.map(|entry| entry.path())
    }

    /// # Errors
    /// No such directory, or another agent holds it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let mut folder = self.open()?;
        for _ in 0..LOCK_TRIES {
            match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
                Ok(held) => return Ok(StateLock { _held: held }),
                Err((back, Errno::EWOULDBLOCK)) => folder = back,
                Err((_, errno)) => return Err(self.io(errno.into())),
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Err(StateError::InUse(self.0.clone()))
    }

    /// Whether an agent works in it now. Reads only.
    ///
    /// # Errors
    /// No such directory, or one that can't be looked at.
    pub fn is_locked(&self) -> Result<bool, StateError> {
        match Flock::lock(self.open()?, FlockArg::LockSharedNonblock) {
            Ok(_held) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(self.io(errno.into())),
        }
    }

    fn open(&self) -> Result<File, StateError> {
        File::open(&self.0).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                StateError::Missing(self.0.clone())
            } else {
                self.io(source)
            }
        })
    }

    fn io(&self, source: io::Error) -> StateError {
        StateError::Io {
            path: self.0.clone(),
            source,
        }
    }
}

/// Writes a file that only its owner may read, and forces it to disk.
///
/// # Errors
/// Whatever the disk says.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(file)
}

/// A whole file on disk that isn't in its place yet.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    file: File,
}

impl NewFile {
    /// # Errors
    /// Whatever the disk says. The old file is there still.
    pub fn write(place: &Path, bytes: &[u8]) -> io::Result<Self> {
        let mut path = place.as_os_str().to_owned();
        path.push(".new");
        let path = PathBuf::from(path);
        match write_private(&path, bytes) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => {
                // What is left of the attempt would take the room that is missing.
                drop(std::fs::remove_file(&path));
                Err(error)
            }
        }
    }

    /// Puts it in the place of the old one: after a crash it is one of them, whole. Gives it open, its end next.
    ///
    /// # Errors
    /// Whatever the disk says. Which of the two files is there isn't known then.
    pub fn put_in_place(self, place: &Path, sync: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<File> {
        let Self { path, file } = self;
        if let Err(error) = std::fs::rename(&path, place) {
            drop(std::fs::remove_file(&path));
            return Err(error);
        }
        sync(place)?;
        Ok(file)
    }
}

/// # Errors
/// Whatever the disk says.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_has_one_agent() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        assert!(!state.is_locked().unwrap());
        let held = state.lock().unwrap();
        assert!(state.is_locked().unwrap());
        assert!(matches!(state.lock(), Err(StateError::InUse(_))));
        drop(held);
        assert!(!state.is_locked().unwrap());
    }

    #[test]
    fn a_missing_directory_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = StateDir::new(folder.path().join("none")).lock().unwrap_err();
        assert!(error.to_string().contains("enroll TOKEN"), "{error}");
    }
}
