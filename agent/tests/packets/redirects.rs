//! Ports behind address translation.

use std::time::Duration;

use nightlatch_core::ruleset::{End, Ruleset};

use crate::netns::{
    FRIEND, LettingIn, Netns, STRANGER, Scene, assert_lives, guarding, now, serve, tcp, wait_until, within,
};

const LOCAL: &str = "192.0.2.1:5985";
const FORWARDED: &str = "192.0.2.1:5986";

/// A host that redirects one port to another of its own and one to a machine behind it.
fn redirecting() -> (Scene, Netns) {
    let scene = Scene::new();
    let inner = Netns::new("inner");
    scene.host.wire("bridge0", &inner, "eth0");
    scene.host.ip("addr add 10.99.0.1/24 dev bridge0");
    inner.ip("addr add 10.99.0.2/24 dev eth0\nroute add default via 10.99.0.1");
    scene.host.must("sysctl -qw net.ipv4.ip_forward=1", "");
    scene.serve(&[2222, 22]);
    serve(&inner, 22);
    scene.host.must(
        "nft -f -",
        "table ip nat {\n chain prerouting {\n type nat hook prerouting priority -100; policy accept;\n\
         iifname outside tcp dport 5985 redirect to :2222\n\
         iifname outside tcp dport 5986 dnat to 10.99.0.2:22\n\
         iifname outside tcp dport 8022 redirect to :22\n }\n}\n",
    );
    (scene, inner)
}

fn granted(end: End) -> Ruleset {
    guarding(&[tcp(22), tcp(5985), tcp(5986)])
        .letting_in(FRIEND, tcp(5985), end)
        .letting_in(FRIEND, tcp(5986), end)
}

#[test]
fn a_redirected_port_is_gated_by_the_number_the_client_asked_for() {
    let (mut scene, _inner) = redirecting();
    scene.connect(STRANGER, LOCAL);
    scene.connect(STRANGER, FORWARDED);

    let end = within(Duration::from_millis(1_500));
    scene.apply(&granted(end));
    let mut sessions = [scene.connect(FRIEND, LOCAL), scene.connect(FRIEND, FORWARDED)];
    scene.assert_shut(STRANGER, LOCAL);
    scene.assert_shut(STRANGER, FORWARDED);
    // From an unguarded number to a guarded one: shut, whatever the first number says.
    scene.assert_shut(FRIEND, "192.0.2.1:8022");
    wait_until("the end of the grants", || !end.is_after(now()));
    scene.assert_shut(FRIEND, LOCAL);
    scene.assert_shut(FRIEND, FORWARDED);
    sessions.iter_mut().for_each(assert_lives);

    // Traffic that only passes through is none of our business, whatever its port.
    scene.client.ip("route add 10.99.0.0/24 via 192.0.2.1");
    assert_lives(&mut scene.connect(STRANGER, "10.99.0.2:22"));
}

#[test]
fn redirected_sessions_live_after_their_end_though_tracking_forgets_them() {
    let (mut scene, _inner) = redirecting();
    let end = within(Duration::from_millis(1_500));
    scene.apply(&granted(end));
    let mut sessions = [scene.connect(FRIEND, LOCAL), scene.connect(FRIEND, FORWARDED)];
    wait_until("the end of the grants", || !end.is_after(now()));
    for _ in 0..2 {
        scene.host.must("conntrack -F", "");
        sessions.iter_mut().for_each(assert_lives);
        scene.host.must("conntrack -F", "");
        scene.assert_shut(FRIEND, LOCAL);
        scene.assert_shut(FRIEND, FORWARDED);
        scene.firewall.rebuild(&granted(end), now()).unwrap();
        sessions.iter_mut().for_each(assert_lives);
    }
}
