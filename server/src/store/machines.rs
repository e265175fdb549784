//! Machines: identity, what they said of themselves, their policy and the generation of their assignment.

use nightlatch_core::assignment::Generation;
use nightlatch_core::ceiling::{Ceiling, HostCeiling};
use nightlatch_core::id::{MachineId, MachineName};
use nightlatch_core::policy::Policy;
use nightlatch_core::port::PortSpan;
use nightlatch_core::signing::PublicKey;
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::agent::HostState;
use nightlatch_proto::convert::resource::MachineRef;
use sqlx::any::AnyRow;

use super::StoreError;
use super::connection::{Connection, sql};
use super::json::{StoredCeiling, StoredPolicy};
use super::page::Page;
use super::row::{
    bytes, from_number, json, maybe_bytes, maybe_json, maybe_text, maybe_time, number, parsed, text, time,
    to_json, unreadable,
};

pub struct Machine {
    pub id: MachineId,
    pub name: MachineName,
    pub fingerprint: String,
    pub receipt_key: PublicKey,
    pub created_at: Timestamp,
    /// Another machine has taken over the name.
    pub is_retired: bool,
    pub last_seen_at: Option<Timestamp>,
    pub address: Option<String>,
    pub host: Option<Host>,
    pub generation: Generation,
    pub policy: Option<Policy>,
    pub policy_rank: (u64, u64),
    pub policy_updated_at: Option<Timestamp>,
    pub last_receipt: LastReceipt,
}

/// What a machine said of itself when it last connected.
pub struct Host {
    pub agent_version: String,
    pub kernel_version: String,
    pub guarded: Vec<PortSpan>,
    pub ceiling: Option<Ceiling>,
}

/// Where a machine's receipts have got to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastReceipt {
    pub sequence: u64,
    /// Hex SHA-256 of its envelope, empty before the first.
    pub sha256: String,
}

impl Machine {
    pub fn ceiling(&self) -> HostCeiling<'_> {
        match &self.host {
            None => HostCeiling::Unheard,
            Some(Host { ceiling: None, .. }) => HostCeiling::Missing,
            Some(Host {
                ceiling: Some(ceiling),
                ..
            }) => HostCeiling::Known(ceiling),
        }
    }

    /// The generation of the next change: a restored store is never behind.
    pub fn next_generation(&self, now: Timestamp) -> Generation {
        let micros = u64::try_from(now.micros()).unwrap_or_default();
        Generation(self.generation.0.saturating_add(1).max(micros))
    }
}

const COLUMNS: &str = "id, name, fingerprint, receipt_key, created_at, retired_at, last_seen_at, address,
    agent_version, kernel_version, host_guarded, ceiling, generation, policy, policy_epoch, policy_number,
    policy_updated_at, receipt_sequence, receipt_sha256";

fn machine(row: &AnyRow) -> Result<Machine, StoreError> {
    let policy = maybe_json::<StoredPolicy>(row, "policy")?
        .map(Policy::try_from)
        .transpose();
    let host = match maybe_text(row, "host_guarded")? {
        None => None,
        Some(_) => {
            let ceiling = maybe_json::<Option<StoredCeiling>>(row, "ceiling")?.flatten();
            Some(Host {
                agent_version: text(row, "agent_version")?,
                kernel_version: text(row, "kernel_version")?,
                guarded: json(row, "host_guarded")?,
                ceiling: ceiling
                    .map(Ceiling::try_from)
                    .transpose()
                    .map_err(|why| unreadable("ceiling", why))?,
            })
        }
    };
    let receipt_key = PublicKey::from_spki(&bytes(row, "receipt_key")?);
    Ok(Machine {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        fingerprint: text(row, "fingerprint")?,
        receipt_key: receipt_key.map_err(|why| unreadable("receipt_key", why))?,
        created_at: time(row, "created_at")?,
        is_retired: maybe_time(row, "retired_at")?.is_some(),
        last_seen_at: maybe_time(row, "last_seen_at")?,
        address: maybe_text(row, "address")?,
        host,
        generation: Generation(number(row, "generation")?),
        policy: policy.map_err(|why| unreadable("policy", why))?,
        policy_rank: (number(row, "policy_epoch")?, number(row, "policy_number")?),
        policy_updated_at: maybe_time(row, "policy_updated_at")?,
        last_receipt: LastReceipt {
            sequence: number(row, "receipt_sequence")?,
            sha256: text(row, "receipt_sha256")?,
        },
    })
}

