//! A disk that fails, and one that never answers: closing waits for neither, opening for both.

use nightlatch_core::policy::Policy;

use super::*;
use crate::world::{policy, policy_envelope};

fn replies(rest: &[ToServer]) -> Vec<Taken> {
    let replies = rest.iter().filter_map(|word| match word {
        ToServer::Reply { taken, .. } => Some(*taken),
        _ => None,
    });
    replies.collect()
}

/// The ledger that a restart finds.
fn replayed(world: &World) -> Ledger {
    let records = world.records.borrow().clone();
    let ceiling = rules().ceiling;
    let boot = world.clock.boot();
    Ledger::replay(MACHINE, root().public(), records, ceiling.as_ref(), boot).ledger
}

/// The grants that a restart finds.
fn read_back(world: &World) -> Vec<u128> {
    replayed(world)
        .held(world.clock.boot().now)
        .map(|held| held.grant.id.uuid().as_u128())
        .collect()
}

#[test]
fn without_a_record_nothing_opens_and_closings_hold() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 600)]);
    world.answers();
    world.faults.borrow_mut().disk = true;
    world.assign(&[grant(2, "192.0.2.8", 600)]);
    assert!(!world.lets_in(ALICE) && !world.lets_in("192.0.2.8"));
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, [], "nobody is told of what a crash would bring back");
    assert!(matches!(
        rest.as_slice(),
        [ToServer::Report(Report {
            code: "LEDGER_NOT_WRITTEN",
            ..
        })]
    ));

    // It is written from memory after a while, and what was closed doesn't come back with a restart.
    world.faults.borrow_mut().disk = false;
    world.after(4);
    assert!(!world.lets_in("192.0.2.8"));
    world.after(1);
    assert!(world.lets_in("192.0.2.8"));
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, [closed("REMOVED"), opened()]);
    assert_eq!(replies(&rest), [Taken::Accepted], "the stream was not given up");
    assert_eq!(read_back(&world), [2]);
}

#[test]
fn while_the_disk_hangs_a_revoke_closes_and_nothing_opens_or_is_acknowledged() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 600)]);
    world.answers();
    world.faults.borrow_mut().hangs = true;
    world.assign(&[]);
    assert!(!world.lets_in(ALICE));
    world.assign(&[grant(2, "192.0.2.8", 600)]);
    world.assign(&[grant(2, "192.0.2.8", 600), grant(3, "192.0.2.9", 600)]);
    assert!(!world.lets_in("192.0.2.8") && !world.lets_in("192.0.2.9"));
    // One that is revoked before the disk ever had it.
    world.assign(&[grant(3, "192.0.2.9", 600)]);
    assert_eq!(world.answers(), (vec![], vec![]));
    assert_eq!(read_back(&world), [1]);

    world.after(6);
    world.look();
    assert_eq!(codes(&mut world), ["DISK_HANGS"]);
    // A new stream is told nothing of what isn't on disk.
    world.connect();
    let hello = world.said();
    assert!(
        matches!(hello.first(), Some(ToServer::Hello(state)) if state.generation == Generation(0)),
        "{hello:?}"
    );
    world.tell_time();
    world.assign(&[grant(3, "192.0.2.9", 600)]);

    world.faults.borrow_mut().hangs = false;
    world.let_write();
    assert!(!world.lets_in(ALICE) && !world.lets_in("192.0.2.8") && world.lets_in("192.0.2.9"));
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, [closed("REMOVED"), opened()]);
    assert_eq!(replies(&rest), [Taken::Accepted]);
    assert_eq!(read_back(&world), [3]);
}

#[test]
fn a_hanging_disk_holds_up_no_end() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.faults.borrow_mut().hangs = true;
    world.assign(&[grant(1, ALICE, 60), grant(2, "192.0.2.8", 60)]);
    world.after(60);
    assert!(!world.lets_in(ALICE));
    world.faults.borrow_mut().hangs = false;
    world.let_write();
    assert!(!world.lets_in("192.0.2.8"), "its time has passed");
}

#[test]
fn what_comes_while_the_disk_hangs_has_a_bound() {
    let mut world = World::connected();
    world.faults.borrow_mut().hangs = true;
    for id in 1..200 {
        let many: Vec<IssuedGrant> = (id..id + 10).map(|id| grant(id, ALICE, 600)).collect();
        world.assign(&many);
    }
    world.faults.borrow_mut().hangs = false;
    world.let_write();
    assert!(world.records.borrow().len() < 10, "it was written anew");
    assert_eq!(read_back(&world), (199..209).collect::<Vec<_>>());
    assert!(world.lets_in(ALICE));
}

#[test]
fn a_policy_that_guards_less_waits_for_its_record() {
    let mut world = World::connected();
    let other = PortKey {
        protocol: Protocol::Tcp,
        port: 3389,
    };
    let with = |world: &mut World, number, policy: Option<&Policy>| {
        let mut whole = world.whole(&[]);
        whole.policy = Some(policy_envelope(number, policy));
        world.hear(FromServer::Assignment(whole));
    };
    let guards = |world: &World| world.table.borrow().guarded().contains(&other);
    world.faults.borrow_mut().hangs = true;
    with(&mut world, 2, Some(&policy()));
    assert!(guards(&world), "shut at once");
    with(&mut world, 3, None);
    assert!(guards(&world));
    world.faults.borrow_mut().hangs = false;
    world.let_write();
    assert!(!guards(&world));
}

