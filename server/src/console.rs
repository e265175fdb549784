//! Commands on the server's own host, beside the running server.

mod root;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::id::{MachineName, Subject};
use nightlatch_core::rights::Role;
use nightlatch_core::time::Timestamp;

use crate::audit;
use crate::config::ServerConfig;
use crate::identity::ca::{CertificateAuthority, CertificateError};
use crate::identity::token::{self, Token};
use crate::identity::{Identity, Kind, fingerprint};
use crate::server::host_port;
use crate::state::{DATABASE, State, StateError, write_new};
use crate::store::installation::Installation;
use crate::store::users::User;
use crate::store::{Store, StoreError, tokens, users};

pub use root::{export_root, remove_root};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("{} is there already, and nothing is overwritten: {next}", path.display())]
    Exists { path: PathBuf, next: &'static str },
    #[error("{} can't be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the root key was never exported: without a copy no signing key can ever be replaced; run `nightlatch-server root export FILE` first"
    )]
    NotExported,
    #[error("the root key is not here: it was removed")]
    RootRemoved,
    #[error(
        "{} is this server's state directory: a copy of the root key belongs where the server's thief can't reach it, \
         so name a file elsewhere",
        .0.display()
    )]
    Inside(PathBuf),
    #[error("where the root key was exported to was not noted: name its copy with --copy FILE")]
    CopyNotNoted,
    #[error(
        "the copy of the root key can't be read at {}: say with --copy FILE where it is, or make another with \
         `nightlatch-server root export FILE`",
        path.display()
    )]
    CopyUnreadable { path: PathBuf, source: io::Error },
    #[error(
        "the disk has not confirmed that it has the copy of the root key at {}: say with --copy FILE where another is, or \
         make one with `nightlatch-server root export FILE`",
        path.display()
    )]
    CopyUnconfirmed { path: PathBuf, source: io::Error },
    #[error(
        "{} is not a copy of the root key: say with --copy FILE where one is, or make another with \
         `nightlatch-server root export FILE`",
        .0.display()
    )]
    CopyDiffers(PathBuf),
    #[error(
        "that a copy of the root key goes to {} is recorded, but it can't be written there: run it again with a file \
         elsewhere",
        path.display()
    )]
    NotCopied { path: PathBuf, source: io::Error },
    #[error(
        "that the root key was removed is recorded, but {} is not removed: run it again",
        path.display()
    )]
    NotRemoved { path: PathBuf, source: io::Error },
    #[error(
        "the root key was removed, and that is recorded, but the disk has not confirmed it: see after the next start \
         of this host that {} is gone",
        path.display()
    )]
    RemovalUnconfirmed { path: PathBuf, source: io::Error },
}

/// An enrolment token that was just made.
pub struct NewToken {
    /// The one string that is handed over.
    pub text: String,
    secret_sha256: String,
    machine_name: Option<MachineName>,
}

/// Makes an enrolment token.
pub async fn create_token(
    config: &ServerConfig,
    machine_name: Option<MachineName>,
    may_replace: bool,
    now: Timestamp,
) -> Result<NewToken, ConsoleError> {
    let Console {
        ca,
        store,
        installation,
        ..
    } = Console::open(config).await?;
    let host = installation
        .host_names
        .first()
        .map(String::as_str)
        .unwrap_or_default();
    let token = Token::new(host_port(host, config.listen.port()), ca.certificate());
    let stored = tokens::Token {
        secret_sha256: token::hash(&token.secret),
        machine_name,
        may_replace,
        expires_at: now.checked_add(token::LIFE).unwrap_or(now),
        used: None,
    };
    let mut change = store.change().await?;
    tokens::create(change.connection(), &stored, now).await?;
    let whom = stored
        .machine_name
        .as_ref()
        .map_or("any machine", MachineName::as_str);
    let may = if may_replace { ", which it may replace" } else { "" };
    let message = format!(
        "an enrolment token for {whom}{may}, until {}",
        audit::to_the_second(stored.expires_at)
    );
    let mut event = Event::new(now, EventKind::TokenCreated, audit::CONSOLE.to_owned(), message);
    event.machine_name = stored.machine_name.clone();
    change.record(&event, None);
    change.commit().await?;
    store.close().await;
    Ok(NewToken {
        text: token.to_text(),
        secret_sha256: stored.secret_sha256,
        machine_name: stored.machine_name,
    })
}

