//! A host that was suspended: its kernel's timeouts stood still, as this kernel's do while a test calls a span a sleep.

use std::time::Duration;

use nightlatch_core::ruleset::{End, Ruleset};

use crate::netns::{
    FRIEND, FRIEND6, LettingIn, STRANGER, Scene, assert_lives, guarding, now, tcp, udp, wait_until,
};
use crate::{RDP, SSH, SSH6};

const SLEEP: Duration = Duration::from_secs(1_000);

fn awake(scene: &mut Scene, wanted: &Ruleset) {
    scene.firewall.slept(SLEEP);
    scene.firewall.apply(wanted, now().plus(SLEEP)).unwrap();
}

#[test]
fn what_ended_in_a_sleep_is_shut_and_what_goes_on_ends_on_time() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let begun = now();
    let in_the_sleep = End::At(begun.plus(SLEEP / 2));
    let end = begun.plus(SLEEP + Duration::from_secs(4));
    let goes_on = guarding(&[tcp(22)]).letting_in(STRANGER, tcp(22), End::At(end));
    let ruleset = goes_on.clone();
    let ruleset = ruleset.letting_in(FRIEND, tcp(22), in_the_sleep);
    scene.apply(&ruleset.letting_in(FRIEND6, tcp(22), in_the_sleep));
    let mut session = scene.connect(FRIEND, SSH);
    let mut session6 = scene.connect(FRIEND6, SSH6);

    awake(&mut scene, &goes_on);
    scene.assert_shut(FRIEND, SSH);
    scene.assert_shut(FRIEND6, SSH6);
    let mut other = scene.connect(STRANGER, SSH);
    wait_until("the end of the grant that goes on", || now().plus(SLEEP) >= end);
    scene.assert_shut(STRANGER, SSH);
    for session in [&mut session, &mut session6, &mut other] {
        assert_lives(session);
    }
}

#[test]
fn the_grace_of_a_udp_flow_passes_in_a_sleep_too() {
    let mut scene = Scene::new();
    scene.serve(&[3389]);
    let end = End::At(now().plus(SLEEP / 2));
    let shut = guarding(&[udp(3389)]);
    scene.apply(&shut.clone().letting_in(FRIEND, udp(3389), end));
    let mut flow = scene.udp(FRIEND, RDP);
    assert!(flow.is_answered());
    awake(&mut scene, &shut);
    assert!(flow.is_ignored());
}