/// A machine by id, also a retired one, or by the name it has now.
pub async fn find(connection: &mut Connection, which: &MachineRef) -> Result<Option<Machine>, StoreError> {
    let (condition, value) = match which {
        MachineRef::Id(id) => ("id = $1", id.to_string()),
        MachineRef::Name(name) => ("name = $1 AND retired_at IS NULL", name.to_string()),
    };
    let text = format!("SELECT {COLUMNS} FROM machines WHERE {condition}");
    let row = sql(text).bind(value).row(connection).await?;
    row.as_ref().map(machine).transpose()
}

/// The machine of an id that came from the store itself.
pub async fn by_id(connection: &mut Connection, id: MachineId) -> Result<Machine, StoreError> {
    find(connection, &MachineRef::Id(id))
        .await?
        .ok_or_else(|| unreadable("machine", format_args!("{id} missing")))
}

/// A machine and how many of its grants are open.
pub struct Listed {
    pub machine: Machine,
    pub open_grants: u64,
}

/// The machines after the name `after`, ordered by name.
pub async fn list(
    connection: &mut Connection,
    after: Option<MachineName>,
    size: i64,
    now: Timestamp,
) -> Result<Page<Listed>, StoreError> {
    let text = format!(
        "SELECT {COLUMNS}, {OPEN_GRANTS} FROM machines
         WHERE retired_at IS NULL AND name > $2 ORDER BY name LIMIT $3"
    );
    let rows = sql(text)
        .bind(now.micros())
        .bind(after.as_ref().map(MachineName::as_str).unwrap_or_default())
        .bind(size.saturating_add(1))
        .rows(connection)
        .await?;
    let entries = rows.iter().map(listed).collect::<Result<_, _>>()?;
    let weight = |entry: &Listed| {
        let host = entry.machine.host.as_ref();
        let ceiling = host
            .and_then(|host| host.ceiling.as_ref())
            .map_or(0, |ceiling| ceiling.ports.len());
        600 + 20 * (ceiling + host.map_or(0, |host| host.guarded.len()))
    };
    Ok(Page::cut(
        entries,
        size,
        "machines",
        |entry| entry.machine.name.clone(),
        weight,
    ))
}

/// One machine, as in the list.
pub async fn show(
    connection: &mut Connection,
    id: MachineId,
    now: Timestamp,
) -> Result<Option<Listed>, StoreError> {
    let text = format!("SELECT {COLUMNS}, {OPEN_GRANTS} FROM machines WHERE id = $2");
    let query = sql(text).bind(now.micros()).bind(id.to_string());
    query.row(connection).await?.as_ref().map(listed).transpose()
}

const OPEN_GRANTS: &str = "(SELECT COUNT(*) FROM grants WHERE grants.machine = machines.id
    AND not_after > $1 AND opened_at IS NOT NULL AND closed_at IS NULL) AS open_grants";

fn listed(row: &AnyRow) -> Result<Listed, StoreError> {
    Ok(Listed {
        machine: machine(row)?,
        open_grants: number(row, "open_grants")?,
    })
}

/// A machine as enrolment makes it.
pub struct NewMachine {
    pub id: MachineId,
    pub name: MachineName,
    pub fingerprint: String,
    pub receipt_key: PublicKey,
}

