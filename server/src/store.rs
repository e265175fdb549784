//! The durable truth: machines, requests, grants, receipts, events, in one SQL store.
//!
//! Everything that a call changes goes into one [`Change`], its events included: one transaction, one flush.
//! Reads come from their own connections and never wait for it.

pub mod assignments;
pub mod break_glass;
pub mod connection;
pub mod events;
pub mod grants;
pub mod held;
pub mod installation;
mod json;
mod line;
pub mod machines;
pub mod page;
pub mod readers;
pub mod receipts;
pub mod requests;
mod row;
mod rows;
pub mod tokens;
pub mod users;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nightlatch_core::audit::Event;
use nightlatch_core::id::Subject;
use sqlx::any::AnyConnectOptions;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AnyConnection, ConnectOptions, Connection as _, Executor, SqlSafeStr};
use tracing::debug;
use tracing::log::LevelFilter;

use self::connection::{Connection, sql};
use self::events::Written;
use self::installation::Installation;
use self::line::{Line, Turn};
use self::readers::{Reader, Readers};

const READERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(5);
/// After so many commits the log is moved into the database, by none of them.
const TIDY_EACH: usize = 64;

/// What can go wrong between the server and its store. The caller only learns that it is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database {} can't be opened", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("the database's schema can't be brought up to date")]
    Migrate(#[from] MigrateError),
    #[error("the database did not answer as it should")]
    Query(#[from] sqlx::Error),
    #[error("others have kept the database busy for {} s", .0.as_secs())]
    Busy(Duration),
    #[error("the change could not be put on disk: {0}")]
    NotWritten(String),
    #[error("the database was closed")]
    Closed,
    #[error("the database holds something unreadable in `{column}`: {why}")]
    Unreadable { column: String, why: String },
}

impl StoreError {
    /// Whether it is about the one entry that was read, and lasts.
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Unreadable { .. } | Self::Query(sqlx::Error::ColumnDecode { .. })
        )
    }
}

/// SQLite: one connection writes, some read.
#[derive(Clone)]
pub struct Store {
    writer: Line,
    readers: Readers,
    commits: Arc<AtomicUsize>,
}

