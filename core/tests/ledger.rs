//! Assignments, restarts and reboots, as the ledger sees them.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod common;

use common::{
    FIRST_BOOT, Host, MACHINE, SECOND_BOOT, assigned, at, authority, boot, ceiling, forged, grant,
    keys_envelope, policy, policy_envelope, root,
};
use nightlatch_core::assignment::{Assignment, Digest, Generation};
use nightlatch_core::clock::{HostClock, Mark};
use nightlatch_core::grant::SignedGrant;
use nightlatch_core::host::HostRules;
use nightlatch_core::id::GrantId;
use nightlatch_core::keys::{KeyList, ListNumber};
use nightlatch_core::ledger::{AssignmentRefused, Boot, Closing, Ledger, Record};
use nightlatch_core::time::Timestamp;
use serde_json::json;
use uuid::Uuid;

const ALICE: &str = "192.0.2.7";

fn reboot(host: &mut Host, after: u64, wall: Timestamp) {
    let here = Boot {
        id: SECOND_BOOT,
        now: boot(after),
        wall,
    };
    let replayed = Ledger::replay(
        MACHINE,
        root().public(),
        host.file.clone(),
        Some(&ceiling()),
        here,
    );
    host.file.extend(replayed.carried);
    host.ledger = replayed.ledger;
    host.ledger.recorded(host.ledger.number());
    host.clock = HostClock::new(SECOND_BOOT, boot(after), replayed.mark);
}

fn mark(host: &mut Host, second: u64) {
    host.file
        .extend(host.clock.mark(boot(second)).map(Record::Marked));
}

#[test]
fn the_later_end_holds_whatever_overlaps() {
    let mut host = Host::new();
    let wide = grant(1, &["22"], &["192.0.2.0/24"], 0, 100);
    let narrow = grant(2, &["22"], &[ALICE], 0, 200);
    let again = grant(3, &["22"], &[ALICE], 0, 50);
    let whole = host.whole(&[wide.clone(), narrow.clone(), again.clone()]);
    host.take(&whole, 0).unwrap();
    assert!(host.allows(ALICE, "22/tcp", 199));
    assert!(!host.allows(ALICE, "22/tcp", 200));
    assert!(host.allows("192.0.2.8", "22/tcp", 99));
    assert!(!host.allows("192.0.2.8", "22/tcp", 100));
    let delta = host.delta(&[], &[narrow.grant.id], &[wide.grant.id, again.grant.id]);
    host.take(&delta, 10).unwrap();
    assert!(host.allows(ALICE, "22/tcp", 99));
    assert!(!host.allows(ALICE, "22/tcp", 100));
}

#[test]
fn one_odd_grant_never_blocks_another() {
    let mut host = Host::new();
    let good = grant(1, &["22"], &[ALICE], 0, 100);
    let odd = forged(
        &grant(2, &["22"], &["192.0.2.8"], 0, 100).grant,
        &[("only_interface", json!("eth0"))],
    );
    let mut whole = host.whole(std::slice::from_ref(&good));
    let id = grant(2, &["22"], &["192.0.2.8"], 0, 100).grant.id;
    whole
        .added
        .push(nightlatch_core::assignment::Assigned { id, envelope: odd });
    whole.digest = Digest::of(&[good.grant.id, id]);
    let change = host.take(&whole, 0).unwrap();
    assert_eq!(
        change
            .refused()
            .iter()
            .map(|(_, why)| why.code())
            .collect::<Vec<_>>(),
        ["FIELD_UNKNOWN"]
    );
    assert!(host.allows(ALICE, "22/tcp", 1));
    assert!(!host.allows("192.0.2.8", "22/tcp", 1));
}

