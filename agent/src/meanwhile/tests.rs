//! What an agent makes of the table that it finds, before the disk has said anything.

use nightlatch_core::port::Protocol;
use nightlatch_core::ruleset::OpeningKey;

use super::*;
use crate::clock::fake::FakeClock;
use crate::enforcer::fake::FakeTable;
use crate::startup::tests::{guarding, rules};

fn clock() -> FakeClock {
    FakeClock::new("2026-11-22T12:00:00Z".parse().unwrap())
}

fn file() -> HostRules {
    HostRules {
        trusted_sources: vec!["198.51.100.0/24".parse().unwrap()],
        unguarded_interfaces: BTreeSet::from(["inside".to_owned()]),
        ceiling: rules().ceiling,
        ..guarding("3389/tcp")
    }
}

fn open(table: &mut FakeTable, source: &str, port: u16, end: End) {
    let key = PortKey {
        protocol: Protocol::Tcp,
        port,
    };
    let source = source.parse().unwrap();
    table
        .ruleset
        .as_mut()
        .unwrap()
        .open(OpeningKey { source, key }, end);
}

fn hours(hours: u64) -> End {
    End::At(clock().now().plus(Duration::from_secs(hours * 3600)))
}

/// Made by a daemon with that file, for a policy that guards port 22 as well, with a grant for 192.0.2.2.
fn standing(file: &HostRules) -> FakeTable {
    let mut table = FakeTable::guarding(&[22]);
    hold(file, None, &mut table, &clock()).unwrap();
    table.maker = Maker::Other;
    table.past.clear();
    open(&mut table, "192.0.2.2", 22, hours(1));
    table
}

#[test]
fn a_table_that_the_file_allows_stays_as_it_is() {
    let mut table = standing(&file());
    guard_the_files(&file(), &mut table, &clock()).unwrap();
    assert!(table.past.is_empty());
    let mut none = FakeTable::default();
    guard_the_files(&HostRules::default(), &mut none, &clock()).unwrap();
    assert!(none.past.is_empty());
}

#[test]
fn whatever_the_file_no_longer_allows_does_not_wait_for_the_disk() {
    type Change = fn(&mut FakeTable);
    let changes: [(&str, Change, usize); 9] = [
        (
            "a source that is no longer trusted",
            |table| open(table, "203.0.113.7", 22, End::Never),
            1,
        ),
        (
            "an interface that is no longer left alone",
            |table| {
                let rules = HostRules {
                    unguarded_interfaces: BTreeSet::from(["inside".to_owned(), "outside".to_owned()]),
                    ..file()
                };
                table.ruleset = standing(&rules).ruleset;
            },
            1,
        ),
        (
            "a source that is trusted now",
            |table| {
                let rules = HostRules {
                    trusted_sources: Vec::new(),
                    ..file()
                };
                table.ruleset = standing(&rules).ruleset;
            },
            1,
        ),
        (
            "a port beyond the ceiling",
            |table| open(table, "192.0.2.3", 3389, hours(1)),
            1,
        ),
        (
            "a source beyond the ceiling",
            |table| open(table, "192.0.0.0/16", 22, hours(1)),
            1,
        ),
        (
            "an end beyond the ceiling",
            |table| open(table, "192.0.2.2", 22, hours(25)),
            1,
        ),
        (
            "rules that were flushed",
            |table| table.foreign_part = Some("rules"),
            1,
        ),
        (
            "a table that was loaded",
            |table| table.maker = Maker::Stranger,
            0,
        ),
        (
            "a port without its guard",
            |table| *table = FakeTable::guarding(&[22]),
            0,
        ),
    ];
    for (what, change, grants) in changes {
        let mut table = standing(&file());
        change(&mut table);
        guard_the_files(&file(), &mut table, &clock()).unwrap();
        assert_eq!(table.past.len(), 1, "{what}");
        let made = &table.past[0];
        let is_timed = |(_, end): &(&OpeningKey, &End)| **end != End::Never;
        assert_eq!(made.openings().iter().filter(is_timed).count(), grants, "{what}");
        let lasting = HostRules {
            guarded: spans_of(made.guarded().clone()),
            ..file()
        };
        let mut expected = lasting.ruleset_alone();
        for (opening, end) in made.openings().iter().filter(is_timed) {
            assert!(*end <= hours(24), "{what}");
            expected.open(*opening, *end);
        }
        assert_eq!(*made, expected, "{what}");
        assert_eq!(table.ports(), Some(vec![22, 3389]), "{what}");
        guard_the_files(&file(), &mut table, &clock()).unwrap();
        assert_eq!(table.past.len(), 1, "{what}: once was enough");
    }
}

#[test]
fn a_table_that_is_made_where_none_was_is_told_from_one_that_stood() {
    let held = |table: &mut FakeTable, rules: &HostRules| hold(rules, None, table, &clock()).unwrap();
    assert!(held(&mut FakeTable::default(), &file()));
    assert!(!held(&mut FakeTable::guarding(&[22]), &file()));
    assert!(!held(&mut FakeTable::default(), &HostRules::default()));
    // Somebody else makes one just then.
    let mut late = FakeTable {
        interruptions: [FakeTable::guarding(&[22]).ruleset].into(),
        ..FakeTable::default()
    };
    assert!(!held(&mut late, &file()));
    assert_eq!(late.ports(), Some(vec![22, 3389]));
    let mut busy = FakeTable {
        interruptions: [const { None }; ATTEMPTS].into(),
        ..FakeTable::default()
    };
    assert!(held(&mut busy, &file()));
    assert_eq!(busy.ports(), Some(vec![3389]));
}
