//! Whether what a set holds is still what was written into it.

use std::collections::BTreeMap;
use std::time::Duration;

use nightlatch_core::ruleset::{End, Ruleset};
use nightlatch_core::time::BootTime;

use super::batch::key_bytes;
use super::drift::{Drift, ElementFault, ForeignElement};
use super::reading;
use super::set::{key_of, set_of};
use super::table;

/// How far an element's end may lie from the one wanted before the table counts as changed by others.
const TOLERANCE: Duration = Duration::from_secs(1);

/// What is wrong with the elements of one set; `None` if they are those of the ruleset and end when they should.
pub(super) fn drift(
    ruleset: &Ruleset,
    set: &table::Set,
    found: Vec<reading::Found>,
    early: Duration,
    now: BootTime,
) -> Option<Drift> {
    let fault = |what| Some(Drift::Element(ForeignElement { set: set.name, what }));
    let mut found: BTreeMap<Vec<u8>, Option<Duration>> = found
        .into_iter()
        .map(|(key, remaining)| (key_bytes(&key), remaining))
        .collect();
    let openings = ruleset
        .openings()
        .iter()
        .filter(|(opening, _)| set_of(opening) == set.name);
    let timed = openings.map(|(opening, end)| (key_of(opening), *end));
    let fixed = set.fixed.iter().map(|key| (key.clone(), End::Never));
    for (key, end) in fixed.chain(timed) {
        let (is_right, what) = match (found.remove(&key_bytes(&key)), end) {
            (Some(remaining), End::Never) => (remaining.is_none(), ElementFault::End),
            (Some(remaining), End::At(end)) => {
                let is_due = remaining.is_some_and(|remaining| is_due(remaining, end.since(now), early));
                (is_due, ElementFault::End)
            }
            (None, End::Never) => (false, ElementFault::Missing),
            (None, End::At(end)) => (
                is_due(Duration::ZERO, end.since(now), early),
                ElementFault::Missing,
            ),
        };
        if !is_right {
            return fault(what);
        }
    }
    // What is left has ended for us but not for the kernel, or was never ours.
    let may_stay = |remaining: &Option<Duration>| remaining.is_some_and(|remaining| remaining <= TOLERANCE);
    if found.values().all(may_stay) {
        None
    } else {
        fault(ElementFault::Added)
    }
}

/// Whether what remains is what should remain, or as much less as writing may have taken off.
fn is_due(remaining: Duration, wanted: Duration, early: Duration) -> bool {
    remaining <= wanted.saturating_add(TOLERANCE)
        && remaining.saturating_add(early).saturating_add(TOLERANCE) >= wanted
}

#[cfg(test)]
mod tests {
    use super::super::ends_early_by;
    use super::*;

    #[test]
    fn what_writing_many_openings_took_off_is_no_tampering() {
        let wanted = Duration::from_secs(60);
        let early = ends_early_by(300_000);
        assert_eq!(early, Duration::from_millis(1_500));
        assert!(is_due(wanted - early, wanted, early));
        assert!(is_due(wanted - early - TOLERANCE, wanted, early));
        assert!(!is_due(wanted - early, wanted, Duration::ZERO));
        assert!(!is_due(wanted - Duration::from_secs(3), wanted, early));
        // Nothing may end later for it.
        assert!(!is_due(wanted + early, wanted, early));
    }
}
