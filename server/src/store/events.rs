//! The audit log, as the JSON bytes that were written, numbered without gaps.

use nightlatch_core::audit::Event;
use nightlatch_core::id::{GrantId, MachineId, Subject};
use sqlx::{AnyConnection, AssertSqlSafe};

use super::StoreError;
use super::page::{Conditions, Page, fitting};
use super::row::{bytes, from_number, number};

/// An event as it is stored.
pub struct Recorded {
    pub sequence: u64,
    pub json: Vec<u8>,
}

/// Which events are asked for.
#[derive(Default)]
pub struct Filter {
    pub machine: Option<MachineId>,
    pub grant: Option<GrantId>,
    pub subject: Option<Subject>,
}

/// Writes an event into the change that it tells of. `subject` is the person concerned.
pub async fn record(
    connection: &mut AnyConnection,
    event: &Event,
    subject: Option<&Subject>,
) -> Result<(), StoreError> {
    // Strings and numbers only: writing them can't fail.
    let json = serde_json::to_vec(event).unwrap_or_default();
    let kind = serde_json::to_string(&event.kind).unwrap_or_default();
    sqlx::query(
        "INSERT INTO events (sequence, at, kind, machine, grant_id, subject, json)
         VALUES ((SELECT COALESCE(MAX(sequence), 0) + 1 FROM events), $1, $2, $3, $4, $5, $6)",
    )
    .bind(event.at.micros())
    .bind(kind.trim_matches('"'))
    .bind(event.machine.map(|id| id.to_string()))
    .bind(event.grant.map(|id| id.to_string()))
    .bind(subject.map(Subject::as_str))
    .bind(json)
    .execute(connection)
    .await?;
    Ok(())
}

/// The page after the event `after`, oldest first.
pub async fn list(
    connection: &mut AnyConnection,
    filter: &Filter,
    after: Option<u64>,
    size: i64,
) -> Result<Page<Recorded>, StoreError> {
    let limit = size.saturating_add(1);
    let entries = select(connection, filter, from_number(after.unwrap_or(0)), "ASC", limit).await?;
    Ok(Page::cut(entries, size, "events", |entry| entry.sequence, weight))
}

/// The newest events, oldest first.
pub async fn newest(
    connection: &mut AnyConnection,
    filter: &Filter,
    size: i64,
) -> Result<Page<Recorded>, StoreError> {
    let mut entries = select(connection, filter, 0, "DESC", size).await?;
    entries.truncate(fitting(&entries, weight));
    entries.reverse();
    Ok(Page { entries, next: None })
}

/// An event is shown as its fields and as its bytes.
const fn weight(entry: &Recorded) -> usize {
    entry.json.len().saturating_mul(2).saturating_add(100)
}

async fn select(
    connection: &mut AnyConnection,
    filter: &Filter,
    after: i64,
    order: &'static str,
    limit: i64,
) -> Result<Vec<Recorded>, StoreError> {
    let Filter {
        machine,
        grant,
        subject,
    } = filter;
    let mut conditions = Conditions::default();
    conditions.equal("machine", machine.map(|id| id.to_string()));
    conditions.equal("grant_id", grant.map(|id| id.to_string()));
    conditions.equal("subject", subject.as_ref().map(ToString::to_string));
    let sql = format!(
        "SELECT sequence, json FROM events WHERE sequence > $1{} ORDER BY sequence {order} LIMIT $2",
        conditions.sql(3)
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(after).bind(limit);
    let rows = conditions.bind(query).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Recorded {
                sequence: number(row, "sequence")?,
                json: bytes(row, "json")?,
            })
        })
        .collect()
}