#[test]
fn an_assignment_that_does_not_follow_is_refused() {
    let mut host = Host::new();
    let first = grant(1, &["22"], &[ALICE], 0, 100);
    let whole = host.whole(std::slice::from_ref(&first));
    host.take(&whole, 0).unwrap();
    let held = whole.generation;

    let stale = Assignment {
        base: Some(held),
        ..whole.clone()
    };
    assert!(matches!(
        host.consider(&stale, 1),
        Err(AssignmentRefused::Stale { .. })
    ));
    let older = Assignment {
        generation: Generation(held.0 - 1),
        ..whole.clone()
    };
    assert!(matches!(
        host.consider(&older, 1),
        Err(AssignmentRefused::Stale { .. })
    ));
    assert!(host.consider(&whole, 1).is_ok(), "the same whole may come again");

    let mut gap = host.delta(&[], &[], &[first.grant.id]);
    gap.base = Some(Generation(held.0 - 1));
    assert!(host.consider(&gap, 1).unwrap_err().needs_whole());
    let forgets = host.delta(&[], &[], &[]);
    assert_eq!(
        host.consider(&forgets, 1).unwrap_err(),
        AssignmentRefused::DigestDiffers
    );
    let ahead = Assignment {
        generation: Generation(held.0 + 90_000_000_000),
        ..whole
    };
    assert!(matches!(
        host.consider(&ahead, 1),
        Err(AssignmentRefused::AheadOfTime { .. })
    ));
}

#[test]
fn no_grant_is_taken_before_the_server_s_time_is_known() {
    let mut host = Host::new();
    host.clock = HostClock::new(FIRST_BOOT, boot(0), None);
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    assert_eq!(
        host.consider(&whole, 0).unwrap_err(),
        AssignmentRefused::TimeUnknown
    );
}

#[test]
fn redelivery_and_a_delayed_clock_never_lengthen_a_grant() {
    let mut host = Host::new();
    let issued = grant(1, &["22"], &[ALICE], 0, 100);
    // The answer took 30 s: true time may be 30 s later than it says.
    host.clock = HostClock::new(FIRST_BOOT, boot(0), None);
    host.clock.hear(at(0), boot(0), boot(30), at(0)).unwrap();
    let whole = host.whole(std::slice::from_ref(&issued));
    host.take(&whole, 30).unwrap();
    assert!(host.allows(ALICE, "22/tcp", 99));
    assert!(!host.allows(ALICE, "22/tcp", 100));
    let again = host.whole(&[issued]);
    host.take(&again, 60).unwrap();
    assert!(!host.allows(ALICE, "22/tcp", 100));
}

#[test]
fn a_policy_guards_its_ports_and_only_a_later_one_replaces_it() {
    let mut host = Host::new();
    host.rules = HostRules {
        ceiling: Some(ceiling()),
        ..HostRules::default()
    };
    assert!(host.allows(ALICE, "3389/udp", 0));
    let mut with = host.whole(&[]);
    with.policy = Some(policy_envelope(2, Some(&policy())));
    host.take(&with, 0).unwrap();
    assert!(!host.allows(ALICE, "3389/udp", 0));

    let mut older = host.whole(&[]);
    older.policy = Some(policy_envelope(1, None));
    let change = host.take(&older, 0).unwrap();
    assert_eq!(
        change
            .left_out()
            .iter()
            .map(|left| left.code())
            .collect::<Vec<_>>(),
        ["POLICY_OLDER"]
    );
    assert!(!host.allows(ALICE, "3389/udp", 0));

    let mut deleted = host.whole(&[]);
    deleted.policy = Some(policy_envelope(3, None));
    host.take(&deleted, 0).unwrap();
    assert!(host.ledger.ruleset(&host.rules, boot(0)).is_empty());
}

#[test]
fn ports_of_the_host_s_own_file_stay_guarded_whatever_the_policy_says() {
    let mut host = Host::new();
    let mut deleted = host.whole(&[]);
    deleted.policy = Some(policy_envelope(1, None));
    host.take(&deleted, 0).unwrap();
    assert!(!host.allows(ALICE, "22/tcp", 0));
}