#[test]
fn a_failure_that_lasts_is_told_once_per_connection_and_each_repair_by_itself() {
    let mut world = World::connected();
    world.faults.borrow_mut().disk = true;
    for id in 1..4 {
        world.assign(&[grant(id, ALICE, 60)]);
        world.after(6);
    }
    assert_eq!(codes(&mut world), ["LEDGER_NOT_WRITTEN"]);
    world.faults.borrow_mut().disk = false;
    world.after(6);
    world.faults.borrow_mut().disk = true;
    world.assign(&[grant(5, ALICE, 60)]);
    assert_eq!(codes(&mut world), ["LEDGER_NOT_WRITTEN"]);
    for _ in 0..2 {
        *world.table.borrow_mut() = Ruleset::default();
        world.look();
        assert_eq!(codes(&mut world), ["TABLE_REPAIRED"]);
    }
}

#[tokio::test]
async fn what_is_still_to_be_written_is_written_before_the_end() {
    let mut world = World::connected();
    let whole = world.whole(&[grant(1, ALICE, 60)]);
    world.enforcer.hear(FromServer::Assignment(whole));
    let World { enforcer, disk, .. } = world;
    assert!(disk.records.borrow().is_empty());
    let (_to_enforcer, from_server) = mpsc::channel(1);
    enforcer
        .run(from_server, Told::default(), FakeClock::new(at(0)), async {})
        .await
        .unwrap();
    assert!(!disk.records.borrow().is_empty());
    assert!(!disk.entries.borrow().is_empty(), "its receipt too");
}

#[tokio::test]
async fn a_disk_that_never_answers_does_not_hold_up_the_end() {
    let mut world = World::connected();
    world.faults.borrow_mut().hangs = true;
    world.assign(&[grant(1, ALICE, 60)]);
    let (_to_enforcer, from_server) = mpsc::channel(1);
    let begun = tokio::time::Instant::now();
    world
        .enforcer
        .run(from_server, Told::default(), FakeClock::new(at(0)), async {})
        .await
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn an_agent_whose_writer_fell_over_ends_with_an_error() {
    let world = World::connected();
    world.faults.borrow_mut().gone = true;
    let (_to_enforcer, from_server) = mpsc::channel(1);
    let run = world.enforcer.run(
        from_server,
        Told::default(),
        FakeClock::new(at(0)),
        std::future::pending(),
    );
    let ended = tokio::time::timeout(Duration::from_secs(10), run).await;
    assert_eq!(ended.unwrap(), Err(WriterEnded));
}

#[test]
fn receipts_that_cannot_be_written_are_reported() {
    let mut world = World::connected();
    let whole = world.whole(&[grant(1, ALICE, 600)]);
    world.enforcer.hear(FromServer::Assignment(whole));
    let written = world.disk.step().unwrap();
    world.enforcer.written(written);
    world.faults.borrow_mut().disk = true;
    world.let_write();
    assert_eq!(codes(&mut world), ["RECEIPTS_NOT_WRITTEN"]);
}

#[test]
fn the_whole_counts_although_many_changes_came_before_its_record() {
    let mut world = World::connected();
    world.enforcer.needs_whole = true;
    world.faults.borrow_mut().hangs = true;
    world.assign(&[]);
    for _ in 0..2 * MOST_WAITING {
        let base = Generation(world.generation);
        let next = world.whole(&[]);
        world.hear(FromServer::Assignment(Assignment {
            base: Some(base),
            ..next
        }));
    }
    assert_eq!(world.enforcer.unanswered.len(), MOST_WAITING);
    world.faults.borrow_mut().hangs = false;
    world.let_write();
    assert!(!world.enforcer.needs_whole);
}

#[test]
fn a_closing_without_a_receipt_on_disk_is_owed_after_a_crash() {
    let untold = |world: &World| {
        replayed(world)
            .untold()
            .map(|(id, why)| (id.uuid().as_u128(), why))
            .collect::<Vec<_>>()
    };
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 600)]);
    for is_snapshot in [false, true] {
        if is_snapshot {
            world.enforcer.ledger_lane.lag();
        }
        let whole = world.whole(&[]);
        world.enforcer.hear(FromServer::Assignment(whole));
        let written = world.disk.step().unwrap();
        world.enforcer.written(written);
        if let Some(Written::Ledger(outcome)) = world
            .disk
            .ledger_job
            .borrow_mut()
            .take()
            .map(|job| Written::Ledger(world.disk.carry_out(&world.records, job, "ledger")))
        {
            world.enforcer.ledger_lane.answered(&outcome, world.clock.now());
        }
        assert_eq!(untold(&world), [(1, Closing::Removed)]);
    }
    world.let_write();
    world.after(1);
    assert_eq!(untold(&world), [], "its receipt is on disk");
}

