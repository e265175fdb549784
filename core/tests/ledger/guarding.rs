//! What is guarded, by the host's own file and by policies.

use crate::common::{
    ALICE, Host, MACHINE, alice, at, boot, first_boot, installation, left_out, policy, policy_envelope,
    replay, root, spans, ssh_policy,
};
use nightlatch_core::break_glass::{Asked, BreakGlass, Limits, OfBoot, Opener, VerifiedBreakGlass};
use nightlatch_core::id::BreakGlassId;
use nightlatch_core::keys::{KeyList, ListNumber};
use nightlatch_core::policy::{AllowedSources, MachinePolicy, Policy, PortRule};
use nightlatch_core::port::{PortRange, Protocols};
use nightlatch_core::request::Justification;
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::BootId;
use uuid::Uuid;

#[test]
fn a_policy_guards_its_ports_and_only_a_later_one_replaces_it() {
    let mut host = Host::guarding_nothing();
    assert!(host.allows(ALICE, "3389/udp", 0));
    host.take_policy(2, Some(&policy()));
    assert!(!host.allows(ALICE, "3389/udp", 0));

    let mut older = host.whole(&[]);
    older.policy = Some(policy_envelope(1, None));
    let change = host.take(&older, 0).unwrap();
    assert_eq!(left_out(&change), ["POLICY_OLDER"]);
    assert!(!host.allows(ALICE, "3389/udp", 0));

    host.take_policy(3, None);
    assert!(host.ledger.ruleset(&host.rules, boot(0)).is_empty());
}

#[test]
fn ports_of_the_host_s_own_file_stay_guarded_whatever_the_policy_says() {
    let mut host = Host::new();
    host.take_policy(1, None);
    assert!(!host.is_open_at(0));
}

#[test]
fn a_policy_shuts_before_the_disk_and_opens_after_it() {
    let mut host = Host::guarding_nothing();
    let issued = alice(100);
    let mut whole = host.whole(std::slice::from_ref(&issued));
    whole.policy = Some(policy_envelope(1, Some(&policy())));
    let change = host.consider(&whole, 0).unwrap();
    host.ledger.close(&change);
    assert!(
        !host.is_open_at(0),
        "shut at once, opened only when the record is on disk"
    );
    let in_force = |host: &mut Host| {
        let in_force = host.ledger.in_force(&host.rules, boot(0));
        assert_eq!(in_force, host.ledger.ruleset(&host.rules, boot(0)));
        in_force.openings().len()
    };
    assert_eq!(in_force(&mut host), 0);
    host.ledger.commit(change);
    assert!(!host.is_open_at(0));
    assert_eq!(in_force(&mut host), 0);
    host.ledger.recorded(host.ledger.number());
    assert_eq!(in_force(&mut host), 1);
    assert!(host.is_open_at(0));
}

#[test]
fn a_snapshot_with_a_new_policy_guards_no_port_of_the_old_one() {
    let mut host = Host::new();
    host.take_policy(1, Some(&policy()));
    let mut second = host.whole(&[]);
    second.policy = Some(policy_envelope(2, Some(&ssh_policy())));
    let change = host.consider(&second, 0).unwrap();
    host.ledger.close(&change);
    host.ledger.commit(change);
    assert!(!host.allows(ALICE, "3389/tcp", 0), "until it is on disk");
    let snapshot = host.ledger.snapshot(host.clock.mark(boot(0)).unwrap());
    assert_eq!(snapshot[0].guarded(), Some(spans(&["22/tcp"]).as_slice()));
}

#[test]
fn a_policy_that_guards_less_waits_for_its_record() {
    let mut host = Host::guarding_nothing();
    host.take_policy(1, Some(&policy()));
    let mut deleted = host.whole(&[]);
    deleted.policy = Some(policy_envelope(2, None));
    let change = host.consider(&deleted, 0).unwrap();
    host.ledger.close(&change);
    let number = host.ledger.number();
    host.ledger.commit(change);
    host.ledger.recorded(number);
    assert!(!host.is_open_at(0));
    host.ledger.recorded(host.ledger.number());
    assert!(host.ledger.ruleset(&host.rules, boot(0)).is_empty());
}

