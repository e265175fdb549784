//! What passes between the server and a connected agent, without the wire: arrivals, assignments, reports.

use std::sync::Arc;

use nightlatch_core::assignment::{Assignment, Generation};
use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::ceiling::HostCeiling;
use nightlatch_core::id::{MachineId, MachineName};
use nightlatch_core::keys::{ListNumber, VerifiedKeys};
use nightlatch_core::policy::{LONGEST_POLICY, MachinePolicy, PAYLOAD_TYPE};
use nightlatch_core::signing::{self, KeyId, PublicKey, hex};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::agent::HostState;
use nightlatch_proto::convert::break_glass::BreakGlassReport;

use crate::audit;
use crate::holdings::Holdings;
use crate::issuer::{Issuer, SIGNED_TOGETHER, Settled};
use crate::policies;
use crate::store::assignments::NeverOpened;
use crate::store::grants::{self, Note, Said};
use crate::store::machines::{self, Machine, SignedPolicy};
use crate::store::{Change, StoreError, assignments, break_glass, requests};

/// Keeps connected agents at what the store says.
pub struct Agents {
    pub issuer: Arc<Issuer>,
    pub keys: VerifiedKeys,
}

/// An agent that has connected.
pub struct Arrival {
    pub name: MachineName,
    pub receipt_key: PublicKey,
    pub holds: Holds,
    /// Whether there is something to send at all.
    pub is_behind: bool,
}

/// What the server believes that an agent has.
#[derive(Clone, Debug)]
pub struct Holds {
    /// `None`: nothing that a change could start from.
    pub generation: Option<Generation>,
    pub grants: Holdings,
    pub policy: (u64, u64),
    pub keys: ListNumber,
}

/// An assignment on its way, and what the agent has once it accepts it.
pub struct Dispatch {
    pub assignment: Assignment,
    pub then: Holds,
    /// Whether it ends grants, also some that the agent has not heard of.
    pub ends: bool,
}

