//! `lockdown`: guarded ports shut, still valid grants open; once, at boot, before the network is there.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nightlatch_core::host::HostRules;
use nightlatch_core::ledger::{Boot, Ledger};
use nightlatch_core::ruleset::Ruleset;

use crate::clock::{Clock, NoClock, SystemClock};
use crate::enforcer::{Gate, Table};
use crate::firewall::{Firewall, FirewallError};
use crate::identity::{Enrollment, NoIdentity};
use crate::inspection::Inspection;
use crate::ledger_file::LedgerFile;
use crate::startup::{self, Recalled};
use crate::state::{StateDir, StateError, StateLock};

/// How long the disk has for each answer.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

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
        "the disk does not answer: what could be read of what is guarded is shut, and nothing was opened"
    )]
    DiskHangs,
}

/// `file` is `None` if the host's own file can't be read: then there is no ceiling and no exception, and what
/// policy and table guard is shut.
///
/// # Errors
/// The table could not be made, or was made without knowing the policy.
pub fn lockdown(file: Option<&HostRules>, state: &StateDir) -> Result<LockedDown, NotLockedDown> {
    let clock = SystemClock::new()?;
    shut(file, state, &mut Firewall::open()?, &clock)
}

fn shut(
    file: Option<&HostRules>,
    state: &StateDir,
    gate: &mut impl Table,
    clock: &impl Clock,
) -> Result<LockedDown, NotLockedDown> {
    let bare = HostRules::default();
    let rules = file.unwrap_or(&bare);
    let answers = Answers::of(state.clone(), file.cloned(), clock.boot());
    let mut answer = answers.next();
    if let Some(Answer::InUse(wanted)) = answer {
        // The agent looks after its table, but one that others have flushed guards nothing until it does.
        if gate.create(&wanted, clock.now())? {
            return Ok(applied(&wanted));
        }
        answer = answers.next();
    }
    let _lock = match answer {
        Some(Answer::Free(lock)) => lock,
        Some(Answer::NotFree(StateError::Missing(_))) => return keep(rules, None, gate, clock),
        Some(Answer::NotFree(StateError::InUse(_))) => return Ok(LockedDown::AgentRuns),
        Some(Answer::NotFree(error @ StateError::Io { .. })) => {
            keep(rules, None, gate, clock)?;
            return Err(NotLockedDown::State(error));
        }
        _ => return give_up(rules, gate, clock),
    };
    let ledger = match answers.next() {
        Some(Answer::Guards(ledger)) => ledger,
        Some(Answer::NotJoined { error, has_ledger }) => {
            let kept = keep(rules, None, gate, clock)?;
            // A host that never joined has no ledger.
            let never_joined = matches!(error, NoIdentity::NotEnrolled(_)) && !has_ledger;
            return if never_joined {
                Ok(kept)
            } else {
                Err(NotLockedDown::PolicyUnknown(error))
            };
        }
        _ => return give_up(rules, gate, clock),
    };
    if file.is_none() {
        return keep(rules, Some(&ledger), gate, clock);
    }
    // Shut first: what may be open takes longer, for the disk is written to.
    let guarded = gate.guarded()?.unwrap_or_default();
    if !ledger.ruleset(rules, clock.now()).guarded().is_subset(&guarded) {
        keep(rules, Some(&ledger), gate, clock)?;
    }
    let Some(Answer::All(recalled)) = answers.next() else {
        return Err(NotLockedDown::DiskHangs);
    };
    if recalled.is_bare {
        return keep(rules, Some(&recalled.ledger), gate, clock);
    }
    apply(gate, &recalled.ledger.ruleset(rules, clock.now()), clock)
}

fn give_up(rules: &HostRules, gate: &mut impl Gate, clock: &impl Clock) -> Result<LockedDown, NotLockedDown> {
    keep(rules, None, gate, clock)?;
    Err(NotLockedDown::DiskHangs)
}

/// What the disk says, one after the other.
enum Answer {
    /// By an agent, or only for a look. What should hold, as far as a look says.
    InUse(Box<Ruleset>),
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
struct Answers(mpsc::Receiver<Answer>);

impl Answers {
    fn of(state: StateDir, rules: Option<HostRules>, boot: Boot) -> Self {
        let (answers, found) = mpsc::channel();
        // A host without a thread left answers nothing, as a disk that hangs.
        drop(thread::Builder::new().spawn(move || ask(&state, rules.as_ref(), boot, &answers)));
        Self(found)
    }