impl Store {
    /// Opens the database file and brings its schema up to date. With `create` it must not exist yet.
    ///
    /// # Errors
    /// A missing or damaged file, or one that a newer version has written.
    pub async fn open(path: &Path, create: bool) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let opened = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let options = options(path, create).map_err(opened)?;
        // A pool would try a damaged file again and again, and keep the reason to itself.
        let mut first = AnyConnection::connect_with(&options).await.map_err(opened)?;
        first.execute("PRAGMA schema_version").await.map_err(opened)?;
        first.close().await.map_err(opened)?;
        let mut writer = AnyConnection::connect_with(&options).await.map_err(opened)?;
        prepare(&mut writer).await.map_err(opened)?;
        migrator().run(&mut writer).await?;
        let readers = Readers::open(&options).await.map_err(opened)?;
        Ok(Self {
            writer: Line::new(Connection::over(writer)),
            readers,
            commits: Arc::default(),
        })
    }

    /// Opens the file if the check agrees to whose it is, and only then brings its schema up to date.
    ///
    /// # Errors
    /// Those of [`Store::open`], and the check's.
    pub async fn open_if<E: From<StoreError>>(
        path: &Path,
        check: impl FnOnce(&Installation) -> Result<(), E>,
    ) -> Result<(Self, Installation), E> {
        let installation = Self::check(path).await?;
        check(&installation)?;
        Ok((Self::open(path, false).await?, installation))
    }

    /// Finds what would keep [`Store::open`] from using the file, and changes nothing.
    ///
    /// # Errors
    /// A missing or damaged file, or one that a newer version has written.
    pub async fn check(path: &Path) -> Result<Installation, StoreError> {
        sqlx::any::install_default_drivers();
        let opened = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let options = options(path, false).map_err(opened)?;
        let connection = AnyConnection::connect_with(&options).await.map_err(opened)?;
        let mut connection = Connection::over(connection);
        let newest = sql("SELECT MAX(version) AS version FROM _sqlx_migrations");
        let newest = newest.one(&mut connection).await.map_err(|error| match error {
            StoreError::Query(source) => opened(source),
            other => other,
        })?;
        let newest = row::number(&newest, "version")?;
        let known = |migration: &Migration| u64::try_from(migration.version) == Ok(newest);
        if !migrator().iter().any(known) {
            let version = i64::try_from(newest).unwrap_or(i64::MAX);
            return Err(MigrateError::VersionMissing(version).into());
        }
        let installation = installation::read(&mut connection).await?;
        connection.close().await?;
        Ok(installation)
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// None is free for five seconds.
    pub async fn read(&self) -> Result<Reader, StoreError> {
        self.readers.one().await
    }

    /// Begins a change, which other processes wait for from its first statement on. Dropped without a commit, nothing
    /// of it holds.
    ///
    /// # Errors
    /// Another change takes more than five seconds.
    pub async fn change(&self) -> Result<Change, StoreError> {
        Ok(Change {
            turn: self.writer.turn().await?,
            events: Vec::new(),
            store: self.clone(),
        })
    }

    /// Moves what was committed from the log into the database now and then, while others read and write.
    fn tidy(&self) {
        if !(self.commits.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(TIDY_EACH) {
            return;
        }
        let store = self.clone();
        tokio::spawn(async move {
            let tidied = async {
                let mut reader = store.read().await?;
                sql("PRAGMA wal_checkpoint(PASSIVE)").rows(&mut reader).await
            };
            if let Err(error) = tidied.await {
                // The next one, or a commit that finds the log too long, does it.
                debug!(%error, "the database's log was not moved into it");
            }
        });
    }

    /// Waits until nothing is under way and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Changes that hold together or not at all. What is answered from one as done ends with a commit, even where it
/// has changed nothing: it may have seen what another has done and not yet put on disk.
pub struct Change {
    turn: Turn,
    events: Vec<Written>,
    store: Store,
}

impl Change {
    /// For the statements of this module's parts.
    pub fn connection(&mut self) -> &mut Connection {
        self.turn.connection()
    }

    /// Makes other processes wait from now on and not only from the first statement: before what no rollback undoes.
    ///
    /// # Errors
    /// Another process takes more than five seconds.
    pub async fn take_lock(&mut self) -> Result<(), StoreError> {
        self.connection().send().await
    }

    /// Writes an event of what is changed here. `subject` is the person concerned.
    pub fn record(&mut self, event: &Event, subject: Option<&Subject>) {
        self.events.push(Written::new(event, subject));
    }

    /// Returns when all of it is on disk.
    ///
    /// # Errors
    /// The disk refused. Nothing of the change holds then.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        let events = std::mem::take(&mut self.events);
        events::record_all(self.connection(), &events).await?;
        self.turn.finish().await?;
        self.store.tidy();
        Ok(())
    }
}

fn options(path: &Path, create: bool) -> Result<AnyConnectOptions, sqlx::Error> {
    let mode = if create { "rwc" } else { "rw" };
    let url = format!("sqlite://{}?mode={mode}", percent_encoded(path));
    let options = url.parse::<AnyConnectOptions>()?;
    let options = options.log_statements(LevelFilter::Trace);
    Ok(options.log_slow_statements(LevelFilter::Warn, Duration::from_secs(1)))
}

async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    for pragma in [
        "PRAGMA busy_timeout = 5000",
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        // Else what may have to be taken back goes to a temporary file, one with each change.
        "PRAGMA temp_store = MEMORY",
        // Pages in the log, from which on the commit itself moves them. See `Store::tidy`.
        "PRAGMA wal_autocheckpoint = 8000",
    ] {
        connection.execute(pragma).await?;
    }
    Ok(())
}

fn migrator() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(
            version,
            name.into(),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    };
    Migrator::with_migrations(vec![
        migration(1, "nightlatch", include_str!("../migrations/0001_nightlatch.sql")),
        migration(
            2,
            "bounds and retries",
            include_str!("../migrations/0002_bounds_and_retries.sql"),
        ),
        migration(
            3,
            "break glass",
            include_str!("../migrations/0003_break_glass.sql"),
        ),
    ])
}

fn percent_encoded(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut encoded = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a string can't fail.
            write!(encoded, "%{byte:02X}").unwrap_or_default();
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
