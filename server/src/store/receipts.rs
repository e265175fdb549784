//! Receipts, the exact bytes that hosts signed.

use std::collections::BTreeSet;

use nightlatch_core::id::MachineId;
use nightlatch_core::time::Timestamp;
use sqlx::{AnyConnection, AssertSqlSafe};

use super::row::{from_number, number, text};
use super::{StoreError, rows};

/// A receipt as it is stored.
pub struct Stored {
    pub sequence: u64,
    /// Hex SHA-256 of the envelope.
    pub sha256: String,
    pub envelope: Vec<u8>,
}

/// Stores receipts. Gives number and hash of those that are new.
pub async fn put<'s>(
    connection: &mut AnyConnection,
    machine: MachineId,
    receipts: impl IntoIterator<Item = &'s Stored>,
    now: Timestamp,
) -> Result<BTreeSet<(u64, String)>, StoreError> {
    let receipts: Vec<&Stored> = receipts.into_iter().collect();
    let mut new = BTreeSet::new();
    for some in rows::chunks(&receipts) {
        let sql = format!(
            "INSERT INTO receipts (machine, sequence, sha256, envelope, stored_at) VALUES {}
             ON CONFLICT DO NOTHING RETURNING sequence, sha256",
            rows::values(some.len(), 5)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for receipt in some {
            query = query
                .bind(machine.to_string())
                .bind(from_number(receipt.sequence))
                .bind(receipt.sha256.as_str())
                .bind(receipt.envelope.as_slice())
                .bind(now.micros());
        }
        for row in query.fetch_all(&mut *connection).await? {
            new.insert((number(&row, "sequence")?, text(&row, "sha256")?));
        }
    }
    Ok(new)
}
