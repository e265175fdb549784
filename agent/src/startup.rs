//! What a starting agent knows: its ledger, verified again, or what is left of it.

use std::collections::BTreeSet;

use nightlatch_core::assignment::Generation;
use nightlatch_core::clock::HostClock;
use nightlatch_core::host::HostRules;
use nightlatch_core::id::GrantId;
use nightlatch_core::ledger::{Boot, Ledger, Replayed};
use nightlatch_core::port::{PortKey, PortRange, PortSpan};

use crate::causes::causes;
use crate::enforcer::Gate;
use crate::firewall::FirewallError;
use crate::frame_file::{Damage, Fault};
use crate::identity::Enrollment;
use crate::ledger_file::{LedgerFile, Records, snapshot};
use crate::state::{LEDGER, StateDir};
use crate::writer::Sink;

/// A ledger to begin with.
pub struct Recalled {
    pub ledger: Ledger,
    pub time: HostClock,
    pub sink: LedgerFile,
    pub fallen: Vec<GrantId>,
    /// There are no grants, maybe because they were lost: the server must send the whole.
    pub is_bare: bool,
    pub reports: Vec<(&'static str, String)>,
}

/// Reads the ledger and writes down what a reboot has changed. Whatever is wrong with the file, what comes
/// back opens nothing that isn't on disk.
pub fn recall(state: &StateDir, enrollment: &Enrollment, rules: &HostRules, boot: Boot) -> Recalled {
    let (mut sink, found) = LedgerFile::open(state.ledger(), boot.wall);
    let mut reports = Vec::new();
    if let Some(damage) = found.damage.clone() {
        tracing::error!(why = damage.why, set_aside = ?damage.set_aside, "the ledger can't be trusted: nothing opens");
        let (ledger, time) = bare(enrollment, found, boot);
        if let Err(error) = sink.rewrite(&snapshot(&ledger, &time, boot.now)) {
            tracing::error!(error = %causes(&error), "what is left of the ledger can't be written down");
        }
        reports.extend(damage_report(state, Some(&damage), &ledger));
        return Recalled {
            ledger,
            time,
            sink,
            fallen: Vec::new(),
            is_bare: true,
            reports,
        };
    }
    let ceiling = rules.ceiling.as_ref();
    let replayed = Ledger::replay(
        enrollment.machine_id,
        enrollment.root_key.clone(),
        found.records,
        ceiling,
        boot,
    );
    let Replayed {
        mut ledger,
        mark,
        carried,
        left_out,
        fallen,
    } = replayed;
    for left_out in left_out {
        tracing::error!(code = left_out.code(), %left_out, "part of the ledger no longer verifies");
        reports.push((left_out.code(), left_out.to_string()));
    }
    match carried.map_or(Ok(()), |carried| sink.append(&[carried], true)) {
        Ok(()) => ledger.recorded(ledger.number()),
        Err(error) => {
            tracing::error!(
                error = %causes(&error),
                "no grant opens until the ends after the reboot can be written down"
            );
            reports.push((
                "LEDGER_NOT_WRITTEN",
                "the ends after a reboot could not be written".to_owned(),
            ));
        }
    }
    let time = HostClock::new(boot.id, boot.now, mark);
    // Nothing was assigned yet, or nothing since a loss.
    let is_bare = ledger.generation() == Generation::default();
    if is_bare {
        ledger.also_guard(found.guarded);
        reports.extend(damage_report(state, None, &ledger));
    }
    Recalled {
        ledger,
        time,
        sink,
        fallen,
        is_bare,
        reports,
    }
}

/// Said as long as the server hasn't sent the whole, whoever found the damage.
fn damage_report(state: &StateDir, damage: Option<&Damage>, bare: &Ledger) -> Option<(&'static str, String)> {
    let aside = |fault| Some((fault, state.set_aside(LEDGER, fault)?));
    let aside = aside(Fault::Shortened).or_else(|| aside(Fault::Damaged));
    let fault = damage
        .map(|damage| damage.fault)
        .or_else(|| aside.as_ref().map(|(fault, _)| *fault))
        // It counts, and has nothing: what was lost left no trace.
        .or_else(|| (bare.number() > 0).then_some(Fault::Damaged))?;
    let (code, was) = match fault {
        Fault::Damaged => ("LEDGER_DAMAGED", "it was damaged"),
        Fault::Shortened => ("LEDGER_SHORTENED", "its end was lost"),
    };
    let why = damage.map_or(was, |damage| damage.why.as_str());
    let kept = aside
        .map(|(_, path)| format!("; it is kept as {}", path.display()))
        .unwrap_or_default();
    Some((code, format!("the ledger can't be trusted: {why}{kept}")))
}

/// Keys and policy prove themselves by their signatures; without a ceiling no grant comes along. What was revoked
/// stays known.
pub(crate) fn bare(enrollment: &Enrollment, found: Records, boot: Boot) -> (Ledger, HostClock) {
    let replayed = Ledger::replay(
        enrollment.machine_id,
        enrollment.root_key.clone(),
        found.records,
        None,
        boot,
    );
    let mut ledger = replayed.ledger.without_grants();
    ledger.also_guard(found.guarded);
    ledger.skip_to(found.number);
    (ledger, HostClock::new(boot.id, boot.now, replayed.mark))
}

/// The ports that the table in the kernel guards. After a loss they stay guarded until the policy is known.
///
/// # Errors
/// The table can't be read.
pub fn guarded_by_table(gate: &mut impl Gate) -> Result<Vec<PortSpan>, FirewallError> {
    Ok(spans_of(gate.guarded()?.unwrap_or_default()))
}

/// Each port as a span of its own.
pub fn spans_of(keys: BTreeSet<PortKey>) -> Vec<PortSpan> {
    let spans = keys.into_iter().filter_map(|PortKey { protocol, port }| {
        let range = PortRange::new(port, port).ok()?;
        Some(PortSpan { protocol, range })
    });
    spans.collect()
}

#[cfg(test)]
pub(crate) mod tests;
