//! What lies in the folders, whoever else was there.

use nightlatch_core::break_glass::{Asked, Opener};
use nightlatch_core::id::BreakGlassId;
use nightlatch_core::port::{PortKey, Protocol};
use nightlatch_core::time::BootId;
use uuid::Uuid;

use super::*;
use crate::break_glass::read_reason;

const BOOT: BootId = BootId(Uuid::from_u128(7));

fn second(second: u64) -> BootTime {
    BootTime::new(Duration::from_secs(second))
}

/// For a minute.
fn used(number: u8, start: u64) -> BreakGlass {
    let asked = Asked {
        ports: vec!["22".parse().unwrap()],
        source: "192.0.2.7".parse().unwrap(),
        length: Duration::from_secs(60),
        reason: read_reason("the server burns").unwrap(),
    };
    let ports = [PortKey {
        protocol: Protocol::Tcp,
        port: 22,
    }];
    let at = (BOOT, second(start), "2026-11-22T09:30:00Z".parse().unwrap());
    let id = BreakGlassId::new(Uuid::from_u128(u128::from(number)));
    let limits = Limits::default();
    BreakGlass::new(id, &asked, &ports.into(), &limits, at, Opener::default()).unwrap()
}

/// Each with a key of its own, as where the host's can't be had.
fn put(folder: &Folder, used: &BreakGlass) {
    let key = fresh_key().unwrap();
    folder.put(used, &used.seal(&key), &key.public()).unwrap();
}

fn folders() -> (tempfile::TempDir, Folders) {
    let root = tempfile::tempdir().unwrap();
    let folders = Folders::under(root.path());
    folders.live.prepare().unwrap();
    folders.lasting.prepare().unwrap();
    (root, folders)
}

fn files(folder: &Folder) -> usize {
    fs::read_dir(folder.path()).unwrap().count()
}

#[test]
fn each_record_is_known_by_its_own_key_which_goes_with_it() {
    let (_root, Folders { live, .. }) = folders();
    for number in 1..=40 {
        put(&live, &used(number, 100));
    }
    let found = live.read().unwrap();
    assert_eq!((found.records.len(), found.refused.len()), (40, 0));
    for number in 1..=39 {
        live.forget(&used(number, 100)).unwrap();
    }
    assert_eq!(files(&live), 2);
    live.forget_oldest(0).unwrap();
    assert_eq!(files(&live), 0);
}

#[test]
fn a_damaged_key_is_moved_aside_and_made_anew_once() {
    let (_root, Folders { lasting, .. }) = folders();
    let first = lasting.signing_key().unwrap().public();
    assert_eq!(lasting.signing_key().unwrap().public(), first);
    for damage in ["", "not what it should be"] {
        fs::write(lasting.file(KEY), damage).unwrap();
        let anew = lasting.signing_key().unwrap().public();
        assert_ne!(anew, first);
        assert_eq!(lasting.signing_key().unwrap().public(), anew);
        assert_eq!(fs::read_to_string(lasting.file(DAMAGED)).unwrap(), damage);
    }
}

#[test]
fn only_what_the_lasting_folder_has_is_cleared_away() {
    let (_root, Folders { live, lasting, .. }) = folders();
    for (number, start) in [(1, 100), (2, 100), (3, 200)] {
        put(&live, &used(number, start));
    }
    put(&lasting, &used(1, 100));
    // A copy under another name is found and goes with the rest; one that another command took away is no fault.
    fs::copy(live.record(&used(1, 100)), live.file("copy.json")).unwrap();
    let ended = live.thinned(live.read().unwrap(), second(200));
    assert_eq!(ended.len(), 3);
    fs::remove_file(live.file("copy.json")).unwrap();
    live.forget_kept(&ended, &lasting);
    let left: Vec<_> = live
        .read()
        .unwrap()
        .records
        .iter()
        .map(|left| left.used.id)
        .collect();
    assert_eq!(left, [used(3, 200).id, used(2, 100).id]);
}

#[test]
fn ended_records_that_nothing_else_has_stay_within_a_number() {
    let (_root, Folders { live, .. }) = folders();
    for number in 1..=50 {
        put(&live, &used(number, 100));
    }
    put(&live, &used(51, 200));
    let ended = live.thinned(live.read().unwrap(), second(200));
    assert_eq!(ended.len(), MOST_ENDED);
    let left = live.read().unwrap().records;
    assert_eq!(left.len(), MOST_ENDED + 1);
    assert_eq!(left[0].used.id, used(51, 200).id);
}
