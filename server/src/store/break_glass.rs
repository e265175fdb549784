//! Which uses of break-glass hosts have told.

use nightlatch_core::id::{BreakGlassId, MachineId};
use nightlatch_core::time::Timestamp;

use super::StoreError;
use super::connection::{Connection, sql};

/// Whether the machine has told it before.
pub async fn is_known(
    connection: &mut Connection,
    machine: MachineId,
    id: BreakGlassId,
) -> Result<bool, StoreError> {
    let query = sql("SELECT id FROM break_glass WHERE machine = $1 AND id = $2")
        .bind(machine.to_string())
        .bind(id.to_string());
    Ok(!query.rows(connection).await?.is_empty())
}

pub async fn put(
    connection: &mut Connection,
    machine: MachineId,
    id: BreakGlassId,
    now: Timestamp,
) -> Result<(), StoreError> {
    sql("INSERT INTO break_glass (machine, id, told_at) VALUES ($1, $2, $3)")
        .bind(machine.to_string())
        .bind(id.to_string())
        .bind(now.micros())
        .write(connection)
        .await
}
