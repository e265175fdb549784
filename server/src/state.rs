//! The state directory: keys, certificates, the database.

mod belonging;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nightlatch_core::keys::VerifiedKeys;
use nightlatch_core::signing::{EnvelopeRejected, InvalidKey, PublicKey, SigningKey};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

use crate::identity::ca::{CertificateAuthority, CertificateError};

pub use belonging::Stranger;

pub const CA_CERTIFICATE: &str = "ca.pem";
pub const CA_KEY: &str = "ca.key";
pub const ROOT_KEY: &str = "root.key";
pub const ROOT_PUBLIC_KEY: &str = "root.pub";
pub const SIGNING_KEY: &str = "signing.key";
pub const KEY_LIST: &str = "keys.dsse";
pub const SERVER_CERTIFICATE: &str = "server.pem";
pub const SERVER_KEY: &str = "server.key";
pub const DATABASE: &str = "nightlatch.db";
pub const ADMIN: &str = "admin";
/// Written when the root key was exported.
pub const ROOT_EXPORTED: &str = "root.exported";

/// Why something in the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{} is missing: `nightlatch-server init` makes a state directory", .0.display())]
    Missing(PathBuf),
    #[error("another nightlatch-server works in {}: stop it first, or name another directory with --state", .0.display())]
    InUse(PathBuf),
    #[error("{} can't be read: {}", path.display(), next_step(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} can't be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "others may use {}: it has mode {mode:03o}, a state directory must have 700 (`chmod 700 {}`)",
        path.display(), path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "{} belongs to the user {owner}, and this runs as {user}: run it as the directory's owner, or give the \
         directory to this user (`chown -R {user} {}`)",
        path.display(), path.display()
    )]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error(
        "others may read {}: it has mode {mode:03o}, keys must have 600 (`chmod 600 {}`)",
        path.display(), path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} can't be used: put it back from a copy of the state directory", path.display())]
    Key { path: PathBuf, source: InvalidKey },
    #[error(
        "{} is not a key list that the key in root.pub signed: put both back from a copy of the state directory",
        path.display()
    )]
    KeyList { path: PathBuf, source: EnvelopeRejected },
    #[error(
        "{} does not list the key in {}: put both back from a copy of the state directory",
        list.display(), key.display()
    )]
    NotListed { list: PathBuf, key: PathBuf },
    #[error("{} and ca.key can't be used: put both back from a copy of the state directory", path.display())]
    Authority { path: PathBuf, source: CertificateError },
}

fn next_step(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "put it back from a copy of the state directory",
        io::ErrorKind::PermissionDenied => "run this as the user that the server runs as",
        _ => "put it back from a copy of the state directory if it is damaged",
    }
}

/// A state directory.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
}

impl State {
    pub const fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// # Errors
    /// A directory that `init` has not made, or that others may use.
    pub fn check(&self) -> Result<(), StateError> {
        self.check_made()?;
        let path = self.directory.clone();
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(source) => return Err(StateError::Read { path, source }),
        };
        let (mode, owner) = (metadata.permissions().mode() & 0o777, metadata.uid());
        let user = Uid::effective();
        if mode & 0o077 != 0 {
            Err(StateError::Open { path, mode })
        } else if user.is_root() || owner == user.as_raw() {
            // Root runs commands for the user that the server runs as.
            Ok(())
        } else {
            let user = user.as_raw();
            Err(StateError::Owner { path, owner, user })
        }
    }

    fn check_made(&self) -> Result<(), StateError> {
        match [DATABASE, CA_CERTIFICATE]
            .into_iter()
            .find(|file| !self.path(file).is_file())
        {
            Some(file) => Err(StateError::Missing(self.path(file))),
            None => Ok(()),
        }
    }

    /// Takes the directory for one running server. Ends with what is given.
    ///
    /// # Errors
    /// Another one that runs.
    pub fn lock(&self) -> Result<Flock<File>, StateError> {
        let path = self.directory.clone();
        let directory = match File::open(&path) {
            Ok(directory) => directory,
            Err(source) => return Err(StateError::Read { path, source }),
        };
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => StateError::InUse(path),
            other => StateError::Read {
                path,
                source: other.into(),
            },
        })
    }

    pub fn read(&self, file: &str) -> Result<String, StateError> {
        let path = self.path(file);
        fs::read_to_string(&path).map_err(|source| StateError::Read { path, source })
    }

    /// A private key's file, which nobody else may be able to read.
    pub fn read_secret(&self, file: &str) -> Result<String, StateError> {
        let path = self.path(file);
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode() & 0o777,
            Err(source) => return Err(StateError::Read { path, source }),
        };
        if mode & 0o077 == 0 {
            self.read(file)
        } else {
            Err(StateError::Exposed { path, mode })
        }
    }

    pub fn authority(&self) -> Result<CertificateAuthority, StateError> {
        let (certificate, key) = (self.read(CA_CERTIFICATE)?, self.read_secret(CA_KEY)?);
        let path = self.path(CA_CERTIFICATE);
        CertificateAuthority::from_pem(&certificate, &key)
            .map_err(|source| StateError::Authority { path, source })
    }

    pub fn root_public_key(&self) -> Result<PublicKey, StateError> {
        let invalid = |source| StateError::Key {
            path: self.path(ROOT_PUBLIC_KEY),
            source,
        };
        PublicKey::from_pem(&self.read(ROOT_PUBLIC_KEY)?).map_err(invalid)
    }

    /// The signing key and the list that it stands on.
    pub fn signing(&self) -> Result<(SigningKey, VerifiedKeys), StateError> {
        let invalid = |source| StateError::Key {
            path: self.path(SIGNING_KEY),
            source,
        };
        let key = SigningKey::from_pem(&self.read_secret(SIGNING_KEY)?).map_err(invalid)?;
        let list = self.read(KEY_LIST)?;
        let rejected = |source| StateError::KeyList {
            path: self.path(KEY_LIST),
            source,
        };
        let keys = VerifiedKeys::verify(list.as_bytes(), &self.root_public_key()?).map_err(rejected)?;
        if keys.key(&key.public().id()).is_none() {
            let (list, key) = (self.path(KEY_LIST), self.path(SIGNING_KEY));
            return Err(StateError::NotListed { list, key });
        }
        Ok((key, keys))
    }

    /// Puts a file in the place of another, whole or not at all.
    pub fn replace(&self, file: &str, content: &str, mode: u32) -> Result<(), StateError> {
        let (path, new) = (self.path(file), self.path(&format!("{file}.new")));
        let replace = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            write_new(&new, content.as_bytes(), mode)?;
            fs::rename(&new, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        replace().map_err(|source| StateError::Write {
            path: path.clone(),
            source,
        })
    }
}

/// Writes a file that isn't there yet, down to the disk.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create_new(path, mode)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes an empty file where there is none.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}
