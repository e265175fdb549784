//! The state directory: where the agent keeps what must outlive it, and who may write there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::frame_file::Fault;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// Where the packages keep it, and whose it is there.
pub const DEFAULT_FOLDER: &str = "/var/lib/nightlatch-agent";
pub const UNIT_USER: &str = "nightlatch-agent";

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
        for _ in 1..LOCK_TRIES {
            match self.lock_at_once() {
                Err(StateError::InUse(_)) => std::thread::sleep(LOCK_PAUSE),
                settled => return settled,
            }
        }
        self.lock_at_once()
    }

    /// As [`Self::lock`], without waiting for a look of `status` to end.
    ///
    /// # Errors
    /// As [`Self::lock`].
    pub fn lock_at_once(&self) -> Result<StateLock, StateError> {
        match Flock::lock(self.open()?, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(StateLock { _held: held }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StateError::InUse(self.0.clone())),
            Err((_, errno)) => Err(self.io(errno.into())),
        }
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

/// Writes a file that only its owner may read, and forces it to disk. What root writes belongs to the owner of the
/// folder, for the daemon to read.
///
/// # Errors
/// Whatever the disk says.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<File> {
    write_private_by(path, |mut file| file.write_all(bytes))
}

fn write_private_by<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&File) -> Result<(), E>,
) -> Result<File, E> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        // The folder may be another user's, who could point root to any file of the host.
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    give_to_owner_of_folder(&file, path)?;
    write(&file)?;
    file.sync_all()?;
    Ok(file)
}

fn give_to_owner_of_folder(file: &File, path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let owner = std::fs::metadata(folder)?;
    let found = file.metadata()?;
    if (found.uid(), found.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
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
        Self::write_by(place, |mut file| file.write_all(bytes))
    }

    /// # Errors
    /// As [`Self::write`], and whatever `write` says.
    pub fn write_by<E: From<io::Error>>(
        place: &Path,
        write: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut path = place.as_os_str().to_owned();
        path.push(".new");
        let path = PathBuf::from(path);
        match write_private_by(&path, write) {
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
    fn what_root_writes_belongs_to_the_owner_of_the_folder_and_follows_no_link() {
        // Only root can give files away.
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(64_001), Some(64_002)).unwrap();
        let place = folder.path().join("ledger");
        let file = NewFile::write(&place, b"x").unwrap();
        let file = file.put_in_place(&place, sync_folder_of).unwrap();
        let found = file.metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (64_001, 64_002));

        let victim = folder.path().join("victim");
        std::fs::write(&victim, "whole").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("ledger.new")).unwrap();
        assert!(NewFile::write(&place, b"y").is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"whole");
    }

    #[test]
    fn a_missing_directory_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = StateDir::new(folder.path().join("none")).lock().unwrap_err();
        assert!(error.to_string().contains("enroll TOKEN"), "{error}");
    }
}