pub async fn create(
    connection: &mut Connection,
    machine: &NewMachine,
    now: Timestamp,
) -> Result<(), StoreError> {
    let NewMachine {
        id,
        name,
        fingerprint,
        receipt_key,
    } = machine;
    sql(
        "INSERT INTO machines (id, name, fingerprint, receipt_key, created_at, generation, policy_epoch,
           policy_number, receipt_sequence, receipt_sha256)
         VALUES ($1, $2, $3, $4, $5, 0, 0, 0, 0, '')",
    )
    .bind(id.to_string())
    .bind(name.as_str())
    .bind(fingerprint)
    .bind(receipt_key.to_spki())
    .bind(now.micros())
    .write(connection)
    .await?;
    Ok(())
}

/// From now on another certificate counts.
pub async fn set_fingerprint(
    connection: &mut Connection,
    id: MachineId,
    fingerprint: &str,
) -> Result<(), StoreError> {
    sql("UPDATE machines SET fingerprint = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(fingerprint)
        .write(connection)
        .await?;
    Ok(())
}

/// Takes the name and the certificate away.
pub async fn retire(connection: &mut Connection, id: MachineId, now: Timestamp) -> Result<(), StoreError> {
    sql("UPDATE machines SET retired_at = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(now.micros())
        .write(connection)
        .await?;
    Ok(())
}

pub async fn set_generation(
    connection: &mut Connection,
    id: MachineId,
    generation: Generation,
) -> Result<(), StoreError> {
    sql("UPDATE machines SET generation = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(from_number(generation.0))
        .write(connection)
        .await?;
    Ok(())
}

/// What a Hello says.
pub async fn heard(
    connection: &mut Connection,
    id: MachineId,
    address: &str,
    state: &HostState,
    now: Timestamp,
) -> Result<(), StoreError> {
    sql(
        "UPDATE machines SET last_seen_at = $2, address = $3, agent_version = $4, kernel_version = $5,
           host_guarded = $6, ceiling = $7
         WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(now.micros())
    .bind(address)
    .bind(&state.agent_version)
    .bind(&state.kernel_version)
    .bind(to_json(&state.host_guarded))
    .bind(to_json(&state.ceiling.as_ref().map(StoredCeiling::from)))
    .write(connection)
    .await?;
    Ok(())
}

pub async fn seen(connection: &mut Connection, id: MachineId, now: Timestamp) -> Result<(), StoreError> {
    sql("UPDATE machines SET last_seen_at = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(now.micros())
        .write(connection)
        .await?;
    Ok(())
}

/// A policy as it comes into force, signed.
pub struct SignedPolicy<'p> {
    pub policy: Option<&'p Policy>,
    pub rank: (u64, u64),
    pub envelope: Vec<u8>,
    pub generation: Generation,
}

pub async fn set_policy(
    connection: &mut Connection,
    id: MachineId,
    signed: SignedPolicy<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let SignedPolicy {
        policy,
        rank: (epoch, number),
        envelope,
        generation,
    } = signed;
    sql(
        "UPDATE machines SET policy = $2, policy_epoch = $3, policy_number = $4, policy_envelope = $5,
           generation = $6, policy_updated_at = $7
         WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(policy.map(|policy| to_json(&StoredPolicy::from(policy))))
    .bind(from_number(epoch))
    .bind(from_number(number))
    .bind(envelope)
    .bind(from_number(generation.0))
    .bind(now.micros())
    .write(connection)
    .await?;
    Ok(())
}

pub async fn policy_envelope(
    connection: &mut Connection,
    id: MachineId,
) -> Result<Option<Vec<u8>>, StoreError> {
    let row = sql("SELECT policy_envelope FROM machines WHERE id = $1")
        .bind(id.to_string())
        .one(connection)
        .await?;
    maybe_bytes(&row, "policy_envelope")
}

pub async fn set_last_receipt(
    connection: &mut Connection,
    id: MachineId,
    last: &LastReceipt,
    now: Timestamp,
) -> Result<(), StoreError> {
    sql("UPDATE machines SET receipt_sequence = $2, receipt_sha256 = $3, last_seen_at = $4 WHERE id = $1")
        .bind(id.to_string())
        .bind(from_number(last.sequence))
        .bind(&last.sha256)
        .bind(now.micros())
        .write(connection)
        .await?;
    Ok(())
}
