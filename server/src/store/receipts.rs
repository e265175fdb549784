//! Receipts, the exact bytes that hosts signed.

use nightlatch_core::id::MachineId;
use nightlatch_core::time::Timestamp;
use sqlx::AnyConnection;

use super::StoreError;
use super::row::from_number;

/// Whether the receipt is new.
pub async fn put(
    connection: &mut AnyConnection,
    machine: MachineId,
    sequence: u64,
    sha256: &str,
    envelope: &[u8],
    now: Timestamp,
) -> Result<bool, StoreError> {
    let result = sqlx::query(
        "INSERT INTO receipts (machine, sequence, sha256, envelope, stored_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
    )
    .bind(machine.to_string())
    .bind(from_number(sequence))
    .bind(sha256)
    .bind(envelope.to_vec())
    .bind(now.micros())
    .execute(connection)
    .await?;
    Ok(result.rows_affected() > 0)
}
