//! Receipts, the exact bytes that hosts signed.

use std::collections::{BTreeMap, BTreeSet};

use nightlatch_core::id::{GrantId, MachineId, MachineName, RequestId, Subject};
use nightlatch_core::time::Timestamp;

use super::connection::{Connection, Statement, sql};
use super::machines::LastReceipt;
use super::row::{from_number, maybe_text, number, parsed, text, unreadable};
use super::{StoreError, rows};

/// A receipt as it is stored.
pub struct Stored {
    pub sequence: u64,
    /// Hex SHA-256 of the envelope.
    pub sha256: String,
    pub envelope: Vec<u8>,
}

/// Whose a grant is.
pub struct Owner {
    pub request: RequestId,
    pub subject: Subject,
}

/// What is known of a machine and its receipts before it sends more.
pub struct Known {
    pub name: MachineName,
    pub last: LastReceipt,
    /// Of the machine's own grants, those that were asked for.
    pub owners: BTreeMap<GrantId, Owner>,
    /// Number and hash of what is here under the numbers that were asked for.
    pub stored: BTreeSet<(u64, String)>,
}

/// What is known before receipts with these numbers, of these grants, are taken.
pub async fn known(
    connection: &mut Connection,
    machine: MachineId,
    receipts: &[(u64, GrantId)],
) -> Result<Known, StoreError> {
    let (mut owners, mut stored, mut head) = (BTreeMap::new(), BTreeSet::new(), None);
    let none: &[(u64, GrantId)] = &[];
    let head_alone = receipts.is_empty().then_some(none);
    for some in head_alone.into_iter().chain(rows::chunks(receipts)) {
        for row in known_of(machine, some).rows(connection).await? {
            let sha256 = maybe_text(&row, "sha256")?.unwrap_or_default();
            match text(&row, "kind")?.as_str() {
                "grant" => {
                    let owner = Owner {
                        request: parsed(&row, "request")?,
                        subject: parsed(&row, "subject")?,
                    };
                    owners.insert(parsed(&row, "name")?, owner);
                }
                "receipt" => {
                    stored.insert((number(&row, "sequence")?, sha256));
                }
                _ => {
                    let sequence = number(&row, "sequence")?;
                    head = Some((parsed(&row, "name")?, LastReceipt { sequence, sha256 }));
                }
            }
        }
    }
    let (name, last) = head.ok_or_else(|| unreadable("machine", format_args!("{machine} missing")))?;
    Ok(Known {
        name,
        last,
        owners,
        stored,
    })
}

/// All in one statement, and so in one trip.
fn known_of(machine: MachineId, receipts: &[(u64, GrantId)]) -> Statement {
    let places = |first: usize| {
        let places = (first..).take(receipts.len()).map(|place| format!("${place}"));
        places.collect::<Vec<_>>().join(", ")
    };
    let text = format!(
        "SELECT 'machine' AS kind, name, receipt_sha256 AS sha256, receipt_sequence AS sequence,
           NULL AS request, NULL AS subject
         FROM machines WHERE id = $1
         UNION ALL
         SELECT 'grant', id, NULL, NULL, request, subject FROM grants WHERE id IN ({}) AND machine = $1
         UNION ALL
         SELECT 'receipt', NULL, sha256, sequence, NULL, NULL FROM receipts
         WHERE machine = $1 AND sequence IN ({})",
        places(2),
        places(2 + receipts.len())
    );
    let query = sql(text).bind(machine.to_string());
    let query = receipts
        .iter()
        .fold(query, |query, (_, grant)| query.bind(grant.to_string()));
    receipts
        .iter()
        .fold(query, |query, (sequence, _)| query.bind(from_number(*sequence)))
}

/// Stores receipts; one that is here already stays as it is.
pub async fn put(
    connection: &mut Connection,
    machine: MachineId,
    receipts: &[Stored],
    now: Timestamp,
) -> Result<(), StoreError> {
    for some in rows::chunks(receipts) {
        let query = sql(format!(
            "INSERT INTO receipts (machine, sequence, sha256, envelope, stored_at) VALUES {}
             ON CONFLICT DO NOTHING",
            rows::values(some.len(), 5)
        ));
        let query = some.iter().fold(query, |query, receipt| {
            query
                .bind(machine.to_string())
                .bind(from_number(receipt.sequence))
                .bind(receipt.sha256.as_str())
                .bind(receipt.envelope.as_slice())
                .bind(now.micros())
        });
        query.write(connection).await?;
    }
    Ok(())
}
