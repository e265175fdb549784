//! Rounds of questions for the server's time: of several answers the one that took shortest says most.

use std::time::Duration;

use nightlatch_core::time::{BootTime, Timestamp};
use tokio::time::Instant;

use super::ANSWER_PATIENCE;

/// In one round. The first of a stream waits for the server to write the arrival down.
const MOST: u8 = 6;
/// Nothing is taken before the first round of a stream is over, so a slow one has fewer questions.
const BUDGET: Duration = Duration::from_millis(500);
/// So short a round trip needs no second try.
const SHORT: Duration = Duration::from_micros(300);

/// An answer, with the moments between which the server gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) time: Timestamp,
    pub(super) asked_at: BootTime,
    pub(super) heard_at: BootTime,
}

impl Heard {
    const fn round_trip(self) -> Duration {
        self.heard_at.since(self.asked_at)
    }
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// With this number, now.
    Ask(u64),
    /// The round is over, and this was its best answer.
    Known(Heard),
    /// Nobody asked.
    Nothing,
}

/// All questions of one stream; one at a time is on its way.
#[derive(Debug, Default)]
pub(super) struct Questions {
    number: u64,
    round: Option<Round>,
}

#[derive(Debug)]
struct Round {
    begun_at: BootTime,
    asked_at: BootTime,
    answer_by: Instant,
    left: u8,
    best: Option<Heard>,
}

impl Questions {
    /// The number of the first question of a new round; `None` while one is going on.
    pub(super) fn begin(&mut self, now: BootTime) -> Option<u64> {
        if self.round.is_some() {
            return None;
        }
        Some(self.ask(MOST, None, now, now))
    }

    pub(super) fn heard(&mut self, number: u64, time: Timestamp, now: BootTime) -> Then {
        let Some(round) = self.round.take_if(|_| number == self.number) else {
            return Then::Nothing;
        };
        let heard = Heard {
            time,
            asked_at: round.asked_at,
            heard_at: now,
        };
        let best = round
            .best
            .filter(|best| best.round_trip() < heard.round_trip())
            .unwrap_or(heard);
        if round.left == 0 || best.round_trip() <= SHORT || now.since(round.begun_at) >= BUDGET {
            return Then::Known(best);
        }
        Then::Ask(self.ask(round.left, Some(best), round.begun_at, now))
    }

    /// By when the question on its way is to be answered.
    pub(super) fn answer_by(&self) -> Option<Instant> {
        self.round.as_ref().map(|round| round.answer_by)
    }

    fn ask(&mut self, left: u8, best: Option<Heard>, begun_at: BootTime, now: BootTime) -> u64 {
        self.number = self.number.saturating_add(1);
        let begun = Instant::now();
        self.round = Some(Round {
            begun_at,
            asked_at: now,
            answer_by: begun.checked_add(ANSWER_PATIENCE).unwrap_or(begun),
            left: left.saturating_sub(1),
            best,
        });
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> BootTime {
        BootTime::new(Duration::from_micros(micros))
    }

    fn noon() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    #[tokio::test]
    async fn the_shortest_of_a_round_is_kept() {
        let mut questions = Questions::default();
        let mut now = 0;
        assert_eq!(questions.begin(at(now)), Some(1));
        for (number, trip) in [(1, 30_000), (2, 900), (3, 2_000), (4, 800), (5, 4_000)] {
            now += trip;
            assert_eq!(
                questions.heard(number, noon(), at(now)),
                Then::Ask(number + 1),
                "{number}"
            );
            assert_eq!(questions.begin(at(now)), None, "one round at a time");
        }
        let Then::Known(best) = questions.heard(6, noon(), at(now + 5_000)) else {
            panic!("a round has {MOST} questions");
        };
        assert_eq!(best.round_trip(), Duration::from_micros(800));
        assert_eq!(questions.answer_by(), None);
        assert_eq!(questions.begin(at(now)), Some(7));
    }

    #[tokio::test]
    async fn a_slow_stream_has_a_short_round() {
        let mut questions = Questions::default();
        assert_eq!(questions.begin(at(0)), Some(1));
        assert_eq!(questions.heard(1, noon(), at(300_000)), Then::Ask(2));
        assert!(matches!(
            questions.heard(2, noon(), at(600_000)),
            Then::Known(best) if best.heard_at == at(600_000)
        ));
    }

    #[tokio::test]
    async fn a_quick_answer_ends_the_round_and_nobody_else_may_answer() {
        let mut questions = Questions::default();
        assert_eq!(questions.heard(0, noon(), at(5)), Then::Nothing);
        assert_eq!(questions.begin(at(10)), Some(1));
        assert_eq!(questions.heard(2, noon(), at(20)), Then::Nothing);
        assert!(questions.answer_by().is_some(), "the question is still open");
        let best = Heard {
            time: noon(),
            asked_at: at(10),
            heard_at: at(210),
        };
        assert_eq!(questions.heard(1, noon(), at(210)), Then::Known(best));
    }
}
