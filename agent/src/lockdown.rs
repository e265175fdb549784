//! `lockdown`: guarded ports shut, still valid grants open; once, at boot, before the network is there.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nightlatch_core::host::HostRules;
use nightlatch_core::ledger::{Boot, Ledger};
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::BootTime;

use crate::break_glass::{Consoled, Folders};
use crate::clock::{Clock, NoClock, SystemClock};
use crate::enforcer::{Gate, Table};
use crate::firewall::{Firewall, FirewallError, Maker};
use crate::identity::{Enrollment, NoIdentity};
use crate::inspection::Inspection;
use crate::ledger_file::LedgerFile;
use crate::meanwhile::{self, AT_ONCE, ATTEMPTS};
use crate::startup::{self, Recalled};
use crate::state::{StateDir, StateError, StateLock};

/// How long the disk has in all. Less than the units give, so that what was done can still be said.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `lockdown` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockedDown {
    /// The table holds this many guarded ports and openings.
    Applied { guarded: usize, openings: usize },
    /// Neither file nor policy guards anything, so there is no table.
    NothingGuarded,
    /// The table guards nothing, and nobody knows whether it should.
    LeftAlone,
    /// The agent runs and holds the ruleset already.
    AgentRuns,
}

/// Why the table may not be what it should.
#[derive(Debug, thiserror::Error)]
pub enum NotLockedDown {
    #[error(transparent)]
    Clock(#[from] NoClock),
    #[error(transparent)]
    State(StateError),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error("what the host's own file and the table guard is shut; what the policy guards is not known")]
    PolicyUnknown(#[source] NoIdentity),
    #[error(
        "the disk does not answer: what could be read of what is guarded is shut, nothing was opened, and what is open \
         ends on time"
    )]
    DiskHangs,
}

/// `rules` are those that hold without the host's own file if that can't be read: then there is no ceiling and no
/// exception but what root has opened on the console, and what policy and table guard is shut.
///
/// # Errors
/// The table could not be made, or was made without knowing the policy.
pub fn lockdown(
    rules: &HostRules,
    has_file: bool,
    state: &StateDir,
    folders: &Folders,
) -> Result<LockedDown, NotLockedDown> {
    let clock = SystemClock::new()?;
    let answers = Answers::of(state.clone(), has_file.then(|| rules.clone()), &clock, PATIENCE);
    let mut firewall = Firewall::open()?;
    let mut gate = Consoled::new(&mut firewall, folders, rules.break_glass, &clock);
    shut_by(answers, rules, has_file, &mut gate, &clock)
}

fn shut_by(
    mut answers: Answers,
    rules: &HostRules,
    has_file: bool,
    gate: &mut impl Table,
    clock: &impl Clock,
) -> Result<LockedDown, NotLockedDown> {
    let mut answer = answers.next(rules, gate, clock)?;
    if matches!(answer, Answer::InUse) {
        if let Some(done) = make_missing(&answers, rules, gate, clock)? {
            return Ok(done);
        }
        answer = answers.settled(clock)?;
    }
    let Answer::Free(_lock) = answer else {
        return without_ledger(answer, rules, gate, clock);
    };
    let answer = answers.next(rules, gate, clock)?;
    let Answer::Guards(ledger) = answer else {
        return without_ledger(answer, rules, gate, clock);
    };
    if !has_file {
        return keep(rules, Some(&ledger), gate, clock);
    }
    // Shut first: what may be open takes longer, for the disk is written to.
    let guarded = gate.guarded()?.unwrap_or_default();
    if !ledger.ruleset(rules, clock.now()).guarded().is_subset(&guarded) {
        meanwhile::hold(rules, Some(&ledger), gate, clock)?;
    }
    let Answer::All(recalled) = answers.next(rules, gate, clock)? else {
        return Err(NotLockedDown::DiskHangs);
    };
    if recalled.is_bare {
        return keep(rules, Some(&recalled.ledger), gate, clock);
    }
    let wanted = recalled.ledger.ruleset(rules, clock.now());
    gate.rebuild(&wanted, clock.now())?;
    Ok(applied(wanted))
}

/// An agent looks after its table, but one that others have flushed guards nothing until it does.
fn make_missing(
    answers: &Answers,
    rules: &HostRules,
    gate: &mut impl Table,
    clock: &impl Clock,
) -> Result<Option<LockedDown>, NotLockedDown> {
    let alone = rules.ruleset_alone();
    let mut is_ours = answers.has_made;
    let mut wanted = answers.wanted(AT_ONCE);
    if wanted.is_none() {
        is_ours |= gate.create(&alone, clock.now())?;
        wanted = answers.wanted(answers.until.since(clock.now()));
    }
    let Some(wanted) = wanted else {
        meanwhile::hold(rules, None, gate, clock)?;
        return Err(NotLockedDown::DiskHangs);
    };
    if is_ours {
        return make_whole(wanted, &alone, gate, clock).map(Some);
    }
    let is_made = gate.create(&wanted, clock.now())?;
    Ok(is_made.then(|| applied(wanted)))
}

/// Puts all in the place of what was made without the disk, unless the agent has done so.
fn make_whole(
    wanted: Ruleset,
    alone: &Ruleset,
    gate: &mut impl Table,
    clock: &impl Clock,
) -> Result<LockedDown, NotLockedDown> {
    for _ in 0..ATTEMPTS {
        let standing = gate.standing(clock.now())?;
        let is_ours = standing.maker == Maker::This
            && standing.open.is_empty()
            && standing.guarded.as_ref() == Some(alone.guarded());
        if standing.guarded.is_some() && !is_ours {
            return Ok(LockedDown::AgentRuns);
        }
        if gate.rebuild_over(&standing, &wanted, clock.now())? {
            return Ok(applied(wanted));
        }
    }
    // Others change tables without a pause, and what the agent makes of this one is a few seconds away.
    gate.rebuild(&wanted, clock.now())?;
    Ok(applied(wanted))
}

