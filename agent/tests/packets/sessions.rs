//! What is open is never cut, whoever forgot it.

use std::time::Duration;

use nightlatch_agent::firewall::{Applied, Firewall};
use nightlatch_core::ruleset::End;

use crate::netns::{
    FRIEND, FRIEND6, LettingIn, STRANGER, STRANGER6, Scene, assert_lives, guarding, now, seconds, tcp,
    wait_until, within,
};
use crate::{LONG, SSH, SSH6};

#[test]
fn a_live_session_outlives_its_grant_and_nothing_new_gets_in() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let end = within(Duration::from_millis(1_500));
    let ruleset = guarding(&[tcp(22)])
        .letting_in(FRIEND, tcp(22), end)
        .letting_in(FRIEND6, tcp(22), end);
    scene.apply(&ruleset);
    let mut session = scene.connect(FRIEND, SSH);
    let mut session6 = scene.connect(FRIEND6, SSH6);

    // The kernel counts from when it was told, which on a busy machine is a moment after the ruleset's `now`.
    let End::At(end) = end else { unreachable!() };
    let latest = end.plus(Duration::from_millis(250));
    wait_until("the end of the grant", || {
        let began = now();
        let got_in = scene
            .connect_within(Duration::from_millis(40), FRIEND, SSH)
            .is_ok();
        assert!(!got_in || began < latest, "let in after the end");
        !got_in && began >= end
    });
    scene.assert_shut(FRIEND, SSH);
    scene.assert_shut(FRIEND6, SSH6);
    assert_lives(&mut session);
    assert_lives(&mut session6);
    assert!(scene.firewall.is_in_place(now()).unwrap());
    assert_eq!(scene.apply(&guarding(&[tcp(22)])), Applied::Unchanged);
}

#[test]
fn sessions_that_nothing_tracked_live_through_activation_flush_and_rebuild() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let mut sessions = [scene.connect(FRIEND, SSH), scene.connect(STRANGER6, SSH6)];
    let ruleset = guarding(&[tcp(22)]);

    assert_eq!(scene.apply(&ruleset), Applied::Rebuilt);
    sessions.iter_mut().for_each(assert_lives);
    scene.host.must("conntrack -F", "");
    sessions.iter_mut().for_each(assert_lives);
    assert_eq!(scene.firewall.rebuild(&ruleset, now()).unwrap(), Applied::Rebuilt);
    sessions.iter_mut().for_each(assert_lives);
    scene.host.must("nft flush ruleset", "");
    scene.firewall.rebuild(&ruleset, now()).unwrap();
    sessions.iter_mut().for_each(assert_lives);
    scene.assert_shut(FRIEND, SSH);
}

#[test]
fn another_agent_takes_the_table_over() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let ruleset = guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(LONG));
    scene.apply(&ruleset);
    let mut session = scene.connect(FRIEND, SSH);
    scene.firewall = scene.host.run(Firewall::open).unwrap();
    scene.assert_shut(STRANGER, SSH);
    assert_eq!(scene.firewall.read().unwrap().unwrap().openings.len(), 1);
    assert_eq!(scene.apply(&guarding(&[tcp(22)])), Applied::Rebuilt);
    assert_lives(&mut session);
    scene.assert_shut(FRIEND, SSH);
}
