//! The root key's way off the server's host: copied, and removed once the copy is seen to be one.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::Uid;

use super::{Console, ConsoleError, unwritten};
use crate::audit;
use crate::config::ServerConfig;
use crate::state::{ROOT_EXPORTED, ROOT_KEY, State, create_new};

/// A key's file is a few hundred bytes long.
const LONGEST_COPY: u64 = 16 * 1024;
const OTHER_FILE: &str = "name another file";
const MODE: u32 = 0o600;

/// Copies the root key to a file of its own, and notes where.
pub async fn export_root(config: &ServerConfig, file: &Path, now: Timestamp) -> Result<(), ConsoleError> {
    let Console { state, store, .. } = Console::open(config).await?;
    let key = root_key(&state)?;
    let file = std::path::absolute(file).map_err(|source| unwritten(file, source, OTHER_FILE))?;
    if let Some(folder) = file.parent() {
        check_outside(&state, folder)?;
    }
    let mut change = store.change().await?;
    let message = format!("a copy of the root key goes to {}", file.display());
    let event = Event::new(now, EventKind::RootExported, audit::CONSOLE.to_owned(), message);
    change.record(&event, None);
    change.take_lock().await?;
    let mut copy = claim(&file).map_err(|source| unwritten(&file, source, OTHER_FILE))?;
    let rest = async {
        // First of all: no copy that the log doesn't know.
        change.commit().await?;
        let copied = copy.write_all(key.as_bytes());
        let on_disk = copied.and_then(|()| confirm(&copy, &file));
        on_disk.map_err(|source| ConsoleError::NotCopied {
            path: file.clone(),
            source,
        })?;
        Ok(state.replace(ROOT_EXPORTED, &file.to_string_lossy(), 0o600)?)
    };
    let rest = rest.await;
    if rest.is_err() {
        // None that is half-made or not noted; one that can't be taken away is said by the error.
        drop(fs::remove_file(&file));
    }
    store.close().await;
    rest
}

/// A file of its own, or the empty one of an export that was killed; in no other export's hand meanwhile.
fn claim(file: &Path) -> io::Result<Flock<File>> {
    let (claimed, is_new) = match create_new(file, MODE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Neither another file by its name, nor one to wait for.
            let only_this = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let found = OpenOptions::new()
                .write(true)
                .custom_flags(only_this.bits())
                .open(file);
            // Whatever can't be opened so is none that was left over.
            let Ok(found) = found else { return Err(error) };
            (found, false)
        }
        created => (created?, true),
    };
    let claimed =
        Flock::lock(claimed, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => io::ErrorKind::AlreadyExists.into(),
            other => io::Error::from(other),
        })?;
    // Another may have been quicker with what was new here.
    let found = claimed.metadata()?;
    if found.len() == 0 && found.nlink() > 0 && (is_new || is_left_over(&found)) {
        Ok(claimed)
    } else {
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// Of an empty one. What has another name may be another's.
fn is_left_over(found: &Metadata) -> bool {
    let is_ours = found.uid() == Uid::effective().as_raw() && found.mode() & 0o777 == MODE;
    found.is_file() && found.nlink() == 1 && is_ours
}

/// Waits until the disk has the file and its name.
fn confirm(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    let folder = path.parent().unwrap_or(path);
    File::open(folder)?.sync_all()
}

/// Takes the root key off this host. `copy` is where a copy is, if not where it was exported to last.
pub async fn remove_root(
    config: &ServerConfig,
    copy: Option<&Path>,
    now: Timestamp,
) -> Result<(), ConsoleError> {
    let Console { state, store, .. } = Console::open(config).await?;
    root_key(&state)?;
    let copy = match copy {
        Some(copy) => copy.to_owned(),
        None => noted_copy(&state)?,
    };
    check_copy(&state, &copy)?;
    let mut change = store.change().await?;
    let message = format!(
        "the root key was removed from the server's host; {} is a copy of it",
        copy.display()
    );
    let event = Event::new(now, EventKind::RootRemoved, audit::CONSOLE.to_owned(), message);
    change.record(&event, None);
    // First of all: no key may be gone without the log's knowing. One that is there still can be removed again.
    change.commit().await?;
    store.close().await;
    let path = state.path(ROOT_KEY);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(ConsoleError::NotRemoved { path, source });
        }
        _ => {}
    }
    let confirmed = File::open(state.directory()).and_then(|directory| directory.sync_all());
    confirmed.map_err(|source| ConsoleError::RemovalUnconfirmed { path, source })
}

fn noted_copy(state: &State) -> Result<PathBuf, ConsoleError> {
    if !state.path(ROOT_EXPORTED).exists() {
        return Err(ConsoleError::NotExported);
    }
    let noted = state.read(ROOT_EXPORTED)?;
    if noted.is_empty() {
        Err(ConsoleError::CopyNotNoted)
    } else {
        Ok(PathBuf::from(noted))
    }
}

/// A copy that a thief of the state directory takes along, or that is none, is no reason to remove the key.
fn check_copy(state: &State, copy: &Path) -> Result<(), ConsoleError> {
    let unreadable = |source| ConsoleError::CopyUnreadable {
        path: copy.to_owned(),
        source,
    };
    let found = fs::canonicalize(copy).map_err(unreadable)?;
    if let Some(folder) = found.parent() {
        check_outside(state, folder)?;
    }
    if !fs::metadata(&found).map_err(unreadable)?.is_file() {
        return Err(ConsoleError::CopyDiffers(copy.to_owned()));
    }
    let file = File::open(&found).map_err(unreadable)?;
    let mut text = String::new();
    match (&file).take(LONGEST_COPY).read_to_string(&mut text) {
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(unreadable(error)),
        _ => {}
    }
    let root = state.root_public_key()?;
    match SigningKey::from_pem(&text) {
        Ok(key) if key.public() == root => {}
        _ => return Err(ConsoleError::CopyDiffers(copy.to_owned())),
    }
    // Whoever made it by hand may not have waited for the disk.
    confirm(&file, &found).map_err(|source| ConsoleError::CopyUnconfirmed {
        path: copy.to_owned(),
        source,
    })
}

/// A folder that isn't there is complained of by whoever uses it.
fn check_outside(state: &State, folder: &Path) -> Result<(), ConsoleError> {
    let inside = fs::canonicalize(folder)
        .and_then(|folder| Ok(folder.starts_with(fs::canonicalize(state.directory())?)))
        .unwrap_or_default();
    if inside {
        Err(ConsoleError::Inside(state.directory().to_owned()))
    } else {
        Ok(())
    }
}

fn root_key(state: &State) -> Result<String, ConsoleError> {
    if state.path(ROOT_KEY).exists() {
        Ok(state.read_secret(ROOT_KEY)?)
    } else {
        Err(ConsoleError::RootRemoved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_counts_only_where_a_disk_says_that_it_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy");
        let file = create_new(&path, MODE).unwrap();
        confirm(&file, &path).unwrap();
        let no_folder = Path::new("/proc/self/status");
        assert!(confirm(&file, no_folder).is_err(), "no disk has this folder");
        assert!(confirm(&File::open(no_folder).unwrap(), &path).is_err());
    }
}
