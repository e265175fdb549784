//! Access requests, and what became of them on each machine.

use nightlatch_core::id::{GrantId, MachineId, MachineName, RequestId, Subject};
use nightlatch_core::port::PortPattern;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::request::{AccessRequest, Justification, Span};
use nightlatch_core::signing;
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::access::Repeatable;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use tracing::warn;
use uuid::Uuid;

use super::StoreError;
use super::connection::{Connection, sql};
use super::grants::{self, Grant};
use super::held::{self, Amount};
use super::page::{Conditions, Page};
use super::row::{
    from_number, json, maybe_parsed, maybe_text, maybe_time, or_left_out, parsed, text, time, to_json,
    unreadable,
};

/// A request as it was accepted.
#[derive(Clone)]
pub struct Request {
    pub id: RequestId,
    pub subject: Subject,
    pub created_at: Timestamp,
    pub ports: Vec<PortPattern>,
    pub sources: Vec<Prefix>,
    pub span: Span,
    pub justification: Justification,
}

impl Request {
    /// What is asked for on one of its machines.
    pub fn on(&self, machine: MachineId) -> AccessRequest {
        let Self {
            id,
            subject,
            created_at: _,
            ports,
            sources,
            span,
            justification,
        } = self.clone();
        AccessRequest {
            id,
            machine,
            subject,
            ports,
            sources,
            span,
            justification,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredWish {
    ports: Vec<String>,
    sources: Vec<Prefix>,
    span: Span,
    justification: Justification,
}

/// What became of a request on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Approved; the grant is signed when the machine connects.
    Waiting,
    Signed(GrantId),
    /// Before it was signed.
    Withdrawn {
        message: String,
    },
    /// When it was decided again.
    Denied {
        reason: String,
        message: String,
    },
}

impl Fate {
    const fn state(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Signed(_) => "signed",
            Self::Withdrawn { .. } => "withdrawn",
            Self::Denied { .. } => "denied",
        }
    }
}

/// A machine's line of a request, with what is known of the machine and the grant.
pub struct Outcome {
    pub machine: MachineId,
    pub machine_name: MachineName,
    pub address: Option<String>,
    pub last_seen_at: Option<Timestamp>,
    pub fate: Fate,
    pub grant: Option<Grant>,
}

pub async fn create(
    connection: &mut Connection,
    request: &Request,
    repeatable: Option<&Repeatable>,
) -> Result<(), StoreError> {
    let Request {
        id,
        subject,
        created_at,
        ports,
        sources,
        span,
        justification,
    } = request.clone();
    let ports = ports.iter().map(ToString::to_string).collect();
    let wish = StoredWish {
        ports,
        sources,
        span,
        justification,
    };
    sql(
        "INSERT INTO requests (id, subject, created_at, wish, request_key, body_sha256)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id.to_string())
    .bind(subject.as_str())
    .bind(created_at.micros())
    .bind(to_json(&wish))
    .bind(repeatable.map(|repeatable| repeatable.id.to_string()))
    .bind(repeatable.map(|repeatable| signing::hex(&repeatable.body)))
    .write(connection)
    .await?;
    Ok(())
}

/// The request that a person's call with this id has made, and the SHA-256 of what was asked for.
pub async fn find_repeated(
    connection: &mut Connection,
    subject: &Subject,
    key: Uuid,
) -> Result<Option<(Request, String)>, StoreError> {
    let row = sql(
        "SELECT id, subject, created_at, wish, body_sha256 FROM requests WHERE subject = $1 AND request_key = $2",
    )
    .bind(subject.as_str())
    .bind(key.to_string())
    .row(connection)
    .await?;
    let found = |row: &AnyRow| Ok((request(row)?, text(row, "body_sha256")?));
    row.as_ref().map(found).transpose()
}

const ONE_WAITING: Amount = Amount {
    grants: 0,
    bytes: 0,
    waiting: 1,
};

pub async fn add_outcome(
    connection: &mut Connection,
    request: &Request,
    position: u64,
    machine: MachineId,
    fate: &Fate,
) -> Result<(), StoreError> {
    let grant = if let Fate::Signed(grant) = fate {
        Some(grant.to_string())
    } else {
        None
    };
    sql("INSERT INTO outcomes (request, position, machine, state, grant_id) VALUES ($1, $2, $3, $4, $5)")
        .bind(request.id.to_string())
        .bind(from_number(position))
        .bind(machine.to_string())
        .bind(fate.state())
        .bind(grant)
        .write(&mut *connection)
        .await?;
    if *fate == Fate::Waiting {
        held::add(connection, machine, &request.subject, ONE_WAITING).await?;
    }
    Ok(())
}

/// Settles what was waiting on a machine.
pub async fn settle(
    connection: &mut Connection,
    request: &Request,
    machine: MachineId,
    fate: &Fate,
) -> Result<(), StoreError> {
    let (grant, reason, message) = match fate {
        Fate::Waiting => (None, None, None),
        Fate::Withdrawn { message } => (None, None, Some(message)),
        Fate::Signed(grant) => (Some(grant.to_string()), None, None),
        Fate::Denied { reason, message } => (None, Some(reason), Some(message)),
    };
    held::take_waiting(connection, request.id, machine, &request.subject).await?;
    sql(
        "UPDATE outcomes SET state = $3, grant_id = $4, reason = $5, message = $6
         WHERE request = $1 AND machine = $2 AND state = 'waiting'",
    )
    .bind(request.id.to_string())
    .bind(machine.to_string())
    .bind(fate.state())
    .bind(grant)
    .bind(reason)
    .bind(message)
    .write(connection)
    .await
}

pub async fn find(connection: &mut Connection, id: RequestId) -> Result<Option<Request>, StoreError> {
    let row = sql("SELECT id, subject, created_at, wish FROM requests WHERE id = $1")
        .bind(id.to_string())
        .row(connection)
        .await?;
    row.as_ref().map(request).transpose()
}

/// The requests that wait for a machine, at most `most` that can be read, oldest first.
pub async fn waiting_for(
    connection: &mut Connection,
    machine: MachineId,
    most: usize,
) -> Result<Vec<Request>, StoreError> {
    let (mut found, mut last) = (Vec::new(), String::new());
    loop {
        let missing = most.saturating_sub(found.len());
        let rows = sql("SELECT id, subject, created_at, wish FROM requests
             WHERE id > $3 AND id IN (SELECT request FROM outcomes WHERE machine = $1 AND state = 'waiting')
             ORDER BY id LIMIT $2")
        .bind(machine.to_string())
        .bind(i64::try_from(missing).unwrap_or(i64::MAX))
        .bind(last.as_str())
        .rows(connection)
        .await?;
        found.extend(readable(&rows)?);
        match rows.last() {
            Some(row) if found.len() < most => last = text(row, "id")?,
            _ => return Ok(found),
        }
    }
}

/// What can't be read now can't be read later, and must not keep the rest.
fn readable(rows: &[AnyRow]) -> Result<Vec<Request>, StoreError> {
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let id = text(row, "id")?;
        found.extend(or_left_out(request(row), |error| {
            warn!(
                request = id,
                error, "a request can't be read, so it goes on waiting for its machine"
            );
        })?);
    }
    Ok(found)
}

/// Those that wait for any machine, oldest first, after one of them; each with its id, and as it could be read.
pub async fn waiting(
    connection: &mut Connection,
    after: &str,
    most: usize,
) -> Result<Vec<(String, Result<Request, StoreError>)>, StoreError> {
    let rows = sql(
        "SELECT id, subject, created_at, wish FROM requests
         WHERE id > $1 AND id IN (SELECT request FROM outcomes WHERE state = 'waiting') ORDER BY id LIMIT $2",
    )
    .bind(after)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .rows(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((text(row, "id")?, request(row))))
        .collect()
}

/// Those that were asked for up to a moment.
pub async fn waiting_since(
    connection: &mut Connection,
    machine: MachineId,
    until: Timestamp,
) -> Result<Vec<Request>, StoreError> {
    let rows = sql("SELECT requests.id, subject, created_at, wish
         FROM outcomes JOIN requests ON requests.id = outcomes.request
         WHERE outcomes.machine = $1 AND outcomes.state = 'waiting' AND created_at <= $2
         ORDER BY requests.id")
    .bind(machine.to_string())
    .bind(until.micros())
    .rows(connection)
    .await?;
    readable(&rows)
}

/// Which requests are listed.
pub struct Filter {
    pub machine: Option<MachineId>,
    pub subject: Option<Subject>,
    /// Only those that still wait for a machine, and were asked for after this moment.
    pub waiting_after: Option<Timestamp>,
}

/// Newest first, those with a smaller id than `before`.
pub async fn list(
    connection: &mut Connection,
    filter: &Filter,
    before: Option<RequestId>,
    size: i64,
) -> Result<Page<Request>, StoreError> {
    let Filter {
        machine,
        subject,
        waiting_after,
    } = filter;
    let mut conditions = Conditions::default();
    conditions.equal("subject", subject.as_ref().map(ToString::to_string));
    conditions.equal("outcomes.machine", machine.map(|id| id.to_string()));
    conditions.equal("outcomes.state", waiting_after.map(|_| "waiting".to_owned()));
    let query = format!(
        "SELECT DISTINCT requests.id, subject, created_at, wish
         FROM requests JOIN outcomes ON outcomes.request = requests.id
         WHERE requests.id < $1 AND requests.created_at > $3{} ORDER BY requests.id DESC LIMIT $2",
        conditions.sql(4)
    );
    // Greater than any id.
    let before = before.map_or_else(|| "~".to_owned(), |id| id.to_string());
    let query = sql(query)
        .bind(before)
        .bind(size.saturating_add(1))
        .bind(waiting_after.map_or(i64::MIN, Timestamp::micros));
    let rows = conditions.bind(query).rows(connection).await?;
    // Each may have 64 machines with a sentence.
    Page::of_rows(&rows, size, "requests", request, |_| 24 * 1024)
}

fn request(row: &AnyRow) -> Result<Request, StoreError> {
    let StoredWish {
        ports,
        sources,
        span,
        justification,
    } = json(row, "wish")?;
    let ports = ports.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    Ok(Request {
        id: parsed(row, "id")?,
        subject: parsed(row, "subject")?,
        created_at: time(row, "created_at")?,
        ports: ports.map_err(|why| unreadable("wish", why))?,
        sources,
        span,
        justification,
    })
}

/// What became of a request, in the order its machines were named.
pub async fn outcomes(connection: &mut Connection, request: RequestId) -> Result<Vec<Outcome>, StoreError> {
    let rows = outcome_rows(connection, request).await?;
    rows.iter().map(outcome).collect()
}

/// For lists: without what can't be read.
pub async fn readable_outcomes(
    connection: &mut Connection,
    request: RequestId,
) -> Result<Vec<Outcome>, StoreError> {
    let rows = outcome_rows(connection, request).await?;
    let read = |row| {
        or_left_out(outcome(row), |error| {
            let machine = text(row, "outcome_machine").unwrap_or_default();
            warn!(
                %request, machine, error,
                "what became of a request on a machine can't be read, so no list has it"
            );
        })
        .transpose()
    };
    rows.iter().filter_map(read).collect()
}

async fn outcome_rows(connection: &mut Connection, request: RequestId) -> Result<Vec<AnyRow>, StoreError> {
    let text = format!(
        "SELECT outcomes.machine AS outcome_machine, outcomes.state AS outcome_state,
           outcomes.grant_id AS outcome_grant, outcomes.reason AS outcome_reason,
           outcomes.message AS outcome_message, machines.name AS machine_name,
           machines.address AS machine_address, machines.last_seen_at AS machine_seen_at, {}
         FROM outcomes JOIN machines ON machines.id = outcomes.machine
           LEFT JOIN grants ON grants.id = outcomes.grant_id
         WHERE outcomes.request = $1 ORDER BY outcomes.position",
        grants::COLUMNS
    );
    sql(text).bind(request.to_string()).rows(connection).await
}

fn outcome(row: &AnyRow) -> Result<Outcome, StoreError> {
    let grant: Option<GrantId> = maybe_parsed(row, "outcome_grant")?;
    let fate = match (text(row, "outcome_state")?.as_str(), grant) {
        ("waiting", _) => Fate::Waiting,
        ("withdrawn", _) => Fate::Withdrawn {
            message: maybe_text(row, "outcome_message")?.unwrap_or_default(),
        },
        ("signed", Some(grant)) => Fate::Signed(grant),
        ("denied", _) => Fate::Denied {
            reason: maybe_text(row, "outcome_reason")?.unwrap_or_default(),
            message: maybe_text(row, "outcome_message")?.unwrap_or_default(),
        },
        (other, _) => return Err(unreadable("state", other)),
    };
    Ok(Outcome {
        machine: parsed(row, "outcome_machine")?,
        machine_name: parsed(row, "machine_name")?,
        address: maybe_text(row, "machine_address")?,
        last_seen_at: maybe_time(row, "machine_seen_at")?,
        fate,
        grant: grant.map(|_| grants::read(row)).transpose()?,
    })
}
