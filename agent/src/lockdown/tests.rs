//! What stays shut and what stays open, whatever the disk does.

use std::path::PathBuf;

use nightlatch_core::port::{PortKey, Protocol};
use nightlatch_core::ruleset::{End, OpeningKey};

use super::*;
use crate::clock::fake::FakeClock;
use crate::enforcer::fake::FakeTable;
use crate::identity::ENROLLMENT;
use crate::startup::tests::{enrollment, guarding, rules, sample, write_blank_ledger};

/// `None` is a file that can't be read.
fn shut(
    file: Option<&HostRules>,
    state: &StateDir,
    gate: &mut impl Table,
    clock: &impl Clock,
    patience: Duration,
) -> Result<LockedDown, NotLockedDown> {
    let answers = Answers::of(state.clone(), file.cloned(), clock, patience);
    let rules = file.cloned().unwrap_or_default();
    shut_by(answers, &rules, file.is_some(), gate, clock)
}

fn clock() -> FakeClock {
    FakeClock::new("2026-11-22T12:00:00Z".parse().unwrap())
}

#[test]
fn a_missing_state_directory_unguards_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = StateDir::new(folder.path().join("nonexistent"));
    let mut table = FakeTable::guarding(&[22]);
    shut(
        Some(&HostRules::default()),
        &nowhere,
        &mut table,
        &clock(),
        PATIENCE,
    )
    .unwrap();
    assert_eq!(table.ports(), Some(vec![22]));
    shut(
        Some(&guarding("3389/tcp")),
        &nowhere,
        &mut table,
        &clock(),
        PATIENCE,
    )
    .unwrap();
    assert_eq!(table.ports(), Some(vec![22, 3389]));

    let mut none = FakeTable::default();
    let done = shut(
        Some(&HostRules::default()),
        &nowhere,
        &mut none,
        &clock(),
        PATIENCE,
    )
    .unwrap();
    assert_eq!((done, none.ports()), (LockedDown::NothingGuarded, None));
    let mut bare = FakeTable {
        ruleset: Some(Ruleset::default()),
        ..FakeTable::default()
    };
    let done = shut(
        Some(&HostRules::default()),
        &nowhere,
        &mut bare,
        &clock(),
        PATIENCE,
    )
    .unwrap();
    assert_eq!((done, bare.ports()), (LockedDown::LeftAlone, Some(vec![])));
}

#[test]
fn a_lost_enrolment_beside_a_ledger_unguards_nothing_and_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path().to_owned());
    let mut table = FakeTable::guarding(&[22]);
    shut(
        Some(&HostRules::default()),
        &state,
        &mut table,
        &clock(),
        PATIENCE,
    )
    .unwrap();
    write_blank_ledger(&state);
    let error = shut(
        Some(&HostRules::default()),
        &state,
        &mut table,
        &clock(),
        PATIENCE,
    )
    .unwrap_err();
    assert!(matches!(error, NotLockedDown::PolicyUnknown(_)), "{error}");
    assert_eq!(table.ports(), Some(vec![22]));
}

fn opening(source: &str, port: u16) -> OpeningKey {
    let key = PortKey {
        protocol: Protocol::Tcp,
        port,
    };
    let source = source.parse().unwrap();
    OpeningKey { source, key }
}

/// A table that guards port 22, with an opening for the second grant of the sample.
fn standing() -> FakeTable {
    let mut table = FakeTable::guarding(&[22]);
    let end = clock().now().plus(Duration::from_secs(600));
    table
        .ruleset
        .as_mut()
        .unwrap()
        .open(opening("192.0.2.2", 22), End::At(end));
    table
}

fn file() -> HostRules {
    HostRules {
        ceiling: rules().ceiling,
        ..guarding("3389/tcp")
    }
}

/// Where reading ends when somebody writes.
fn slow_enrolment(state: &StateDir) -> PathBuf {
    let path = state.file(ENROLLMENT);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}

