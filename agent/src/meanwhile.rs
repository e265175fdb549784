//! What is shut while it isn't known what should hold: no guard of the standing table goes.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nightlatch_core::ceiling::Ceiling;
use nightlatch_core::host::HostRules;
use nightlatch_core::ledger::Ledger;
use nightlatch_core::port::PortKey;
use nightlatch_core::ruleset::{End, Ruleset};
use nightlatch_core::time::BootTime;

use crate::clock::Clock;
use crate::enforcer::{Gate, Table};
use crate::firewall::{Beside, FirewallError, Maker};
use crate::startup::spans_of;

/// What the disk has for an answer before what is known without it is shut.
pub const AT_ONCE: Duration = Duration::from_millis(200);

/// How often the table is read again that others change meanwhile.
pub const ATTEMPTS: usize = 5;

/// Shuts what is known and leaves open what is open, each as long as it would be and no longer than the host's own
/// file allows; but what a table lets in that none of ours has made since the boot is shut, for it may have ended long
/// ago. Says whether there is a table now where none was.
///
/// # Errors
/// The table can't be read or made.
pub fn hold(
    rules: &HostRules,
    ledger: Option<&Ledger>,
    gate: &mut impl Table,
    clock: &impl Clock,
) -> Result<bool, FirewallError> {
    for _ in 0..ATTEMPTS {
        let read_at = clock.now();
        let standing = gate.standing(read_at)?;
        let guarded = standing.guarded.as_ref();
        let mut wanted = with_guards(rules, ledger, guarded, read_at);
        if wanted.is_empty() {
            return Ok(false);
        }
        let is_in_doubt = standing.maker == Maker::Stranger;
        if is_in_doubt && !standing.open.is_empty() {
            tracing::warn!("the table was loaded from elsewhere: what it lets in for a time is shut");
        }
        if let Some(ceiling) = rules.ceiling.as_ref().filter(|_| !is_in_doubt) {
            let latest = read_at.plus(ceiling.longest);
            for (opening, end) in standing
                .open
                .iter()
                .filter(|(opening, _)| ceiling.admits(opening))
            {
                wanted.open(*opening, End::At(latest.min(*end)));
            }
        }
        if gate.rebuild_over(&standing, &wanted, clock.now())? {
            return Ok(guarded.is_none());
        }
    }
    let is_missing = gate.guarded()?.is_none();
    let kept = shut(rules, ledger, gate, clock)?;
    Ok(is_missing && kept.is_some_and(|kept| !kept.is_empty()))
}

/// As [`hold`], but what is open is shut: it is known to be in doubt. Gives what the table holds then; `None` if there
/// is one without guards, which is left alone.
///
/// # Errors
/// As [`hold`].
pub fn shut(
    rules: &HostRules,
    ledger: Option<&Ledger>,
    gate: &mut impl Gate,
    clock: &impl Clock,
) -> Result<Option<Ruleset>, FirewallError> {
    let guarded = gate.guarded()?;
    let found = guarded.clone().unwrap_or_default();
    if !found.is_subset(ruleset_of(rules, ledger, clock.now()).guarded()) {
        tracing::warn!("the table guards ports that no file accounts for now; they stay guarded");
    }
    let wanted = with_guards(rules, ledger, guarded.as_ref(), clock.now());
    if wanted.is_empty() {
        return Ok(guarded.is_none().then_some(wanted));
    }
    gate.rebuild(&wanted, clock.now())?;
    Ok(Some(wanted))
}

/// As [`hold`], unless the table already is one that the host's own file allows.
///
/// # Errors
/// As [`hold`].
pub fn guard_the_files(
    rules: &HostRules,
    gate: &mut impl Table,
    clock: &impl Clock,
) -> Result<(), FirewallError> {
    let now = clock.now();
    let guarded = gate.guarded()?;
    let wanted = with_guards(rules, None, guarded.as_ref(), now);
    let beside = gate.beside(&wanted, now)?;
    let is_allowed = |beside: &Beside| is_allowed(beside, &wanted, rules.ceiling.as_ref(), now);
    if wanted.is_empty() || beside.as_ref().is_some_and(is_allowed) {
        return Ok(());
    }
    hold(rules, None, gate, clock).map(drop)
}

/// Whether a table is `wanted`, apart from openings that a grant could have made.
fn is_allowed(beside: &Beside, wanted: &Ruleset, ceiling: Option<&Ceiling>, now: BootTime) -> bool {
    let Beside { found, foreign_part } = beside;
    let is_grants = |opening, remaining| {
        let admits = |ceiling: &Ceiling| ceiling.admits(opening) && remaining <= ceiling.longest;
        found.mark.is_some() && ceiling.is_some_and(admits)
    };
    let known = wanted.openings();
    let is_there = |opening, end: &End| match (found.openings.get(opening), end) {
        (Some(remaining), End::Never) => remaining.is_none(),
        // What root has opened on the console.
        (Some(remaining), End::At(end)) => {
            remaining.is_some_and(|remaining| is_due(remaining, end.since(now)))
        }
        (None, End::At(end)) => is_due(Duration::ZERO, end.since(now)),
        (None, End::Never) => false,
    };
    foreign_part.is_none()
        && wanted.guarded().is_subset(&found.guarded)
        && *wanted.unguarded_interfaces() == found.unguarded_interfaces
        && known.iter().all(|(opening, end)| is_there(opening, end))
        && found.openings.iter().all(|(opening, remaining)| {
            remaining.map_or_else(
                || known.contains_key(opening),
                |remaining| is_grants(opening, remaining) || known.contains_key(opening),
            )
        })
}

/// Reading takes a moment, in which ends move.
fn is_due(remaining: Duration, wanted: Duration) -> bool {
    const TOLERANCE: Duration = Duration::from_secs(1);
    remaining
        .saturating_sub(wanted)
        .max(wanted.saturating_sub(remaining))
        <= TOLERANCE
}

fn with_guards(
    rules: &HostRules,
    ledger: Option<&Ledger>,
    found: Option<&BTreeSet<PortKey>>,
    now: BootTime,
) -> Ruleset {
    let mut rules = rules.clone();
    rules.guarded.extend(spans_of(found.cloned().unwrap_or_default()));
    ruleset_of(&rules, ledger, now)
}

fn ruleset_of(rules: &HostRules, ledger: Option<&Ledger>, now: BootTime) -> Ruleset {
    ledger.map_or_else(|| rules.ruleset_alone(), |ledger| ledger.ruleset(rules, now))
}

/// Waits for the disk as long as it takes. If that is more than a moment, `act` comes first.
///
/// # Errors
/// There is no thread to ask the disk with.
pub fn asked<T: Send + 'static>(
    ask: impl FnOnce() -> T + Send + 'static,
    act: impl FnOnce(),
) -> io::Result<T> {
    let (answers, found) = mpsc::sync_channel(1);
    // Nobody listens any more only if the process ends.
    thread::Builder::new().spawn(move || drop(answers.send(ask())))?;
    match found.recv_timeout(AT_ONCE) {
        Ok(answer) => Ok(answer),
        Err(RecvTimeoutError::Timeout) => {
            act();
            found.recv().map_err(io::Error::other)
        }
        Err(error @ RecvTimeoutError::Disconnected) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests;