    fn next(&self) -> Option<Answer> {
        self.0.recv_timeout(DISK_PATIENCE).ok()
    }
}

fn ask(state: &StateDir, rules: Option<&HostRules>, boot: Boot, answers: &mpsc::Sender<Answer>) {
    // Whoever doesn't listen any more has gone on without.
    let say = |answer| drop(answers.send(answer));
    let mut lock = state.lock_at_once();
    if matches!(lock, Err(StateError::InUse(_))) {
        let wanted = Inspection::of(rules.cloned().unwrap_or_default(), state, boot).ruleset();
        say(Answer::InUse(Box::new(wanted)));
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
    let ruleset_of = |rules: &HostRules| {
        ledger.map_or_else(
            || rules.ruleset_alone(),
            |ledger| ledger.ruleset(rules, clock.now()),
        )
    };
    let found = gate.guarded()?;
    let is_there = found.is_some();
    let found = found.unwrap_or_default();
    if !found.is_subset(ruleset_of(rules).guarded()) {
        tracing::warn!("the table guards ports that no file accounts for now; they stay guarded");
    }
    let mut rules = rules.clone();
    rules.guarded.extend(startup::spans_of(found));
    let wanted = ruleset_of(&rules);
    if is_there && wanted.is_empty() {
        return Ok(LockedDown::LeftAlone);
    }
    apply(gate, &wanted, clock)
}

fn apply(gate: &mut impl Gate, wanted: &Ruleset, clock: &impl Clock) -> Result<LockedDown, NotLockedDown> {
    gate.rebuild(wanted, clock.now())?;
    Ok(if wanted.is_empty() {
        LockedDown::NothingGuarded
    } else {
        applied(wanted)
    })
}

fn applied(wanted: &Ruleset) -> LockedDown {
    LockedDown::Applied {
        guarded: wanted.guarded().len(),
        openings: wanted.openings().len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::fake::FakeClock;
    use crate::enforcer::fake::FakeTable;
    use crate::identity::ENROLLMENT;
    use crate::startup::tests::{enrollment, sample, write_blank_ledger};

    fn clock() -> FakeClock {
        FakeClock::new("2026-11-22T12:00:00Z".parse().unwrap())
    }

    fn guarding(port: &str) -> HostRules {
        let pattern: nightlatch_core::port::PortPattern = port.parse().unwrap();
        HostRules {
            guarded: pattern.spans().collect(),
            ..HostRules::default()
        }
    }

    #[test]
    fn a_missing_state_directory_unguards_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = StateDir::new(folder.path().join("nonexistent"));
        let mut table = FakeTable::guarding(&[22]);
        shut(Some(&HostRules::default()), &nowhere, &mut table, &clock()).unwrap();
        assert_eq!(table.ports(), Some(vec![22]));
        shut(Some(&guarding("3389/tcp")), &nowhere, &mut table, &clock()).unwrap();
        assert_eq!(table.ports(), Some(vec![22, 3389]));

        let mut none = FakeTable::default();
        let done = shut(Some(&HostRules::default()), &nowhere, &mut none, &clock()).unwrap();
        assert_eq!((done, none.ports()), (LockedDown::NothingGuarded, None));
        let mut bare = FakeTable {
            ruleset: Some(Ruleset::default()),
            ..FakeTable::default()
        };
        let done = shut(Some(&HostRules::default()), &nowhere, &mut bare, &clock()).unwrap();
        assert_eq!((done, bare.ports()), (LockedDown::LeftAlone, Some(vec![])));
    }

    #[test]
    fn a_lost_enrolment_beside_a_ledger_unguards_nothing_and_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        let mut table = FakeTable::guarding(&[22]);
        shut(Some(&HostRules::default()), &state, &mut table, &clock()).unwrap();
        write_blank_ledger(&state);
        let error = shut(Some(&HostRules::default()), &state, &mut table, &clock()).unwrap_err();
        assert!(matches!(error, NotLockedDown::PolicyUnknown(_)), "{error}");
        assert_eq!(table.ports(), Some(vec![22]));
    }

    /// Where reading never ends.
    #[test]
    fn a_disk_that_never_answers_does_not_hold_up_shutting() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        nix::unistd::mkfifo(&state.file(ENROLLMENT), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut table = FakeTable::guarding(&[22]);
        let error = shut(Some(&guarding("3389/tcp")), &state, &mut table, &clock()).unwrap_err();
        assert!(matches!(error, NotLockedDown::DiskHangs), "{error}");
        assert_eq!(table.ports(), Some(vec![22, 3389]));
        // Lets the thread go.
        drop(
            std::fs::OpenOptions::new()
                .write(true)
                .open(state.file(ENROLLMENT)),
        );
    }

    #[test]
    fn beside_a_running_agent_only_a_missing_table_is_made() {
        let sample = sample();
        let state = &sample.state;
        let json = serde_json::to_vec(&enrollment()).unwrap();
        std::fs::write(state.file(ENROLLMENT), json).unwrap();
        let _agent = state.lock().unwrap();
        let before = std::fs::read(state.ledger()).unwrap();
        let mut table = FakeTable::guarding(&[3389]);
        let done = shut(Some(&guarding("80/tcp")), state, &mut table, &clock()).unwrap();
        assert_eq!((done, table.ports()), (LockedDown::AgentRuns, Some(vec![3389])));
        let mut flushed = FakeTable::default();
        shut(Some(&guarding("80/tcp")), state, &mut flushed, &clock()).unwrap();
        assert_eq!(flushed.ports(), Some(vec![22, 80]));
        assert_eq!(std::fs::read(state.ledger()).unwrap(), before);
    }

    #[test]
    fn without_the_hosts_own_file_the_policys_ports_are_shut_and_the_ledger_stays() {
        let sample = sample();
        let state = &sample.state;
        let json = serde_json::to_vec(&enrollment()).unwrap();
        std::fs::write(state.file(ENROLLMENT), json).unwrap();
        let before = std::fs::read(state.ledger()).unwrap();
        let mut table = FakeTable::default();
        shut(None, state, &mut table, &clock()).unwrap();
        assert_eq!(table.ports(), Some(vec![22]));
        assert!(table.ruleset.unwrap().openings().is_empty());
        let mut table = FakeTable::guarding(&[3389]);
        shut(None, state, &mut table, &clock()).unwrap();
        assert_eq!(table.ports(), Some(vec![22, 3389]));
        assert_eq!(std::fs::read(state.ledger()).unwrap(), before);
    }
}
