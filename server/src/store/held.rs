//! How much of a machine's assignment is whose, counted as grants come and go.

use nightlatch_core::id::{GrantId, MachineId, RequestId, Subject};

use super::StoreError;
use super::connection::{Connection, sql};
use super::row::{from_number, number};

/// What a machine holds, or is to hold once it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The person's own grants and waiting requests.
    pub own: u64,
    /// Everyone's.
    pub all: u64,
    /// The length of the grants' envelopes.
    pub bytes: u64,
}

pub async fn of(
    connection: &mut Connection,
    machine: MachineId,
    subject: &Subject,
) -> Result<Held, StoreError> {
    let row = sql(
        "SELECT CAST(COALESCE(SUM(CASE WHEN subject = $2 THEN grants + waiting ELSE 0 END), 0) AS BIGINT) AS own,
           CAST(COALESCE(SUM(grants + waiting), 0) AS BIGINT) AS every,
           CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes
         FROM held WHERE machine = $1",
    )
    .bind(machine.to_string())
    .bind(subject.as_str())
    .one(connection)
    .await?;
    Ok(Held {
        own: number(&row, "own")?,
        all: number(&row, "every")?,
        bytes: number(&row, "bytes")?,
    })
}

/// What comes of a person's on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) grants: u64,
    pub(super) bytes: u64,
    pub(super) waiting: u64,
}

pub(super) async fn add(
    connection: &mut Connection,
    machine: MachineId,
    subject: &Subject,
    amount: Amount,
) -> Result<(), StoreError> {
    let Amount {
        grants,
        bytes,
        waiting,
    } = amount;
    sql(
        "INSERT INTO held (machine, subject, grants, bytes, waiting) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (machine, subject)
         DO UPDATE SET grants = held.grants + excluded.grants, bytes = held.bytes + excluded.bytes,
           waiting = held.waiting + excluded.waiting",
    )
    .bind(machine.to_string())
    .bind(subject.as_str())
    .bind(from_number(grants))
    .bind(from_number(bytes))
    .bind(from_number(waiting))
    .write(connection)
    .await?;
    Ok(())
}

/// Takes off the grant `$1`, which leaves its machine's assignment with the statement after this one.
pub(super) async fn take_grant(connection: &mut Connection, grant: GrantId) -> Result<(), StoreError> {
    let statements = [
        "UPDATE held SET grants = held.grants - 1, bytes = held.bytes - LENGTH(grants.envelope) FROM grants
         WHERE grants.id = $1 AND grants.ended_at IS NULL AND grants.removed_generation IS NULL
           AND held.machine = grants.machine AND held.subject = grants.subject",
        "DELETE FROM held WHERE grants <= 0 AND waiting <= 0
           AND (machine, subject) = (SELECT machine, subject FROM grants WHERE id = $1)",
    ];
    for statement in statements {
        sql(statement).bind(grant.to_string()).write(connection).await?;
    }
    Ok(())
}

/// Takes off a request that waits, which the statement after this one settles.
pub(super) async fn take_waiting(
    connection: &mut Connection,
    request: RequestId,
    machine: MachineId,
    subject: &Subject,
) -> Result<(), StoreError> {
    let statements = [
        "UPDATE held SET waiting = waiting - 1 WHERE machine = $1 AND subject = $2 AND EXISTS
           (SELECT 1 FROM outcomes WHERE request = $3 AND machine = $1 AND state = 'waiting')",
        "DELETE FROM held WHERE machine = $1 AND subject = $2 AND grants <= 0 AND waiting <= 0",
    ];
    for statement in statements {
        sql(statement)
            .bind(machine.to_string())
            .bind(subject.as_str())
            .bind(request.to_string())
            .write(connection)
            .await?;
    }
    Ok(())
}
