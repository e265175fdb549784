//! Enrolment tokens, known by the hash of their secret.

use nightlatch_core::id::{MachineId, MachineName};
use nightlatch_core::time::Timestamp;

use super::StoreError;
use super::connection::{Connection, sql};
use super::row::{maybe_parsed, maybe_text, maybe_time, number, time};

pub struct Token {
    pub secret_sha256: String,
    /// The only name it may enrol; any if `None`.
    pub machine_name: Option<MachineName>,
    pub may_replace: bool,
    pub expires_at: Timestamp,
    pub used: Option<Use>,
}

/// What a token was used for.
pub struct Use {
    pub at: Timestamp,
    /// Unknown where an earlier version took it.
    pub machine: Option<MachineId>,
    /// Hex SHA-256 of the machine's keys.
    pub keys_sha256: String,
}

pub async fn create(connection: &mut Connection, token: &Token, now: Timestamp) -> Result<(), StoreError> {
    let Token {
        secret_sha256,
        machine_name,
        may_replace,
        expires_at,
        used: _,
    } = token;
    sql(
        "INSERT INTO tokens (secret_sha256, machine_name, may_replace, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(secret_sha256)
    .bind(machine_name.as_ref().map(MachineName::as_str))
    .bind(i64::from(*may_replace))
    .bind(now.micros())
    .bind(expires_at.micros())
    .write(connection)
    .await?;
    Ok(())
}

/// One that was used stays.
pub async fn withdraw(connection: &mut Connection, secret_sha256: &str) -> Result<(), StoreError> {
    sql("DELETE FROM tokens WHERE secret_sha256 = $1 AND used_at IS NULL")
        .bind(secret_sha256)
        .write(connection)
        .await?;
    Ok(())
}

pub async fn find(connection: &mut Connection, secret_sha256: &str) -> Result<Option<Token>, StoreError> {
    let row = sql(
        "SELECT machine_name, may_replace, expires_at, used_at, machine, keys_sha256 FROM tokens
         WHERE secret_sha256 = $1",
    )
    .bind(secret_sha256)
    .row(connection)
    .await?;
    let token = |row| {
        let used = |at| {
            Ok::<_, StoreError>(Use {
                at,
                machine: maybe_parsed(&row, "machine")?,
                keys_sha256: maybe_text(&row, "keys_sha256")?.unwrap_or_default(),
            })
        };
        Ok(Token {
            secret_sha256: secret_sha256.to_owned(),
            machine_name: maybe_parsed(&row, "machine_name")?,
            may_replace: number(&row, "may_replace")? != 0,
            expires_at: time(&row, "expires_at")?,
            used: maybe_time(&row, "used_at")?.map(used).transpose()?,
        })
    };
    row.map(token).transpose()
}

pub async fn mark_used(
    connection: &mut Connection,
    secret_sha256: &str,
    used: &Use,
) -> Result<(), StoreError> {
    let Use {
        at,
        machine,
        keys_sha256,
    } = used;
    sql("UPDATE tokens SET used_at = $2, machine = $3, keys_sha256 = $4 WHERE secret_sha256 = $1")
        .bind(secret_sha256)
        .bind(at.micros())
        .bind(machine.map(|id| id.to_string()))
        .bind(keys_sha256)
        .write(connection)
        .await?;
    Ok(())
}
