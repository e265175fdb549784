//! Enrolment tokens, known by the hash of their secret.

use nightlatch_core::id::MachineName;
use nightlatch_core::time::Timestamp;
use sqlx::AnyConnection;

use super::StoreError;
use super::row::{maybe_parsed, maybe_time, number, time};

pub struct Token {
    pub secret_sha256: String,
    /// The only name it may enrol; any if `None`.
    pub machine_name: Option<MachineName>,
    pub may_replace: bool,
    pub expires_at: Timestamp,
    pub used_at: Option<Timestamp>,
}

pub async fn create(connection: &mut AnyConnection, token: &Token, now: Timestamp) -> Result<(), StoreError> {
    let Token {
        secret_sha256,
        machine_name,
        may_replace,
        expires_at,
        used_at,
    } = token;
    sqlx::query(
        "INSERT INTO tokens (secret_sha256, machine_name, may_replace, created_at, expires_at, used_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(secret_sha256)
    .bind(machine_name.as_ref().map(MachineName::as_str))
    .bind(i64::from(*may_replace))
    .bind(now.micros())
    .bind(expires_at.micros())
    .bind(used_at.map(Timestamp::micros))
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn find(connection: &mut AnyConnection, secret_sha256: &str) -> Result<Option<Token>, StoreError> {
    let row = sqlx::query(
        "SELECT machine_name, may_replace, expires_at, used_at FROM tokens WHERE secret_sha256 = $1",
    )
    .bind(secret_sha256)
    .fetch_optional(connection)
    .await?;
    let token = |row| {
        Ok(Token {
            secret_sha256: secret_sha256.to_owned(),
            machine_name: maybe_parsed(&row, "machine_name")?,
            may_replace: number(&row, "may_replace")? != 0,
            expires_at: time(&row, "expires_at")?,
            used_at: maybe_time(&row, "used_at")?,
        })
    };
    row.map(token).transpose()
}

pub async fn mark_used(
    connection: &mut AnyConnection,
    secret_sha256: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE tokens SET used_at = $2 WHERE secret_sha256 = $1")
        .bind(secret_sha256)
        .bind(now.micros())
        .execute(connection)
        .await?;
    Ok(())
}
