//! Real ledger files: cut at every byte, flipped at every byte, over restarts and reboots.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nightlatch_core::assignment::{Assigned, Assignment, Digest};
use nightlatch_core::ceiling::Ceiling;
use nightlatch_core::grant::IssuedGrant;
use nightlatch_core::time::{BootId, BootTime};
use uuid::Uuid;

use super::*;
use crate::ledger_file::write_blank;
use crate::world::{self, MACHINE, at, installation, root, spans, ssh_policy};

pub(crate) fn rules() -> HostRules {
    HostRules {
        ceiling: Some(Ceiling {
            ports: vec!["22".parse().unwrap()],
            longest: Duration::from_secs(24 * 3600),
            max_ahead: Duration::from_secs(3600),
            widest_ipv4: 24,
            widest_ipv6: 64,
        }),
        ..HostRules::default()
    }
}

pub(crate) fn guarding(port: &str) -> HostRules {
    HostRules {
        guarded: spans(&[port]),
        ..HostRules::default()
    }
}

pub(crate) fn enrollment() -> Enrollment {
    Enrollment {
        machine_id: MACHINE,
        machine_name: "web-1".parse().unwrap(),
        installation_id: installation(),
        root_key: root().public(),
        agent_addresses: vec!["192.0.2.1:7444".to_owned()],
        enrolled_at: at(0),
    }
}

fn boot(id: u128, second: u64) -> Boot {
    Boot {
        id: BootId(Uuid::from_u128(id)),
        now: BootTime::new(Duration::from_secs(second)),
        wall: at(0).checked_add(Duration::from_secs(second)).unwrap(),
    }
}

fn grant(id: u128) -> IssuedGrant {
    world::grant(id, &["22/tcp"], &[&format!("192.0.2.{id}")], 0, 3600)
}

/// A state directory with a ledger that took a policy, grant 1, then 2, lost 1, took 3, and the lengths of its file after
/// each, with the grants that were held then.
pub(crate) struct Sample {
    _folder: tempfile::TempDir,
    pub(crate) state: StateDir,
    bytes: Vec<u8>,
    steps: Vec<(usize, BTreeSet<u128>)>,
}

pub(crate) fn write_blank_ledger(state: &StateDir) {
    let write = |path: &Path, bytes: &[u8]| -> anyhow::Result<()> { Ok(std::fs::write(path, bytes)?) };
    write_blank(&state.ledger(), write).unwrap();
}

pub(crate) fn sample() -> Sample {
    // Thousands of forced writes: in memory where that exists.
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let state = StateDir::new(folder.path().to_owned());
    let here = boot(1, 0);
    write_blank_ledger(&state);
    let Recalled {
        mut ledger,
        mut time,
        mut sink,
        ..
    } = recall(&state, &enrollment(), &rules(), here);
    time.hear(at(0), here.now, here.now, here.wall).unwrap();
    let size = |state: &StateDir| std::fs::read(state.ledger()).unwrap().len();
    let mut steps = vec![(0, BTreeSet::new()), (size(&state), BTreeSet::new())];
    let mut generation = u64::try_from(at(0).micros()).unwrap();
    for held in [vec![], vec![1], vec![1, 2], vec![2], vec![2, 3]] {
        generation += 1;
        let grants: Vec<IssuedGrant> = held.iter().map(|id| grant(*id)).collect();
        let assignment = world::whole(generation, &grants, &ssh_policy());
        let change = ledger
            .consider(&assignment, rules().ceiling.as_ref(), &time, here.now)
            .unwrap();
        ledger.close(&change);
        sink.append(&[change.record()], true).unwrap();
        ledger.commit(change);
        ledger.recorded(ledger.number());
        if held.is_empty() {
            sink.rewrite(&snapshot(&ledger, &time, here.now)).unwrap();
        }
        steps.push((size(&state), held.into_iter().collect()));
    }
    let bytes = std::fs::read(state.ledger()).unwrap();
    Sample {
        _folder: folder,
        state,
        bytes,
        steps,
    }
}

fn held(recalled: &Recalled, now: BootTime) -> BTreeSet<u128> {
    recalled
        .ledger
        .held(now)
        .map(|held| held.grant.id.uuid().as_u128())
        .collect()
}

fn tells_of_damage(recalled: &Recalled) -> bool {
    let told = |code| recalled.reports.iter().any(|(told, _)| *told == code);
    told("LEDGER_DAMAGED") || told("LEDGER_SHORTENED")
}

/// From here on nothing that must stay is missing: the revoke is on disk.
fn whole_enough(steps: &[(usize, BTreeSet<u128>)]) -> usize {
    steps[steps.len() - 2].0
}