/// A disk that answers once a table was made, and whether it was that.
fn slow_disk(state: &StateDir) -> (mpsc::Sender<()>, thread::JoinHandle<bool>) {
    let enrolment = slow_enrolment(state);
    let (watcher, shut_first) = mpsc::channel();
    let disk = thread::spawn(move || {
        let is_shut = shut_first.recv_timeout(Duration::from_secs(10)).is_ok();
        std::fs::write(enrolment, serde_json::to_vec(&enrollment()).unwrap()).unwrap();
        is_shut
    });
    (watcher, disk)
}

#[test]
fn a_disk_that_never_answers_does_not_hold_up_shutting_and_shuts_no_open_grant() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path().to_owned());
    let enrolment = slow_enrolment(&state);
    let mut table = standing();
    let now = clock().now();
    let stands = table.ruleset.as_mut().unwrap();
    let late = End::At(now.plus(Duration::from_secs(48 * 3600)));
    stands.open(opening("192.0.2.3", 22), late);
    // What the file does not allow, or no longer.
    stands.open(opening("192.0.2.4", 3389), late);
    stands.open(opening("192.0.0.0/16", 22), late);
    stands.open(opening("192.0.2.5", 22), End::Never);
    let brief = Duration::from_millis(10);
    let error = shut(Some(&file()), &state, &mut table, &clock(), brief).unwrap_err();
    assert!(matches!(error, NotLockedDown::DiskHangs), "{error}");
    assert_eq!(table.ports(), Some(vec![22, 3389]));
    let after = |seconds| End::At(now.plus(Duration::from_secs(seconds)));
    let held: Vec<_> = table
        .ruleset
        .as_ref()
        .unwrap()
        .openings()
        .sorted()
        .into_iter()
        .collect();
    assert_eq!(
        held,
        [
            (&opening("192.0.2.2", 22), &after(600)),
            (&opening("192.0.2.3", 22), &after(24 * 3600)),
        ]
    );
    // Without the host's own file no grant can be judged.
    shut(None, &state, &mut table, &clock(), brief).unwrap_err();
    assert!(table.ruleset.unwrap().openings().is_empty());
    // Lets the threads go.
    drop(std::fs::OpenOptions::new().write(true).open(enrolment));
}

#[test]
fn a_slow_disk_holds_up_no_guard_and_shuts_no_open_grant() {
    let sample = sample();
    let state = &sample.state;
    let (watcher, disk) = slow_disk(state);
    let mut table = FakeTable {
        watcher: Some(watcher),
        ..standing()
    };
    let done = shut(Some(&file()), state, &mut table, &clock(), PATIENCE).unwrap();
    assert!(disk.join().unwrap(), "nothing was shut before the disk answered");
    let expected = LockedDown::Applied {
        guarded: 2,
        openings: 2,
    };
    assert_eq!(done, expected);
    let granted = opening("192.0.2.2", 22);
    for past in &table.past {
        assert_eq!(past.guarded().len(), 2);
        assert!(past.allows(granted.source.address(), granted.key, clock().now()));
    }
}

#[test]
fn lockdown_gives_up_before_the_units_do() {
    for unit in [
        include_str!("../../../systemd/nightlatch-lockdown.service"),
        include_str!("../../../systemd/nightlatch-follow.service"),
        include_str!("../../../systemd/nightlatch-relock.service"),
    ] {
        let timeout = unit
            .lines()
            .find_map(|line| line.strip_prefix("TimeoutSt")?.split_once('='))
            .unwrap();
        let timeout: u64 = timeout.1.strip_suffix('s').unwrap().parse().unwrap();
        assert!(
            Duration::from_secs(timeout) >= PATIENCE + Duration::from_secs(5),
            "{unit}"
        );
    }
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
    let done = shut(Some(&guarding("80/tcp")), state, &mut table, &clock(), PATIENCE).unwrap();
    assert_eq!((done, table.ports()), (LockedDown::AgentRuns, Some(vec![3389])));
    let mut flushed = FakeTable::default();
    shut(Some(&guarding("80/tcp")), state, &mut flushed, &clock(), PATIENCE).unwrap();
    assert_eq!(flushed.ports(), Some(vec![22, 80]));
    assert_eq!(std::fs::read(state.ledger()).unwrap(), before);
}