#[test]
fn a_policy_shuts_before_the_disk_and_opens_after_it() {
    let mut host = Host::new();
    host.rules = HostRules {
        ceiling: Some(ceiling()),
        ..HostRules::default()
    };
    let issued = grant(1, &["22"], &[ALICE], 0, 100);
    let mut whole = host.whole(std::slice::from_ref(&issued));
    whole.policy = Some(policy_envelope(1, Some(&policy())));
    let change = host.consider(&whole, 0).unwrap();
    host.ledger.close(&change);
    assert!(
        !host.allows(ALICE, "22/tcp", 0),
        "shut at once, opened only when the record is on disk"
    );
    let in_force = |host: &mut Host| {
        let in_force = host.ledger.in_force(&host.rules, boot(0));
        assert_eq!(in_force, host.ledger.ruleset(&host.rules, boot(0)));
        in_force.openings().len()
    };
    assert_eq!(in_force(&mut host), 0);
    host.ledger.commit(change);
    assert!(!host.allows(ALICE, "22/tcp", 0));
    assert_eq!(in_force(&mut host), 0);
    host.ledger.recorded(host.ledger.number());
    assert_eq!(in_force(&mut host), 1);
    assert!(host.allows(ALICE, "22/tcp", 0));
}

#[test]
fn a_key_that_left_the_list_takes_its_grants_with_it() {
    let mut host = Host::new();
    let issued = grant(1, &["22"], &[ALICE], 0, 100);
    let whole = host.whole(std::slice::from_ref(&issued));
    host.take(&whole, 0).unwrap();
    let stranger = nightlatch_core::signing::SigningKey::from_seed(&[8; 32]);
    let installation = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b00".parse().unwrap();
    let number = ListNumber { epoch: 2, number: 1 };
    let list = KeyList::new(installation, number, vec![stranger.public()], at(0));
    let mut rotated = host.delta(&[], &[], &[issued.grant.id]);
    rotated.keys = Some(list.seal(&root()));
    let change = host.take(&rotated, 1).unwrap();
    assert_eq!(change.closing(), [(issued.grant.id, Closing::NoLongerValid)]);
    assert!(!host.allows(ALICE, "22/tcp", 1));

    let mut back = host.delta(&[], &[], &[issued.grant.id]);
    back.keys = Some(keys_envelope());
    let change = host.take(&back, 2).unwrap();
    assert_eq!(
        change
            .left_out()
            .iter()
            .map(|left| left.code())
            .collect::<Vec<_>>(),
        ["KEYS_OLDER"]
    );
    let mut forged_list = host.delta(&[], &[], &[issued.grant.id]);
    forged_list.keys = Some(list.seal(authority().key()));
    let change = host.take(&forged_list, 3).unwrap();
    assert_eq!(
        change
            .left_out()
            .iter()
            .map(|left| left.code())
            .collect::<Vec<_>>(),
        ["KEY_UNKNOWN"]
    );
}

#[test]
fn after_a_reboot_a_grant_has_at_most_what_remained_at_the_last_mark() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    mark(&mut host, 60);
    // The wall clock is an hour behind: it says nothing.
    reboot(&mut host, 5, "2026-11-22T11:00:00Z".parse().unwrap());
    assert!(host.allows(ALICE, "22/tcp", 44));
    assert!(!host.allows(ALICE, "22/tcp", 45));
}

#[test]
fn what_ended_after_the_last_mark_does_not_come_back_at_a_reboot() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    mark(&mut host, 60);
    let closed = host.ledger.unreported(boot(100));
    host.file.push(host.ledger.reported(closed));
    for _ in 0..2 {
        reboot(&mut host, 5, "1970-01-01T00:00:05Z".parse().unwrap());
        assert!(!host.allows(ALICE, "22/tcp", 5));
    }
}

#[test]
fn after_a_reboot_nothing_opens_before_the_new_ends_are_on_disk() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    let here = Boot {
        id: SECOND_BOOT,
        now: boot(5),
        wall: at(50),
    };
    let records = host.file.clone();
    host.ledger = Ledger::replay(MACHINE, root().public(), records, Some(&ceiling()), here).ledger;
    assert_eq!(host.ledger.recorded_number(), host.ledger.number() - 1);
    assert!(!host.allows(ALICE, "22/tcp", 5));
    host.ledger.recorded(host.ledger.number());
    assert_eq!(host.ledger.recorded_number(), host.ledger.number());
    assert!(host.allows(ALICE, "22/tcp", 5));
}