impl Agents {
    /// Notes a Hello, signs what has waited for the machine, and finds out where the agent stands.
    /// `None`: the machine is no longer one of ours.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn arrive(
        &self,
        id: MachineId,
        address: &str,
        state: &HostState,
        now: Timestamp,
    ) -> Result<Option<Arrival>, StoreError> {
        while self.sign_some(id, state, now).await? {}
        let mut change = self.issuer.store.change().await?;
        let mut machine = machines::by_id(change.connection(), id).await?;
        if machine.is_retired {
            return Ok(None);
        }
        let was_ahead = set_back(&mut change, &mut machine, state, now).await?;
        machines::heard(change.connection(), id, address, state, now).await?;
        let message = format!("connected with agent {}", state.agent_version);
        let mut event = machine_event(&machine, EventKind::MachineConnected, message, now);
        event.address = Some(address.to_owned());
        change.record(&event, None);

        let generation = generation_after(&machine, state, now);
        let settled = self
            .issuer
            .sign_waiting(&mut change, &machine, ceiling(state), generation, now)
            .await?;
        let dropped = assignments::has_past(change.connection(), id, now).await?;
        assignments::drop_past(change.connection(), id, generation, now).await?;
        let rank = self
            .settle_policy(&mut change, &machine, state, generation, now)
            .await?;

        let held = assignments::assigned_at(change.connection(), id, state.generation).await?;
        let held: Holdings = held.into_iter().collect();
        // An agent that claims to have nothing is owed the whole: it may have lost what it had.
        let fits = !was_ahead && state.generation > Generation::default() && held.digest() == state.digest;
        let lacks = state.keys < self.keys.number() || state.policy < rank;
        let changed = settled == Settled::Signed || dropped || rank != machine.policy_rank;
        // What the agent is to take must bear a generation that it doesn't have.
        if changed || ((lacks || !fits) && machine.generation <= state.generation) {
            machines::set_generation(change.connection(), id, generation).await?;
        }
        change.commit().await?;
        if settled != Settled::Nothing {
            self.issuer.fleet.tell(id);
        }
        Ok(Some(Arrival {
            name: machine.name,
            receipt_key: machine.receipt_key,
            holds: Holds {
                generation: fits.then_some(state.generation),
                grants: if fits { held } else { Holdings::default() },
                policy: state.policy,
                keys: state.keys,
            },
            is_behind: changed || lacks || !fits || machine.generation > state.generation,
        }))
    }

    /// Signs some of what waits for the machine if there is more than goes into one change. Returns whether it did.
    async fn sign_some(&self, id: MachineId, state: &HostState, now: Timestamp) -> Result<bool, StoreError> {
        let mut connection = self.issuer.store.read().await?;
        let waiting = requests::waiting_for(&mut connection, id, SIGNED_TOGETHER + 1).await?;
        drop(connection);
        if waiting.len() <= SIGNED_TOGETHER {
            return Ok(false);
        }
        let mut change = self.issuer.store.change().await?;
        let machine = machines::by_id(change.connection(), id).await?;
        if machine.is_retired {
            return Ok(false);
        }
        let generation = generation_after(&machine, state, now);
        let settled = self
            .issuer
            .sign_waiting(&mut change, &machine, ceiling(state), generation, now)
            .await?;
        if settled == Settled::Signed {
            machines::set_generation(change.connection(), id, generation).await?;
        }
        change.commit().await?;
        self.issuer.fleet.tell(id);
        Ok(true)
    }

    /// A host that has a later policy than the store (an old copy was restored), one of an earlier epoch, or
    /// one that another signing key has signed, gets the store's policy signed anew. Returns its rank.
    async fn settle_policy(
        &self,
        change: &mut Change,
        machine: &Machine,
        state: &HostState,
        generation: Generation,
        now: Timestamp,
    ) -> Result<(u64, u64), StoreError> {
        let epoch = self.keys.number().epoch;
        let held = machine.policy_rank;
        let message = if state.policy > held {
            "the policy was signed anew: the host had a later one than the store"
        } else if held == (0, 0) {
            return Ok(held);
        } else if held.0 != epoch || !self.has_signed_policy(change, machine.id).await? {
            "the policy was signed anew: the signing key has changed"
        } else {
            return Ok(held);
        };
        let (later_epoch, later_number) = state.policy.max(held);
        let rank = (epoch.max(later_epoch), later_number.saturating_add(1));
        let policy = machine.policy.as_ref();
        let envelope = policies::sign(&self.issuer.authority, machine, rank, policy, now);
        let signed = SignedPolicy {
            policy,
            rank,
            envelope,
            generation,
        };
        machines::set_policy(change.connection(), machine.id, signed, now).await?;
        let mut event = machine_event(machine, EventKind::PolicySet, message.to_owned(), now);
        event.actor = audit::SERVER.to_owned();
        event.reason = Some("POLICY_RESIGNED".to_owned());
        change.record(&event, None);
        Ok(rank)
    }

    /// Whether the key in use has signed the policy in force: hosts take no other once it leaves the key list.
    async fn has_signed_policy(&self, change: &mut Change, id: MachineId) -> Result<bool, StoreError> {
        let key = self.issuer.authority.key().public();
        let envelope = machines::policy_envelope(change.connection(), id).await?;
        Ok(envelope.is_some_and(|envelope| {
            let only = |id: &KeyId| (*id == key.id()).then_some(&key);
            signing::open_json::<MachinePolicy>(&envelope, PAYLOAD_TYPE, LONGEST_POLICY, only).is_ok()
        }))
    }

    /// What an agent needs to get from what it holds to what the store says. `None`: nothing.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn dispatch(&self, id: MachineId, holds: &Holds) -> Result<Option<Dispatch>, StoreError> {
        let mut connection = self.issuer.store.read().await?;
        let base = holds.generation.unwrap_or_default();
        let changes = assignments::changes_since(&mut connection, id, base).await?;
        if holds.generation == Some(changes.generation) {
            return Ok(None);
        }
        let keys = (holds.keys < self.keys.number()).then(|| self.keys.envelope().to_vec());
        let policy = if holds.policy < changes.policy_rank {
            machines::policy_envelope(&mut connection, id).await?
        } else {
            None
        };
        let added = changes.added.iter().map(|added| added.id);
        let held = match holds.generation {
            Some(_) => holds.grants.changed(&changes.removed, added),
            None => added.collect(),
        };
        let ends = changes.missed || !changes.removed.is_empty();
        let assignment = Assignment {
            generation: changes.generation,
            base: holds.generation,
            keys,
            policy,
            added: changes.added,
            removed: changes.removed,
            digest: held.digest(),
        };
        let then = Holds {
            generation: Some(changes.generation),
            grants: held,
            policy: holds.policy.max(changes.policy_rank),
            keys: holds.keys.max(self.keys.number()),
        };
        Ok(Some(Dispatch {
            assignment,
            then,
            ends,
        }))
    }

    /// The host has taken an assignment without some grants, and all its receipts of them are here: those that it
    /// never opened are closed now, and no receipt will say so.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn settle_removed(
        &self,
        id: MachineId,
        generation: Generation,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut connection = self.issuer.store.read().await?;
        if assignments::never_opened(&mut connection, id, generation)
            .await?
            .is_empty()
        {
            return Ok(());
        }
        drop(connection);
        let mut change = self.issuer.store.change().await?;
        let machine = machines::by_id(change.connection(), id).await?;
        let never_opened = assignments::never_opened(change.connection(), id, generation).await?;
        let note = |grant: &NeverOpened| Note {
            id: grant.id,
            at: now,
            reason: "NEVER_OPENED".to_owned(),
        };
        let notes: Vec<Note> = never_opened.iter().map(note).collect();
        grants::note(change.connection(), Said::Closed, &notes).await?;
        for grant in &never_opened {
            let message = "ended before the host opened it".to_owned();
            let mut event = machine_event(&machine, EventKind::GrantClosed, message, now);
            event.grant = Some(grant.id);
            event.reason = Some("NEVER_OPENED".to_owned());
            change.record(&event, Some(&grant.subject));
        }
        change.commit().await?;
        self.issuer
            .fleet
            .tell_of(never_opened.iter().map(|grant| &grant.request));
        Ok(())
    }

    /// Something that concerns no single grant.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn report(
        &self,
        id: MachineId,
        code: &str,
        message: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut change = self.issuer.store.change().await?;
        let machine = machines::by_id(change.connection(), id).await?;
        let mut event = machine_event(&machine, EventKind::MachineReported, message, now);
        event.reason = Some(code.to_owned());
        change.record(&event, None);
        change.commit().await
    }

    /// Root has opened a port on the host itself. What the host has told before is known.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn break_glass(
        &self,
        id: MachineId,
        report: &BreakGlassReport,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut change = self.issuer.store.change().await?;
        if break_glass::is_known(change.connection(), id, report.id).await? {
            return Ok(());
        }
        let machine = machines::by_id(change.connection(), id).await?;
        break_glass::put(change.connection(), id, report.id, now).await?;
        change.record(&break_glass_event(&machine, report, now), None);
        change.commit().await
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn leave(&self, id: MachineId, why: &str, now: Timestamp) -> Result<(), StoreError> {
        let mut change = self.issuer.store.change().await?;
        let machine = machines::by_id(change.connection(), id).await?;
        machines::seen(change.connection(), id, now).await?;
        let event = machine_event(&machine, EventKind::MachineDisconnected, why.to_owned(), now);
        change.record(&event, None);
        change.commit().await?;
        self.issuer.fleet.tell(id);
        Ok(())
    }
}

