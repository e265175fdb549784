//! Where uses of break-glass are recorded: root writes, the agent reads, and nobody else does either.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nightlatch_core::break_glass::{BreakGlass, Limits, NotOpened, OfBoot, VerifiedBreakGlass};
use nightlatch_core::ledger::Boot;
use nightlatch_core::signing::{EnvelopeRejected, LONGEST_ENVELOPE, PublicKey, SigningKey};
use nightlatch_core::time::BootTime;
use nix::fcntl::OFlag;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use zeroize::Zeroizing;

use super::within;
use crate::state::UNIT_USER;

/// Of a folder's records the newest so many are looked at.
pub const MOST_RECORDS: usize = 64;
/// Far more entries than a folder that is looked after ever has.
const MOST_ENTRIES: usize = 1_000;
/// Of ended records so many stay that the lasting folder doesn't have.
const MOST_ENDED: usize = 32;
/// What the disk has for the file of groups.
const GROUPS_PATIENCE: Duration = Duration::from_secs(1);
const KEY: &str = "key";
const RECORD: &str = ".json";
const PUBLIC_KEY: &str = ".pub";
const DAMAGED: &str = "key.damaged";

/// Both folders of a host.
#[derive(Clone, Debug)]
pub struct Folders {
    /// What opens; gone with the boot, and needing no disk.
    pub live: Folder,
    /// What is reported later, and the key.
    pub lasting: Folder,
    /// This host's own, and not another root's.
    pub is_whole_host: bool,
}

#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    groups: PathBuf,
    readers: Arc<OnceLock<u32>>,
}

/// A use and the bytes that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub used: BreakGlass,
    pub envelope: Vec<u8>,
    file: String,
}