#[test]
fn a_grant_that_was_refused_and_then_revoked_is_remembered() {
    let mut host = Host::new();
    host.rules.ceiling = None;
    let issued = grant(1, &["22"], &[ALICE], 0, 100);
    let whole = host.whole(std::slice::from_ref(&issued));
    let change = host.take(&whole, 0).unwrap();
    assert_eq!(change.refused()[0].1.code(), "NO_CEILING");
    let here = Boot {
        id: FIRST_BOOT,
        now: boot(1),
        wall: at(1),
    };
    let replay = |records| Ledger::replay(MACHINE, root().public(), records, Some(&ceiling()), here).ledger;
    let snapshot = host.ledger.snapshot(host.clock.mark(boot(1)).unwrap());
    for records in [host.file.clone(), snapshot] {
        let mut ledger = replay(records.clone());
        let removed = ledger.remove_all(vec![issued.grant.id], boot(1));
        assert!(removed.must_stay());
        assert!(ledger.was_revoked(issued.grant.id));
        assert!(replay([records, vec![removed]].concat()).was_revoked(issued.grant.id));
    }
}

#[test]
fn a_slow_clock_lengthens_no_grant_by_more_than_a_second() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 10_000)]);
    host.take(&whole, 0).unwrap();
    let mut tell = |truth: u64, now: u64| {
        host.clock
            .hear(at(truth), boot(now), boot(now), at(truth))
            .unwrap();
        let record = host.ledger.settle(&host.clock, boot(now)).is_some();
        (record, host.ledger.next_deadline(boot(now)))
    };
    assert_eq!(tell(5_001, 5_000), (false, Some(boot(10_000))));
    assert_eq!(tell(6_002, 6_000), (true, Some(boot(9_998))));
    assert_eq!(tell(7_000, 7_000), (false, Some(boot(9_998))), "never longer");
}

#[test]
fn a_snapshot_with_a_new_policy_guards_no_port_of_the_old_one() {
    use nightlatch_core::policy::Policy;
    let mut host = Host::new();
    let mut first = host.whole(&[]);
    first.policy = Some(policy_envelope(1, Some(&policy())));
    host.take(&first, 0).unwrap();
    let only_ssh = Policy::new(policy().rules()[..1].to_vec()).unwrap();
    let mut second = host.whole(&[]);
    second.policy = Some(policy_envelope(2, Some(&only_ssh)));
    let change = host.consider(&second, 0).unwrap();
    host.ledger.close(&change);
    host.ledger.commit(change);
    assert!(!host.allows(ALICE, "3389/tcp", 0), "until it is on disk");
    let snapshot = host.ledger.snapshot(host.clock.mark(boot(0)).unwrap());
    assert_eq!(snapshot[0].guarded(), Some(common::spans(&["22/tcp"]).as_slice()));
}

#[test]
fn overlapping_ports_of_a_grant_count_once_when_it_goes() {
    use nightlatch_core::ledger::MOST_OPENINGS;
    let sources: Vec<String> = (0..32).map(|host| format!("192.0.2.{host}")).collect();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let count = MOST_OPENINGS / 32;
    let twice = &["22", "22/tcp"];
    let held: Vec<_> = (0..count)
        .map(|id| grant(1 + id as u128, twice, &sources, 0, 100))
        .collect();
    let mut host = Host::new();
    let whole = host.whole(&held);
    assert!(host.take(&whole, 0).unwrap().refused().is_empty());
    // Considered as it is, before what it takes away has gone: one goes, two come.
    let more = [5000, 5001].map(|id| grant(id, twice, &sources, 0, 100));
    let ids: Vec<_> = held[1..].iter().chain(&more).map(|held| held.grant.id).collect();
    let delta = host.delta(&more, &[held[0].grant.id], &ids);
    let change = host.consider(&delta, 0).unwrap();
    let codes: Vec<_> = change.refused().iter().map(|(_, why)| why.code()).collect();
    assert_eq!(codes, ["TOO_MANY_OPENINGS"]);
}

