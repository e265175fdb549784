//! What is read back from the records in the same boot.

use crate::common::{
    ALICE, FIRST_BOOT, Host, MACHINE, alice, at, boot, ceiling, first_boot, grant, policy, policy_envelope,
    replay, root, spans,
};
use nightlatch_core::assignment::{Assignment, Digest, Generation};
use nightlatch_core::clock::Mark;
use nightlatch_core::host::HostRules;
use nightlatch_core::ledger::{Boot, Ledger, Record};

#[test]
fn a_restart_of_the_agent_changes_no_end() {
    let mut host = Host::with([&alice(100)]);
    let here = Boot {
        id: FIRST_BOOT,
        now: boot(50),
        wall: at(5_000_000),
    };
    let replayed = replay(host.file.clone(), here);
    host.ledger = replayed.ledger;
    assert!(replayed.carried.is_none());
    assert!(host.is_open_at(99));
    assert!(!host.is_open_at(100));
}

#[test]
fn a_snapshot_rebuilds_the_same_ledger() {
    let mut host = Host::new();
    let grants = [alice(100), grant(2, &["3389"], &["2001:db8::/64"], 0, 200)];
    let mut whole = host.whole(&grants);
    whole.policy = Some(policy_envelope(4, Some(&policy())));
    host.take(&whole, 0).unwrap();
    let unreported = host.ledger.unreported(boot(0));
    host.ledger.reported(unreported);
    let mark = Mark {
        boot_id: FIRST_BOOT,
        at: boot(1),
        time: at(1),
    };
    let here = first_boot(1);
    let records = host.ledger.snapshot(mark);
    let replayed = replay(records, here).ledger;
    assert_eq!(
        replayed.ruleset(&host.rules, boot(1)),
        host.ledger.ruleset(&host.rules, boot(1))
    );
    assert_eq!(replayed.digest(), host.ledger.digest());
    assert_eq!(replayed.generation(), host.ledger.generation());
    assert!(replayed.unreported(boot(1)).is_empty());
    assert_eq!(replayed.next_deadline(boot(1)), Some(boot(100)));
}

#[test]
fn a_lowered_ceiling_takes_effect_when_the_ledger_is_read() {
    let mut host = Host::with([&alice(100)]);
    let mut lower = ceiling();
    lower.ports = vec!["3389".parse().unwrap()];
    let here = first_boot(1);
    host.ledger = Ledger::replay(MACHINE, root().public(), host.file.clone(), Some(&lower), here).ledger;
    assert!(!host.is_open_at(1));
}

#[test]
fn each_opening_and_each_end_is_reported_once() {
    let issued = alice(100);
    let mut host = Host::with([&issued]);
    let opened = host.ledger.unreported(boot(1));
    assert_eq!(opened.opened, [issued.grant.id]);
    host.file.push(host.ledger.reported(opened));
    assert!(host.ledger.unreported(boot(2)).is_empty());
    let closed = host.ledger.unreported(boot(100));
    assert_eq!(
        (closed.opened.len(), closed.closed.as_slice()),
        (0, [issued.grant.id].as_slice())
    );
    host.file.push(host.ledger.reported(closed));
    assert!(host.ledger.unreported(boot(101)).is_empty());
}

#[test]
fn a_grant_that_fell_to_a_lowered_ceiling_is_named() {
    let issued = alice(100);
    let mut host = Host::with([&issued]);
    host.report_at(1);
    let here = first_boot(2);
    let high = ceiling();
    let replay = |ceiling| Ledger::replay(MACHINE, root().public(), host.file.clone(), ceiling, here);
    assert!(replay(Some(&high)).fallen.is_empty());
    let replayed = replay(None);
    assert_eq!(replayed.fallen, [issued.grant.id]);
    assert_eq!(replayed.ledger.refused_as(issued.grant.id), Some("NO_CEILING"));
    let mut bare = replayed.ledger;
    bare.also_guard(spans(&["9000/tcp"]));
    let bare = bare.without_grants();
    let key = spans(&["9000/tcp"])[0].keys().next().unwrap();
    let ruleset = bare.ruleset(&HostRules::default(), boot(2));
    assert!(ruleset.guarded().contains(&key), "it stays guarded");
    assert_eq!(
        (bare.generation(), bare.digest()),
        (Generation(0), Digest::of([]))
    );
    assert!(bare.keys().is_some());
}

#[test]
fn only_what_would_open_or_unguard_without_it_must_stay() {
    let mut host = Host::new();
    let [long, short] = [(1, 100), (2, 10)].map(|(id, end)| grant(id, &["22"], &[ALICE], 0, end));
    let first = host.whole(&[]);
    host.take(&first, 0).unwrap();
    let more = host.delta(
        &[long.clone(), short.clone()],
        &[],
        &[long.grant.id, short.grant.id],
    );
    let more = Assignment { keys: None, ..more };
    host.take(&more, 0).unwrap();
    let ended = host.delta(&[], &[short.grant.id], &[long.grant.id]);
    host.take(&ended, 20).unwrap();
    let revoked = host.delta(&[], &[long.grant.id], &[]);
    host.take(&revoked, 20).unwrap();
    let must_stay: Vec<bool> = host.file.iter().map(Record::must_stay).collect();
    // The keys; the grants; the ended one and its assignment; the revoked one and its assignment.
    assert_eq!(must_stay, [true, false, false, false, true, false]);
    let numbers: Vec<_> = host.file.iter().filter_map(Record::number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}
