//! Grants: what was signed, and what became of it.

use nightlatch_core::assignment::Generation;
use nightlatch_core::grant::IssuedGrant;
use nightlatch_core::id::{GrantId, MachineId, MachineName, RequestId, Subject};
use nightlatch_core::port::PortSpan;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::time::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use tracing::warn;

use super::connection::{Connection, sql};
use super::held::Amount;
use super::page::{Conditions, Page};
use super::row::{
    bytes, from_number, json, maybe_text, maybe_time, or_left_out, parsed, text, time, to_json,
};
use super::{StoreError, held, rows};

/// A grant and what is known of it.
#[derive(Clone, Debug)]
pub struct Grant {
    pub id: GrantId,
    pub machine: MachineId,
    pub request: RequestId,
    pub subject: Subject,
    pub sources: Vec<Prefix>,
    pub ports: Vec<PortSpan>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub ended: Option<Ended>,
    pub opened_at: Option<Timestamp>,
    pub closed: Option<(Timestamp, String)>,
    pub refused: Option<(Timestamp, String)>,
}

/// Ended before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub at: Timestamp,
    pub by: String,
    /// A stable code: `DONE`, `REVOKED`, `POLICY_DELETED`, `MACHINE_REPLACED`.
    pub reason: String,
}

/// How a grant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Signed; the host has not confirmed yet.
    Opening,
    Open,
    Refused,
    /// Ended early; the host has not confirmed yet.
    Closing,
    Ended,
}

impl Grant {
    pub fn state(&self, now: Timestamp) -> State {
        if self.refused.is_some() {
            State::Refused
        } else if self.closed.is_some() || self.not_after <= now {
            State::Ended
        } else if self.ended.is_some() {
            State::Closing
        } else if self.opened_at.is_some() {
            State::Open
        } else {
            State::Opening
        }
    }
}

/// Named so that they may be joined with other tables' columns.
pub(super) const COLUMNS: &str = "grants.id AS id, grants.machine AS machine, grants.request AS request,
    grants.subject AS subject, grants.sources AS sources, grants.ports AS ports,
    grants.not_before AS not_before, grants.not_after AS not_after, grants.ended_at AS ended_at,
    grants.ended_by AS ended_by, grants.end_reason AS end_reason, grants.opened_at AS opened_at,
    grants.closed_at AS closed_at, grants.close_reason AS close_reason, grants.refused_at AS refused_at,
    grants.refuse_reason AS refuse_reason";

pub(super) fn read(row: &AnyRow) -> Result<Grant, StoreError> {
    let reason = |column| maybe_text(row, column).map(Option::unwrap_or_default);
    let ended = match maybe_time(row, "ended_at")? {
        None => None,
        Some(at) => Some(Ended {
            at,
            by: reason("ended_by")?,
            reason: reason("end_reason")?,
        }),
    };
    Ok(Grant {
        id: parsed(row, "id")?,
        machine: parsed(row, "machine")?,
        request: parsed(row, "request")?,
        subject: parsed(row, "subject")?,
        sources: shown(row, "sources")?,
        ports: shown(row, "ports")?,
        not_before: time(row, "not_before")?,
        not_after: time(row, "not_after")?,
        ended,
        opened_at: maybe_time(row, "opened_at")?,
        closed: maybe_time(row, "closed_at")?.zip(Some(reason("close_reason")?)),
        refused: maybe_time(row, "refused_at")?.zip(Some(reason("refuse_reason")?)),
    })
}

/// What only people read of a grant: the host has it in the envelope. Its damage must keep nobody from ending it.
fn shown<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<Vec<T>, StoreError> {
    let read = or_left_out(json(row, column), |error| {
        let grant = text(row, "id").unwrap_or_default();
        warn!(
            grant,
            error, "something of a grant can't be read, so it is shown without"
        );
    });
    Ok(read?.unwrap_or_default())
}

pub async fn create(
    connection: &mut Connection,
    issued: &IssuedGrant,
    generation: Generation,
) -> Result<(), StoreError> {
    let IssuedGrant { grant, envelope } = issued;
    sql(
        "INSERT INTO grants (id, machine, request, subject, sources, ports, envelope, not_before, not_after,
           added_generation, leaves_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $9)",
    )
    .bind(grant.id.to_string())
    .bind(grant.machine.to_string())
    .bind(grant.request.to_string())
    .bind(grant.subject.as_str())
    .bind(to_json(&grant.sources))
    .bind(to_json(&grant.ports))
    .bind(envelope.as_bytes().to_vec())
    .bind(grant.not_before.micros())
    .bind(grant.not_after.micros())
    .bind(from_number(generation.0))
    .write(&mut *connection)
    .await?;
    let amount = Amount {
        grants: 1,
        bytes: u64::try_from(envelope.as_bytes().len()).unwrap_or(u64::MAX),
        waiting: 0,
    };
    held::add(connection, grant.machine, &grant.subject, amount).await
}

pub async fn find(connection: &mut Connection, id: GrantId) -> Result<Option<Grant>, StoreError> {
    let text = format!("SELECT {COLUMNS} FROM grants WHERE id = $1");
    let row = sql(text).bind(id.to_string()).row(connection).await?;
    row.as_ref().map(read).transpose()
}

/// A grant with what its list says of machine and request.
pub struct Listed {
    pub grant: Grant,
    pub machine_name: MachineName,
    pub justification: String,
    /// Only where a single grant is shown.
    pub envelope: Option<Vec<u8>>,
}

const LISTED: &str = "machines.name AS machine_name, requests.wish AS wish
    FROM grants JOIN machines ON machines.id = grants.machine JOIN requests ON requests.id = grants.request";

