//! Which installation this is.

use nightlatch_core::id::InstallationId;
use nightlatch_core::time::Timestamp;
use sqlx::AnyConnection;

use super::StoreError;
use super::row::{json, parsed, to_json, unreadable};

pub struct Installation {
    pub id: InstallationId,
    /// Host names and addresses in the server's certificate, the leading one first.
    pub host_names: Vec<String>,
}

pub async fn create(
    connection: &mut AnyConnection,
    installation: &Installation,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Installation { id, host_names } = installation;
    sqlx::query("INSERT INTO installation (only, id, host_names, created_at) VALUES (1, $1, $2, $3)")
        .bind(id.to_string())
        .bind(to_json(host_names))
        .bind(now.micros())
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn read(connection: &mut AnyConnection) -> Result<Installation, StoreError> {
    let row = sqlx::query("SELECT id, host_names FROM installation")
        .fetch_optional(connection)
        .await?;
    let row = row.ok_or_else(|| unreadable("installation", "missing"))?;
    Ok(Installation {
        id: parsed(&row, "id")?,
        host_names: json(&row, "host_names")?,
    })
}
