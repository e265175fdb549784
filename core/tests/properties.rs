//! For any history of assignments and any packet at any time: a naive model over the raw grants allows it
//! exactly when the ruleset does.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::{FIRST_BOOT, Host, MACHINE, at, boot, ceiling, grant, root};
use nightlatch_core::assignment::{Assignment, Digest, Generation};
use nightlatch_core::ceiling::HostCeiling;
use nightlatch_core::clock::HostClock;
use nightlatch_core::grant::{Grant, IssuedGrant};
use nightlatch_core::id::GrantId;
use nightlatch_core::ledger::{Boot, Ledger, Record};
use nightlatch_core::policy::{AllowedSources, Policy, PortRule};
use nightlatch_core::port::{PortKey, Protocol, Protocols};
use nightlatch_core::time::BootId;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Add {
        ports: Vec<&'static str>,
        sources: Vec<String>,
        ahead: u64,
        seconds: u64,
    },
    Remove(prop::sample::Index),
    Wait(u64),
    ResendWhole,
    RestartAgent,
}

fn source() -> impl Strategy<Value = String> {
    prop_oneof![
        (8_u8..=32, 0_u32..1024).prop_map(|(length, host)| {
            let mask = u32::MAX << (32 - u32::from(length));
            format!(
                "{}/{length}",
                std::net::Ipv4Addr::from((0x0A00_0000 | host) & mask)
            )
        }),
        (prop::sample::select(vec![32_u8, 64, 120, 127, 128]), 0_u128..4).prop_map(|(length, host)| {
            let mask = u128::MAX << (128 - u32::from(length));
            let address = (0x2001_0db8_u128 << 96) | host;
            format!("{}/{length}", std::net::Ipv6Addr::from(address & mask))
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let wishes = vec![
        "22",
        "3389",
        "3389/tcp",
        "3389/udp",
        "22/tcp",
        "8000-8010/tcp",
        "8003-8006",
        "8000-8004/udp",
        "8010",
    ];
    let ports = prop::sample::subsequence(wishes, 1..4);
    let ahead = prop_oneof![Just(0_u64), 0_u64..120];
    prop_oneof![
        4 => (ports, prop::collection::vec(source(), 1..3), ahead, 1_u64..600)
            .prop_map(|(ports, sources, ahead, seconds)| Step::Add { ports, sources, ahead, seconds }),
        2 => any::<prop::sample::Index>().prop_map(Step::Remove),
        3 => (1_u64..200).prop_map(Step::Wait),
        1 => Just(Step::ResendWhole),
        1 => Just(Step::RestartAgent),
    ]
}

#[derive(Clone, Debug)]
enum Act {
    Add {
        ahead: u64,
        seconds: u64,
        is_recorded: bool,
    },
    Wait(u64),
    Report,
    Mark,
    Hear,
    Reboot {
        wall: u64,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u64..60, 1_u64..200, any::<bool>())
            .prop_map(|(ahead, seconds, is_recorded)| Act::Add { ahead, seconds, is_recorded }),
        4 => (1_u64..60).prop_map(Act::Wait),
        3 => Just(Act::Report),
        1 => Just(Act::Mark),
        2 => Just(Act::Hear),
        1 => (0_u64..400).prop_map(|wall| Act::Reboot { wall }),
    ]
}

fn packet() -> impl Strategy<Value = (IpAddr, PortKey)> {
    let address = prop_oneof![
        (0_u32..1024).prop_map(|host| IpAddr::from(std::net::Ipv4Addr::from(0x0A00_0000 | host))),
        (0_u128..4).prop_map(|host| IpAddr::from(std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) | host))),
        Just("198.51.100.1".parse().unwrap()),
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let port = prop_oneof![Just(22_u16), Just(3389), Just(80), 7_999_u16..=8_011];
    (address, protocol, port).prop_map(|(address, protocol, port)| (address, PortKey { protocol, port }))
}

/// A host that guards and allows ranges as well, not all of which grants may name.
fn host_with_ranges() -> Host {
    let mut host = Host::new();
    host.rules.guarded.extend(common::spans(&["8002-8010"]));
    let ceiling = host.rules.ceiling.as_mut().unwrap();
    ceiling.ports.push("8000-8010".parse().unwrap());
    host
}

/// As [`common::grant`], by a policy whose rules meet in the middle of the range.
fn grant_with_ranges(id: u128, ports: &[&str], sources: &[&str], start: u64, seconds: u64) -> IssuedGrant {
    let ranges = ["8000-8004", "8005-8010"].map(|range| {
        let range = range.parse().unwrap();
        PortRule::new(
            range,
            Protocols::Both,
            AllowedSources::Any,
            PortRule::DEFAULT_LIMIT,
        )
        .unwrap()
    });
    let rules = common::policy().rules().iter().cloned().chain(ranges).collect();
    let approval = Policy::new(rules)
        .unwrap()
        .decide(
            common::wish(ports, sources, seconds),
            HostCeiling::Unheard,
            at(start),
        )
        .unwrap();
    let id = GrantId::new(uuid::Uuid::from_u128(id));
    common::authority().issue(approval, id, at(start)).unwrap()
}

/// The model: ten lines, no cleverness.
fn allowed<'g>(
    grants: impl IntoIterator<Item = &'g Grant>,
    source: IpAddr,
    key: PortKey,
    second: u64,
) -> bool {
    let guarded = match key.port {
        22 => key.protocol == Protocol::Tcp,
        port => port == 3389 || (8_002..=8_010).contains(&port),
    };
    !guarded
        || grants.into_iter().any(|grant| {
            grant.not_before <= at(second)
                && at(second) < grant.not_after
                && grant.sources.iter().any(|prefix| prefix.contains(source))
                && grant.ports.iter().any(|span| span.contains(key))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_ruleset_allows_exactly_what_the_grants_allow(
        steps in prop::collection::vec(step(), 1..24),
        packets in prop::collection::vec(packet(), 12),
        later in 0_u64..100,
        trusts in any::<bool>(),
    ) {
        let mut host = host_with_ranges();
        let ceiling = host.rules.ceiling.clone();
        let mut trusting = host.rules.clone();
        trusting.trusted_sources = vec!["10.0.0.0/24".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let mut live: BTreeMap<GrantId, IssuedGrant> = BTreeMap::new();
        let (mut second, mut number) = (0, 0_u128);
        for step in steps {
            match step {
                Step::Wait(seconds) => second += seconds,
                Step::Add { ports, sources, ahead, seconds } => {
                    number += 1;
                    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
                    let grant = grant_with_ranges(number, &ports, &sources, second + ahead, seconds);
                    live.insert(grant.grant.id, grant.clone());
                    let ids: Vec<GrantId> = live.keys().copied().collect();
                    let delta = host.delta(&[grant], &[], &ids);
                    host.take(&delta, second).unwrap();
                }
                Step::Remove(index) if !live.is_empty() => {
                    let id = *index.get(&live.keys().copied().collect::<Vec<_>>());
                    live.remove(&id);
                    let ids: Vec<GrantId> = live.keys().copied().collect();
                    let delta = host.delta(&[], &[id], &ids);
                    host.take(&delta, second).unwrap();
                }
                Step::Remove(_) => {}
                Step::ResendWhole => {
                    let whole = host.whole(&live.values().cloned().collect::<Vec<_>>());
                    host.take(&whole, second).unwrap();
                }
                Step::RestartAgent => {
                    let here = Boot { id: FIRST_BOOT, now: boot(second), wall: at(second) };
                    let records = host.file.clone();
                    let replayed = Ledger::replay(MACHINE, root().public(), records, ceiling.as_ref(), here);
                    host.ledger = replayed.ledger;
                    host.clock = HostClock::new(FIRST_BOOT, boot(second), replayed.mark);
                    host.clock.hear(at(second), boot(second), boot(second), at(second)).unwrap();
                }
            }
            let ruleset = host.ledger.ruleset(&host.rules, boot(second));
            // Brought up to date step by step, it is what it would be from scratch.
            let rules = if trusts { &trusting } else { &host.rules };
            let in_force = host.ledger.in_force(rules, boot(second));
            prop_assert_eq!(in_force, host.ledger.ruleset(rules, boot(second)));
            let grants = || live.values().map(|issued| &issued.grant);
            let after = second + later;
            let then = host.ledger.ruleset(&host.rules, boot(after));
            let starts = grants().map(|grant| grant.not_before);
            let next_start = starts.filter(|start| at(second) < *start && *start <= at(after)).min();
            if let Some(start) = next_start {
                let told = host.ledger.next_deadline(boot(second)).unwrap();
                prop_assert!(at(0).checked_add(told.since(boot(0))).unwrap() <= start, "{:?}", told);
            }
            for (source, key) in &packets {
                prop_assert_eq!(
                    ruleset.allows(*source, *key, boot(second)),
                    allowed(grants(), *source, *key, second),
                    "{} {} at {}", source, key, second
                );
                let wanted = allowed(grants(), *source, *key, after);
                prop_assert_eq!(then.allows(*source, *key, boot(after)), wanted, "{} {} at {}", source, key, after);
                // Without another word from anyone the same value stays right: the kernel forgets by itself.
                // Only what begins has to be told.
                let untold = ruleset.allows(*source, *key, boot(after));
                prop_assert!(
                    untold == wanted || (next_start.is_some() && !untold),
                    "{} {} at {} later", source, key, later
                );
            }
        }
    }

    #[test]
    fn what_is_kept_up_step_by_step_is_what_it_would_be_from_scratch_over_reboots_too(
        acts in prop::collection::vec(act(), 1..32),
    ) {
        let mut host = Host::new();
        let (mut truth, mut now, mut number) = (0, 0, 0_u128);
        let mut here = FIRST_BOOT;
        let mut live = Vec::new();
        for act in acts {
            match act {
                Act::Add { ahead, seconds, is_recorded } => {
                    number += 1;
                    let source = format!("192.0.2.{}", number % 4);
                    let issued = grant(number, &["22"], &[&source], truth + ahead, seconds);
                    live.push(issued.grant.id);
                    let delta = host.delta(std::slice::from_ref(&issued), &[], &live);
                    match host.consider(&delta, now) {
                        Ok(change) => {
                            host.file.push(change.record());
                            host.ledger.commit(change);
                            if is_recorded {
                                host.ledger.recorded(host.ledger.number());
                            }
                        }
                        Err(_) => drop(live.pop()),
                    }
                }
                Act::Wait(seconds) => {
                    truth += seconds;
                    now += seconds;
                }
                Act::Report => {
                    let unreported = host.ledger.unreported(boot(now));
                    host.file.push(host.ledger.reported(unreported));
                }
                Act::Mark => host.file.extend(host.clock.mark(boot(now)).map(Record::Marked)),
                Act::Hear => {
                    host.clock.hear(at(truth), boot(now), boot(now), at(truth)).unwrap();
                    host.file.extend(host.ledger.settle(&host.clock, boot(now)));
                }
                Act::Reboot { wall } => {
                    (here, now) = (BootId(uuid::Uuid::from_u128(here.0.as_u128() + 1)), 5);
                    let start = Boot { id: here, now: boot(now), wall: at(wall) };
                    let records = host.file.clone();
                    let replayed = Ledger::replay(MACHINE, root().public(), records, Some(&ceiling()), start);
                    host.ledger = replayed.ledger;
                    host.clock = HostClock::new(here, boot(now), replayed.mark);
                    host.file.extend(replayed.carried);
                    prop_assert!(host.ledger.ruleset(&host.rules, boot(now)).openings().is_empty()
                        || host.ledger.recorded_number() == host.ledger.number());
                    let in_force = host.ledger.in_force(&host.rules, boot(now));
                    prop_assert_eq!(in_force, host.ledger.ruleset(&host.rules, boot(now)));
                    host.ledger.recorded(host.ledger.number());
                }
            }
            let in_force = host.ledger.in_force(&host.rules, boot(now));
            prop_assert_eq!(in_force, host.ledger.ruleset(&host.rules, boot(now)));
        }
    }

    #[test]
    fn whatever_is_wrong_with_an_assignment_what_it_takes_away_closes_and_a_refused_one_opens_nothing(
        held in prop::collection::btree_set(1_u128..8, 0..6),
        removed in prop::collection::btree_set(1_u128..8, 0..4),
        added in prop::collection::btree_set(1_u128..12, 0..6),
        later in -2_i64..3,
        far_ahead in any::<bool>(),
        base in prop::option::of(-2_i64..3),
        fits in any::<bool>(),
        knows_time in any::<bool>(),
    ) {
        let issued = |id: &u128| grant(*id, &["22"], &[&format!("192.0.2.{id}")], 0, 100);
        let mut host = Host::new();
        let first = host.whole(&held.iter().map(issued).collect::<Vec<_>>());
        host.take(&first, 0).unwrap();
        if !knows_time {
            host.clock = HostClock::new(FIRST_BOOT, boot(0), None);
        }
        let beside = |steps: i64| Generation(first.generation.0.saturating_add_signed(steps));
        let left = held.difference(&removed).chain(&added).map(|id| issued(id).grant.id);
        let assignment = Assignment {
            generation: beside(if far_ahead { 90_000_000_000 } else { later }),
            base: base.map(beside),
            keys: None,
            policy: None,
            added: added.iter().map(|id| common::assigned(&issued(id))).collect(),
            removed: removed.iter().map(|id| issued(id).grant.id).collect(),
            digest: Digest::of(&left.take(if fits { usize::MAX } else { 0 }).collect::<Vec<_>>()),
        };
        let open = |host: &Host| -> BTreeSet<u128> {
            (1..12).filter(|id| host.allows(&format!("192.0.2.{id}"), "22/tcp", 1)).collect()
        };
        let before = open(&host);
        let taken = host.take(&assignment, 1).is_ok();
        let after = open(&host);
        // What an assignment both brings and takes is not there to be taken.
        let taken_away = removed.iter().filter(|id| held.contains(id) || !added.contains(id));
        prop_assert!(after.is_disjoint(&taken_away.copied().collect()), "{after:?}");
        if base.is_none() && assignment.generation >= first.generation {
            prop_assert!(after.is_subset(&added), "{after:?}");
        }
        if !taken {
            prop_assert!(after.is_subset(&before), "{after:?}");
        }
        let here = Boot { id: FIRST_BOOT, now: boot(1), wall: at(1) };
        let records = host.file.clone();
        host.ledger = Ledger::replay(MACHINE, root().public(), records, Some(&ceiling()), here).ledger;
        prop_assert_eq!(open(&host), after, "read back");
    }

    #[test]
    fn what_was_sealed_verifies_and_says_the_same(
        sources in prop::collection::vec(source(), 1..5),
        seconds in 1_u64..10_800,
    ) {
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let issued = grant(1, &["22"], &sources, 0, seconds);
        let mut wide = ceiling();
        (wide.widest_ipv4, wide.widest_ipv6) = (0, 0);
        let verified = issued.envelope.verify(&common::keys(), MACHINE, Some(&wide), at(0)).unwrap();
        prop_assert_eq!(verified.grant(), &issued.grant);
    }

    #[test]
    fn no_bytes_make_a_grant_without_the_key(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let envelope = nightlatch_core::grant::SignedGrant::from_bytes(bytes);
        prop_assert!(envelope.verify(&common::keys(), MACHINE, Some(&ceiling()), at(0)).is_err());
    }
}
