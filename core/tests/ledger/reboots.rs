//! What a reboot leaves of a grant.

use crate::common::{Host, SECOND_BOOT, alice, at, boot, replay};
use nightlatch_core::clock::Mark;
use nightlatch_core::ledger::Boot;

#[test]
fn after_a_reboot_a_grant_has_at_most_what_remained_at_the_last_mark() {
    let mut host = Host::with([&alice(100)]);
    host.mark_at(60);
    // The wall clock is an hour behind: it says nothing.
    host.reboot(5, "2026-11-22T11:00:00Z".parse().unwrap());
    assert!(host.is_open_at(44));
    assert!(!host.is_open_at(45));
}

#[test]
fn what_ended_after_the_last_mark_does_not_come_back_at_a_reboot() {
    let mut host = Host::with([&alice(100)]);
    host.mark_at(60);
    host.report_at(100);
    for _ in 0..2 {
        host.reboot(5, "1970-01-01T00:00:05Z".parse().unwrap());
        assert!(!host.is_open_at(5));
    }
}

#[test]
fn after_a_reboot_nothing_opens_before_the_new_ends_are_on_disk() {
    let mut host = Host::with([&alice(100)]);
    let here = Boot {
        id: SECOND_BOOT,
        now: boot(5),
        wall: at(50),
    };
    let records = host.file.clone();
    host.ledger = replay(records, here).ledger;
    assert_eq!(host.ledger.recorded_number(), host.ledger.number() - 1);
    assert!(!host.is_open_at(5));
    host.ledger.recorded(host.ledger.number());
    assert_eq!(host.ledger.recorded_number(), host.ledger.number());
    assert!(host.is_open_at(5));
}

#[test]
fn what_ended_while_the_host_was_down_does_not_come_back() {
    let mut host = Host::with([&alice(100)]);
    host.reboot(5, at(101));
    assert!(!host.is_open_at(5));
}

#[test]
fn a_wall_clock_that_ran_ahead_over_a_reboot_locks_out_only_until_the_server_is_heard() {
    let mut host = Host::with([&alice(100)]);
    host.mark_at(60);
    host.reboot(5, at(1_000_000));
    assert!(!host.is_open_at(5));
    // True time is second 80 when the server is heard 6 s into the second boot.
    host.clock.hear(at(80), boot(6), boot(6), at(1_000_000)).unwrap();
    let record = host.ledger.settle(&host.clock, boot(6));
    assert!(record.is_some());
    assert!(host.is_open_at(25));
    assert!(!host.is_open_at(26));
}

#[test]
fn a_wall_clock_that_stood_still_over_a_reboot_lengthens_no_grant_once_the_server_is_heard() {
    let mut host = Host::with([&alice(100)]);
    host.reboot(5, "1970-01-01T00:00:05Z".parse().unwrap());
    assert!(host.is_open_at(5));
    host.clock.hear(at(80), boot(6), boot(6), at(80)).unwrap();
    assert!(host.ledger.settle(&host.clock, boot(6)).is_some());
    assert!(host.is_open_at(25));
    assert!(!host.is_open_at(26));
}

#[test]
fn what_ended_while_the_host_was_down_does_not_come_back_with_a_second_reader_either() {
    let mut host = Host::with([&alice(100)]);
    // The one-shot before the network writes the new ends; the agent reads them in the same boot, with or
    // without a compaction in between.
    host.reboot(5, at(5000));
    let snapshot = host.ledger.snapshot(Mark {
        boot_id: SECOND_BOOT,
        at: boot(6),
        time: at(6),
    });
    for file in [host.file.clone(), snapshot] {
        host.file = file;
        host.reboot(7, at(5002));
        assert!(!host.is_open_at(7));
    }
}

#[test]
fn once_the_server_was_heard_no_wall_clock_counts_in_that_boot() {
    let mut host = Host::with([&alice(100)]);
    host.reboot(5, at(5000));
    host.clock.hear(at(80), boot(6), boot(6), at(80)).unwrap();
    let settled = host.ledger.settle(&host.clock, boot(6));
    host.file.extend(settled);
    host.reboot(7, at(5000));
    assert!(host.is_open_at(25));
    assert!(!host.is_open_at(26));
}
