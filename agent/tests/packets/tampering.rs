//! What others do to the table, and what another process sees of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nightlatch_agent::firewall::{Applied, Beside, Firewall};
use nightlatch_core::ruleset::{End, Ruleset};

use crate::LONG;
use crate::netns::{
    FRIEND, FRIEND6, LettingIn, PATIENCE, STRANGER, Scene, guarding, guarding_with, now, seconds, tcp, udp,
    wait_until,
};

#[test]
fn what_others_do_to_the_table_is_noticed() {
    let mut scene = Scene::new();
    let ruleset = guarding_with(&[tcp(22), udp(3389)], &["inside"], PATIENCE)
        .letting_in(FRIEND, tcp(22), seconds(LONG))
        .letting_in("198.51.100.0/24", tcp(22), End::Never)
        .letting_in(FRIEND6, udp(3389), seconds(LONG));
    assert!(
        !scene.firewall.is_in_place(now()).unwrap(),
        "nothing was applied yet"
    );
    for tampering in [
        "flush ruleset",
        "delete table inet nightlatch",
        "flush table inet nightlatch",
        "flush chain inet nightlatch gate",
        "flush set inet nightlatch guarded",
        "flush set inet nightlatch open4_32",
        "add element inet nightlatch open4_32 { 192.0.2.3 . tcp . 22 }",
        "add element inet nightlatch open4_32 { 192.0.2.3 . tcp . 22 timeout 1h }",
        "add element inet nightlatch open4_32 { 192.0.2.3 . sctp . 22 }",
        "delete element inet nightlatch open4_24 { 198.51.100.0 . tcp . 22 }",
        "delete element inet nightlatch guarded { tcp . 22 }",
        "add element inet nightlatch guarded { tcp . 80 }",
        "add element inet nightlatch unguarded_interfaces { outside }",
        "delete element inet nightlatch open4_32 { 192.0.2.2 . tcp . 22 }\n\
         add element inet nightlatch open4_32 { 192.0.2.2 . tcp . 22 timeout 2h }",
        "delete element inet nightlatch open4_32 { 192.0.2.2 . tcp . 22 }\n\
         add element inet nightlatch open4_32 { 192.0.2.2 . tcp . 22 }",
        "insert rule inet nightlatch gate accept",
        "insert rule inet nightlatch prerouting tcp dport 22 accept",
        "add rule inet nightlatch granted drop",
        "add chain inet nightlatch mine",
        "add set inet nightlatch mine { type inet_service; }",
        "add table inet nightlatch { flags dormant; }",
        "delete table inet nightlatch\nadd table inet nightlatch",
    ] {
        scene.firewall.rebuild(&ruleset, now()).unwrap();
        assert!(scene.firewall.is_in_place(now()).unwrap(), "before {tampering}");
        for _ in 0..3 {
            assert!(scene.firewall.is_still_in_place(now()).unwrap());
        }
        // Own changes are no others', and hide none of theirs.
        let less = guarding_with(&[tcp(22), udp(3389)], &["inside"], PATIENCE)
            .letting_in(FRIEND, tcp(22), seconds(LONG))
            .letting_in("198.51.100.0/24", tcp(22), End::Never);
        for own in [&less, &ruleset] {
            assert!(matches!(scene.apply(own), Applied::Difference { .. }));
            assert!(scene.firewall.is_still_in_place(now()).unwrap());
        }
        scene.host.must("nft -f -", &format!("{tampering}\n"));
        assert!(!scene.firewall.is_still_in_place(now()).unwrap(), "{tampering}");
        assert!(!scene.firewall.is_in_place(now()).unwrap(), "{tampering}");
    }
    scene.firewall.rebuild(&ruleset, now()).unwrap();
    scene.host.must("nft -f -", "table inet other {\n}\n");
    assert!(
        scene.firewall.is_in_place(now()).unwrap(),
        "another table is none of our business"
    );
    scene.apply(&Ruleset::default());
    assert!(scene.firewall.is_in_place(now()).unwrap());
    scene.host.must("nft -f -", "table inet nightlatch {\n}\n");
    assert!(
        !scene.firewall.is_in_place(now()).unwrap(),
        "a table where none should be"
    );
}

#[test]
fn what_another_process_reads_beside_rebuilds_is_one_of_the_tables() {
    let scene = Scene::new();
    let base = guarding(&[tcp(22), tcp(3389)]);
    let tables = [FRIEND, STRANGER].map(|who| base.clone().letting_in(who, tcp(22), seconds(LONG)));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            scene.host.run(|| {
                let mut firewall = Firewall::open().unwrap();
                for table in tables.iter().cycle().take(400) {
                    firewall.rebuild(table, now()).unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
            });
            is_over.store(true, Ordering::Relaxed);
        });
        scene.host.run(|| {
            let mut firewall = Firewall::open().unwrap();
            wait_until("no table", || firewall.read().unwrap().is_some());
            while !is_over.load(Ordering::Relaxed) {
                let Beside { found, foreign_part } = firewall.read_beside(&base).unwrap().unwrap();
                assert_eq!(found.guarded, *base.guarded());
                assert_eq!(found.openings.len(), 1, "{found:?}");
                assert_eq!(foreign_part, None);
            }
        });
    });
}

#[test]
fn another_process_sees_whether_the_chains_are_those_of_a_ruleset() {
    let mut scene = Scene::new();
    let ruleset = guarding_with(&[tcp(22), udp(3389)], &["inside"], PATIENCE)
        .letting_in(FRIEND, tcp(22), seconds(LONG))
        .letting_in("198.51.100.0/24", tcp(22), End::Never);
    scene.apply(&ruleset);
    let fewer = guarding_with(&[tcp(22), udp(3389)], &["inside"], PATIENCE).letting_in(
        FRIEND,
        tcp(22),
        seconds(LONG),
    );
    for held in [&ruleset, &fewer] {
        scene.apply(held);
        let beside = scene.firewall.read_beside(held).unwrap().unwrap();
        assert_eq!(beside.foreign_part, None);
    }
    scene.host.must("nft -f -", "flush chain inet nightlatch gate\n");
    let beside = scene.firewall.read_beside(&fewer).unwrap().unwrap();
    assert_eq!(beside.foreign_part, Some("rules"));
}

#[test]
fn an_opening_that_outlives_its_end_in_the_kernel_is_noticed() {
    let mut scene = Scene::new();
    let end = seconds(100);
    scene.apply(&guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), end));
    let End::At(end) = end else { unreachable!() };
    // As after a suspend, in which the kernel's timeouts stand still and the boot clock goes on.
    assert!(
        !scene
            .firewall
            .is_in_place(now().plus(Duration::from_secs(30)))
            .unwrap()
    );
    assert!(
        !scene
            .firewall
            .is_in_place(end.plus(Duration::from_secs(30)))
            .unwrap()
    );
}
