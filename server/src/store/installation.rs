//! Which installation this is.

use nightlatch_core::id::InstallationId;
use nightlatch_core::time::Timestamp;

use super::StoreError;
use super::connection::{Connection, sql};
use super::row::{json, parsed, to_json, unreadable};

pub struct Installation {
    pub id: InstallationId,
    /// Host names and addresses in the server's certificate, the leading one first.
    pub host_names: Vec<String>,
}

pub async fn create(
    connection: &mut Connection,
    installation: &Installation,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Installation { id, host_names } = installation;
    sql("INSERT INTO installation (only, id, host_names, created_at) VALUES (1, $1, $2, $3)")
        .bind(id.to_string())
        .bind(to_json(host_names))
        .bind(now.micros())
        .write(connection)
        .await?;
    Ok(())
}

pub async fn read(connection: &mut Connection) -> Result<Installation, StoreError> {
    let row = sql("SELECT id, host_names FROM installation")
        .row(connection)
        .await?;
    let row = row.ok_or_else(|| unreadable("installation", "missing"))?;
    Ok(Installation {
        id: parsed(&row, "id")?,
        host_names: json(&row, "host_names")?,
    })
}