#[test]
fn a_ledger_cut_at_any_byte_loses_openings_at_most_and_never_a_revoke() {
    let Sample {
        state, bytes, steps, ..
    } = &sample();
    for length in 0..=bytes.len() {
        std::fs::write(state.ledger(), &bytes[..length]).unwrap();
        let recalled = recall(state, &enrollment(), &rules(), boot(1, 1));
        let is_loss = length < whole_enough(steps);
        let expected = match steps.iter().rev().find(|(end, _)| *end <= length) {
            Some((_, held)) if !is_loss => held.clone(),
            _ => BTreeSet::new(),
        };
        assert_eq!(held(&recalled, boot(1, 1).now), expected, "{length}");
        assert!(recalled.sink.is_sound(), "{length}");
        assert_eq!(recalled.is_bare, is_loss, "{length}");
        assert_eq!(tells_of_damage(&recalled), is_loss, "{length}");
        let ruleset = recalled.ledger.ruleset(&rules(), boot(1, 1).now);
        assert_eq!(
            ruleset.guarded().len(),
            1,
            "{length}: the policy's port stays shut"
        );
        if is_loss && length % 16 == 0 {
            let again = recall(state, &enrollment(), &rules(), boot(1, 2));
            assert!(again.is_bare && tells_of_damage(&again), "{length}");
        }
    }
}

#[test]
fn a_ledger_with_more_than_it_must_have_is_whole_and_a_damaged_or_missing_floor_is_a_loss() {
    let Sample {
        state, bytes, steps, ..
    } = &sample();
    let floor = state.file("ledger.floor");
    let good = std::fs::read(&floor).unwrap();
    write_blank_ledger(state);
    std::fs::write(state.ledger(), &bytes[..steps[4].0]).unwrap();
    let recalled = recall(state, &enrollment(), &rules(), boot(1, 1));
    assert_eq!(held(&recalled, boot(1, 1).now), BTreeSet::from([1, 2]));
    for length in (0..good.len()).map(Some).chain([None]) {
        std::fs::write(state.ledger(), bytes).unwrap();
        match length {
            Some(length) => std::fs::write(&floor, &good[..length]).unwrap(),
            None => std::fs::remove_file(&floor).unwrap(),
        }
        let recalled = recall(state, &enrollment(), &rules(), boot(1, 1));
        assert!(recalled.is_bare && tells_of_damage(&recalled), "{length:?}");
        assert_eq!(held(&recalled, boot(1, 1).now), BTreeSet::new(), "{length:?}");
        assert!(LedgerFile::read(&state.ledger()).damage.is_none());
    }
    std::fs::write(state.ledger(), bytes).unwrap();
    let recalled = recall(state, &enrollment(), &rules(), boot(1, 1));
    assert_eq!(held(&recalled, boot(1, 1).now), BTreeSet::from([2, 3]));
}

#[test]
fn after_a_shortened_ledger_the_next_record_counts_again() {
    let Sample {
        state, bytes, steps, ..
    } = &sample();
    std::fs::write(state.ledger(), &bytes[..steps[3].0]).unwrap();
    let Recalled {
        mut ledger,
        mut time,
        mut sink,
        reports,
        ..
    } = recall(state, &enrollment(), &rules(), boot(1, 1));
    assert_eq!(reports[0].0, "LEDGER_SHORTENED");
    time.hear(at(0), boot(1, 1).now, boot(1, 1).now, at(0)).unwrap();
    let issued = grant(4);
    let whole = Assignment {
        generation: Generation(u64::try_from(at(0).micros()).unwrap() + 9),
        base: None,
        keys: None,
        policy: None,
        added: vec![Assigned {
            id: issued.grant.id,
            envelope: issued.envelope,
        }],
        removed: Vec::new(),
        digest: Digest::of([&issued.grant.id]),
    };
    let ceiling = rules().ceiling;
    let change = ledger
        .consider(&whole, ceiling.as_ref(), &time, boot(1, 1).now)
        .unwrap();
    sink.append(&[change.record()], true).unwrap();
    ledger.commit(change);
    let recalled = recall(state, &enrollment(), &rules(), boot(1, 2));
    assert_eq!(held(&recalled, boot(1, 2).now), BTreeSet::from([4]));
    assert!(!tells_of_damage(&recalled));
}

