//! The first command: makes the state directory whole, or not at all.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::id::{InstallationId, InvalidId, MachineName, Subject};
use nightlatch_core::keys::{KeyList, ListNumber};
use nightlatch_core::prefix::Prefix;
use nightlatch_core::rights::Role;
use nightlatch_core::signing::{InvalidKey, SigningKey};
use nightlatch_core::time::Timestamp;
use nix::unistd::{Gid, Uid};

use crate::identity::ca::{CertificateAuthority, CertificateError};
use crate::identity::{Identity, Kind, fingerprint};
use crate::state::{
    ADMIN, CA_CERTIFICATE, CA_KEY, DATABASE, KEY_LIST, ROOT_KEY, ROOT_PUBLIC_KEY, SERVER_CERTIFICATE,
    SERVER_KEY, SIGNING_KEY, write_new,
};
use crate::store::installation::Installation;
use crate::store::users::User;
use crate::store::{Store, StoreError, installation, users};
use crate::{audit, id};

/// An agent that joins takes no more addresses.
const MOST_NAMES: usize = 16;

/// Why nobody could reach a server by a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAHost {
    #[error(
        "`{0}` is neither an address nor a host name, which does not end in a number: write control.example.org, \
         192.0.2.1 or 2001:db8::1"
    )]
    Neither(String),
    #[error("nobody reaches a server at {0}: write the address that people and machines connect to")]
    Unreachable(IpAddr),
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{} is not empty: init overwrites nothing; name another directory with --state", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} has no parent directory that it could be made in", .0.display())]
    NoParent(PathBuf),
    #[error(
        "--name: {0} names are given, at most {MOST_NAMES} are taken: name those that hosts and people use"
    )]
    TooManyNames(usize),
    #[error("--name: {0}")]
    NotAHost(#[from] NotAHost),
    #[error("{} can't be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Key(#[from] InvalidKey),
    #[error(transparent)]
    Name(#[from] InvalidId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a server's state. `host_names` go into its certificate, the leading one first.
///
/// # Errors
/// A directory that isn't empty, names that a certificate can't hold, a disk that refuses.
pub async fn init(directory: &Path, host_names: &[String], now: Timestamp) -> Result<(), InitError> {
    check_names(host_names)?;
    let owner = check_free(directory)?;
    let no_parent = || InitError::NoParent(directory.to_owned());
    let (parent, name) = directory
        .parent()
        .zip(directory.file_name())
        .ok_or_else(no_parent)?;
    let building = parent.join(format!(
        ".{}.{:08x}",
        name.to_string_lossy(),
        rand::random::<u32>()
    ));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| InitError::Write { path, source }
    };
    DirBuilder::new()
        .mode(0o700)
        .create(&building)
        .map_err(failed(&building))?;
    let made = async {
        fill(&building, host_names, now).await?;
        settle(&building, owner).map_err(failed(&building))?;
        // Onto an empty directory a rename is allowed; onto one that was filled meanwhile it isn't.
        fs::rename(&building, directory).map_err(failed(directory))?;
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed(parent))
    };
    let made = made.await;
    if made.is_err() && building.exists() {
        fs::remove_dir_all(&building).map_err(failed(&building))?;
    }
    made
}

fn check_names(names: &[String]) -> Result<(), InitError> {
    if names.len() > MOST_NAMES {
        return Err(InitError::TooManyNames(names.len()));
    }
    Ok(names.iter().try_for_each(|name| check_host(name))?)
}

/// # Errors
/// What is neither a host name nor an address that can be connected to.
pub fn check_host(name: &str) -> Result<(), NotAHost> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return if Prefix::from(address).can_send() {
            Ok(())
        } else {
            Err(NotAHost::Unreachable(address))
        };
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    // The rules of machine names are those of host names.
    if name.parse::<MachineName>().is_ok() && !last.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(())
    } else {
        Err(NotAHost::Neither(name.to_owned()))
    }
}