#[test]
fn what_ended_while_the_host_was_down_does_not_come_back() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    reboot(&mut host, 5, at(101));
    assert!(!host.allows(ALICE, "22/tcp", 5));
}

#[test]
fn a_wall_clock_that_ran_ahead_over_a_reboot_locks_out_only_until_the_server_is_heard() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    mark(&mut host, 60);
    reboot(&mut host, 5, at(1_000_000));
    assert!(!host.allows(ALICE, "22/tcp", 5));
    // True time is second 80 when the server is heard 6 s into the second boot.
    host.clock.hear(at(80), boot(6), boot(6), at(1_000_000)).unwrap();
    let record = host.ledger.settle(&host.clock, boot(6));
    assert!(record.is_some());
    assert!(host.allows(ALICE, "22/tcp", 25));
    assert!(!host.allows(ALICE, "22/tcp", 26));
}

#[test]
fn a_wall_clock_that_stood_still_over_a_reboot_lengthens_no_grant_once_the_server_is_heard() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    reboot(&mut host, 5, "1970-01-01T00:00:05Z".parse().unwrap());
    assert!(host.allows(ALICE, "22/tcp", 5));
    host.clock.hear(at(80), boot(6), boot(6), at(80)).unwrap();
    assert!(host.ledger.settle(&host.clock, boot(6)).is_some());
    assert!(host.allows(ALICE, "22/tcp", 25));
    assert!(!host.allows(ALICE, "22/tcp", 26));
}

#[test]
fn a_restart_of_the_agent_changes_no_end() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    let here = Boot {
        id: FIRST_BOOT,
        now: boot(50),
        wall: at(5_000_000),
    };
    let replayed = Ledger::replay(
        MACHINE,
        root().public(),
        host.file.clone(),
        Some(&ceiling()),
        here,
    );
    host.ledger = replayed.ledger;
    assert!(replayed.carried.is_none());
    assert!(host.allows(ALICE, "22/tcp", 99));
    assert!(!host.allows(ALICE, "22/tcp", 100));
}

#[test]
fn a_snapshot_rebuilds_the_same_ledger() {
    let mut host = Host::new();
    let grants = [
        grant(1, &["22"], &[ALICE], 0, 100),
        grant(2, &["3389"], &["2001:db8::/64"], 0, 200),
    ];
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
    let here = Boot {
        id: FIRST_BOOT,
        now: boot(1),
        wall: at(1),
    };
    let records = host.ledger.snapshot(mark);
    let replayed = Ledger::replay(MACHINE, root().public(), records, Some(&ceiling()), here).ledger;
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
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    let mut lower = ceiling();
    lower.ports = vec!["3389".parse().unwrap()];
    let here = Boot {
        id: FIRST_BOOT,
        now: boot(1),
        wall: at(1),
    };
    host.ledger = Ledger::replay(MACHINE, root().public(), host.file.clone(), Some(&lower), here).ledger;
    assert!(!host.allows(ALICE, "22/tcp", 1));
}

#[test]
fn a_grant_that_begins_later_opens_at_its_time_without_another_word() {
    let mut host = Host::new();
    let ahead = grant(1, &["22"], &[ALICE], 100, 50);
    let whole = host.whole(std::slice::from_ref(&ahead));
    host.take(&whole, 0).unwrap();
    assert_eq!(whole.added, [assigned(&ahead)]);
    assert!(!host.allows(ALICE, "22/tcp", 99));
    assert_eq!(host.ledger.next_deadline(boot(0)), Some(boot(100)));
    assert!(host.allows(ALICE, "22/tcp", 100));
    assert!(host.allows(ALICE, "22/tcp", 149));
    assert!(!host.allows(ALICE, "22/tcp", 150));
}

