//! What a host knows of true time: the server's word, carried on by CLOCK_BOOTTIME.
//!
//! The wall clock isn't asked while the server is there: a wrong one must lock nobody out, and no clock may
//! lengthen a grant.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::{BootId, BootTime, Timestamp};

/// The high-water mark: at `at` of this boot, true time was at least `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    pub boot_id: BootId,
    pub at: BootTime,
    pub time: Timestamp,
}

impl Mark {
    /// The same in another boot, whose clock began at zero or ran on: a container has that of its machine. It says
    /// no more than what has passed for sure.
    #[must_use]
    pub fn in_boot(self, boot_id: BootId, now: BootTime) -> Self {
        if self.boot_id == boot_id {
            return self;
        }
        let passed = if now < self.at {
            now.since_boot()
        } else {
            now.since(self.at)
        };
        Self {
            boot_id,
            at: now,
            time: self.time.checked_add(passed).unwrap_or(self.time),
        }
    }
}

/// The server's answer to "what time is it?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    time: Timestamp,
    asked_at: BootTime,
    heard_at: BootTime,
}

impl Answer {
    const fn round_trip(self) -> Duration {
        self.heard_at.since(self.asked_at)
    }
}

/// The server stated a time that lies more than a day ahead of what is known, and the wall clock disagrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server says that it is {stated}, more than a day past {known}, and the wall clock says {wall}: \
     correct whichever clock is wrong"
)]
pub struct TimeJump {
    pub stated: Timestamp,
    pub known: Timestamp,
    pub wall: Timestamp,
}

/// Pure: it is told every reading.
#[derive(Clone, Debug)]
pub struct HostClock {
    boot_id: BootId,
    mark: Option<Mark>,
    answer: Option<Answer>,
}

impl HostClock {
    /// A larger step forward needs the wall clock's consent.
    const LARGEST_STEP: Duration = Duration::from_secs(24 * 3600);
    /// An answer this old gives way to any newer one.
    const ANSWER_AGES: Duration = Duration::from_secs(600);
    /// Crystals drift by up to one part in so many, so each answer loses worth as it ages.
    const DRIFT: u32 = 10_000;

    /// `mark` is the last one on disk. From an earlier boot it still says that time was no less at this start.
    pub fn new(boot_id: BootId, now: BootTime, mark: Option<Mark>) -> Self {
        Self {
            boot_id,
            mark: mark.map(|mark| mark.in_boot(boot_id, now)),
            answer: None,
        }
    }

    pub const fn boot_id(&self) -> BootId {
        self.boot_id
    }

    /// Takes the server's answer to a question that was sent at `asked_at`.
    ///
    /// # Errors
    /// A step forward that neither the past nor the wall clock supports. Grants are measured by the answer all
    /// the same, so that nobody is locked out; only the mark stays low.
    pub fn hear(
        &mut self,
        time: Timestamp,
        asked_at: BootTime,
        heard_at: BootTime,
        wall: Timestamp,
    ) -> Result<(), TimeJump> {
        let answer = Answer {
            time,
            asked_at,
            heard_at,
        };
        let better = self.answer.is_none_or(|held| {
            let age = heard_at.since(held.heard_at);
            let worth = held.round_trip().saturating_add(Self::drift(age));
            answer.round_trip() <= worth || age >= Self::ANSWER_AGES
        });
        if better {
            self.answer = Some(answer);
        }
        let Some(known) = self.earliest(heard_at) else {
            self.mark = Some(Mark {
                boot_id: self.boot_id,
                at: heard_at,
                time,
            });
            return Ok(());
        };
        let apart = wall.since(time).max(time.since(wall));
        if time.since(known) > Self::LARGEST_STEP && apart > Self::LARGEST_STEP {
            return Err(TimeJump {
                stated: time,
                known,
                wall,
            });
        }
        if known < time {
            self.mark = Some(Mark {
                boot_id: self.boot_id,
                at: heard_at,
                time,
            });
        }
        Ok(())
    }

    /// The earliest that true time can be. `None` before the first word of a server.
    pub fn earliest(&self, now: BootTime) -> Option<Timestamp> {
        let mark = self.mark?;
        let passed = now.since(mark.at);
        mark.time.checked_add(passed.saturating_sub(Self::drift(passed)))
    }

    fn drift(passed: Duration) -> Duration {
        passed.checked_div(Self::DRIFT).unwrap_or_default()
    }