/// Takes a token back that could not be handed over.
pub async fn withdraw_token(
    config: &ServerConfig,
    token: &NewToken,
    now: Timestamp,
) -> Result<(), ConsoleError> {
    let store = Console::open(config).await?.store;
    let mut change = store.change().await?;
    tokens::withdraw(change.connection(), &token.secret_sha256).await?;
    let message = "an enrolment token was taken back: it could not be handed over".to_owned();
    let actor = audit::CONSOLE.to_owned();
    let mut event = Event::new(now, EventKind::TokenWithdrawn, actor, message);
    event.machine_name = token.machine_name.clone();
    change.record(&event, None);
    change.commit().await?;
    store.close().await;
    Ok(())
}

/// Issues a client certificate. An earlier one of the same name no longer counts. Gives the files' names.
pub async fn issue_user(
    config: &ServerConfig,
    subject: &Subject,
    roles: BTreeSet<Role>,
    prefix: &Path,
    now: Timestamp,
) -> Result<(PathBuf, PathBuf), ConsoleError> {
    let Console {
        ca,
        store,
        installation,
        ..
    } = Console::open(config).await?;
    let identity = Identity {
        installation: installation.id,
        kind: Kind::Person,
        id: subject.to_string(),
    };
    let issued = ca.issue(&identity, now)?;
    let named = |ending: &str| {
        let mut name = prefix.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let (certificate, key) = (named(".pem"), named(".key"));
    if certificate.exists() {
        return Err(ConsoleError::Exists {
            path: certificate,
            next: OTHER_PREFIX,
        });
    }
    let mut change = store.change().await?;
    let names: Vec<String> = roles.iter().map(ToString::to_string).collect();
    let user = User {
        roles,
        fingerprint: fingerprint(&issued.certificate),
    };
    users::put(change.connection(), subject, &user, now).await?;
    let message = format!("{subject} got a certificate as {}", names.join(", "));
    let event = Event::new(now, EventKind::UserIssued, audit::CONSOLE.to_owned(), message);
    change.record(&event, Some(subject));
    change.take_lock().await?;
    write(&key, &issued.key_pem, 0o600, OTHER_PREFIX)?;
    let rest = async {
        write(&certificate, &issued.certificate_pem, 0o644, OTHER_PREFIX)?;
        Ok(change.commit().await?)
    };
    if let Err(error) = rest.await {
        // Nothing half-done: only what was made here is taken away, and what can't be is said by the error.
        for path in [&key, &certificate] {
            if !matches!(&error, ConsoleError::Exists { path: existing, .. } if existing == path) {
                drop(std::fs::remove_file(path));
            }
        }
        return Err(error);
    }
    store.close().await;
    Ok((certificate, key))
}

/// A state directory whose certificate authority is its database's. Each command enters by it.
struct Console {
    state: State,
    ca: CertificateAuthority,
    store: Store,
    installation: Installation,
}

impl Console {
    async fn open(config: &ServerConfig) -> Result<Self, ConsoleError> {
        let state = State::at(config.state.clone());
        state.check()?;
        let ca = state.authority()?;
        let belongs = |stored: &Installation| Ok::<_, ConsoleError>(state.check_authority(&ca, stored.id)?);
        let (store, installation) = Store::open_if(&state.path(DATABASE), belongs).await?;
        Ok(Self {
            state,
            ca,
            store,
            installation,
        })
    }
}

const OTHER_PREFIX: &str = "name other files with --out PREFIX";

fn write(path: &Path, content: &str, mode: u32, next: &'static str) -> Result<(), ConsoleError> {
    write_new(path, content.as_bytes(), mode).map_err(|source| unwritten(path, source, next))
}

fn unwritten(path: &Path, source: io::Error, next: &'static str) -> ConsoleError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::AlreadyExists => ConsoleError::Exists { path, next },
        _ => ConsoleError::Write { path, source },
    }
}