fn without_ledger(
    answer: Answer,
    rules: &HostRules,
    gate: &mut impl Gate,
    clock: &impl Clock,
) -> Result<LockedDown, NotLockedDown> {
    match answer {
        Answer::NotFree(StateError::InUse(_)) => Ok(LockedDown::AgentRuns),
        Answer::NotFree(StateError::Missing(_)) => keep(rules, None, gate, clock),
        Answer::NotFree(error @ StateError::Io { .. }) => {
            keep(rules, None, gate, clock)?;
            Err(NotLockedDown::State(error))
        }
        Answer::NotJoined { error, has_ledger } => {
            let kept = keep(rules, None, gate, clock)?;
            // A host that never joined has no ledger.
            if matches!(error, NoIdentity::NotEnrolled(_)) && !has_ledger {
                Ok(kept)
            } else {
                Err(NotLockedDown::PolicyUnknown(error))
            }
        }
        Answer::InUse | Answer::Wanted(_) | Answer::Free(_) | Answer::Guards(_) | Answer::All(_) => {
            Err(NotLockedDown::DiskHangs)
        }
    }
}

/// What the disk says, one after the other.
enum Answer {
    /// By an agent, or only for a look. What should hold, as far as a look says, comes next.
    InUse,
    Wanted(Box<Ruleset>),
    Free(Arc<StateLock>),
    NotFree(StateError),
    NotJoined {
        error: NoIdentity,
        has_ledger: bool,
    },
    /// What is guarded; without the host's own file no grant can be judged, and it ends here.
    Guards(Box<Ledger>),
    All(Box<Recalled>),
}

/// The disk is asked by a thread of its own: it may never answer, and shutting doesn't wait for that.
struct Answers {
    found: mpsc::Receiver<Answer>,
    until: BootTime,
    /// What is known without the disk was shut meanwhile.
    is_shut: bool,
    /// That was where no table was.
    has_made: bool,
}

impl Answers {
    fn of(state: StateDir, rules: Option<HostRules>, clock: &impl Clock, patience: Duration) -> Self {
        let (answers, found) = mpsc::channel();
        let boot = clock.boot();
        // A host without a thread left answers nothing, as a disk that hangs.
        drop(thread::Builder::new().spawn(move || ask(&state, rules.as_ref(), boot, &answers)));
        Self {
            found,
            until: boot.now.plus(patience),
            is_shut: false,
            has_made: false,
        }
    }

    /// The next one. If it takes more than a moment, what is known is shut first.
    fn next(
        &mut self,
        rules: &HostRules,
        gate: &mut impl Table,
        clock: &impl Clock,
    ) -> Result<Answer, NotLockedDown> {
        if !self.is_shut {
            if let Ok(answer) = self.found.recv_timeout(AT_ONCE) {
                return Ok(answer);
            }
            self.has_made = meanwhile::hold(rules, None, gate, clock)?;
            self.is_shut = true;
        }
        self.settled(clock)
    }

    /// What should hold beside an agent, as far as a look says.
    fn wanted(&self, patience: Duration) -> Option<Ruleset> {
        match self.found.recv_timeout(patience) {
            Ok(Answer::Wanted(wanted)) => Some(*wanted),
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether the directory is free after all, or an agent really works there.
    fn settled(&self, clock: &impl Clock) -> Result<Answer, NotLockedDown> {
        let answer = self.found.recv_timeout(self.until.since(clock.now()));
        answer.map_err(|_timeout| NotLockedDown::DiskHangs)
    }
}

fn ask(state: &StateDir, rules: Option<&HostRules>, boot: Boot, answers: &mpsc::Sender<Answer>) {
    // Whoever doesn't listen any more has gone on without.
    let say = |answer| drop(answers.send(answer));
    let mut lock = state.lock_at_once();
    if matches!(lock, Err(StateError::InUse(_))) {
        say(Answer::InUse);
        let wanted = Inspection::of(rules.cloned().unwrap_or_default(), state, boot).ruleset();
        say(Answer::Wanted(Box::new(wanted)));
        lock = state.lock();
    }
    let lock = match lock {
        Ok(lock) => Arc::new(lock),
        Err(error) => return say(Answer::NotFree(error)),
    };
    say(Answer::Free(Arc::clone(&lock)));
    let enrollment = match Enrollment::read(state) {
        Ok(enrollment) => enrollment,
        Err(error) => {
            let has_ledger = state.ledger().exists();
            return say(Answer::NotJoined { error, has_ledger });
        }
    };
    let (ledger, _) = startup::bare(&enrollment, LedgerFile::read(&state.ledger()), boot);
    say(Answer::Guards(Box::new(ledger)));
    if let Some(rules) = rules {
        let recalled = startup::recall(state, &enrollment, rules, boot);
        say(Answer::All(Box::new(recalled)));
    }
    drop(lock);
}

/// Shuts what is known, and unguards nothing: not all that the table guards can be accounted for.
fn keep(
    rules: &HostRules,
    ledger: Option<&Ledger>,
    gate: &mut impl Gate,
    clock: &impl Clock,
) -> Result<LockedDown, NotLockedDown> {
    let kept = meanwhile::shut(rules, ledger, gate, clock)?;
    Ok(kept.map_or(LockedDown::LeftAlone, applied))
}

fn applied(wanted: Ruleset) -> LockedDown {
    if wanted.is_empty() {
        return LockedDown::NothingGuarded;
    }
    LockedDown::Applied {
        guarded: wanted.guarded().len(),
        openings: wanted.openings().len(),
    }
}

#[cfg(test)]
mod tests;