#[test]
fn a_receipt_of_an_opening_waits_for_no_second_flush_and_its_number_is_on_disk_with_the_grant() {
    let mut world = World::connected();
    world.assign(&[]);
    world.answers();
    let whole = world.whole(&[grant(1, ALICE, 600)]);
    world.enforcer.hear(FromServer::Assignment(whole));
    let written = world.disk.step().unwrap();
    world.enforcer.written(written);
    let job = world.disk.receipts_job.borrow().clone().unwrap();
    assert!(
        matches!(job.write, Write::Append { durably: false, .. }),
        "{job:?}"
    );
    let numbers = |world: &World| {
        let numbers = replayed(world).numbers();
        numbers.map(|numbers| (numbers.upto, numbers.boot_id))
    };
    assert_eq!(numbers(&world), Some((job.upto, world.clock.boot_id)));
    world.let_write();
    assert_eq!(world.answers().0, [opened()]);

    // That it was made is noted when it is on disk: the power may be cut before.
    let is_noted = |world: &World| {
        let records = world.records.borrow();
        records
            .iter()
            .any(|record| matches!(record, Record::Reported { opened, .. } if !opened.is_empty()))
    };
    assert!(!is_noted(&world));
    world.after(1);
    assert!(is_noted(&world));
    assert_eq!(numbers(&world), Some((job.upto, world.clock.boot_id)));
}

#[test]
fn a_ledger_written_anew_says_of_no_receipt_that_it_was_made_before_that_is_on_disk() {
    let mut world = World::connected();
    world.assign(&[]);
    world.answers();
    let whole = world.whole(&[grant(1, ALICE, 600)]);
    world.enforcer.hear(FromServer::Assignment(whole));
    world.enforcer.ledger_lane.lag();
    let written = world.disk.step().unwrap();
    world.enforcer.written(written);
    assert!(world.lets_in(ALICE));
    // The ledger is there, anew; killed now, the receipt is nowhere.
    let written = world.disk.step().unwrap();
    let unreported = |world: &World| {
        let mut ledger = replayed(world);
        ledger.recorded(ledger.number());
        ledger.unreported(world.clock.boot().now).opened.len()
    };
    assert_eq!(unreported(&world), 1);
    world.enforcer.written(written);
    world.let_write();
    world.after(1);
    world.after(1);
    assert_eq!(unreported(&world), 0, "its receipt is on disk");
}

#[test]
fn a_refusal_without_a_receipt_on_disk_is_owed_after_a_crash_and_then_no_more() {
    let owed = |world: &World| {
        replayed(world)
            .untold_refusals()
            .map(|(id, _)| id.uuid().as_u128())
            .collect::<Vec<_>>()
    };
    let mut world = World::connected();
    let odd = grant(1, "10.0.0.0/8", 600);
    let whole = world.whole(std::slice::from_ref(&odd));
    world.enforcer.hear(FromServer::Assignment(whole));
    let written = world.disk.step().unwrap();
    assert_eq!(owed(&world), [1]);
    world.enforcer.written(written);
    world.let_write();
    world.after(1);
    assert_eq!(owed(&world), [], "its receipt is on disk");

    // Named once more with the whole, and in a ledger written anew, it has been told.
    world.assign(std::slice::from_ref(&odd));
    assert_eq!(owed(&world), []);
    world.enforcer.ledger_lane.lag();
    world.assign(&[odd, grant(2, ALICE, 600)]);
    world.after(1);
    assert_eq!(owed(&world), []);
}

#[test]
fn the_number_that_was_given_never_falls() {
    let mut world = World::connected();
    world.assign(&[]);
    world.answers();
    world.enforcer.given = 40;
    world.assign(&[grant(1, ALICE, 600)]);
    let numbers = replayed(&world).numbers();
    assert!(numbers.is_some_and(|numbers| numbers.upto > 40));
    assert!(world.enforcer.given > 40);
}

#[test]
fn what_had_ended_is_owed_as_expired_after_a_crash() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60), grant(2, "192.0.2.8", 600)]);
    world.answers();
    world.clock.advance(Duration::from_secs(60));
    let whole = world.whole(&[]);
    world.enforcer.hear(FromServer::Assignment(whole));
    let written = world.disk.step().unwrap();
    world.enforcer.written(written);
    let records = world.records.borrow().clone();
    for is_snapshot in [false, true] {
        let boot = world.clock.boot();
        let mut ledger = Ledger::replay(MACHINE, root().public(), records.clone(), None, boot).ledger;
        if is_snapshot {
            let mark = world.enforcer.time.mark(boot.now).unwrap();
            ledger = Ledger::replay(MACHINE, root().public(), ledger.snapshot(mark), None, boot).ledger;
        }
        let owed: Vec<_> = ledger
            .untold()
            .map(|(id, why)| (id.uuid().as_u128(), why))
            .collect();
        assert_eq!(
            owed,
            [(1, Closing::Expired), (2, Closing::Removed)],
            "{is_snapshot}"
        );
    }
}
