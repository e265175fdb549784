//! Assignments: which grants a machine has at which generation.

use std::collections::BTreeSet;

use nightlatch_core::assignment::{Assigned, Generation};
use nightlatch_core::grant::SignedGrant;
use nightlatch_core::id::{GrantId, MachineId, RequestId, Subject};
use nightlatch_core::time::Timestamp;

use super::StoreError;
use super::connection::{Connection, sql};
use super::row::{from_number, maybe_bytes, maybe_parsed, number, parsed, unreadable};

/// How a machine's assignment differs from an earlier one.
#[derive(Debug)]
pub struct Changes {
    pub generation: Generation,
    pub policy_rank: (u64, u64),
    pub added: Vec<Assigned>,
    pub removed: Vec<GrantId>,
    /// Whether grants came and went since, or what else there was isn't known.
    pub missed: bool,
}

const ADDED: &str = "SELECT machines.generation AS generation, machines.policy_epoch AS policy_epoch,
      machines.policy_number AS policy_number, grants.id AS id, grants.added_generation AS added,
      grants.envelope AS envelope
    FROM machines LEFT JOIN grants ON grants.machine = machines.id
      AND grants.removed_generation IS NULL AND grants.added_generation > $2
    WHERE machines.id = $1";
const REMOVED: &str = "SELECT machines.generation, machines.policy_epoch, machines.policy_number, grants.id,
      grants.added_generation, NULL
    FROM machines JOIN grants ON grants.machine = machines.id AND grants.removed_generation > $2
    WHERE machines.id = $1";

/// What has changed since `base`, read in one statement and so from one moment. Since zero it is the whole.
pub async fn changes_since(
    connection: &mut Connection,
    machine: MachineId,
    base: Generation,
) -> Result<Changes, StoreError> {
    let is_whole = base == Generation(0);
    let text = if is_whole {
        ADDED.to_owned()
    } else {
        format!("{ADDED} UNION ALL {REMOVED}")
    };
    let query = sql(text).bind(machine.to_string()).bind(from_number(base.0));
    let rows = query.rows(connection).await?;
    let first = rows
        .first()
        .ok_or_else(|| unreadable("machine", format_args!("{machine} missing")))?;
    let mut changes = Changes {
        generation: Generation(number(first, "generation")?),
        policy_rank: (number(first, "policy_epoch")?, number(first, "policy_number")?),
        added: Vec::new(),
        removed: Vec::new(),
        missed: is_whole,
    };
    for row in rows {
        let row = &row;
        let Some(id) = maybe_parsed(row, "id")? else {
            continue;
        };
        match maybe_bytes(row, "envelope")? {
            Some(envelope) => {
                changes.added.push(Assigned {
                    id,
                    envelope: SignedGrant::from_bytes(envelope),
                });
            }
            None if number(row, "added")? <= base.0 => changes.removed.push(id),
            None => changes.missed = true,
        }
    }
    Ok(changes)
}

/// The grants of a machine's assignment as it was at a generation.
pub async fn assigned_at(
    connection: &mut Connection,
    machine: MachineId,
    generation: Generation,
) -> Result<BTreeSet<GrantId>, StoreError> {
    let rows = sql(
        "SELECT id FROM grants WHERE machine = $1 AND removed_generation IS NULL AND added_generation <= $2
         UNION ALL
         SELECT id FROM grants WHERE machine = $1 AND removed_generation > $2 AND added_generation <= $2",
    )
    .bind(machine.to_string())
    .bind(from_number(generation.0))
    .rows(connection)
    .await?;
    rows.iter().map(|row| parsed(row, "id")).collect()
}

/// Whether [`drop_past`] would take anything out.
pub async fn has_past(
    connection: &mut Connection,
    machine: MachineId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let left = sql(
        "SELECT id FROM grants WHERE machine = $1 AND removed_generation IS NULL AND leaves_at <= $2 LIMIT 1",
    )
    .bind(machine.to_string())
    .bind(now.micros());
    Ok(left.row(connection).await?.is_some())
}

/// Takes what has run out or was refused out of the assignment. The host has forgotten it already.
pub async fn drop_past(
    connection: &mut Connection,
    machine: MachineId,
    generation: Generation,
    now: Timestamp,
) -> Result<(), StoreError> {
    let statements = [
        "UPDATE held SET grants = held.grants - leaving.grants, bytes = held.bytes - leaving.bytes
         FROM (SELECT subject, COUNT(*) AS grants, SUM(LENGTH(envelope)) AS bytes FROM grants
               WHERE machine = $1 AND removed_generation IS NULL AND leaves_at <= $3 GROUP BY subject) AS leaving
         WHERE held.machine = $1 AND held.subject = leaving.subject",
        "UPDATE grants SET removed_generation = $2
         WHERE machine = $1 AND removed_generation IS NULL AND leaves_at <= $3",
        "DELETE FROM held WHERE machine = $1 AND grants <= 0 AND waiting <= 0
           AND subject IN (SELECT subject FROM grants WHERE machine = $1 AND removed_generation = $2)",
    ];
    for statement in statements {
        sql(statement)
            .bind(machine.to_string())
            .bind(from_number(generation.0))
            .bind(now.micros())
            .write(connection)
            .await?;
    }
    Ok(())
}

/// A grant that was ended before its host opened it.
pub struct NeverOpened {
    pub id: GrantId,
    pub request: RequestId,
    pub subject: Subject,
}

/// Ended grants that a host has never opened and, since it accepted `generation`, never will.
pub async fn never_opened(
    connection: &mut Connection,
    machine: MachineId,
    generation: Generation,
) -> Result<Vec<NeverOpened>, StoreError> {
    let query = sql(
        "SELECT id, request, subject FROM grants WHERE machine = $1 AND removed_generation <= $2
           AND ended_at IS NOT NULL AND opened_at IS NULL AND closed_at IS NULL AND refused_at IS NULL",
    );
    let rows = query
        .bind(machine.to_string())
        .bind(from_number(generation.0))
        .rows(connection)
        .await?;
    let read = |row| {
        Ok(NeverOpened {
            id: parsed(row, "id")?,
            request: parsed(row, "request")?,
            subject: parsed(row, "subject")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Takes the generations of a machine's grants back to at most `most`.
pub async fn clamp(
    connection: &mut Connection,
    machine: MachineId,
    most: Generation,
) -> Result<(), StoreError> {
    for column in ["added_generation", "removed_generation"] {
        let text = format!("UPDATE grants SET {column} = $2 WHERE machine = $1 AND {column} > $2");
        sql(text)
            .bind(machine.to_string())
            .bind(from_number(most.0))
            .write(connection)
            .await?;
    }
    Ok(())
}
