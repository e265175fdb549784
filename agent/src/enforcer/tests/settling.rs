//! When the server may take what no receipt speaks of for never opened, and that each end has its opening.

use super::*;

#[test]
fn a_generation_is_settled_when_all_that_there_is_to_say_of_it_is_stored() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 600)]);
    assert!(world.settled().is_empty());
    world.hear(FromServer::ReceiptsStored(1));
    assert_eq!(world.settled(), [world.generation]);

    world.assign(&[]);
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, [closed("REMOVED")]);
    assert!(accepted(&rest));
    // The stream breaks before the server has stored that.
    world.connect();
    assert!(world.settled().is_empty());
    world.tell_time();
    assert!(world.settled().is_empty());
    world.hear(FromServer::ReceiptsStored(2));
    assert_eq!(world.settled(), [world.generation]);
    world.connect();
    assert_eq!(world.settled(), [world.generation], "to whoever is new");
}

#[test]
fn receipts_that_can_not_be_written_hold_up_no_answer_and_nothing_is_settled() {
    let mut world = World::connected();
    let whole = world.whole(&[grant(1, ALICE, 600)]);
    world.enforcer.hear(FromServer::Assignment(whole));
    let written = world.disk.step().unwrap();
    world.enforcer.written(written);
    let receipts = world.disk.receipts_job.borrow_mut().take();
    for _ in 0..2 {
        let whole = world.whole(&[]);
        world.enforcer.hear(FromServer::Assignment(whole));
        world.let_write();
    }
    let said = world.said();
    let answers = said.iter().filter(|word| matches!(word, ToServer::Reply { .. }));
    assert_eq!(answers.count(), 3);
    assert!(!said.iter().any(|word| matches!(word, ToServer::Settled(_))));
    *world.disk.receipts_job.borrow_mut() = receipts;
    world.let_write();
    assert_eq!(world.answers().0, [opened(), closed("REMOVED")]);
    world.hear(FromServer::ReceiptsStored(2));
    assert_eq!(world.settled().last(), Some(&world.generation));
}

#[test]
fn while_the_firewall_fails_an_end_is_not_settled() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 600)]);
    world.hear(FromServer::ReceiptsStored(1));
    world.said();
    world.faults.borrow_mut().gate = true;
    world.assign(&[]);
    assert!(world.settled().is_empty());
    world.faults.borrow_mut().gate = false;
    world.after(1);
    assert_eq!(world.answers().0, [closed("REMOVED")]);
    world.hear(FromServer::ReceiptsStored(2));
    assert_eq!(world.settled(), [world.generation]);
}

/// Only the record of the grant is left of its opening.
fn opened_and_crashed() -> World {
    let mut world = World::connected();
    let whole = world.whole(&[grant(1, ALICE, 600)]);
    world.enforcer.hear(FromServer::Assignment(whole));
    let written = world.disk.step().unwrap();
    world.enforcer.written(written);
    assert!(world.lets_in(ALICE));
    world.crashed()
}

#[test]
fn what_a_restart_let_in_again_and_the_server_took_away_first_was_opened_and_closed() {
    let mut world = opened_and_crashed();
    assert!(world.lets_in(ALICE));
    world.connect();
    world.assign(&[]);
    assert!(!world.lets_in(ALICE));
    assert_eq!(world.answers().0, [], "the time is not known");
    world.tell_time();
    assert_eq!(world.answers().0, [opened(), closed("REMOVED")]);
}

#[test]
fn what_a_restart_let_in_again_and_then_ended_was_opened_and_closed() {
    let mut world = opened_and_crashed();
    world.after(600);
    assert!(!world.lets_in(ALICE));
    world.connect();
    world.tell_time();
    assert_eq!(world.answers().0, [opened(), closed("EXPIRED")]);
}

#[test]
fn an_end_whose_opening_was_lost_in_a_crash_is_told_with_it_before_it_is_settled() {
    for is_snapshot in [false, true] {
        let mut world = World::connected();
        let whole = world.whole(&[grant(1, ALICE, 600)]);
        world.enforcer.hear(FromServer::Assignment(whole));
        let written = world.disk.step().unwrap();
        world.enforcer.written(written);
        // Its receipt never gets to the disk, the end does.
        *world.disk.receipts_job.borrow_mut() = None;
        if is_snapshot {
            world.enforcer.ledger_lane.lag();
        }
        world.assign(&[]);
        let mut world = world.crashed();
        world.connect();
        assert!(world.settled().is_empty(), "it owes receipts");
        world.tell_time();
        assert_eq!(world.answers().0, [opened(), closed("REMOVED")], "{is_snapshot}");
        world.hear(FromServer::ReceiptsStored(2));
        assert_eq!(world.settled(), [world.generation]);
        // Once they are on disk they are not made again.
        world.after(1);
        let mut world = world.crashed();
        world.connect();
        world.tell_time();
        assert_eq!(world.answers().0, []);
    }
}
