//! Those who were turned away, for the log: some calls of each, so that nobody can fill it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use nightlatch_core::audit::Event;
use nightlatch_core::time::Timestamp;

use crate::audit;

/// What is written down in a [`WINDOW`]: so many calls of one caller, and those of so many callers.
const MOST_EACH: u32 = 10;
const MOST_CALLERS: usize = 100;
const WINDOW: Duration = Duration::from_secs(3600);

/// See the module's documentation.
#[derive(Debug)]
pub struct TurnedAway<C> {
    callers: BTreeMap<C, Written>,
    unwritten: u64,
}

#[derive(Debug)]
struct Written {
    since: Timestamp,
    count: u32,
}

/// Leave to write one down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// How many were not since the last that was, whoever called.
    unwritten: u64,
}

impl<C> Default for TurnedAway<C> {
    fn default() -> Self {
        Self {
            callers: BTreeMap::new(),
            unwritten: 0,
        }
    }
}

impl<C: Ord> TurnedAway<C> {
    /// One more call. `None`: it is only counted.
    pub fn note(&mut self, caller: C, now: Timestamp) -> Option<Leave> {
        // A clock that was set back must not make anybody wait for it.
        let counts = |written: &Written| written.since <= now && now.since(written.since) < WINDOW;
        self.callers.retain(|_, written| counts(written));
        let has_room = self.callers.len() < MOST_CALLERS;
        match self.callers.entry(caller) {
            Entry::Vacant(new) if has_room => {
                new.insert(Written { since: now, count: 1 });
            }
            Entry::Occupied(mut known) if known.get().count < MOST_EACH => known.get_mut().count += 1,
            Entry::Vacant(_) | Entry::Occupied(_) => {
                self.unwritten = self.unwritten.saturating_add(1);
                return None;
            }
        }
        Some(Leave {
            unwritten: std::mem::take(&mut self.unwritten),
        })
    }
}

impl Leave {
    /// The event, with how many have none.
    #[must_use]
    pub fn told_in(self, mut event: Event) -> Event {
        if self.unwritten == 0 {
            return event;
        }
        event.message = format!(
            "{}; {} before it, of whoever, were not written down",
            event.message, self.unwritten
        );
        audit::with(event, "unwritten", self.unwritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::audit::EventKind;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(1_795_348_800_000_000 + second * 1_000_000).unwrap()
    }

    fn written<C: Ord>(
        turned_away: &mut TurnedAway<C>,
        callers: impl Iterator<Item = C>,
        second: i64,
    ) -> usize {
        callers
            .filter_map(|caller| turned_away.note(caller, at(second)))
            .count()
    }

    #[test]
    fn of_one_caller_so_many_are_written_an_hour_and_the_next_says_how_many_were_not() {
        let mut turned_away = TurnedAway::default();
        assert_eq!(written(&mut turned_away, ["alice"; 1000].into_iter(), 0), 10);
        assert_eq!(turned_away.note("bob", at(1)), Some(Leave { unwritten: 990 }));
        assert_eq!(turned_away.note("alice", at(3599)), None);
        let leave = turned_away.note("alice", at(3600)).unwrap();
        assert_eq!(leave, Leave { unwritten: 1 });
        let event = Event::new(at(0), EventKind::CallRefused, String::new(), "refused".to_owned());
        let event = leave.told_in(event);
        assert_eq!(
            event.message,
            "refused; 1 before it, of whoever, were not written down"
        );
        assert_eq!(event.details["unwritten"], "1");
    }

    #[test]
    fn however_many_call_what_is_written_has_a_bound() {
        let mut turned_away = TurnedAway::default();
        for round in 0..20 {
            let most = if round < 10 { 100 } else { 0 };
            assert_eq!(written(&mut turned_away, 0..5000, round), most);
        }
        assert_eq!(turned_away.callers.len(), 100);
        assert_eq!(written(&mut turned_away, 0..5000, 3600), 100);
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nobody_from_being_written_down() {
        let mut turned_away = TurnedAway::default();
        assert_eq!(written(&mut turned_away, ["alice"; 20].into_iter(), 100_000), 10);
        assert_eq!(written(&mut turned_away, ["alice"; 20].into_iter(), 0), 10);
    }
}
