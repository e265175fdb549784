//! Receipts: checked, stored with what they mean for their grants, then acknowledged.

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::id::{GrantId, MachineId, MachineName};
use nightlatch_core::receipt::{Done, Receipt};
use nightlatch_core::signing::{self, EnvelopeRejected, PublicKey};
use nightlatch_core::time::Timestamp;

use crate::agents::{Agents, machine_event};
use crate::audit;
use crate::store::grants::{self, Said};
use crate::store::machines::{self, LastReceipt, Machine};
use crate::store::{Change, StoreError, events, receipts};

/// Of what was no receipt, so many of one connection are written down whole.
pub const KEPT: usize = 3;

struct Checked {
    receipt: Receipt,
    sha256: String,
    envelope: Vec<u8>,
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
        let checked: Vec<_> = envelopes
            .into_iter()
            .map(|envelope| check(id, key, envelope))
            .collect();
        let mut change = self.issuer.store.change().await?;
        let machine = machines::by_id(change.connection(), id).await?;
        let mut last = machine.last_receipt.clone();
        let mut acknowledged = None;
        for receipt in checked {
            match receipt {
                Ok(checked) => {
                    acknowledged = acknowledged.max(Some(checked.receipt.sequence));
                    take(&mut change, &machine, checked, &mut last, now).await?;
                }
                Err((why, envelope)) => {
                    found = found.saturating_add(1);
                    if found <= KEPT {
                        refuse(&mut change, &machine, why, &envelope, now).await?;
                    }
                }
            }
        }
        let more = found.saturating_sub(already.max(KEPT));
        if more > 0 {
            let message = format!("sent {more} more that were no receipts of its");
            let mut event = machine_event(&machine, EventKind::MachineReported, message, now);
            event.reason = Some("RECEIPTS_REFUSED".to_owned());
            events::record(change.connection(), &event, None).await?;
        }
        if last != machine.last_receipt {
            machines::set_last_receipt(change.connection(), id, &last, now).await?;
        }
        change.commit().await?;
        *bad = found;
        self.issuer.fleet.tell(id);
        Ok(acknowledged)
    }
}

fn check(id: MachineId, key: &PublicKey, envelope: Vec<u8>) -> Result<Checked, (Bad, Vec<u8>)> {
    match Receipt::verify(&envelope, key) {
        Ok(receipt) if receipt.machine == id => Ok(Checked {
            receipt,
            sha256: signing::hex(&signing::sha256(&envelope)),
            envelope,
        }),
        Ok(receipt) => Err((Bad::OtherMachine(receipt.machine), envelope)),
        Err(rejected) => Err((Bad::Envelope(rejected), envelope)),
    }
}

async fn take(
    change: &mut Change,
    machine: &Machine,
    checked: Checked,
    last: &mut LastReceipt,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Checked {
        receipt,
        sha256,
        envelope,
    } = checked;
    let sequence = receipt.sequence;
    let is_new = receipts::put(change.connection(), machine.id, sequence, &sha256, &envelope, now).await?;
    if !is_new {
        return Ok(());
    }
    if let Some(event) = break_in_chain(machine, &receipt, last, now) {
        events::record(change.connection(), &event, None).await?;
    }
    *last = LastReceipt { sequence, sha256 };
    apply(change, machine, &receipt, now).await
}

/// Receipts are numbered without gaps, each naming the one before. Where that doesn't hold, one of the two
/// sides was restored from an old copy, or something was kept back.
fn break_in_chain(machine: &Machine, receipt: &Receipt, last: &LastReceipt, now: Timestamp) -> Option<Event> {
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
    let mut event = machine_event(machine, EventKind::MachineReported, message, now);
    event.reason = Some(reason.to_owned());
    event.grant = Some(receipt.grant);
    Some(event)
}

async fn apply(
    change: &mut Change,
    machine: &Machine,
    receipt: &Receipt,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Receipt {
        grant: id,
        event,
        at,
        reason,
        ..
    } = receipt;
    let known = grants::find(change.connection(), *id)
        .await?
        .filter(|grant| grant.machine == machine.id);
    let (kind, said, message) = match event {
        Done::Opened => (
            EventKind::GrantOpened,
            Said::Opened,
            "the host has opened".to_owned(),
        ),
        Done::Closed => (
            EventKind::GrantClosed,
            Said::Closed(reason),
            closed_message(reason),
        ),
        Done::Refused => (
            EventKind::GrantRefused,
            Said::Refused(reason),
            format!("the host has refused the grant: {reason}"),
        ),
    };
    let mut event = grant_event(machine.id, &machine.name, kind, *id, message, now);
    event.reason = Some(reason.clone()).filter(|reason| !reason.is_empty());
    let mut event = audit::with(event, "host_time", at);
    match known {
        Some(grant) => {
            event.request = Some(grant.request);
            grants::note(change.connection(), *id, said, *at).await?;
            events::record(change.connection(), &event, Some(&grant.subject)).await
        }
        None => {
            let event = audit::with(event, "note", "the store doesn't know this grant");
            events::record(change.connection(), &event, None).await
        }
    }
}

fn closed_message(reason: &str) -> String {
    match reason {
        "EXPIRED" => "the grant has ended and the host has closed".to_owned(),
        "REMOVED" => "the grant was ended early and the host has closed".to_owned(),
        other => format!("the host has closed: {other}"),
    }
}

fn grant_event(
    machine: MachineId,
    name: &MachineName,
    kind: EventKind,
    grant: GrantId,
    message: String,
    now: Timestamp,
) -> Event {
    let mut event = audit::about(
        Event::new(now, kind, audit::machine(name), message),
        machine,
        name,
    );
    event.grant = Some(grant);
    event
}

/// Kept in the event, so that nothing that was sent is lost; it changes nothing.
async fn refuse(
    change: &mut Change,
    machine: &Machine,
    bad: Bad,
    envelope: &[u8],
    now: Timestamp,
) -> Result<(), StoreError> {
    let (reason, message) = match bad {
        Bad::Envelope(rejected) => (
            rejected.code(),
            format!("sent what is no receipt of its: {rejected}"),
        ),
        Bad::OtherMachine(other) => ("OTHER_MACHINE", format!("sent a receipt of the machine {other}")),
    };
    let mut event = machine_event(machine, EventKind::MachineReported, message, now);
    event.reason = Some(reason.to_owned());
    let kept = envelope.get(..signing::LONGEST_ENVELOPE).unwrap_or(envelope);
    let event = audit::with(event, "envelope", signing::encode_base64(kept));
    events::record(change.connection(), &event, None).await
}