pub async fn show(connection: &mut Connection, id: GrantId) -> Result<Option<Listed>, StoreError> {
    let text = format!("SELECT {COLUMNS}, grants.envelope AS envelope, {LISTED} WHERE grants.id = $1");
    let row = sql(text).bind(id.to_string()).row(connection).await?;
    let whole = |row: &AnyRow| {
        Ok(Listed {
            envelope: Some(bytes(row, "envelope")?),
            ..listed(row)?
        })
    };
    row.as_ref().map(whole).transpose()
}

fn listed(row: &AnyRow) -> Result<Listed, StoreError> {
    let grant = read(row)?;
    let wish: Option<serde_json::Value> = or_left_out(json(row, "wish"), |error| {
        let (request, grant) = (grant.request, grant.id);
        warn!(%request, %grant, error, "a request can't be read, so its grant is shown without its justification");
    })?;
    let justification = wish
        .as_ref()
        .and_then(|wish| wish.get("justification"))
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    Ok(Listed {
        grant,
        machine_name: parsed(row, "machine_name")?,
        justification: justification.to_owned(),
        envelope: None,
    })
}

/// Which grants are asked for.
#[derive(Default)]
pub struct Filter {
    pub machine: Option<MachineId>,
    pub subject: Option<Subject>,
    /// Those that have not ended at this moment.
    pub live_at: Option<Timestamp>,
}

/// The grants before the grant `before`, newest first.
pub async fn list(
    connection: &mut Connection,
    filter: &Filter,
    before: Option<GrantId>,
    size: i64,
) -> Result<Page<Listed>, StoreError> {
    let Filter {
        machine,
        subject,
        live_at,
    } = filter;
    let mut conditions = Conditions::default();
    conditions.equal("grants.machine", machine.map(|id| id.to_string()));
    conditions.equal("grants.subject", subject.as_ref().map(ToString::to_string));
    // Live grants are few among many, so they are looked up by their end.
    let among = match live_at {
        None => "grants.not_after > $2",
        Some(_) => {
            "grants.id IN (SELECT live.id FROM grants AS live
               WHERE live.not_after > $2 AND live.closed_at IS NULL AND live.refused_at IS NULL)"
        }
    };
    let query = format!(
        "SELECT {COLUMNS}, {LISTED} WHERE grants.id < $1 AND {among}{} ORDER BY grants.id DESC LIMIT $3",
        conditions.sql(4)
    );
    // Greater than any id.
    let before = before.map_or_else(|| "~".to_owned(), |id| id.to_string());
    let query = sql(query)
        .bind(before)
        .bind(live_at.map_or(-1, Timestamp::micros))
        .bind(size.saturating_add(1));
    let rows = conditions.bind(query).rows(connection).await?;
    let weight = |entry: &Listed| {
        let Grant { sources, ports, .. } = &entry.grant;
        600 + entry.justification.len() + sources.len() * 45 + ports.len() * 20
    };
    Page::of_rows(&rows, size, "grants", listed, weight)
}

/// Takes a grant out of the assignment before its time.
pub async fn end(
    connection: &mut Connection,
    id: GrantId,
    ended: &Ended,
    generation: Generation,
) -> Result<(), StoreError> {
    let Ended { at, by, reason } = ended;
    held::take_grant(connection, id).await?;
    sql(
        "UPDATE grants SET removed_generation = COALESCE(removed_generation, $2), ended_at = $3, ended_by = $4,
           end_reason = $5
         WHERE id = $1 AND ended_at IS NULL",
    )
    .bind(id.to_string())
    .bind(from_number(generation.0))
    .bind(at.micros())
    .bind(by)
    .bind(reason)
    .write(connection)
    .await
}

/// The grants of a machine that are assigned and whose time has not run out.
pub async fn running(
    connection: &mut Connection,
    machine: MachineId,
    now: Timestamp,
) -> Result<Vec<Grant>, StoreError> {
    let text = format!(
        "SELECT {COLUMNS} FROM grants WHERE machine = $1 AND removed_generation IS NULL AND not_after > $2
         ORDER BY id"
    );
    let query = sql(text).bind(machine.to_string()).bind(now.micros());
    query.rows(connection).await?.iter().map(read).collect()
}

/// What the host's receipt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Opened,
    Closed,
    Refused,
}

/// What a host has said of one of its grants.
#[derive(Clone, Debug)]
pub struct Note {
    pub id: GrantId,
    pub at: Timestamp,
    /// Empty where it was opened.
    pub reason: String,
}

/// Notes what a host has said of some grants, each once. Receipts come in order, so the last word counts; the
/// time of the first opening stays.
pub async fn note(connection: &mut Connection, said: Said, notes: &[Note]) -> Result<(), StoreError> {
    let set = match said {
        Said::Opened => {
            "opened_at = COALESCE(opened_at, said.at), closed_at = NULL, close_reason = NULL,
             refused_at = NULL, refuse_reason = NULL, leaves_at = not_after"
        }
        Said::Closed => "closed_at = said.at, close_reason = said.reason, leaves_at = 0",
        Said::Refused => "refused_at = said.at, refuse_reason = said.reason, leaves_at = 0",
    };
    for some in rows::chunks(notes) {
        let text = format!(
            "WITH said (grant_id, at, reason) AS (VALUES {})
             UPDATE grants SET {set} FROM said WHERE grants.id = said.grant_id",
            rows::values(some.len(), 3)
        );
        let mut query = sql(text);
        for Note { id, at, reason } in some {
            query = query.bind(id.to_string()).bind(at.micros()).bind(reason.as_str());
        }
        query.write(&mut *connection).await?;
    }
    Ok(())
}
