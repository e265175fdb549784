//! The server's database, as whoever has its disk can read and write it.

use anyhow::{Context, Result};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions};
use sqlx::{AssertSqlSafe, Connection, Row, Sqlite, SqliteConnection};
use tokio::runtime::{Builder, Runtime};

use crate::control::Control;

/// A value in a statement.
#[derive(Clone, Debug)]
pub enum Bind {
    Text(String),
    Number(i64),
    Bytes(Vec<u8>),
}

/// An open database. The server should not run meanwhile.
pub struct Database {
    runtime: Runtime,
    connection: SqliteConnection,
}

impl Database {
    pub fn open(control: Control<'_>) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let options = SqliteConnectOptions::new().filename(control.state().join("nightlatch.db"));
        let connection = runtime
            .block_on(SqliteConnection::connect_with(&options))
            .context("opening nightlatch.db")?;
        Ok(Self { runtime, connection })
    }

    /// How many rows it changed.
    pub fn execute(&mut self, sql: &str, binds: &[Bind]) -> Result<u64> {
        let query = bound(sql, binds).execute(&mut self.connection);
        Ok(self
            .runtime
            .block_on(query)
            .with_context(|| sql.to_owned())?
            .rows_affected())
    }

    /// The text in the only column of the only row.
    pub fn text(&mut self, sql: &str, binds: &[Bind]) -> Result<String> {
        let query = bound(sql, binds).fetch_one(&mut self.connection);
        let row = self.runtime.block_on(query).with_context(|| sql.to_owned())?;
        row.try_get(0).with_context(|| sql.to_owned())
    }

    pub fn close(self) -> Result<()> {
        self.runtime
            .block_on(self.connection.close())
            .context("closing nightlatch.db")
    }
}

fn bound(sql: &str, binds: &[Bind]) -> Query<'static, Sqlite, SqliteArguments> {
    binds.iter().fold(
        sqlx::query(AssertSqlSafe(sql.to_owned())),
        |query, bind| match bind.clone() {
            Bind::Text(text) => query.bind(text),
            Bind::Number(number) => query.bind(number),
            Bind::Bytes(bytes) => query.bind(bytes),
        },
    )
}
