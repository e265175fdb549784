//! What stands on disk, read without changing anything and without the daemon.

use nightlatch_core::clock::HostClock;
use nightlatch_core::host::HostRules;
use nightlatch_core::ledger::{Boot, Ledger};
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::{BootId, Timestamp};

use crate::causes::causes;
use crate::identity::{Enrollment, NoIdentity};
use crate::ledger_file::LedgerFile;
use crate::startup;
use crate::state::StateDir;

/// See the module's documentation.
pub struct Inspection {
    pub rules: HostRules,
    pub enrollment: Option<Enrollment>,
    pub ledger: Option<Ledger>,
    pub time: HostClock,
    pub boot: Boot,
    /// The boot that the last mark is of.
    pub marked_in: Option<BootId>,
    /// What could not be read or trusted.
    pub problems: Vec<String>,
}

/// Where a moment was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSource {
    /// The server's word, carried on by this boot's clock.
    Server,
    WallClock,
}

impl Inspection {
    pub fn of(rules: HostRules, state: &StateDir, boot: Boot) -> Self {
        let mut inspection = Self {
            rules,
            enrollment: None,
            ledger: None,
            time: HostClock::new(boot.id, boot.now, None),
            boot,
            marked_in: None,
            problems: Vec::new(),
        };
        match Enrollment::read(state) {
            Ok(enrollment) => inspection.read_ledger(state, enrollment),
            Err(NoIdentity::NotEnrolled(_)) => {}
            Err(error) => inspection.problems.push(causes(&error).to_string()),
        }
        inspection
    }

    fn read_ledger(&mut self, state: &StateDir, enrollment: Enrollment) {
        let found = LedgerFile::read(&state.ledger());
        if let Some(damage) = &found.damage {
            self.problems.push(format!(
                "the ledger {} can't be trusted: {}",
                state.ledger().display(),
                damage.why
            ));
            (self.ledger, self.time) = {
                let (ledger, time) = startup::bare(&enrollment, found, self.boot);
                (Some(ledger), time)
            };
        } else {
            let replayed = Ledger::replay(
                enrollment.machine_id,
                enrollment.root_key.clone(),
                found.records,
                self.rules.ceiling.as_ref(),
                self.boot,
            );
            let left_out = replayed
                .left_out
                .iter()
                .map(|left_out| format!("in the ledger: {left_out}"));
            self.problems.extend(left_out);
            self.marked_in = replayed.mark.map(|mark| mark.boot_id);
            self.time = HostClock::new(self.boot.id, self.boot.now, replayed.mark);
            self.ledger = Some(replayed.ledger);
        }
        self.enrollment = Some(enrollment);
    }

    /// The boot that the last mark is of, if it isn't the one that this was taken for.
    pub fn other_boot(&self) -> Option<BootId> {
        self.marked_in.filter(|id| *id != self.boot.id)
    }

    /// What should hold now.
    pub fn ruleset(&self) -> Ruleset {
        self.ledger.as_ref().map_or_else(
            || self.rules.ruleset_alone(),
            |ledger| ledger.ruleset(&self.rules, self.boot.now),
        )
    }

    /// The server's word if it was heard in this boot, else the wall clock where that isn't plainly behind.
    pub fn time(&self) -> (Timestamp, TimeSource) {
        let was_heard = self.marked_in == Some(self.boot.id);
        match self.time.earliest(self.boot.now) {
            Some(earliest) if was_heard || earliest >= self.boot.wall => (earliest, TimeSource::Server),
            Some(_) | None => (self.boot.wall, TimeSource::WallClock),
        }
    }
}