#[test]
fn each_opening_and_each_end_is_reported_once() {
    let mut host = Host::new();
    let issued = grant(1, &["22"], &[ALICE], 0, 100);
    let whole = host.whole(std::slice::from_ref(&issued));
    host.take(&whole, 0).unwrap();
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
fn what_ended_while_the_host_was_down_does_not_come_back_with_a_second_reader_either() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    // The one-shot before the network writes the new ends; the agent reads them in the same boot, with or
    // without a compaction in between.
    reboot(&mut host, 5, at(5000));
    let snapshot = host.ledger.snapshot(Mark {
        boot_id: SECOND_BOOT,
        at: boot(6),
        time: at(6),
    });
    for file in [host.file.clone(), snapshot] {
        host.file = file;
        reboot(&mut host, 7, at(5002));
        assert!(!host.allows(ALICE, "22/tcp", 7));
    }
}

#[test]
fn once_the_server_was_heard_no_wall_clock_counts_in_that_boot() {
    let mut host = Host::new();
    let whole = host.whole(&[grant(1, &["22"], &[ALICE], 0, 100)]);
    host.take(&whole, 0).unwrap();
    reboot(&mut host, 5, at(5000));
    host.clock.hear(at(80), boot(6), boot(6), at(80)).unwrap();
    let settled = host.ledger.settle(&host.clock, boot(6));
    host.file.extend(settled);
    reboot(&mut host, 7, at(5000));
    assert!(host.allows(ALICE, "22/tcp", 25));
    assert!(!host.allows(ALICE, "22/tcp", 26));
}

#[test]
fn a_grant_that_fell_to_a_lowered_ceiling_is_named() {
    let mut host = Host::new();
    let issued = grant(1, &["22"], &[ALICE], 0, 100);
    let whole = host.whole(std::slice::from_ref(&issued));
    host.take(&whole, 0).unwrap();
    let opened = host.ledger.unreported(boot(1));
    host.file.push(host.ledger.reported(opened));
    let here = Boot {
        id: FIRST_BOOT,
        now: boot(2),
        wall: at(2),
    };
    let high = ceiling();
    let replay = |ceiling| Ledger::replay(MACHINE, root().public(), host.file.clone(), ceiling, here);
    assert!(replay(Some(&high)).fallen.is_empty());
    let replayed = replay(None);
    assert_eq!(replayed.fallen, [issued.grant.id]);
    assert_eq!(replayed.ledger.refused_as(issued.grant.id), Some("NO_CEILING"));
    let mut bare = replayed.ledger;
    bare.also_guard(common::spans(&["9000/tcp"]));
    let bare = bare.without_grants();
    let key = common::spans(&["9000/tcp"])[0].keys().next().unwrap();
    let ruleset = bare.ruleset(&HostRules::default(), boot(2));
    assert!(ruleset.guarded().contains(&key), "it stays guarded");
    assert_eq!(
        (bare.generation(), bare.digest()),
        (Generation(0), Digest::of([]))
    );
    assert!(bare.keys().is_some());
}

#[test]
fn a_policy_that_guards_less_waits_for_its_record() {
    let mut host = Host::new();
    host.rules = HostRules {
        ceiling: Some(ceiling()),
        ..HostRules::default()
    };
    let mut with = host.whole(&[]);
    with.policy = Some(policy_envelope(1, Some(&policy())));
    host.take(&with, 0).unwrap();
    let mut deleted = host.whole(&[]);
    deleted.policy = Some(policy_envelope(2, None));
    let change = host.consider(&deleted, 0).unwrap();
    host.ledger.close(&change);
    let number = host.ledger.number();
    host.ledger.commit(change);
    host.ledger.recorded(number);
    assert!(!host.allows(ALICE, "22/tcp", 0));
    host.ledger.recorded(host.ledger.number());
    assert!(host.ledger.ruleset(&host.rules, boot(0)).is_empty());
}

