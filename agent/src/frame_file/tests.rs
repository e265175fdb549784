//! Files that were cut, damaged, replaced, or met a full disk.

use super::*;
use serde_json::json;

const HEADER: &[u8] = b"nightlatch-test 1\n";

fn wall() -> Timestamp {
    "2026-11-22T09:30:00Z".parse().unwrap()
}

fn open(path: &Path) -> (FrameFile, Found) {
    FrameFile::open(path.to_owned(), HEADER, wall())
}

#[test]
fn a_link_is_neither_followed_nor_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let torn = [HEADER, b"torn"].concat();
    std::fs::write(&other, &torn).unwrap();
    let path = folder.path().join("file");
    std::os::unix::fs::symlink(&other, &path).unwrap();
    let (file, found) = open(&path);
    assert!(found.damage.is_some() && !file.is_sound());
    assert_eq!(std::fs::read(&other).unwrap(), torn);
}

#[test]
fn what_was_appended_is_there_after_a_restart_and_a_torn_end_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (mut file, found) = open(&path);
    assert!(found.payloads.is_empty() && file.is_sound());
    file.append(&[json!({"a":1}), json!({"b":2})], true).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();

    let (mut file, found) = open(&path);
    assert_eq!(found.payloads, [b"{\"a\":1}"]);
    assert_eq!(found.damage, None);
    file.append(&[json!({"c":3})], true).unwrap();
    assert_eq!(open(&path).1.payloads, [b"{\"a\":1}", b"{\"c\":3}"]);
}

#[test]
fn a_damaged_file_is_set_aside_and_only_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(folder.path().join("file.damaged-2020"), "old").unwrap();
    let (mut file, _) = open(&path);
    file.append(&[json!({"a":1}), json!({"b":2})], true).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER.len() + 15] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let (mut file, found) = open(&path);
    assert_eq!(found.payloads, [b"{\"b\":2}"]);
    let aside = found.damage.unwrap().set_aside.unwrap();
    assert_eq!(std::fs::read(&aside).unwrap(), bytes);
    assert!(!folder.path().join("file.damaged-2020").exists());
    assert!(matches!(
        file.append(&[json!({})], true),
        Err(NotWritten::Unsound(_))
    ));
    file.rewrite(&[json!({"c":3})]).unwrap();
    assert_eq!(open(&path).1.payloads, [b"{\"c\":3}"]);
}

#[test]
fn after_a_full_disk_nothing_is_taken_until_the_file_is_whole_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (mut file, _) = open(&path);
    file.append(&[json!({"a":1})], true).unwrap();
    // Every write to it fails with ENOSPC (full(4)).
    file.file = Some(OpenOptions::new().append(true).open("/dev/full").unwrap());
    assert!(matches!(
        file.append(&[json!({"b":2})], true),
        Err(NotWritten::Io { .. })
    ));
    assert!(matches!(
        file.append(&[json!({"b":2})], true),
        Err(NotWritten::Unsound(_))
    ));
    file.rewrite(&[json!({"a":1})]).unwrap();
    file.append(&[json!({"b":2})], true).unwrap();
    assert_eq!(open(&path).1.payloads, [b"{\"a\":1}", b"{\"b\":2}"]);
}

#[test]
fn after_a_fault_behind_the_rename_nothing_goes_into_the_deleted_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (mut file, _) = open(&path);
    file.append(&[json!({"a":1})], true).unwrap();
    let fault = |_: &Path| Err(io::Error::from(io::ErrorKind::Other));
    assert!(file.replace(&[json!({"b":2})], fault).is_err());
    assert!(!file.is_sound());
    assert!(matches!(
        file.append(&[json!({"c":3})], true),
        Err(NotWritten::Unsound(_))
    ));
    file.rewrite(&[json!({"b":2})]).unwrap();
    file.append(&[json!({"c":3})], true).unwrap();
    assert_eq!(open(&path).1.payloads, [b"{\"b\":2}", b"{\"c\":3}"]);
}

#[test]
fn a_long_file_is_written_anew_when_that_makes_it_short() {
    let folder = tempfile::tempdir().unwrap();
    let (mut file, _) = open(&folder.path().join("file"));
    let long = "x".repeat(700_000);
    file.append(&[&long, &long], false).unwrap();
    assert!(file.is_long());
    file.compact(&[json!({})]).unwrap();
    assert!(!file.is_long() && file.length < 100);
}
