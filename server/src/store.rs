//! The durable truth: machines, requests, grants, receipts, events, in one SQL store.
//!
//! Everything that a call changes goes into one [`Change`], its events included: one transaction, one flush.
//! Reads come from their own connections and never wait for it.

pub mod assignments;
pub mod events;
pub mod grants;
pub mod installation;
mod json;
pub mod machines;
pub mod page;
pub mod receipts;
pub mod requests;
mod row;
pub mod tokens;
pub mod users;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::any::{Any, AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Connection, Executor, SqlSafeStr, Transaction};
use tracing::log::LevelFilter;

const READERS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(5);

/// What can go wrong between the server and its store. The caller only learns that it is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database {} can't be opened", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("the database's schema can't be brought up to date")]
    Migrate(#[from] MigrateError),
    #[error("the database did not answer as it should")]
    Query(#[from] sqlx::Error),
    #[error("the database holds something unreadable in `{column}`: {why}")]
    Unreadable { column: String, why: String },
}

/// SQLite: one connection writes, some read.
#[derive(Clone)]
pub struct Store {
    writer: AnyPool,
    readers: AnyPool,
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
        let writer = pool(1).connect_with(options.clone()).await.map_err(opened)?;
        migrator().run(&writer).await?;
        let readers = pool(READERS).connect_with(options).await.map_err(opened)?;
        Ok(Self { writer, readers })
    }

    /// Finds what would keep [`Store::open`] from using the file, and changes nothing.
    ///
    /// # Errors
    /// A missing or damaged file, or one that a newer version has written.
    pub async fn check(path: &Path) -> Result<(), StoreError> {
        sqlx::any::install_default_drivers();
        let opened = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let options = options(path, false).map_err(opened)?;
        let mut connection = AnyConnection::connect_with(&options).await.map_err(opened)?;
        let newest = sqlx::query("SELECT MAX(version) AS version FROM _sqlx_migrations");
        let newest = newest.fetch_one(&mut connection).await.map_err(opened)?;
        let newest = row::number(&newest, "version")?;
        let known = |migration: &Migration| u64::try_from(migration.version) == Ok(newest);
        if !migrator().iter().any(known) {
            let version = i64::try_from(newest).unwrap_or(i64::MAX);
            return Err(MigrateError::VersionMissing(version).into());
        }
        installation::read(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// None is free for five seconds.
    pub async fn read(&self) -> Result<PoolConnection<Any>, StoreError> {
        Ok(self.readers.acquire().await?)
    }

    /// Begins a change. Dropped without a commit, nothing of it holds.
    ///
    /// # Errors
    /// Another change takes more than five seconds.
    pub async fn change(&self) -> Result<Change, StoreError> {
        const BEGIN: &str = "BEGIN IMMEDIATE";
        let begun = self.writer.begin_with(BEGIN).await;
        let transaction = match begun {
            // A disk that is full ends a transaction behind the connection's back, which then begins no other one.
            Err(sqlx::Error::InvalidSavePointStatement) => {
                // It is of no use, whatever closing says.
                let spoilt = self.writer.acquire().await?;
                spoilt.close().await.unwrap_or_default();
                self.writer.begin_with(BEGIN).await?
            }
            begun => begun?,
        };
        Ok(Change { transaction })
    }

    /// Waits until nothing is under way and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Changes that hold together or not at all.
pub struct Change {
    transaction: Transaction<'static, Any>,
}

impl Change {
    /// For the statements of this module's parts.
    pub fn connection(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }

    /// Returns when all of it is on disk.
    ///
    /// # Errors
    /// The disk refused. Nothing of the change holds then.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit().await?)
    }
}

fn options(path: &Path, create: bool) -> Result<AnyConnectOptions, sqlx::Error> {
    let mode = if create { "rwc" } else { "rw" };
    let url = format!("sqlite://{}?mode={mode}", percent_encoded(path));
    let options = url.parse::<AnyConnectOptions>()?;
    let options = options.log_statements(LevelFilter::Trace);
    Ok(options.log_slow_statements(LevelFilter::Warn, Duration::from_secs(1)))
}

fn pool(connections: u32) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .min_connections(connections)
        .acquire_timeout(PATIENCE)
        .idle_timeout(None)
        .max_lifetime(None)
        // Asking before each use whether a file in the same process still answers costs a round trip.
        .test_before_acquire(false)
        .after_connect(|connection, _| {
            Box::pin(async move {
                for pragma in [
                    "PRAGMA busy_timeout = 5000",
                    "PRAGMA journal_mode = WAL",
                    "PRAGMA synchronous = FULL",
                    "PRAGMA foreign_keys = ON",
                ] {
                    connection.execute(pragma).await?;
                }
                Ok(())
            })
        })
}

fn migrator() -> Migrator {
    let sql = include_str!("../migrations/0001_nightlatch.sql").into_sql_str();
    Migrator::with_migrations(vec![Migration::new(
        1,
        "nightlatch".into(),
        MigrationType::Simple,
        sql,
        false,
    )])
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
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_that_is_not_committed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a b%?#.db"), true).await.unwrap();
        let mut change = store.change().await.unwrap();
        let insert = "INSERT INTO tokens VALUES ('x', NULL, 0, 1, 2, NULL)";
        change.connection().execute(insert).await.unwrap();
        drop(change);
        let mut change = store.change().await.unwrap();
        change.connection().execute(insert).await.unwrap();
        change.commit().await.unwrap();
        store.close().await;
    }

    #[tokio::test]
    async fn a_missing_database_is_not_made_up() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            Store::open(&dir.path().join("nightlatch.db"), false)
                .await
                .is_err()
        );
    }
}
