//! The root key's way off the server's host: copied, and removed once the copy is seen to be one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::Timestamp;

use super::{ConsoleError, opened, write};
use crate::audit;
use crate::config::ServerConfig;
use crate::state::{DATABASE, ROOT_EXPORTED, ROOT_KEY, State, write_new};
use crate::store::Store;

/// A key's file is a few hundred bytes long.
const LONGEST_COPY: u64 = 16 * 1024;

/// Copies the root key to a file of its own, and notes where.
pub async fn export_root(config: &ServerConfig, file: &Path, now: Timestamp) -> Result<(), ConsoleError> {
    let state = opened(config)?;
    let key = root_key(&state)?;
    let unwritten = |source| ConsoleError::Write {
        path: file.to_owned(),
        source,
    };
    let file = std::path::absolute(file).map_err(unwritten)?;
    if let Some(folder) = file.parent() {
        check_outside(&state, folder)?;
    }
    let store = Store::open(&state.path(DATABASE), false).await?;
    let mut change = store.change().await?;
    let message = format!("the root key was copied to {}", file.display());
    let event = Event::new(now, EventKind::RootExported, audit::CONSOLE.to_owned(), message);
    change.record(&event, None);
    write(&file, &key, 0o600, "name another file")?;
    let rest = async {
        state.replace(ROOT_EXPORTED, &file.to_string_lossy(), 0o600)?;
        Ok(change.commit().await?)
    };
    let rest = rest.await;
    if rest.is_err() {
        // No copy that the log doesn't know; one that can't be taken away is said by the error.
        drop(fs::remove_file(&file));
    }
    store.close().await;
    rest
}

/// Takes the root key off this host. `copy` is where a copy is, if not where it was exported to last.
pub async fn remove_root(
    config: &ServerConfig,
    copy: Option<&Path>,
    now: Timestamp,
) -> Result<(), ConsoleError> {
    let state = opened(config)?;
    let key = root_key(&state)?;
    let copy = match copy {
        Some(copy) => copy.to_owned(),
        None => noted_copy(&state)?,
    };
    check_copy(&state, &copy)?;
    let store = Store::open(&state.path(DATABASE), false).await?;
    let mut change = store.change().await?;
    let message = format!(
        "the root key was removed from the server's host; {} is a copy of it",
        copy.display()
    );
    let event = Event::new(now, EventKind::RootRemoved, audit::CONSOLE.to_owned(), message);
    change.record(&event, None);
    let path = state.path(ROOT_KEY);
    let removed = fs::remove_file(&path).and_then(|()| File::open(state.directory())?.sync_all());
    removed.map_err(|source| ConsoleError::Write {
        path: path.clone(),
        source,
    })?;
    let recorded = change.commit().await;
    if recorded.is_err() {
        // Nothing half-done: what the log doesn't know has not happened.
        write_new(&path, key.as_bytes(), 0o600).map_err(ConsoleError::RemovedUnrecorded)?;
    }
    store.close().await;
    Ok(recorded?)
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
    let mut text = String::new();
    match File::open(&found).and_then(|file| file.take(LONGEST_COPY).read_to_string(&mut text)) {
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(unreadable(error)),
        _ => {}
    }
    let root = state.root_public_key()?;
    match SigningKey::from_pem(&text) {
        Ok(key) if key.public() == root => Ok(()),
        _ => Err(ConsoleError::CopyDiffers(copy.to_owned())),
    }
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
