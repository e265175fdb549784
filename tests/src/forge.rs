//! Grants that no honest server makes, signed with its real key: what a thief of the server can do.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nightlatch_core::grant::PAYLOAD_TYPE;
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::Timestamp;
use serde_json::{Value, json};

use crate::database::{Bind, Database};
use crate::lab::Lab;

/// The server's own signing key, and the machine that the grants are for.
pub struct Forge {
    key: SigningKey,
    machine: String,
}

impl Forge {
    pub fn of(lab: &Lab, machine: &str) -> Result<Self> {
        let path = lab.control().state().join("signing.key");
        let pem = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let known = lab.client().machines()?;
        let found = known.iter().find(|known| known["machine"] == machine);
        let id = found
            .and_then(|found| found["id"].as_str())
            .with_context(|| format!("no machine {machine}"))?;
        Ok(Self {
            key: SigningKey::from_pem(&pem)?,
            machine: id.to_owned(),
        })
    }

    pub fn machine(&self) -> &str {
        &self.machine
    }

    pub const fn key(&self) -> &SigningKey {
        &self.key
    }

    /// What a grant of the real server says: ssh from one address, for a minute from now on.
    pub fn payload(&self) -> Result<Value> {
        Ok(json!({
            "version": 1,
            "id": random_id()?,
            "machine": self.machine,
            "subject": "mallory",
            "sources": ["198.51.100.66"],
            "ports": [{ "protocol": "tcp", "first": 22, "last": 22 }],
            "not_before": moment(Duration::ZERO)?.to_string(),
            "not_after": moment(Duration::from_secs(60))?.to_string(),
            "at_end": "keep",
            "request": random_id()?,
            "issued_at": moment(Duration::ZERO)?.to_string(),
        }))
    }

    /// Signs it with the server's key.
    pub fn seal(&self, payload: &Value) -> Vec<u8> {
        Self::seal_with(&self.key, payload)
    }

    pub fn seal_with(key: &SigningKey, payload: &Value) -> Vec<u8> {
        key.seal(PAYLOAD_TYPE, payload.to_string().as_bytes())
    }

    /// Puts an envelope among the machine's grants, in the shape of a grant that is in the database already; the
    /// machine is sent it when it connects next.
    pub fn plant(&self, database: &mut Database, like: &str, id: &str, envelope: Vec<u8>) -> Result<()> {
        let machine = Bind::Text(self.machine.clone());
        database.execute(
            "UPDATE machines SET generation = generation + 1 WHERE id = $1",
            std::slice::from_ref(&machine),
        )?;
        let bytes = i64::try_from(envelope.len()).context("an envelope beyond 63 bits")?;
        let planted = database.execute(
            "INSERT INTO grants (id, machine, request, subject, sources, ports, envelope, not_before, not_after,
               leaves_at, added_generation)
             SELECT $1, machine, request, subject, sources, ports, $2, not_before, not_after, not_after,
               (SELECT generation FROM machines WHERE id = $3)
             FROM grants WHERE id = $4",
            &[Bind::Text(id.to_owned()), Bind::Bytes(envelope), machine, Bind::Text(like.to_owned())],
        )?;
        database.execute(
            "INSERT INTO held (machine, subject, grants, bytes, waiting)
             SELECT machine, subject, 1, $1, 0 FROM grants WHERE id = $2
             ON CONFLICT (machine, subject) DO UPDATE SET grants = held.grants + 1, bytes = held.bytes + excluded.bytes",
            &[Bind::Number(bytes), Bind::Text(id.to_owned())],
        )?;
        anyhow::ensure!(planted == 1, "there is no grant {like} to plant another like it");
        Ok(())
    }
}

/// A moment that lies so far ahead.
#[expect(
    clippy::disallowed_methods,
    reason = "the forger plays the server, whose clock is the wall clock"
)]
pub fn moment(ahead: Duration) -> Result<Timestamp> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("the clock stands before 1970")?;
    let micros = i64::try_from((now + ahead).as_micros()).context("a moment beyond 63 bits")?;
    Timestamp::from_micros(micros).context("a moment past the year 9999")
}

/// A moment that has passed.
pub fn past(ago: Duration) -> Result<Timestamp> {
    moment(Duration::ZERO)?
        .checked_sub(ago)
        .context("a moment before 1970")
}

pub fn random_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").context("reading a random id")?;
    Ok(id.trim().to_owned())
}
