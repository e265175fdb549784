//! What comes before what, and what is told of it.

use super::*;

#[test]
fn guarded_ports_are_shut_before_the_server_is_asked() {
    let world = World::new();
    assert_eq!(*world.effects.borrow(), ["firewall with 0 openings"]);
    assert!(!world.lets_in(ALICE));
}

#[test]
fn an_opening_waits_for_its_record_and_its_receipt_for_the_opening() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    assert_eq!(*world.effects.borrow(), ["disk", "firewall with 1 openings"]);
    assert!(world.lets_in(ALICE));
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, [opened()]);
    assert!(accepted(&rest));
}

#[test]
fn closing_comes_before_the_disk_and_opening_after_it() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.effects.borrow_mut().clear();
    world.answers();
    world.assign(&[grant(2, "192.0.2.8", 60)]);
    assert_eq!(
        *world.effects.borrow(),
        ["firewall with 0 openings", "disk", "firewall with 1 openings"]
    );
    assert_eq!(world.answers().0, [closed("REMOVED"), opened()]);
}

#[test]
fn a_failing_firewall_is_tried_again_and_nothing_counts_as_open_meanwhile() {
    let mut world = World::connected();
    world.faults.borrow_mut().gate = true;
    world.assign(&[grant(1, ALICE, 60)]);
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, []);
    assert!(matches!(
        rest.as_slice(),
        [
            ToServer::Report(Report {
                code: "FIREWALL_FAILED",
                ..
            }),
            ToServer::Reply { .. }
        ]
    ));
    world.after(1);
    assert_eq!(world.answers(), (vec![], vec![]));
    world.faults.borrow_mut().gate = false;
    world.after(1);
    assert!(world.lets_in(ALICE));
    assert_eq!(world.answers().0, [opened()]);
}

#[test]
fn a_grant_ends_on_time_with_the_server_gone_and_the_receipt_follows() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.answers();
    world.hear(FromServer::Disconnected);
    world.after(59);
    assert!(world.lets_in(ALICE));
    world.after(1);
    assert!(!world.lets_in(ALICE));
    world.connect();
    assert_eq!(world.answers().0, [opened(), closed("EXPIRED")]);
}

#[test]
fn what_had_ended_is_called_expired_although_the_server_takes_it_away_first() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60), grant(2, "192.0.2.8", 600)]);
    world.answers();
    world.hear(FromServer::Disconnected);
    world.clock.advance(Duration::from_secs(60));
    world.connect();
    world.assign(&[]);
    world.tell_time();
    let told = world.answers().0;
    assert_eq!(
        told[2..],
        [closed("EXPIRED"), closed("REMOVED")],
        "after the openings"
    );
}

#[test]
fn no_grant_is_taken_before_the_server_told_the_time_on_this_stream() {
    let mut world = World::new();
    world.connect();
    world.said();
    world.assign(&[grant(1, ALICE, 60)]);
    assert!(world.said().is_empty() && !world.lets_in(ALICE));
    world.tell_time();
    assert!(world.lets_in(ALICE));
}

#[test]
fn an_older_assignment_and_one_that_does_not_fit_are_refused() {
    let mut world = World::connected();
    let first = world.whole(&[grant(1, ALICE, 60)]);
    world.assign(&[]);
    world.answers();
    world.hear(FromServer::Assignment(first.clone()));
    assert!(matches!(
        world.answers().1.as_slice(),
        [ToServer::Reply {
            taken: Taken::Refused,
            ..
        }]
    ));
    world.generation += 1;
    let delta = Assignment {
        generation: Generation(world.generation),
        base: Some(world.enforcer.ledger.generation()),
        digest: Digest::of([]),
        ..first
    };
    world.hear(FromServer::Assignment(delta));
    assert!(matches!(
        world.answers().1.as_slice(),
        [ToServer::Reply {
            taken: Taken::NeedWhole,
            ..
        }]
    ));
    assert!(!world.lets_in(ALICE));
}

#[test]
fn a_refused_grant_has_one_receipt_with_its_reason_and_blocks_no_other() {
    let mut world = World::connected();
    let grants = [grant(1, "10.0.0.0/8", 60), grant(2, ALICE, 60)];
    world.assign(&grants);
    let refused = (Done::Refused, "CEILING_SOURCE".to_owned());
    assert_eq!(world.answers().0, [refused, opened()]);
    world.assign(&grants);
    assert_eq!(world.answers().0, []);
}