#[test]
fn a_flushed_table_beside_an_agent_is_made_at_once_and_whole_when_the_disk_answers() {
    let sample = sample();
    let state = &sample.state;
    let _agent = state.lock().unwrap();
    let (watcher, disk) = slow_disk(state);
    let mut flushed = FakeTable {
        watcher: Some(watcher),
        ..FakeTable::default()
    };
    let done = shut(Some(&file()), state, &mut flushed, &clock(), PATIENCE).unwrap();
    assert!(disk.join().unwrap(), "nothing was shut before the disk answered");
    let expected = LockedDown::Applied {
        guarded: 2,
        openings: 2,
    };
    assert_eq!((done, flushed.ports()), (expected, Some(vec![22, 3389])));
    assert_eq!(flushed.past.len(), 2);
}

/// What the disk says beside an agent, each after so many milliseconds: that it works there, and what should hold.
fn answers_after(in_use: u64, wanted: u64) -> (Answers, Ruleset) {
    let mut whole = FakeTable::guarding(&[22, 3389]).ruleset.unwrap();
    let end = clock().now().plus(Duration::from_secs(600));
    whole.open(opening("192.0.2.2", 22), End::At(end));
    let (say, found) = mpsc::channel();
    let later = whole.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(in_use));
        say.send(Answer::InUse).unwrap();
        thread::sleep(Duration::from_millis(wanted));
        say.send(Answer::Wanted(Box::new(later))).unwrap();
        // Whoever listens no longer has what it needs.
        say.send(Answer::NotFree(StateError::InUse("/nonexistent".into())))
            .ok();
    });
    let answers = Answers {
        found,
        until: clock().now().plus(PATIENCE),
        is_shut: false,
        has_made: false,
    };
    (answers, whole)
}

#[test]
fn a_flushed_table_beside_an_agent_is_made_whole_whichever_answer_is_slow() {
    for (in_use, wanted) in [(0, 0), (400, 0), (0, 400), (400, 400)] {
        let (answers, whole) = answers_after(in_use, wanted);
        let mut flushed = FakeTable::default();
        let done = shut_by(answers, &file(), true, &mut flushed, &clock()).unwrap();
        assert_eq!(done, applied(whole.clone()), "{in_use} {wanted}");
        assert_eq!(flushed.ruleset, Some(whole), "{in_use} {wanted}");
    }
    // One that stands is the agent's own affair.
    let (answers, _) = answers_after(400, 400);
    let mut table = standing();
    let done = shut_by(answers, &file(), true, &mut table, &clock()).unwrap();
    assert_eq!((done, table.past.len()), (LockedDown::AgentRuns, 1));
    assert_eq!(table.ruleset.unwrap().openings().len(), 1);
}

#[test]
fn what_others_do_to_other_tables_leaves_no_half_table_and_the_agents_own_stands() {
    for busy in [1, ATTEMPTS - 1, ATTEMPTS] {
        let (answers, whole) = answers_after(0, 400);
        let mut flushed = FakeTable {
            interruptions: vec![None; busy].into(),
            ..FakeTable::default()
        };
        let done = shut_by(answers, &file(), true, &mut flushed, &clock()).unwrap();
        assert_eq!(
            (done, &flushed.ruleset),
            (applied(whole.clone()), &Some(whole)),
            "{busy}"
        );
    }
    // The last is what ours looks like without the disk, but made by the agent.
    let agents = standing().ruleset.unwrap();
    for made in [agents, file().ruleset_alone()] {
        let (answers, _) = answers_after(0, 400);
        let mut flushed = FakeTable {
            interruptions: [None, Some(made.clone())].into(),
            ..FakeTable::default()
        };
        let done = shut_by(answers, &file(), true, &mut flushed, &clock()).unwrap();
        assert_eq!((done, flushed.ruleset), (LockedDown::AgentRuns, Some(made)));
    }
}

