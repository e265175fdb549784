//! How often the table is looked after while somebody else keeps changing it. Time is an argument.

use std::time::Duration;

use nightlatch_core::time::BootTime;

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After which the next change is looked at without a pause.
const CALM: Duration = Duration::from_secs(10);
/// After which the next repair begins another story.
const PEACE: Duration = Duration::from_secs(600);
/// That many repairs are no accident.
const ALARM: u32 = 5;

/// What is remembered of changes by others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fight {
    looked_at: Option<BootTime>,
    pause: Duration,
    repaired_at: Option<BootTime>,
    repairs: u32,
}

/// What is to be said about a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    Repair,
    /// Somebody fights on: said each time their number has doubled.
    Alarm(u32),
    Nothing,
}

impl Fight {
    /// When the table may be looked at because somebody changed it.
    pub(super) fn due_at(&self) -> BootTime {
        self.looked_at.unwrap_or_default().plus(self.pause)
    }

    /// It was, and nothing is known to be wrong any more.
    pub(super) fn looked(&mut self, now: BootTime) {
        let is_calm = self.looked_at.is_none_or(|before| now.since(before) >= CALM);
        self.pause = if is_calm {
            SHORTEST_PAUSE
        } else {
            self.pause.saturating_mul(2).min(LONGEST_PAUSE)
        };
        self.looked_at = Some(now);
    }

    pub(super) fn repaired(&mut self, now: BootTime) -> Telling {
        let is_another = self.repaired_at.is_none_or(|before| now.since(before) >= PEACE);
        self.repaired_at = Some(now);
        self.repairs = if is_another {
            1
        } else {
            self.repairs.saturating_add(1)
        };
        let is_doubled = (self.repairs / ALARM).is_power_of_two() && self.repairs.is_multiple_of(ALARM);
        match self.repairs {
            repairs if repairs < ALARM => Telling::Repair,
            repairs if is_doubled => Telling::Alarm(repairs),
            _ => Telling::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootTime {
        BootTime::new(Duration::from_millis(1_000_000 + millis))
    }

    #[test]
    fn the_first_change_is_looked_at_at_once_and_a_fight_once_a_second() {
        let mut fight = Fight::default();
        assert!(fight.due_at() <= at(0));
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            fight.looked(now);
            pauses.push(fight.due_at().since(now).as_millis());
            now = fight.due_at();
        }
        assert_eq!(
            pauses,
            [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000, 1000]
        );
        // Each pause counts from the look before, so one that comes later isn't held up.
        assert!(fight.due_at() <= now.plus(Duration::from_secs(1)));
        let later = now.plus(Duration::from_secs(11));
        fight.looked(later);
        assert_eq!(fight.due_at().since(later), Duration::from_millis(10));
    }

    #[test]
    fn whoever_changes_it_without_a_pause_costs_about_a_look_a_second() {
        let mut fight = Fight::default();
        let looks = (0..60_000).filter(|milli| {
            let is_due = fight.due_at() <= at(*milli);
            if is_due {
                fight.looked(at(*milli));
            }
            is_due
        });
        assert!((60..=70).contains(&looks.count()));
    }

    #[test]
    fn repairs_are_told_one_by_one_then_alarm_then_more_and_more_rarely() {
        let mut fight = Fight::default();
        let told: Vec<_> = (0..100_u64)
            .map(|second| fight.repaired(at(second * 1000)))
            .enumerate()
            .filter(|(_, telling)| *telling != Telling::Nothing)
            .collect();
        let expected: Vec<_> = (0..4)
            .map(|place| (place, Telling::Repair))
            .chain([5, 10, 20, 40, 80].map(|repairs| (repairs as usize - 1, Telling::Alarm(repairs))))
            .collect();
        assert_eq!(told, expected);
        assert_eq!(
            fight.repaired(at(800_000)),
            Telling::Repair,
            "ten quiet minutes lie between"
        );
    }

    #[test]
    fn a_day_of_fighting_is_told_in_a_few_words() {
        let mut fight = Fight::default();
        let told = (0..86_400_u64)
            .filter(|second| fight.repaired(at(second * 1000)) != Telling::Nothing)
            .count();
        assert!(told <= 20, "{told}");
    }
}
