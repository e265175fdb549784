//! How much of a machine's assignment is whose, counted as grants come and go.

use nightlatch_core::id::{MachineId, Subject};
use sqlx::AnyConnection;

use super::StoreError;
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
    connection: &mut AnyConnection,
    machine: MachineId,
    subject: &Subject,
) -> Result<Held, StoreError> {
    let row = sqlx::query(
        "SELECT CAST(COALESCE(SUM(CASE WHEN subject = $2 THEN grants + waiting ELSE 0 END), 0) AS BIGINT) AS own,
           CAST(COALESCE(SUM(grants + waiting), 0) AS BIGINT) AS every,
           CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes
         FROM held WHERE machine = $1",
    )
    .bind(machine.to_string())
    .bind(subject.as_str())
    .fetch_one(connection)
    .await?;
    Ok(Held {
        own: number(&row, "own")?,
        all: number(&row, "every")?,
        bytes: number(&row, "bytes")?,
    })
}

/// What comes or goes of a person's on a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) grants: u64,
    pub(super) bytes: u64,
    pub(super) waiting: u64,
}

pub(super) async fn add(
    connection: &mut AnyConnection,
    machine: MachineId,
    subject: &Subject,
    amount: Amount,
) -> Result<(), StoreError> {
    let Amount {
        grants,
        bytes,
        waiting,
    } = amount;
    sqlx::query(
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
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn take(
    connection: &mut AnyConnection,
    machine: MachineId,
    subject: &Subject,
    amount: Amount,
) -> Result<(), StoreError> {
    let Amount {
        grants,
        bytes,
        waiting,
    } = amount;
    sqlx::query(
        "UPDATE held SET grants = grants - $3, bytes = bytes - $4, waiting = waiting - $5
         WHERE machine = $1 AND subject = $2",
    )
    .bind(machine.to_string())
    .bind(subject.as_str())
    .bind(from_number(grants))
    .bind(from_number(bytes))
    .bind(from_number(waiting))
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM held WHERE machine = $1 AND subject = $2 AND grants <= 0 AND waiting <= 0")
        .bind(machine.to_string())
        .bind(subject.as_str())
        .execute(connection)
        .await?;
    Ok(())
}
