//! Receipts: checked, stored with what they mean for their grants, then acknowledged.

use std::collections::BTreeSet;

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::id::{GrantId, MachineId, MachineName, RequestId};
use nightlatch_core::receipt::{Done, Receipt};
use nightlatch_core::signing::{self, EnvelopeRejected, PublicKey};
use nightlatch_core::time::Timestamp;

use crate::agents::Agents;
use crate::audit;
use crate::store::grants::{self, Note, Said};
use crate::store::machines::{self, LastReceipt};
use crate::store::receipts::{Known, Owner, Stored};
use crate::store::{Change, StoreError, receipts};

/// Of what was no receipt, so many of one connection are written down whole.
pub const KEPT: usize = 3;

struct Checked {
    receipt: Receipt,
    stored: Stored,
}

/// Why something that a machine sent is no receipt of its.
enum Bad {
    Envelope(EnvelopeRejected),
    OtherMachine(MachineId),
}

impl Agents {
    /// Stores the receipts that arrived together, in one change. Returns the number up to which the agent
    /// may forget them. `bad` counts what was none, over the whole connection; the first few are kept.
    ///
    /// # Errors
    /// A store that doesn't answer. Nothing of them is stored then.
    pub async fn take_receipts(
        &self,
        id: MachineId,
        key: &PublicKey,
        envelopes: Vec<Vec<u8>>,
        bad: &mut usize,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        let already = *bad;
        let mut found = already;
        let checked = check_all(id, key, envelopes).await?;
        let mut change = self.issuer.store.change().await?;
        let mut good = Vec::with_capacity(checked.len());
        let mut refused = Vec::new();
        for receipt in checked {
            match receipt {
                Ok(checked) => good.push(checked),
                Err(bad) => refused.push(bad),
            }
        }
        let about: Vec<_> = good
            .iter()
            .map(|Checked { receipt, .. }| (receipt.sequence, receipt.grant))
            .collect();
        let known = receipts::known(change.connection(), id, &about).await?;
        let sender = Sender {
            id,
            name: known.name.clone(),
        };
        for (why, envelope) in refused {
            found = found.saturating_add(1);
            if found <= KEPT {
                sender.refuse(&mut change, &why, &envelope, now);
            }
        }
        let acknowledged = about.iter().map(|(sequence, _)| *sequence).max();
        let concerned = take(&mut change, &sender, good, known, now).await?;
        let more = found.saturating_sub(already.max(KEPT));
        if more > 0 {
            let message = format!("sent {more} more that were no receipts of its");
            let mut event = sender.event(EventKind::MachineReported, message, now);
            event.reason = Some("RECEIPTS_REFUSED".to_owned());
            change.record(&event, None);
        }
        change.commit().await?;
        *bad = found;
        self.issuer.fleet.tell_of(&concerned);
        Ok(acknowledged)
    }
}

/// The machine that sends.
struct Sender {
    id: MachineId,
    name: MachineName,
}

/// What a processor checks at a time, so that many receipts are checked by all of them.
const AT_A_TIME: usize = 128;

async fn check_all(
    id: MachineId,
    key: &PublicKey,
    envelopes: Vec<Vec<u8>>,
) -> Result<Vec<Result<Checked, (Bad, Vec<u8>)>>, StoreError> {
    let check_some = move |some: Vec<Vec<u8>>, key: &PublicKey| -> Vec<_> {
        some.into_iter()
            .map(|envelope| check(id, key, envelope))
            .collect()
    };
    if envelopes.len() <= AT_A_TIME / 8 {
        return Ok(check_some(envelopes, key));
    }
    let mut left = envelopes.into_iter();
    let mut tasks = Vec::new();
    loop {
        let some: Vec<_> = left.by_ref().take(AT_A_TIME).collect();
        if some.is_empty() {
            break;
        }
        let key = key.clone();
        tasks.push(tokio::task::spawn_blocking(move || check_some(some, &key)));
    }
    let mut checked = Vec::new();
    for task in tasks {
        let some = task.await;
        checked.extend(some.map_err(|error| StoreError::NotWritten(error.to_string()))?);
    }
    Ok(checked)
}

fn check(id: MachineId, key: &PublicKey, envelope: Vec<u8>) -> Result<Checked, (Bad, Vec<u8>)> {
    match Receipt::verify(&envelope, key) {
        Ok(receipt) if receipt.machine == id => Ok(Checked {
            stored: Stored {
                sequence: receipt.sequence,
                sha256: signing::hex(&signing::sha256(&envelope)),
                envelope,
            },
            receipt,
        }),
        Ok(receipt) => Err((Bad::OtherMachine(receipt.machine), envelope)),
        Err(rejected) => Err((Bad::Envelope(rejected), envelope)),
    }
}