fn ceiling(state: &HostState) -> HostCeiling<'_> {
    let ceiling = state.ceiling.as_ref();
    ceiling.map_or(HostCeiling::Missing, HostCeiling::Known)
}

const DAY_IN_MICROS: u64 = 24 * 3600 * 1_000_000;

/// While the server's clock was ahead, generations were given that agents refuse, being more than a day
/// ahead. Goes back to one that they take, and says whether that was so; then the agent is owed the whole.
async fn set_back(
    change: &mut Change,
    machine: &mut Machine,
    state: &HostState,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let present = u64::try_from(now.micros()).unwrap_or_default();
    let furthest = present.saturating_add(DAY_IN_MICROS);
    if machine.generation.0 <= furthest {
        return Ok(false);
    }
    let after_agent = state.generation.0.saturating_add(1);
    let generation = if after_agent <= furthest {
        Generation(after_agent.max(present))
    } else {
        Generation(present)
    };
    assignments::clamp(change.connection(), machine.id, generation).await?;
    machines::set_generation(change.connection(), machine.id, generation).await?;
    machine.generation = generation;
    let message = "the server's clock had been ahead: the machine gets its whole assignment anew".to_owned();
    let mut event = machine_event(machine, EventKind::MachineReported, message, now);
    event.actor = audit::SERVER.to_owned();
    event.reason = Some("GENERATION_SET_BACK".to_owned());
    change.record(&event, None);
    Ok(true)
}

/// The next generation; beyond the agent's, if the store is older than the agent.
fn generation_after(machine: &Machine, state: &HostState, now: Timestamp) -> Generation {
    let next = machine.next_generation(now);
    // Agents take nothing further ahead than a day, so one that claims to hold more is not believed.
    if state.generation >= next && state.generation.0 < next.0.saturating_add(DAY_IN_MICROS) {
        Generation(state.generation.0.saturating_add(1))
    } else {
        next
    }
}

fn break_glass_event(machine: &Machine, report: &BreakGlassReport, now: Timestamp) -> Event {
    let BreakGlassReport {
        id,
        ports,
        source,
        time,
        length,
        reason,
        opener,
        record,
    } = report;
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let ports = ports.join(", ");
    let reason = reason.as_str();
    let until = time.checked_add(*length).unwrap_or(*time);
    let message = format!(
        "root opened {ports} to {source} on the host itself, from {} until {} by its clock: {reason}",
        audit::to_the_second(*time),
        audit::to_the_second(until)
    );
    let mut event = machine_event(machine, EventKind::MachineBreakGlass, message, now);
    for (key, value) in [
        ("break_glass", id.to_string()),
        ("ports", ports),
        ("sources", source.to_string()),
        ("from", time.to_string()),
        ("until", until.to_string()),
        ("justification", reason.to_owned()),
        ("opener", opener.clone()),
        ("record_sha256", hex(record)),
    ] {
        event = audit::with(event, key, value);
    }
    event
}

pub(crate) fn machine_event(machine: &Machine, kind: EventKind, message: String, now: Timestamp) -> Event {
    let event = Event::new(now, kind, audit::machine(&machine.name), message);
    audit::about(event, machine.id, &machine.name)
}