/// Why a file is no record.
#[derive(Debug, thiserror::Error)]
pub enum NoRecord {
    #[error("it isn't root's alone to write")]
    NotRoots,
    #[error("it is longer than {LONGEST_ENVELOPE} bytes")]
    TooLong,
    #[error("it can't be read")]
    Unreadable(#[from] io::Error),
    #[error(transparent)]
    Rejected(#[from] EnvelopeRejected),
}

/// What a folder held.
#[derive(Debug, Default)]
pub struct Found {
    /// Newest first.
    pub records: Vec<Recorded>,
    keys: Vec<PublicKey>,
    pub refused: Vec<(String, NoRecord)>,
    is_of_this_boot: bool,
}

impl Folders {
    pub fn under(root: &Path) -> Self {
        let readers = Arc::new(OnceLock::new());
        let folder = |path| Folder {
            path: root.join(path),
            groups: root.join("etc/group"),
            readers: Arc::clone(&readers),
        };
        Self {
            live: folder("run/nightlatch-break-glass"),
            lasting: folder("var/lib/nightlatch-break-glass"),
            is_whole_host: root == Path::new("/"),
        }
    }

    /// What root has opened and still holds. Whatever can't be read opens nothing.
    pub fn in_force(&self, limits: &Limits, boot: Boot) -> Vec<VerifiedBreakGlass> {
        let found = self.live.read().unwrap_or_default();
        found.in_force(limits, boot).0
    }
}

impl Found {
    /// Those that hold, and why others don't.
    pub fn in_force(
        &self,
        limits: &Limits,
        boot: Boot,
    ) -> (Vec<VerifiedBreakGlass>, Vec<(&Recorded, NotOpened)>) {
        let of_boot = if self.is_of_this_boot {
            OfBoot::Certain
        } else {
            OfBoot::Id(boot.id)
        };
        let (mut held, mut refused) = (Vec::new(), Vec::new());
        for record in &self.records {
            match BreakGlass::verify(&record.envelope, &self.keys, limits, of_boot, boot.now) {
                Ok(verified) => held.push(verified),
                Err(why) => refused.push((record, why)),
            }
        }
        (held, refused)
    }
}

impl Folder {
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn record(&self, used: &BreakGlass) -> PathBuf {
        self.file(&format!("{}{RECORD}", used.id))
    }

    /// # Errors
    /// The folder can't be read, or isn't root's alone. One that isn't there has nothing.
    pub fn read(&self) -> io::Result<Found> {
        let found = match fs::symlink_metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
            Err(error) => return Err(error),
        };
        if !found.is_dir() || !is_roots_alone(&found) {
            let why = format!("{} isn't root's alone to write", self.path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)?.take(MOST_ENTRIES) {
            names.extend(entry?.file_name().into_string());
        }
        // Ids begin with their time, so that the newest come first.
        names.sort_unstable_by(|one, other| other.cmp(one));
        let mut found = Found {
            is_of_this_boot: statfs(&self.path).is_ok_and(|disk| disk.filesystem_type() == TMPFS_MAGIC),
            ..Found::default()
        };
        let ending = |end: &'static str| names.iter().filter(move |name| name.ends_with(end));
        for name in ending(PUBLIC_KEY).take(MOST_RECORDS) {
            match self.read_key(name) {
                Ok(key) => found.keys.extend(key),
                Err(why) => found.refused.push((name.clone(), why)),
            }
        }
        for name in ending(RECORD).take(MOST_RECORDS) {
            let record = self.read_file(name).and_then(|envelope| {
                let used = BreakGlass::read(&envelope, &found.keys)?;
                let file = name.clone();
                Ok(Recorded { used, envelope, file })
            });
            match record {
                Ok(record) => found.records.push(record),
                Err(why) => found.refused.push((name.clone(), why)),
            }
        }
        Ok(found)
    }

    fn read_key(&self, name: &str) -> Result<Option<PublicKey>, NoRecord> {
        let pem = String::from_utf8(self.read_file(name)?).unwrap_or_default();
        Ok(PublicKey::from_pem(&pem).ok())
    }

    /// Follows no link, and waits for no pipe.
    fn read_file(&self, name: &str) -> Result<Vec<u8>, NoRecord> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(self.file(name))?;
        let found = file.metadata()?;
        if !found.is_file() || !is_roots_alone(&found) {
            return Err(NoRecord::NotRoots);
        }
        let longest = u64::try_from(LONGEST_ENVELOPE).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        file.take(longest.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() > LONGEST_ENVELOPE {
            return Err(NoRecord::TooLong);
        }
        Ok(bytes)
    }

    /// Makes the folder, or takes it back for root.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn prepare(&self) -> io::Result<()> {
        let mut maker = DirBuilder::new();
        maker.recursive(true).mode(0o755);
        if let Some(parent) = self.path.parent() {
            maker.create(parent)?;
        }
        match DirBuilder::new().mode(0o750).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let flags = OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY;
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(&self.path)?;
        fchown(&folder, Some(0), Some(self.readers()))?;
        folder.set_permissions(Permissions::from_mode(0o750))
    }

    /// With the key that it is signed with.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn put(&self, used: &BreakGlass, envelope: &[u8], key: &PublicKey) -> io::Result<()> {
        let pem = key.to_pem().map_err(io::Error::other)?;
        let of_key = format!("{}{PUBLIC_KEY}", used.id);
        self.write(&of_key, pem.as_bytes(), 0o640)?;
        self.write(&format!("{}{RECORD}", used.id), envelope, 0o640)
            .inspect_err(|_| drop(fs::remove_file(self.file(&of_key))))
    }

