//! When the kernel's word that nobody changed anything is enough, and when the whole table is looked at.

use std::time::Duration;

use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::BootTime;

use super::drift::{ElementFault, ForeignElement};
use super::{Beside, Drift, Firewall, FirewallError, Known, Table, TableState, reading, tampering};

/// The whole table is looked at this often, whatever the kernel says.
const THOROUGH_INTERVAL: Duration = Duration::from_secs(60);
/// After a longer pause the host may have slept, and the kernel's timeouts with it.
const LONGEST_PAUSE: Duration = Duration::from_secs(6);

/// A table that was found as it should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Of the whole ruleset of the network namespace. Own changes carry it on.
    generation: u32,
    thoroughly_at: BootTime,
    at: BootTime,
    /// Another's transaction has its number a moment before it takes effect, so once is not enough.
    is_confirmed: bool,
}

impl Found {
    /// The table was listed after the generation was asked for, and was as it should be.
    pub(super) fn thoroughly(before: Option<Self>, generation: u32, now: BootTime) -> Self {
        Self {
            generation,
            thoroughly_at: now,
            at: now,
            is_confirmed: before.is_some_and(|before| before.generation == generation),
        }
    }

    /// The same a little later, if the generation shows that nothing has changed; else the table must be listed.
    pub(super) fn still(self, generation: u32, now: BootTime) -> Option<Self> {
        let is_still = self.is_confirmed
            && self.generation == generation
            && now.since(self.at) < LONGEST_PAUSE
            && now.since(self.thoroughly_at) < THOROUGH_INTERVAL;
        is_still.then_some(Self { at: now, ..self })
    }

    /// After a transaction of our own, if none of others came in between.
    pub(super) fn changed_by_us(self, generation: u32) -> Option<Self> {
        (self.generation.wrapping_add(1) == generation).then_some(Self { generation, ..self })
    }
}

impl Firewall {
    /// As [`Self::drift`], at next to no cost if the kernel says that nobody changed anything since there was none.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn drift_since(&mut self, now: BootTime) -> Result<Option<Drift>, FirewallError> {
        let generation = self.netlink.generation()?;
        let before = self.found.take();
        self.found = before
            .zip(generation)
            .and_then(|(found, generation)| found.still(generation, now));
        if self.found.is_some() {
            return Ok(None);
        }
        let drift = self.drift(now)?;
        let found = |generation| Found::thoroughly(before, generation, now);
        self.found = generation.filter(|_| drift.is_none()).map(found);
        Ok(drift)
    }

    /// In what the kernel's table is not what was applied last, apart from openings that ended by themselves.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn drift(&mut self, now: BootTime) -> Result<Option<Drift>, FirewallError> {
        match &self.known {
            Known::Nothing => Ok(Some(Drift::Unknown)),
            Known::NoTable => Ok(reading::exists(&mut self.netlink)?.then_some(Drift::NeedlessTable)),
            Known::Table {
                ruleset,
                lengths,
                early,
            } => {
                let table = Table::with_lengths(ruleset, lengths);
                if let Some(drift) = reading::frame_drift(&mut self.netlink, &table)? {
                    return Ok(Some(drift));
                }
                for set in table.sets.iter().filter(|set| !set.name.is_learning()) {
                    let (found, has_strange) = reading::all_elements(&mut self.netlink, set.name)?;
                    let drift = if has_strange {
                        let what = ElementFault::Added;
                        Some(Drift::Element(ForeignElement { set: set.name, what }))
                    } else {
                        tampering::drift(ruleset, set, found, *early, now)
                    };
                    if drift.is_some() {
                        return Ok(drift);
                    }
                }
                Ok(None)
            }
        }
    }

    /// Whether there is no [`Self::drift`].
    ///
    /// # Errors
    /// The table could not be read.
    pub fn is_in_place(&mut self, now: BootTime) -> Result<bool, FirewallError> {
        Ok(self.drift(now)?.is_none())
    }

    /// Whether there is no [`Self::drift_since`].
    ///
    /// # Errors
    /// The table could not be read.
    pub fn is_still_in_place(&mut self, now: BootTime) -> Result<bool, FirewallError> {
        Ok(self.drift_since(now)?.is_none())
    }

    /// What the kernel holds now, whoever wrote it, beside the flags, sets, chains and rules of `wanted`; `None` if there
    /// is no table of ours.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn read_beside(&mut self, wanted: &Ruleset) -> Result<Option<Beside>, FirewallError> {
        reading::at_one_moment(&mut self.netlink, |netlink| {
            let Some(found) = reading::state(netlink)? else {
                return Ok(None);
            };
            // A length that is no longer in use may keep its set.
            let lengths = reading::prefix_lengths(netlink)?;
            let table = Table::with_lengths(wanted, &lengths);
            let foreign_part = reading::frame_drift(netlink, &table)?.map(Drift::part);
            Ok(Some(Beside { found, foreign_part }))
        })
    }

    /// What the kernel holds now, whoever wrote it; `None` if there is no table of ours.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn read(&mut self) -> Result<Option<TableState>, FirewallError> {
        reading::at_one_moment(&mut self.netlink, reading::state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> BootTime {
        BootTime::new(Duration::from_secs(second))
    }

    #[test]
    fn the_generation_is_enough_only_for_what_was_found_twice_and_not_long_ago() {
        let once = Found::thoroughly(None, 7, second(0));
        assert!(once.still(7, second(5)).is_none());
        let twice = Found::thoroughly(Some(once), 7, second(5));
        assert!(twice.still(8, second(10)).is_none(), "somebody changed something");
        assert!(twice.still(7, second(12)).is_none(), "the host may have slept");
        let mut found = twice;
        for moment in (10..65).step_by(5) {
            found = found.still(7, second(moment)).unwrap();
        }
        assert!(
            found.still(7, second(65)).is_none(),
            "it was not listed for a minute"
        );
    }

    #[test]
    fn own_changes_carry_it_on_unless_others_changed_something_too() {
        let once = Found::thoroughly(None, 7, second(0));
        let twice = Found::thoroughly(Some(once), 7, second(5));
        let changed = twice.changed_by_us(8).unwrap();
        assert!(changed.still(8, second(10)).is_some());
        assert!(twice.changed_by_us(9).is_none() && twice.changed_by_us(7).is_none());
    }
}