/// Stores receipts and what they mean for their grants. Gives the requests that they concern.
async fn take(
    change: &mut Change,
    sender: &Sender,
    good: Vec<Checked>,
    known: Known,
    now: Timestamp,
) -> Result<BTreeSet<RequestId>, StoreError> {
    let Known {
        name: _,
        last: former,
        owners,
        mut stored,
    } = known;
    let mut last = former.clone();
    let mut concerned = BTreeSet::new();
    let mut said = Sayings::default();
    let mut new = Vec::with_capacity(good.len());
    for Checked { receipt, stored: one } in good {
        let (sequence, sha256) = (one.sequence, one.sha256.clone());
        // Those that were here already, and what comes twice, change nothing.
        if !stored.insert((sequence, sha256.clone())) {
            continue;
        }
        new.push(one);
        if let Some(event) = sender.break_in_chain(&receipt, &last, now) {
            change.record(&event, None);
        }
        last = LastReceipt { sequence, sha256 };
        let owner = owners.get(&receipt.grant);
        concerned.extend(owner.map(|owner| owner.request));
        let (event, what) = sender.meaning(&receipt, owner, now);
        change.record(&event, owner.map(|owner| &owner.subject));
        if owner.is_some() {
            let note = Note {
                id: receipt.grant,
                at: receipt.at,
                reason: receipt.reason,
            };
            said.add(change, what, note).await?;
        }
    }
    said.write(change).await?;
    receipts::put(change.connection(), sender.id, &new, now).await?;
    if last != former {
        machines::set_last_receipt(change.connection(), sender.id, &last, now).await?;
    }
    Ok(concerned)
}

/// What hosts have said, written down together as long as it is alike.
#[derive(Default)]
struct Sayings {
    said: Option<Said>,
    notes: Vec<Note>,
    of: BTreeSet<GrantId>,
}

impl Sayings {
    async fn add(&mut self, change: &mut Change, said: Said, note: Note) -> Result<(), StoreError> {
        if self.said != Some(said) || self.of.contains(&note.id) {
            self.write(change).await?;
        }
        self.said = Some(said);
        self.of.insert(note.id);
        self.notes.push(note);
        Ok(())
    }

    async fn write(&mut self, change: &mut Change) -> Result<(), StoreError> {
        let Self { said, notes, .. } = std::mem::take(self);
        match said {
            Some(said) => grants::note(change.connection(), said, &notes).await,
            None => Ok(()),
        }
    }
}

impl Sender {
    /// Receipts are numbered without gaps, each naming the one before. Where that doesn't hold, one of the two
    /// sides was restored from an old copy, or something was kept back.
    fn break_in_chain(&self, receipt: &Receipt, last: &LastReceipt, now: Timestamp) -> Option<Event> {
        let Receipt {
            sequence, previous, ..
        } = receipt;
        let (reason, message) = if *sequence <= last.sequence {
            (
                "RECEIPTS_RESTARTED",
                format!("receipt {sequence} came after {}", last.sequence),
            )
        } else if *sequence != last.sequence.saturating_add(1) {
            (
                "RECEIPTS_MISSING",
                format!(
                    "receipt {sequence} came after {}: those between are not here",
                    last.sequence
                ),
            )
        } else if *previous != last.sha256 {
            (
                "RECEIPT_CHAIN_BROKEN",
                format!("receipt {sequence} follows another one than is stored here"),
            )
        } else {
            return None;
        };
        let mut event = self.event(EventKind::MachineReported, message, now);
        event.reason = Some(reason.to_owned());
        event.grant = Some(receipt.grant);
        Some(event)
    }

    fn meaning(&self, receipt: &Receipt, owner: Option<&Owner>, now: Timestamp) -> (Event, Said) {
        let Receipt {
            grant: id,
            event,
            at,
            reason,
            ..
        } = receipt;
        let (kind, said, message) = match event {
            Done::Opened => (
                EventKind::GrantOpened,
                Said::Opened,
                "the host has opened".to_owned(),
            ),
            Done::Closed => (EventKind::GrantClosed, Said::Closed, closed_message(reason)),
            Done::Refused => (
                EventKind::GrantRefused,
                Said::Refused,
                format!("the host has refused the grant: {reason}"),
            ),
        };
        let mut event = self.event(kind, message, now);
        event.grant = Some(*id);
        event.reason = Some(reason.clone()).filter(|reason| !reason.is_empty());
        event.request = owner.map(|owner| owner.request);
        let event = audit::with(event, "host_time", at);
        match owner {
            Some(_) => (event, said),
            None => (
                audit::with(event, "note", "the store doesn't know this grant"),
                said,
            ),
        }
    }

    /// Kept in the event, so that nothing that was sent is lost; it changes nothing.
    fn refuse(&self, change: &mut Change, bad: &Bad, envelope: &[u8], now: Timestamp) {
        let (reason, message) = match bad {
            Bad::Envelope(rejected) => (
                rejected.code(),
                format!("sent what is no receipt of its: {rejected}"),
            ),
            Bad::OtherMachine(other) => ("OTHER_MACHINE", format!("sent a receipt of the machine {other}")),
        };
        let mut event = self.event(EventKind::MachineReported, message, now);
        event.reason = Some(reason.to_owned());
        let kept = envelope.get(..signing::LONGEST_ENVELOPE).unwrap_or(envelope);
        let event = audit::with(event, "envelope", signing::encode_base64(kept));
        change.record(&event, None);
    }

    fn event(&self, kind: EventKind, message: String, now: Timestamp) -> Event {
        let event = Event::new(now, kind, audit::machine(&self.name), message);
        audit::about(event, self.id, &self.name)
    }
}

fn closed_message(reason: &str) -> String {
    match reason {
        "EXPIRED" => "the grant has ended and the host has closed".to_owned(),
        "REMOVED" => "the grant was ended early and the host has closed".to_owned(),
        other => format!("the host has closed: {other}"),
    }
}
