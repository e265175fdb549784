//! The audit log, as the JSON bytes that were written, numbered without gaps.

use nightlatch_core::audit::Event;
use nightlatch_core::id::{GrantId, MachineId, Subject};
use nightlatch_core::time::Timestamp;

use super::connection::{Connection, sql};
use super::page::{Conditions, Page, fitting};
use super::row::{bytes, from_number, number};
use super::{StoreError, rows};

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

/// An event on its way into the store.
pub(super) struct Written {
    at: Timestamp,
    kind: String,
    machine: Option<MachineId>,
    grant: Option<GrantId>,
    subject: Option<Subject>,
    json: Vec<u8>,
}

impl Written {
    /// `subject` is the person concerned.
    pub(super) fn new(event: &Event, subject: Option<&Subject>) -> Self {
        // Strings and numbers only: writing them can't fail.
        let kind = serde_json::to_string(&event.kind).unwrap_or_default();
        Self {
            at: event.at,
            kind: kind.trim_matches('"').to_owned(),
            machine: event.machine,
            grant: event.grant,
            subject: subject.cloned(),
            json: serde_json::to_vec(event).unwrap_or_default(),
        }
    }
}

/// Writes events in their order, numbered on from the last.
pub(super) async fn record_all(connection: &mut Connection, events: &[Written]) -> Result<(), StoreError> {
    for some in rows::chunks(events) {
        let text = format!(
            "WITH last AS (SELECT COALESCE(MAX(sequence), 0) AS number FROM events),
               rows (place, at, kind, machine, grant_id, subject, json) AS (VALUES {})
             INSERT INTO events (sequence, at, kind, machine, grant_id, subject, json)
             SELECT last.number + rows.place, at, kind, machine, grant_id, subject, json FROM last, rows",
            rows::values(some.len(), 7)
        );
        let mut query = sql(text);
        for (place, event) in (1_i64..).zip(some) {
            query = query
                .bind(place)
                .bind(event.at.micros())
                .bind(event.kind.as_str())
                .bind(event.machine.map(|id| id.to_string()))
                .bind(event.grant.map(|id| id.to_string()))
                .bind(event.subject.as_ref().map(Subject::as_str))
                .bind(event.json.as_slice());
        }
        query.write(&mut *connection).await?;
    }
    Ok(())
}

/// The page after the event `after`, oldest first.
pub async fn list(
    connection: &mut Connection,
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
    connection: &mut Connection,
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
    connection: &mut Connection,
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
    let text = format!(
        "SELECT sequence, json FROM events WHERE sequence > $1{} ORDER BY sequence {order} LIMIT $2",
        conditions.sql(3)
    );
    let query = sql(text).bind(after).bind(limit);
    let rows = conditions.bind(query).rows(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Recorded {
                sequence: number(row, "sequence")?,
                json: bytes(row, "json")?,
            })
        })
        .collect()
}