#[test]
fn a_policy_keeps_guarding_when_its_key_is_dropped_also_after_a_restart() {
    let mut host = Host::guarding_nothing();
    host.take_policy(1, Some(&policy()));
    let stranger = SigningKey::from_seed(&[8; 32]);
    let number = ListNumber { epoch: 1, number: 2 };
    let list = KeyList::new(installation(), number, vec![stranger.public()], at(0)).seal(&root());
    let mut rotated = host.delta(&[], &[], &[]);
    rotated.keys = Some(list.clone());
    host.take(&rotated, 1).unwrap();
    assert!(!host.is_open_at(1));

    let here = first_boot(2);
    let snapshot = host.ledger.snapshot(host.clock.mark(boot(2)).unwrap());
    for records in [
        host.file.clone(),
        snapshot.clone(),
        [snapshot.clone(), snapshot].concat(),
    ] {
        let ledger = replay(records, here).ledger;
        let again = ledger.snapshot(host.clock.mark(boot(2)).unwrap());
        host.ledger = replay(again, here).ledger;
        assert!(!host.is_open_at(2), "shut after reading it twice");
    }
    let mut signed_anew = host.whole(&[]);
    signed_anew.keys = Some(list);
    let deleted = MachinePolicy::new(MACHINE, 1, 2, None, at(3)).seal(&stranger);
    signed_anew.policy = Some(deleted);
    host.take(&signed_anew, 3).unwrap();
    assert!(host.is_open_at(3), "a later policy under a trusted key is obeyed");
}

#[test]
fn a_policy_of_1024_scattered_ports_is_taken() {
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

/// From the second `start` on, for as many seconds.
fn opened_by_root(source: &str, start: u64, seconds: u64) -> VerifiedBreakGlass {
    let asked = Asked {
        ports: vec!["22".parse().unwrap()],
        source: source.parse().unwrap(),
        length: core::time::Duration::from_secs(seconds),
        reason: Justification::try_from("the server burns".to_owned()).unwrap(),
    };
    let (limits, key) = (Limits::default(), SigningKey::from_seed(&[9; 32]));
    let ports = spans(&["22/tcp"]).iter().flat_map(|span| span.keys()).collect();
    let moment = (BootId(Uuid::nil()), boot(start), at(start));
    let id = BreakGlassId::new(Uuid::nil());
    let used = BreakGlass::new(id, &asked, &ports, &limits, moment, Opener::default()).unwrap();
    let envelope = used.seal(&key);
    BreakGlass::verify(&envelope, &[key.public()], &limits, OfBoot::Certain, boot(start)).unwrap()
}

#[test]
fn what_root_opens_holds_beside_grants_whichever_ends_later() {
    let ssh = spans(&["22/tcp"])[0].keys().next().unwrap();
    for seconds in [50, 200] {
        let issued = alice(100);
        let mut host = Host::with([&issued]);
        host.ledger.recorded(host.ledger.number());
        for console in [vec![], vec![opened_by_root(ALICE, 10, seconds)], vec![]] {
            host.rules.console = console;
            for second in [10, 55, 99, 150, 250] {
                // Each from what was in force before, and one after the other.
                let mut ledger = host.ledger.clone();
                let wanted = ledger.ruleset(&host.rules, boot(second));
                let in_force = ledger.in_force(&host.rules, boot(second));
                let is_open = |from: &str| in_force.allows(from.parse().unwrap(), ssh, boot(second));
                let by_root = !host.rules.console.is_empty() && second < 10 + seconds;
                assert_eq!(is_open(ALICE), second < 100 || by_root, "at {second}");
                assert!(!is_open("192.0.2.99"));
                assert_eq!(
                    wanted.allows(ALICE.parse().unwrap(), ssh, boot(second)),
                    is_open(ALICE)
                );
                drop(ledger.in_force(&host.rules, boot(second + 1)));
            }
        }
        // A grant that ends leaves what root has opened.
        host.rules.console = vec![opened_by_root(ALICE, 10, seconds)];
        for second in [20, 99, 101, 300] {
            let in_force = host.ledger.in_force(&host.rules, boot(second));
            let allowed = in_force.allows(ALICE.parse().unwrap(), ssh, boot(second));
            assert_eq!(allowed, second < 100 || second < 10 + seconds, "at {second}");
        }
    }
}