#[test]
fn what_a_table_from_a_saved_listing_lets_in_is_shut_when_the_disk_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path().to_owned());
    let enrolment = slow_enrolment(&state);
    let mut loaded = FakeTable {
        maker: Maker::Stranger,
        ..standing()
    };
    let brief = Duration::from_millis(10);
    let error = shut(Some(&file()), &state, &mut loaded, &clock(), brief).unwrap_err();
    assert!(matches!(error, NotLockedDown::DiskHangs), "{error}");
    assert_eq!(loaded.ports(), Some(vec![22, 3389]));
    assert!(loaded.ruleset.unwrap().openings().is_empty());
    // Lets the threads go.
    drop(std::fs::OpenOptions::new().write(true).open(enrolment));
}

#[test]
fn without_the_hosts_own_file_the_policys_ports_are_shut_and_the_ledger_stays() {
    let sample = sample();
    let state = &sample.state;
    let json = serde_json::to_vec(&enrollment()).unwrap();
    std::fs::write(state.file(ENROLLMENT), json).unwrap();
    let before = std::fs::read(state.ledger()).unwrap();
    let mut table = FakeTable::default();
    shut(None, state, &mut table, &clock(), PATIENCE).unwrap();
    assert_eq!(table.ports(), Some(vec![22]));
    assert!(table.ruleset.unwrap().openings().is_empty());
    let mut table = FakeTable::guarding(&[3389]);
    shut(None, state, &mut table, &clock(), PATIENCE).unwrap();
    assert_eq!(table.ports(), Some(vec![22, 3389]));
    assert_eq!(std::fs::read(state.ledger()).unwrap(), before);
}

#[test]
fn what_root_opens_while_it_waits_for_the_disk_stays_open() {
    use nightlatch_core::break_glass::{Asked, BreakGlass, Opener};
    use nightlatch_core::id::BreakGlassId;
    use nightlatch_core::signing::SigningKey;

    let root = tempfile::tempdir().unwrap();
    let folders = Folders::under(root.path());
    folders.live.prepare().unwrap();
    let ssh = PortKey {
        protocol: Protocol::Tcp,
        port: 22,
    };
    let asked = Asked {
        ports: vec!["22".parse().unwrap()],
        source: "192.0.2.7".parse().unwrap(),
        length: Duration::from_secs(60),
        reason: crate::break_glass::read_reason("the server burns").unwrap(),
    };
    let (clock, rules) = (clock(), guarding("22/tcp"));
    let at = (clock.boot().id, clock.now(), clock.wall());
    let id = BreakGlassId::new(uuid::Uuid::from_u128(1));
    let ports = [ssh].into();
    let used = BreakGlass::new(id, &asked, &ports, &rules.break_glass, at, Opener::default()).unwrap();
    let key = SigningKey::from_seed(&[5; 32]);

    // Its start has read the rules already: they say nothing of what root opens.
    let mut table = FakeTable::guarding(&[22]);
    folders.live.put(&used, &used.seal(&key), &key.public()).unwrap();
    let nowhere = StateDir::new(root.path().join("nonexistent"));
    let mut gate = Consoled::new(&mut table, &folders, rules.break_glass, &clock);
    shut(Some(&rules), &nowhere, &mut gate, &clock, PATIENCE).unwrap();
    let source = asked.source;
    let opening = OpeningKey { source, key: ssh };
    let open = table.ruleset.unwrap().openings().get(&opening).copied();
    assert_eq!(open, Some(End::At(used.end)));
}