    /// Whole or not at all, on disk when it is there.
    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let new = self.file(&format!("{name}.new"));
        let written = self.write_new(&new, bytes, mode).and_then(|()| {
            fs::rename(&new, self.file(name))?;
            File::open(&self.path)?.sync_all()
        });
        if written.is_err() {
            // What is left of the attempt would take the room that is missing.
            drop(fs::remove_file(&new));
        }
        written
    }

    fn write_new(&self, place: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        drop(fs::remove_file(place));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(place)?;
        let group = if mode & 0o040 == 0 { 0 } else { self.readers() };
        fchown(&file, Some(0), Some(group))?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// The agent's group. Read from the file itself: other sources of names may ask a network that is away.
    fn readers(&self) -> u32 {
        let path = self.groups.clone();
        let ask = || {
            within(GROUPS_PATIENCE, move || group_in(&path))
                .flatten()
                .unwrap_or(0)
        };
        *self.readers.get_or_init(ask)
    }

    /// The host's key for break-glass, made the first time, and anew where it is damaged or isn't root's alone.
    ///
    /// # Errors
    /// It can be neither read nor made.
    pub fn signing_key(&self) -> io::Result<SigningKey> {
        match self.read_signing_key() {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => fs::rename(self.file(KEY), self.file(DAMAGED))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let key = fresh_key()?;
        let pem = key.to_pem().map_err(io::Error::other)?;
        self.write(KEY, pem.as_bytes(), 0o600)?;
        Ok(key)
    }

    /// `None` if it is not to be used.
    fn read_signing_key(&self) -> io::Result<Option<SigningKey>> {
        let file = File::open(self.file(KEY))?;
        let found = file.metadata()?;
        let mut pem = Vec::new();
        file.take(4096).read_to_end(&mut pem)?;
        let pem = Zeroizing::new(String::from_utf8(pem).unwrap_or_default());
        let is_roots = found.uid() == 0 && found.mode() & 0o077 == 0;
        Ok(SigningKey::from_pem(&pem).ok().filter(|_| is_roots))
    }

    /// # Errors
    /// Whatever the disk says.
    pub fn forget(&self, used: &BreakGlass) -> io::Result<()> {
        self.remove(&format!("{}{RECORD}", used.id))
    }

    fn remove(&self, record: &str) -> io::Result<()> {
        fs::remove_file(self.file(record))?;
        let of_key = record.replace(RECORD, PUBLIC_KEY);
        match fs::remove_file(self.file(&of_key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Drops those that the lasting folder has, by the names they were found with.
    pub fn forget_kept(&self, ended: &[Recorded], lasting: &Self) {
        for record in ended
            .iter()
            .filter(|record| lasting.record(&record.used).exists())
        {
            // Another command may have been faster.
            drop(self.remove(&record.file));
        }
    }

    /// Those that have ended, fewer than would keep newer ones from being read.
    pub fn thinned(&self, found: Found, now: BootTime) -> Vec<Recorded> {
        let mut ended = found.records;
        ended.retain(|record| record.used.end <= now);
        for record in ended.drain(MOST_ENDED.min(ended.len())..) {
            // Another command may have been faster.
            drop(self.remove(&record.file));
        }
        ended
    }

    /// Keeps the newest records.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn forget_oldest(&self, most: usize) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        names.retain(|name| name.ends_with(RECORD));
        names.sort_unstable_by(|one, other| other.cmp(one));
        names.iter().skip(most).try_for_each(|name| self.remove(name))
    }
}

/// A key that nothing but this use is signed with, where the host's own can't be had.
///
/// # Errors
/// The system has no random numbers.
pub fn fresh_key() -> io::Result<SigningKey> {
    let mut seed = Zeroizing::new([0; 32]);
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut *seed).map_err(io::Error::other)?;
    Ok(SigningKey::from_seed(&seed))
}

fn group_in(path: &Path) -> Option<u32> {
    let groups = fs::read_to_string(path).ok()?;
    let mut fields = groups.lines().map(|line| line.split(':'));
    fields.find_map(|mut fields| {
        let is_it = fields.next() == Some(UNIT_USER);
        fields.nth(1).filter(|_| is_it)?.parse().ok()
    })
}

fn is_roots_alone(found: &fs::Metadata) -> bool {
    found.uid() == 0 && found.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests;