#[test]
fn receipts_wait_for_the_server_and_are_sent_again_on_a_new_stream() {
    let mut world = World::connected();
    let many: Vec<IssuedGrant> = (1..=2_500).map(|id| grant(id, ALICE, 60)).collect();
    world.assign(&many);
    let batches = world.said();
    let sizes = batches.iter().filter_map(|word| match word {
        ToServer::Receipts(envelopes) => {
            Some((envelopes.len(), envelopes.iter().map(Vec::len).sum::<usize>()))
        }
        _ => None,
    });
    let sizes: Vec<(usize, usize)> = sizes.collect();
    assert!(
        sizes.len() == WINDOW && sizes.iter().all(|(_, bytes)| *bytes <= BATCH),
        "{sizes:?}"
    );
    let sent: usize = sizes.iter().map(|(count, _)| count).sum();
    assert!((1_000..2_500).contains(&sent), "{sizes:?}");
    world.hear(FromServer::ReceiptsStored(u64::try_from(sent).unwrap()));
    assert_eq!(world.answers().0.len(), 2_500 - sent);
    world.connect();
    world.hear(FromServer::ReceiptsStored(2_500));
    world.connect();
    world.answers();
    assert_eq!(world.enforcer.outbox.waiting(), 0);
}

#[test]
fn a_host_that_lost_its_grants_asks_for_the_whole_and_guards_meanwhile() {
    let mut world = World::new();
    world.enforcer.needs_whole = true;
    world.enforcer.guarded_meanwhile = spans(&["8443/tcp"]);
    world.enforcer.enforce();
    let lost = PortKey {
        protocol: Protocol::Tcp,
        port: 8443,
    };
    assert!(world.table.borrow().guarded().contains(&lost));
    world.connect();
    let hello = world.said();
    let [ToServer::Hello(state)] = hello.as_slice() else {
        panic!("{hello:?}")
    };
    assert_eq!(state.generation, Generation(0));
    world.tell_time();
    world.assign(&[grant(1, ALICE, 60)]);
    assert!(world.lets_in(ALICE));
    assert!(!world.table.borrow().guarded().contains(&lost));
}

#[test]
fn ports_stay_guarded_after_a_loss_until_a_policy_is_taken() {
    let mut world = World::new();
    world.enforcer.needs_whole = true;
    world.enforcer.guarded_meanwhile = spans(&["8443/tcp"]);
    world.connect();
    world.tell_time();
    let lost = PortKey {
        protocol: Protocol::Tcp,
        port: 8443,
    };
    let mut whole = world.whole(&[]);
    whole.policy = Some(b"{}".to_vec());
    world.hear(FromServer::Assignment(whole));
    assert!(world.table.borrow().guarded().contains(&lost));
    world.assign(&[]);
    assert!(!world.table.borrow().guarded().contains(&lost));
}

#[test]
fn what_begins_after_the_last_change_of_the_firewall_is_not_called_opened() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.answers();
    world.enforcer.applied_at = Some(BootTime::new(Duration::ZERO));
    let ids = [grant(1, ALICE, 60).grant.id];
    let boot = world.clock.boot();
    let records: Vec<Record> = world
        .records
        .borrow()
        .iter()
        .filter(|record| !matches!(record, Record::Reported { .. }))
        .cloned()
        .collect();
    world.enforcer.ledger =
        Ledger::replay(MACHINE, root().public(), records, rules().ceiling.as_ref(), boot).ledger;
    assert_eq!(world.enforcer.ledger.unreported(boot.now).opened, ids);
    world.enforcer.account();
    world.let_write();
    assert_eq!(world.answers().0, []);
    world.after(0);
    assert_eq!(world.answers().0, [opened()]);
}

#[test]
fn a_report_that_the_stream_did_not_take_is_told_on_the_next() {
    let mut world = World::connected();
    let (to_server, from_host) = mpsc::channel(1);
    drop(from_host);
    world.enforcer.stream.as_mut().unwrap().to_server = to_server;
    world.enforcer.report("TIME_JUMP", String::new());
    assert!(world.enforcer.stream.is_none());
    world.connect();
    assert_eq!(codes(&mut world), ["TIME_JUMP"]);
}
