//! How much a host takes.

use crate::common::{ALICE, Host, alice, boot, grant, refused};
use nightlatch_core::grant::SignedGrant;
use nightlatch_core::id::GrantId;
use nightlatch_core::ledger::{AssignmentRefused, MOST_GRANTS, MOST_OPENINGS};
use uuid::Uuid;

#[test]
fn overlapping_ports_of_a_grant_count_once_when_it_goes() {
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
    assert_eq!(refused(&change), ["TOO_MANY_OPENINGS"]);
}

#[test]
fn a_host_takes_a_bounded_number_of_openings() {
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
    assert!(host.is_open_at(0));
    assert!(host.ledger.ruleset(&host.rules, boot(0)).openings().len() <= MOST_OPENINGS);
}

#[test]
fn a_host_takes_a_bounded_number_of_grants_and_keeps_what_it_has() {
    let held = alice(100);
    let mut host = Host::with([&held]);
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
    assert!(host.is_open_at(1));
    let as_many_as_go = host.whole(&copies(MOST_GRANTS));
    host.consider(&as_many_as_go, 1).unwrap();
}