    /// The latest that true time can be: the answer may be as old as its question, and this host's clock slow.
    /// Grants are measured by it, so that a delayed answer shortens and never lengthens. `None` before the first
    /// answer of this boot.
    pub fn latest(&self, now: BootTime) -> Option<Timestamp> {
        let answer = self.answer?;
        let passed = now.since(answer.asked_at);
        let drift = Self::drift(now.since(answer.heard_at));
        let stated = answer.time.checked_add(passed.saturating_add(drift))?;
        Some(self.earliest(now).map_or(stated, |earliest| earliest.max(stated)))
    }

    /// What goes to disk as the high-water mark.
    pub fn mark(&self, now: BootTime) -> Option<Mark> {
        self.earliest(now).map(|time| Mark {
            boot_id: self.boot_id,
            at: now,
            time,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn boot(seconds: u64) -> BootTime {
        BootTime::new(Duration::from_secs(seconds))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const FIRST: BootId = BootId(Uuid::from_u128(1));
    const SECOND: BootId = BootId(Uuid::from_u128(2));

    #[test]
    fn true_time_lies_between_the_answer_and_its_question() {
        let mut clock = HostClock::new(FIRST, boot(0), None);
        assert_eq!(clock.latest(boot(10)), None);
        let noon = at("2026-11-22T12:00:00Z");
        clock.hear(noon, boot(10), boot(12), noon).unwrap();
        assert_eq!(clock.earliest(boot(20)), Some(at("2026-11-22T12:00:07.9992Z")));
        assert_eq!(clock.latest(boot(20)), Some(at("2026-11-22T12:00:10.0008Z")));
    }

    #[test]
    fn an_answer_gives_way_to_a_slower_one_as_it_ages() {
        let millis = |millis| BootTime::new(Duration::from_millis(millis));
        let noon = at("2026-11-22T12:00:00Z");
        let mut clock = HostClock::new(FIRST, boot(0), None);
        clock.hear(noon, millis(1_000), millis(1_001), noon).unwrap();
        let half_a_minute_later = at("2026-11-22T12:00:30Z");
        // Three milliseconds is what clocks may drift apart in half a minute.
        for (trip, latest) in [
            (5, "2026-11-22T12:01:00.005999Z"),
            (4, "2026-11-22T12:01:00.000999Z"),
        ] {
            let asked_at = millis(31_002);
            clock
                .hear(
                    half_a_minute_later,
                    asked_at,
                    asked_at.plus(Duration::from_millis(trip)),
                    noon,
                )
                .unwrap();
            assert_eq!(clock.latest(millis(61_000)), Some(at(latest)), "{trip}");
        }
    }

    #[test]
    fn a_server_that_turns_its_clock_back_does_not_turn_back_the_host() {
        let mut clock = HostClock::new(FIRST, boot(0), None);
        let noon = at("2026-11-22T12:00:00Z");
        clock.hear(noon, boot(10), boot(10), noon).unwrap();
        clock
            .hear(at("2026-11-22T09:00:00Z"), boot(11), boot(11), noon)
            .unwrap();
        assert_eq!(clock.latest(boot(11)), Some(at("2026-11-22T12:00:00.9999Z")));
    }

    #[test]
    fn a_leap_of_more_than_a_day_moves_the_mark_only_if_the_wall_clock_agrees_but_locks_nobody_out() {
        let noon = at("2026-11-22T12:00:00Z");
        let later = at("2027-11-22T12:00:00Z");
        let mut clock = HostClock::new(FIRST, boot(0), None);
        clock.hear(noon, boot(1), boot(1), noon).unwrap();
        assert!(clock.hear(later, boot(2), boot(2), noon).is_err());
        assert_eq!(clock.earliest(boot(2)), Some(at("2026-11-22T12:00:00.9999Z")));
        assert_eq!(
            clock.latest(boot(2)),
            Some(later),
            "grants are measured by the server's word"
        );
        clock.hear(later, boot(2), boot(2), later).unwrap();
        assert_eq!(clock.earliest(boot(2)), Some(later));
    }

    #[test]
    fn the_mark_of_an_earlier_boot_still_holds() {
        let mark = Mark {
            boot_id: FIRST,
            at: boot(5000),
            time: at("2026-11-22T12:00:00Z"),
        };
        let clock = HostClock::new(SECOND, boot(20), Some(mark));
        assert_eq!(clock.earliest(boot(30)), Some(at("2026-11-22T12:00:29.999Z")));
        assert_eq!(clock.latest(boot(30)), None);
        // The clock of a container goes on from one boot to the next.
        let clock = HostClock::new(SECOND, boot(5020), Some(mark));
        assert_eq!(clock.earliest(boot(5030)), Some(at("2026-11-22T12:00:29.999Z")));
    }
}
