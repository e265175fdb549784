//! A look from beside the agent: what stands on disk, taken for the boot that the kernel's table is of.

use std::time::Duration;

use nightlatch_core::host::HostRules;
use nightlatch_core::ledger::Boot;
use nightlatch_core::ruleset::Ruleset;

use crate::clock::Clock;
use crate::comparison::Comparison;
use crate::inspection::Inspection;
use crate::state::{StateDir, StateError};

/// After which it is looked again while an agent works: what is in the ledger may be on its way to the kernel.
const PAUSES_MS: [u64; 7] = [10, 30, 60, 100, 200, 500, 900];

/// See the module's documentation.
pub struct Look {
    pub inspection: Inspection,
    /// What should hold.
    pub wanted: Ruleset,
    pub comparison: Comparison,
    pub agent_running: Result<bool, StateError>,
}

impl Look {
    /// While an agent works, trouble counts only if it lasts.
    pub fn settled(rules: &HostRules, state: &StateDir, clock: &impl Clock) -> Self {
        let mut pauses = PAUSES_MS.into_iter();
        loop {
            let was_running = state.is_locked().unwrap_or(false);
            let look = Self::in_right_boot(rules, state, clock.boot());
            let is_running = matches!(look.agent_running, Ok(true));
            let may_pass = !look.is_sound() && (was_running || is_running);
            match pauses.next().filter(|_| may_pass) {
                Some(pause) => std::thread::sleep(Duration::from_millis(pause)),
                None => return look,
            }
        }
    }

    /// In some containers the agent's unit and a root shell see different boot ids. Openings that fit to the moment are
    /// proof that no boot lies between: its clock would have begun anew.
    fn in_right_boot(rules: &HostRules, state: &StateDir, boot: Boot) -> Self {
        let look = Self::of(Inspection::of(rules.clone(), state, boot), state);
        match look.inspection.other_boot() {
            Some(id) if !look.is_sound() => {
                let other = Inspection::of(rules.clone(), state, Boot { id, ..boot });
                Some(Self::of(other, state))
                    .filter(Self::is_sound)
                    .unwrap_or(look)
            }
            _ => look,
        }
    }

    fn of(inspection: Inspection, state: &StateDir) -> Self {
        let wanted = inspection.ruleset();
        let comparison = Comparison::with_kernel(&wanted, inspection.boot.now);
        let agent_running = match state.is_locked() {
            Err(StateError::Missing(_)) => Ok(false),
            answer => answer,
        };
        Self {
            inspection,
            wanted,
            comparison,
            agent_running,
        }
    }

    fn is_sound(&self) -> bool {
        self.inspection.problems.is_empty() && self.agent_running.is_ok() && self.comparison.table.is_right()
    }
}

/// The inspection of a [`Look`]. The kernel is asked only where it matters.
pub fn inspect(rules: &HostRules, state: &StateDir, clock: &impl Clock) -> Inspection {
    let inspection = Inspection::of(rules.clone(), state, clock.boot());
    if inspection.other_boot().is_none() {
        return inspection;
    }
    Look::settled(rules, state, clock).inspection
}
