//! What an assignment does to the grants of a host.

use crate::common::{
    ALICE, FIRST_BOOT, Host, alice, assigned, at, authority, boot, first_boot, forged, grant, installation,
    keys_envelope, left_out, refused, replay, root,
};
use nightlatch_core::assignment::{Assigned, Assignment, Digest, Generation};
use nightlatch_core::clock::HostClock;
use nightlatch_core::keys::{KeyList, ListNumber};
use nightlatch_core::ledger::{AssignmentRefused, Closing};
use nightlatch_core::signing::SigningKey;
use serde_json::json;

#[test]
fn the_later_end_holds_whatever_overlaps() {
    let mut host = Host::new();
    let wide = grant(1, &["22"], &["192.0.2.0/24"], 0, 100);
    let narrow = grant(2, &["22"], &[ALICE], 0, 200);
    let again = grant(3, &["22"], &[ALICE], 0, 50);
    let whole = host.whole(&[wide.clone(), narrow.clone(), again.clone()]);
    host.take(&whole, 0).unwrap();
    assert!(host.is_open_at(199));
    assert!(!host.is_open_at(200));
    assert!(host.allows("192.0.2.8", "22/tcp", 99));
    assert!(!host.allows("192.0.2.8", "22/tcp", 100));
    let delta = host.delta(&[], &[narrow.grant.id], &[wide.grant.id, again.grant.id]);
    host.take(&delta, 10).unwrap();
    assert!(host.is_open_at(99));
    assert!(!host.is_open_at(100));
}

#[test]
fn one_odd_grant_never_blocks_another() {
    let mut host = Host::new();
    let good = alice(100);
    let odd = forged(
        &grant(2, &["22"], &["192.0.2.8"], 0, 100).grant,
        &[("only_interface", json!("eth0"))],
    );
    let mut whole = host.whole(std::slice::from_ref(&good));
    let id = grant(2, &["22"], &["192.0.2.8"], 0, 100).grant.id;
    whole.added.push(Assigned { id, envelope: odd });
    whole.digest = Digest::of(&[good.grant.id, id]);
    let change = host.take(&whole, 0).unwrap();
    assert_eq!(refused(&change), ["FIELD_UNKNOWN"]);
    assert!(host.is_open_at(1));
    assert!(!host.allows("192.0.2.8", "22/tcp", 1));
}

#[test]
fn an_assignment_that_does_not_follow_is_refused() {
    let mut host = Host::new();
    let first = alice(100);
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
    let whole = host.whole(&[alice(100)]);
    assert_eq!(
        host.consider(&whole, 0).unwrap_err(),
        AssignmentRefused::TimeUnknown
    );
}

#[test]
fn redelivery_and_a_delayed_clock_never_lengthen_a_grant() {
    let mut host = Host::new();
    let issued = alice(100);
    // The answer took 30 s: true time may be 30 s later than it says.
    host.clock = HostClock::new(FIRST_BOOT, boot(0), None);
    host.clock.hear(at(0), boot(0), boot(30), at(0)).unwrap();
    let whole = host.whole(std::slice::from_ref(&issued));
    host.take(&whole, 30).unwrap();
    assert!(host.is_open_at(99));
    assert!(!host.is_open_at(100));
    let again = host.whole(&[issued]);
    host.take(&again, 60).unwrap();
    assert!(!host.is_open_at(100));
}

#[test]
fn a_key_that_left_the_list_takes_its_grants_with_it() {
    let issued = alice(100);
    let mut host = Host::with([&issued]);
    let stranger = SigningKey::from_seed(&[8; 32]);
    let number = ListNumber { epoch: 2, number: 1 };
    let list = KeyList::new(installation(), number, vec![stranger.public()], at(0));
    let mut rotated = host.delta(&[], &[], &[issued.grant.id]);
    rotated.keys = Some(list.seal(&root()));
    let change = host.take(&rotated, 1).unwrap();
    assert_eq!(change.closing(), [(issued.grant.id, Closing::NoLongerValid)]);
    assert!(!host.is_open_at(1));

    let mut back = host.delta(&[], &[], &[issued.grant.id]);
    back.keys = Some(keys_envelope());
    let change = host.take(&back, 2).unwrap();
    assert_eq!(left_out(&change), ["KEYS_OLDER"]);
    let mut forged_list = host.delta(&[], &[], &[issued.grant.id]);
    forged_list.keys = Some(list.seal(authority().key()));
    let change = host.take(&forged_list, 3).unwrap();
    assert_eq!(left_out(&change), ["KEY_UNKNOWN"]);
}

#[test]
fn a_grant_that_was_refused_and_then_revoked_is_remembered() {
    let mut host = Host::new();
    host.rules.ceiling = None;
    let issued = alice(100);
    let whole = host.whole(std::slice::from_ref(&issued));
    let change = host.take(&whole, 0).unwrap();
    assert_eq!(change.refused()[0].1.code(), "NO_CEILING");
    let here = first_boot(1);
    let replay = |records| replay(records, here).ledger;
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
    let mut host = Host::with([&alice(10_000)]);
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
fn a_grant_that_begins_later_opens_at_its_time_without_another_word() {
    let mut host = Host::new();
    let ahead = grant(1, &["22"], &[ALICE], 100, 50);
    let whole = host.whole(std::slice::from_ref(&ahead));
    host.take(&whole, 0).unwrap();
    assert_eq!(whole.added, [assigned(&ahead)]);
    assert!(!host.is_open_at(99));
    assert_eq!(host.ledger.next_deadline(boot(0)), Some(boot(100)));
    assert!(host.is_open_at(100));
    assert!(host.is_open_at(149));
    assert!(!host.is_open_at(150));
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

    let here = first_boot(2);
    host.ledger = replay(host.file.clone(), here).ledger;
    assert_eq!(allowed(&host), [false, false, true], "after a restart too");
}

#[test]
fn what_was_revoked_never_opens_again_although_a_restored_server_sends_it() {
    let revoked = alice(100);
    let mut host = Host::with([&revoked]);
    let delta = host.delta(&[], &[revoked.grant.id], &[]);
    host.take(&delta, 1).unwrap();

    let here = first_boot(2);
    let mark = host.clock.mark(boot(2)).unwrap();
    for file in [host.file.clone(), host.ledger.snapshot(mark)] {
        host.ledger = replay(file, here).ledger;
        let again = host.whole(std::slice::from_ref(&revoked));
        let change = host.take(&again, 3).unwrap();
        assert_eq!(refused(&change), ["REVOKED"]);
        assert!(host.ledger.was_revoked(revoked.grant.id));
        assert!(!host.is_open_at(3));
    }

    // Once it has ended by itself there is nothing left to remember.
    host.clock.hear(at(101), boot(101), boot(101), at(101)).unwrap();
    let later = host.whole(&[]);
    host.take(&later, 101).unwrap();
    assert!(!host.ledger.was_revoked(revoked.grant.id));
}
