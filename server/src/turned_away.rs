//! Those who were turned away, for the log: some calls of each, so that nobody can fill it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nightlatch_core::audit::Event;
use nightlatch_core::time::Timestamp;

use crate::audit;

const WINDOW: Duration = Duration::from_secs(3600);

/// What is written down in an hour: so much of each, and that of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    pub each: u32,
    pub callers: usize,
}

/// Of whoever may come, by what they come with or from.
pub const OF_STRANGERS: Most = Most {
    each: 10,
    callers: 100,
};
/// Of those who were let this far by a certificate or a token, and are only so many.
pub const OF_KNOWN: Most = Most {
    each: 10,
    callers: 1000,
};
/// Of people's denied requests, an event for each machine.
pub const OF_DENIED: Most = Most {
    each: 200,
    callers: 1000,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct TurnedAway<C> {
    most: Most,
    callers: Mutex<BTreeMap<C, Written>>,
    unwritten: AtomicU64,
}

#[derive(Debug)]
struct Written {
    since: Timestamp,
    count: u32,
}

/// Leave to write one down. Unless that is [`Self::written`], it counts as one that is not.
#[derive(Debug)]
pub struct Leave<'a> {
    all_unwritten: &'a AtomicU64,
    /// How many were not since the last that was, whoever called.
    unwritten: u64,
    is_written: bool,
}

impl<C: Ord> TurnedAway<C> {
    pub const fn new(most: Most) -> Self {
        Self {
            most,
            callers: Mutex::new(BTreeMap::new()),
            unwritten: AtomicU64::new(0),
        }
    }

    /// One more call. `None`: it is only counted.
    pub fn note(&self, caller: C, now: Timestamp) -> Option<Leave<'_>> {
        if !self.has_room(caller, now) {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Leave {
            all_unwritten: &self.unwritten,
            unwritten: self.unwritten.swap(0, Ordering::Relaxed),
            is_written: false,
        })
    }

    fn has_room(&self, caller: C, now: Timestamp) -> bool {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back must not make anybody wait for it.
        let counts = |written: &Written| written.since <= now && now.since(written.since) < WINDOW;
        callers.retain(|_, written| counts(written));
        let has_place = callers.len() < self.most.callers;
        match callers.entry(caller) {
            Entry::Vacant(new) if has_place => {
                new.insert(Written { since: now, count: 1 });
                true
            }
            Entry::Occupied(mut known) if known.get().count < self.most.each => {
                known.get_mut().count += 1;
                true
            }
            Entry::Vacant(_) | Entry::Occupied(_) => false,
        }
    }
}

impl Leave<'_> {
    /// The event, with how many have none.
    #[must_use]
    pub fn told_in(&self, mut event: Event) -> Event {
        if self.unwritten == 0 {
            return event;
        }
        event.message = format!(
            "{}; {} before it, of whoever, were not written down",
            event.message, self.unwritten
        );
        audit::with(event, "unwritten", self.unwritten)
    }

    /// It is in the log.
    pub fn written(mut self) {
        self.is_written = true;
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            let also_this = self.unwritten.saturating_add(1);
            self.all_unwritten.fetch_add(also_this, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::audit::EventKind;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(1_795_348_800_000_000 + second * 1_000_000).unwrap()
    }

    /// How many were not written before this one, if this one is.
    fn write<C: Ord>(turned_away: &TurnedAway<C>, caller: C, second: i64) -> Option<u64> {
        let leave = turned_away.note(caller, at(second))?;
        let unwritten = leave.unwritten;
        leave.written();
        Some(unwritten)
    }

    fn written<C: Ord>(turned_away: &TurnedAway<C>, callers: impl Iterator<Item = C>, second: i64) -> usize {
        callers
            .filter_map(|caller| write(turned_away, caller, second))
            .count()
    }

    #[test]
    fn of_one_caller_so_many_are_written_an_hour_and_the_next_says_how_many_were_not() {
        let turned_away = TurnedAway::new(OF_STRANGERS);
        assert_eq!(written(&turned_away, ["alice"; 1000].into_iter(), 0), 10);
        assert_eq!(write(&turned_away, "bob", 1), Some(990));
        assert_eq!(write(&turned_away, "alice", 3599), None);
        let leave = turned_away.note("alice", at(3600)).unwrap();
        let event = Event::new(at(0), EventKind::CallRefused, String::new(), "refused".to_owned());
        let event = leave.told_in(event);
        assert_eq!(
            event.message,
            "refused; 1 before it, of whoever, were not written down"
        );
        assert_eq!(event.details["unwritten"], "1");
    }

    #[test]
    fn what_could_not_be_written_is_told_by_the_next_that_is() {
        let turned_away = TurnedAway::new(OF_STRANGERS);
        assert_eq!(written(&turned_away, ["alice"; 15].into_iter(), 0), 10);
        drop(turned_away.note("bob", at(1)));
        let (first, second) = (turned_away.note("bob", at(1)), turned_away.note("bob", at(1)));
        assert_eq!(second.as_ref().map(|leave| leave.unwritten), Some(0));
        drop((first, second));
        assert_eq!(write(&turned_away, "bob", 1), Some(5 + 3));
        assert_eq!(write(&turned_away, "bob", 1), Some(0));
    }

    #[test]
    fn however_many_call_what_is_written_has_a_bound() {
        let turned_away = TurnedAway::new(OF_STRANGERS);
        for round in 0..20 {
            let most = if round < 10 { 100 } else { 0 };
            assert_eq!(written(&turned_away, 0..5000, round), most);
        }
        assert_eq!(turned_away.callers.lock().unwrap().len(), 100);
        assert_eq!(written(&turned_away, 0..5000, 3600), 100);
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nobody_from_being_written_down() {
        let turned_away = TurnedAway::new(OF_STRANGERS);
        assert_eq!(written(&turned_away, ["alice"; 20].into_iter(), 100_000), 10);
        assert_eq!(written(&turned_away, ["alice"; 20].into_iter(), 0), 10);
    }
}