#[test]
fn a_ledger_flipped_in_the_middle_opens_nothing_and_keeps_the_policy_s_guard() {
    let Sample {
        state, bytes, steps, ..
    } = &sample();
    let (last_begins, _) = steps[steps.len() - 2];
    for position in (0..last_begins).step_by(7) {
        let mut flipped = bytes.clone();
        flipped[position] ^= 0x10;
        std::fs::write(state.ledger(), &flipped).unwrap();
        let recalled = recall(state, &enrollment(), &rules(), boot(1, 1));
        assert!(recalled.is_bare, "{position}");
        assert!(
            recalled.reports.iter().any(|(code, _)| *code == "LEDGER_DAMAGED"),
            "{position}"
        );
        assert_eq!(recalled.ledger.generation(), Generation(0));
        let ruleset = recalled.ledger.ruleset(&rules(), boot(1, 1).now);
        assert!(ruleset.openings().is_empty(), "{position}");
        assert!(!ruleset.is_empty(), "{position}");
        // What is left is on disk: the next start guards the same, and still asks and tells.
        let again = recall(state, &enrollment(), &rules(), boot(1, 2));
        assert_eq!(
            again.ledger.ruleset(&rules(), boot(1, 2).now),
            ruleset,
            "{position}"
        );
        assert!(again.is_bare && tells_of_damage(&again), "{position}");
    }
}

#[test]
fn a_loss_forgets_no_revoke_that_can_still_be_read() {
    let Sample { state, bytes, .. } = &sample();
    let mut bytes = bytes.clone();
    crate::frames::write(&mut bytes, br#"{"unheard_of":1}"#).unwrap();
    std::fs::write(state.ledger(), &bytes).unwrap();
    let revoked = grant(1).grant.id;
    for _ in 0..2 {
        let recalled = recall(state, &enrollment(), &rules(), boot(2, 1));
        assert!(recalled.is_bare && recalled.ledger.was_revoked(revoked));
    }
}

#[test]
fn a_disk_that_is_full_at_the_start_after_a_reboot_loses_no_grant_and_opens_none() {
    let Sample { state, bytes, .. } = &sample();
    let in_the_way = state.file("ledger.floor.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let mut recalled = recall(state, &enrollment(), &rules(), boot(2, 1));
    let open = |recalled: &Recalled| recalled.ledger.ruleset(&rules(), boot(2, 1).now).openings().len();
    assert_eq!(held(&recalled, boot(2, 1).now), BTreeSet::from([2, 3]));
    assert!(!recalled.is_bare && !recalled.sink.is_sound());
    assert_eq!(open(&recalled), 0);
    assert_eq!(recalled.reports[0].0, "LEDGER_NOT_WRITTEN");
    assert!(std::fs::read(state.ledger()).unwrap().starts_with(bytes));
    std::fs::remove_dir(&in_the_way).unwrap();
    let all = snapshot(&recalled.ledger, &recalled.time, boot(2, 1).now);
    recalled.sink.rewrite(&all).unwrap();
    recalled.ledger.recorded(recalled.ledger.number());
    assert_eq!(open(&recalled), 2);
}

#[test]
fn a_ledger_of_garbage_is_told_of_as_such_at_each_start_and_kept() {
    let Sample { state, .. } = &sample();
    std::fs::write(state.ledger(), b"garbage").unwrap();
    for second in 1..4 {
        let recalled = recall(state, &enrollment(), &rules(), boot(1, second));
        assert!(recalled.is_bare, "{second}");
        assert_eq!(recalled.reports[0].0, "LEDGER_DAMAGED", "{second}");
        assert_eq!(
            recalled
                .ledger
                .ruleset(&rules(), boot(1, second).now)
                .guarded()
                .len(),
            1
        );
        let kept = state.set_aside(LEDGER, Fault::Damaged).unwrap();
        assert_eq!(std::fs::read(kept).unwrap(), b"garbage", "{second}");
    }
}

#[test]
fn a_record_of_another_version_is_damage() {
    let Sample { state, bytes, .. } = &sample();
    let mut bytes = bytes.clone();
    crate::frames::write(&mut bytes, br#"{"unheard_of":1}"#).unwrap();
    std::fs::write(state.ledger(), &bytes).unwrap();
    let recalled = recall(state, &enrollment(), &rules(), boot(1, 1));
    assert!(recalled.is_bare && recalled.sink.is_sound());
    assert!(!recalled.ledger.ruleset(&rules(), boot(1, 1).now).is_empty());
}

#[test]
fn a_reboot_writes_the_new_ends_once() {
    let Sample { state, .. } = &sample();
    let recalled = recall(state, &enrollment(), &rules(), boot(2, 5));
    assert_eq!(held(&recalled, boot(2, 5).now), BTreeSet::from([2, 3]));
    let after = std::fs::read(state.ledger()).unwrap();
    let recalled = recall(state, &enrollment(), &rules(), boot(2, 6));
    assert_eq!(held(&recalled, boot(2, 6).now), BTreeSet::from([2, 3]));
    assert_eq!(std::fs::read(state.ledger()).unwrap(), after);
}