/// The owner of the empty directory that is there already.
fn check_free(directory: &Path) -> Result<Option<(Uid, Gid)>, InitError> {
    let failed = |source| InitError::Write {
        path: directory.to_owned(),
        source,
    };
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(source)),
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(InitError::NotEmpty(directory.to_owned()));
            }
            let metadata = fs::metadata(directory).map_err(failed)?;
            Ok(Some((
                Uid::from_raw(metadata.uid()),
                Gid::from_raw(metadata.gid()),
            )))
        }
    }
}

async fn fill(directory: &Path, host_names: &[String], now: Timestamp) -> Result<(), InitError> {
    let installation = InstallationId::new(id::fresh(now));
    let authority = CertificateAuthority::create(&installation.to_string(), now)?;
    let ca = CertificateAuthority::from_pem(&authority.certificate_pem, &authority.key_pem)?;
    let root = SigningKey::from_seed(&rand::random());
    let signing = SigningKey::from_seed(&rand::random());
    let first = ListNumber { epoch: 1, number: 1 };
    let list = KeyList::new(installation, first, vec![signing.public()], now);
    let server = Identity {
        installation,
        kind: Kind::Server,
        id: id::fresh(now).to_string(),
    };
    let server = ca.issue_server(&server, host_names, now)?;
    let subject: Subject = ADMIN.parse()?;
    let admin = Identity {
        installation,
        kind: Kind::Person,
        id: subject.to_string(),
    };
    let admin = ca.issue(&admin, now)?;

    let write = |file: &str, content: &[u8], mode| {
        let path = directory.join(file);
        write_new(&path, content, mode).map_err(|source| InitError::Write { path, source })
    };
    write(CA_CERTIFICATE, authority.certificate_pem.as_bytes(), 0o644)?;
    write(CA_KEY, authority.key_pem.as_bytes(), 0o600)?;
    write(ROOT_KEY, root.to_pem()?.as_bytes(), 0o600)?;
    write(ROOT_PUBLIC_KEY, root.public().to_pem()?.as_bytes(), 0o644)?;
    write(SIGNING_KEY, signing.to_pem()?.as_bytes(), 0o600)?;
    write(KEY_LIST, &list.seal(&root), 0o644)?;
    write(SERVER_CERTIFICATE, server.certificate_pem.as_bytes(), 0o644)?;
    write(SERVER_KEY, server.key_pem.as_bytes(), 0o600)?;
    write(&format!("{ADMIN}.pem"), admin.certificate_pem.as_bytes(), 0o644)?;
    write(&format!("{ADMIN}.key"), admin.key_pem.as_bytes(), 0o600)?;

    let store = Store::open(&directory.join(DATABASE), true).await?;
    let mut change = store.change().await?;
    let made = Installation {
        id: installation,
        host_names: host_names.to_vec(),
    };
    installation::create(change.connection(), &made, now).await?;
    let roles = BTreeSet::from([Role::Administrator]);
    let user = User {
        roles,
        fingerprint: fingerprint(&admin.certificate),
    };
    users::put(change.connection(), &subject, &user, now).await?;
    let message = format!("made for {}", host_names.join(", "));
    let created = Event::new(
        now,
        EventKind::InstallationCreated,
        audit::CONSOLE.to_owned(),
        message,
    );
    change.record(&created, None);
    let message = format!("{subject} got a certificate as administrator");
    let issued = Event::new(now, EventKind::UserIssued, audit::CONSOLE.to_owned(), message);
    change.record(&issued, Some(&subject));
    change.commit().await?;
    store.close().await;
    Ok(())
}

/// Down to the disk, and owned by whoever owned the empty directory.
fn settle(directory: &Path, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    let database = directory.join(DATABASE);
    fs::set_permissions(&database, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    File::open(&database)?.sync_all()?;
    if let Some((user, group)) = owner {
        for entry in fs::read_dir(directory)? {
            nix::unistd::chown(&entry?.path(), Some(user), Some(group))?;
        }
        nix::unistd::chown(directory, Some(user), Some(group))?;
    }
    File::open(directory)?.sync_all()
}