#[test]
fn an_assignment_that_is_refused_takes_away_all_the_same() {
    let mut host = Host::new();
    let [first, second, third] = [1, 2, 3].map(|id| grant(id, &["22"], &[&format!("192.0.2.{id}")], 0, 100));
    let whole = host.whole(&[first.clone(), second, third.clone()]);
    host.take(&whole, 0).unwrap();
    let allowed = |host: &Host| [1, 2, 3].map(|id| host.allows(&format!("192.0.2.{id}"), "22/tcp", 1));

    let mut ahead = host.delta(&[], &[first.grant.id], &[]);
    ahead.generation = Generation(ahead.generation.0 + 90_000_000_000);
    assert!(matches!(
        host.take(&ahead, 1),
        Err(AssignmentRefused::AheadOfTime { .. })
    ));
    assert_eq!(allowed(&host), [false, true, true]);
    let mut whole_ahead = host.whole(std::slice::from_ref(&third));
    whole_ahead.generation = ahead.generation;
    host.take(&whole_ahead, 1).unwrap_err();
    assert_eq!(allowed(&host), [false, false, true]);
    // One from before says nothing of what came later.
    let older = Assignment {
        generation: Generation(whole.generation.0 - 1),
        added: Vec::new(),
        ..whole
    };
    host.take(&older, 1).unwrap_err();
    assert_eq!(allowed(&host), [false, false, true]);

    let here = Boot {
        id: FIRST_BOOT,
        now: boot(2),
        wall: at(2),
    };
    host.ledger = Ledger::replay(
        MACHINE,
        root().public(),
        host.file.clone(),
        Some(&ceiling()),
        here,
    )
    .ledger;
    assert_eq!(allowed(&host), [false, false, true], "after a restart too");
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

#[test]
fn what_was_revoked_never_opens_again_although_a_restored_server_sends_it() {
    let mut host = Host::new();
    let revoked = grant(1, &["22"], &[ALICE], 0, 100);
    let whole = host.whole(std::slice::from_ref(&revoked));
    host.take(&whole, 0).unwrap();
    let delta = host.delta(&[], &[revoked.grant.id], &[]);
    host.take(&delta, 1).unwrap();

    let here = Boot {
        id: FIRST_BOOT,
        now: boot(2),
        wall: at(2),
    };
    let mark = host.clock.mark(boot(2)).unwrap();
    for file in [host.file.clone(), host.ledger.snapshot(mark)] {
        host.ledger = Ledger::replay(MACHINE, root().public(), file, Some(&ceiling()), here).ledger;
        let again = host.whole(std::slice::from_ref(&revoked));
        let change = host.take(&again, 3).unwrap();
        let codes: Vec<_> = change.refused().iter().map(|(_, why)| why.code()).collect();
        assert_eq!(codes, ["REVOKED"]);
        assert!(host.ledger.was_revoked(revoked.grant.id));
        assert!(!host.allows(ALICE, "22/tcp", 3));
    }

    // Once it has ended by itself there is nothing left to remember.
    host.clock.hear(at(101), boot(101), boot(101), at(101)).unwrap();
    let later = host.whole(&[]);
    host.take(&later, 101).unwrap();
    assert!(!host.ledger.was_revoked(revoked.grant.id));
}

#[test]
fn a_policy_keeps_guarding_when_its_key_is_dropped_also_after_a_restart() {
    let mut host = Host::new();
    host.rules = HostRules {
        ceiling: Some(ceiling()),
        ..HostRules::default()
    };
    let mut guarding = host.whole(&[]);
    guarding.policy = Some(policy_envelope(1, Some(&policy())));
    host.take(&guarding, 0).unwrap();
    let stranger = nightlatch_core::signing::SigningKey::from_seed(&[8; 32]);
    let installation = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b00".parse().unwrap();
    let number = ListNumber { epoch: 1, number: 2 };
    let list = KeyList::new(installation, number, vec![stranger.public()], at(0)).seal(&root());
    let mut rotated = host.delta(&[], &[], &[]);
    rotated.keys = Some(list.clone());
    host.take(&rotated, 1).unwrap();
    assert!(!host.allows(ALICE, "22/tcp", 1));

    let here = Boot {
        id: FIRST_BOOT,
        now: boot(2),
        wall: at(2),
    };
    let snapshot = host.ledger.snapshot(host.clock.mark(boot(2)).unwrap());
    for records in [
        host.file.clone(),
        snapshot.clone(),
        [snapshot.clone(), snapshot].concat(),
    ] {
        let ledger = Ledger::replay(MACHINE, root().public(), records, Some(&ceiling()), here).ledger;
        let again = ledger.snapshot(host.clock.mark(boot(2)).unwrap());
        host.ledger = Ledger::replay(MACHINE, root().public(), again, Some(&ceiling()), here).ledger;
        assert!(!host.allows(ALICE, "22/tcp", 2), "shut after reading it twice");
    }
    let mut signed_anew = host.whole(&[]);
    signed_anew.keys = Some(list);
    let deleted = nightlatch_core::policy::MachinePolicy::new(MACHINE, 1, 2, None, at(3)).seal(&stranger);
    signed_anew.policy = Some(deleted);
    host.take(&signed_anew, 3).unwrap();
    assert!(
        host.allows(ALICE, "22/tcp", 3),
        "a later policy under a trusted key is obeyed"
    );
}

#[test]
fn a_policy_of_1024_scattered_ports_is_taken() {
    use nightlatch_core::policy::{AllowedSources, Policy, PortRule};
    use nightlatch_core::port::{PortRange, Protocols};
    let rule = |port: u16| {
        let range = PortRange::new(port, port).unwrap();
        PortRule::new(
            range,
            Protocols::Both,
            AllowedSources::Any,
            PortRule::DEFAULT_LIMIT,
        )
        .unwrap()
    };
    let scattered = Policy::new((0..512).map(|number| rule(65_535 - 2 * number)).collect()).unwrap();
    let mut host = Host::new();
    let mut guarding = host.whole(&[]);
    guarding.policy = Some(policy_envelope(1, Some(&scattered)));
    let change = host.take(&guarding, 0).unwrap();
    assert!(change.left_out().is_empty(), "{:?}", change.left_out());
    assert!(!host.allows(ALICE, "65535/udp", 0));
}

#[test]
fn a_host_takes_a_bounded_number_of_openings() {
    use nightlatch_core::ledger::MOST_OPENINGS;
    let sources: Vec<String> = (0..32).map(|host| format!("192.0.2.{host}")).collect();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    // 32 sources to three port keys each.
    let count = MOST_OPENINGS / 96 + 1;
    let mut grants: Vec<_> = (0..count)
        .map(|id| grant(1 + id as u128, &["22", "3389"], &sources, 0, 100))
        .collect();
    // What still fits is taken, although one before it did not.
    grants.push(grant(5000, &["22"], &[ALICE], 0, 100));
    let mut host = Host::new();
    let whole = host.whole(&grants);
    let change = host.take(&whole, 0).unwrap();
    let refused: Vec<_> = change
        .refused()
        .iter()
        .map(|(id, why)| (*id, why.code()))
        .collect();
    assert_eq!(refused, [(grants[count - 1].grant.id, "TOO_MANY_OPENINGS")]);
    assert!(host.allows(ALICE, "22/tcp", 0));
    assert!(host.ledger.ruleset(&host.rules, boot(0)).openings().len() <= MOST_OPENINGS);
}

#[test]
fn a_host_takes_a_bounded_number_of_grants_and_keeps_what_it_has() {
    use nightlatch_core::ledger::MOST_GRANTS;
    let mut host = Host::new();
    let held = grant(1, &["22"], &[ALICE], 0, 100);
    let first = host.whole(std::slice::from_ref(&held));
    host.take(&first, 0).unwrap();
    // The ids count, whatever comes under them.
    let copies = |count: usize| -> Vec<_> {
        let mut copies = vec![held.clone(); count];
        for (id, copy) in (1..).zip(&mut copies) {
            copy.grant.id = GrantId::new(Uuid::from_u128(id));
            copy.envelope = SignedGrant::from_bytes(Vec::new());
        }
        copies
    };
    let too_many = host.whole(&copies(MOST_GRANTS + 1));
    assert!(matches!(
        host.consider(&too_many, 1),
        Err(AssignmentRefused::TooMany(count)) if count == MOST_GRANTS + 1
    ));
    assert!(host.allows(ALICE, "22/tcp", 1));
    let as_many_as_go = host.whole(&copies(MOST_GRANTS));
    host.consider(&as_many_as_go, 1).unwrap();
}
