//! What is open is never cut, whoever forgot it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nightlatch_agent::firewall::{Applied, Firewall};
use nightlatch_core::ruleset::End;

use crate::netns::{
    FRIEND, FRIEND6, LettingIn, PATIENCE, STRANGER, STRANGER6, Scene, assert_lives, guarding, now, seconds,
    tcp, wait_until, within,
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

/// Somebody's own rule that has the kernel track connections.
const TRACKING: &str = "table inet other {\n chain input {\n type filter hook input priority 0; policy accept;\n\
                        ct state established counter\n }\n}\n";

#[test]
fn sessions_live_where_nothing_is_picked_up_in_the_middle_and_no_socket_is_found_early() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    scene.host.must("nft -f -", TRACKING);
    for setting in [
        "net.netfilter.nf_conntrack_tcp_loose",
        "net.ipv4.ip_early_demux",
        "net.ipv4.tcp_early_demux",
    ] {
        scene.host.must(&format!("sysctl -qw {setting}=0"), "");
        let elsewhere = scene.client.must(&format!("sysctl -n {setting}"), "");
        assert_eq!(elsewhere.trim(), "1", "{setting} is one of each namespace");
    }
    let is_tracked = |scene: &Scene| {
        ["ipv4", "ipv6"].map(|family| {
            let tracked = scene.host.must(&format!("conntrack -L -f {family}"), "");
            tracked.contains("dport=22 ")
        })
    };
    let mut sessions = vec![scene.connect(FRIEND, SSH), scene.connect(STRANGER6, SSH6)];
    sessions.iter_mut().for_each(assert_lives);
    assert_eq!(is_tracked(&scene), [true, true]);
    scene.host.must("conntrack -F", "");
    let ruleset = guarding(&[tcp(22)]);
    scene.apply(&ruleset);
    sessions.iter_mut().for_each(assert_lives);

    // While the table is gone, a session begins that then says nothing for a while.
    scene.host.must("nft delete table inet nightlatch", "");
    sessions.push(scene.connect(STRANGER, SSH));
    sessions.push(scene.connect(FRIEND6, SSH6));
    scene.firewall.rebuild(&ruleset, now()).unwrap();
    scene.host.must("conntrack -F", "");
    let silent_since = Instant::now();
    wait_until("silence", || {
        silent_since.elapsed() > Duration::from_millis(2_100)
    });
    sessions.iter_mut().for_each(assert_lives);
    scene.firewall.rebuild(&ruleset, now()).unwrap();
    sessions.iter_mut().for_each(assert_lives);
    assert_eq!(is_tracked(&scene), [false, false], "what was forgotten came back");
    scene.assert_shut(STRANGER, SSH);
    scene.assert_shut(STRANGER6, SSH6);
}

#[test]
fn ipv4_on_sockets_of_ipv6_is_judged_as_ipv4() {
    const MAPPED_SSH: &str = "[::ffff:192.0.2.1]:22";
    let (friend, stranger) = ("::ffff:192.0.2.2", "::ffff:192.0.2.3");
    let mut scene = Scene::new();
    // On `::`, so that the host's end is such a socket, too.
    scene.serve(&[22]);
    let mut sessions = vec![scene.connect(stranger, MAPPED_SSH)];
    let end = within(Duration::from_millis(1_500));
    let ruleset =
        guarding(&[tcp(22)])
            .letting_in(FRIEND, tcp(22), end)
            .letting_in("::/0", tcp(22), seconds(LONG));
    scene.apply(&ruleset);
    sessions.push(scene.connect(friend, MAPPED_SSH));
    sessions.iter_mut().for_each(assert_lives);
    scene.assert_shut(stranger, MAPPED_SSH);
    scene.connect(STRANGER6, SSH6);

    wait_until("the end of the grant", || !end.is_after(now()));
    scene.assert_shut(friend, MAPPED_SSH);
    scene.host.must("conntrack -F", "");
    sessions.iter_mut().for_each(assert_lives);
}

/// Two listeners that take nobody in, and a session with each, begun under a grant that has ended.
fn begun_under_a_grant() -> (Scene, [(TcpListener, TcpStream); 2]) {
    let mut scene = Scene::new();
    let listeners = scene.host.run(|| [SSH, SSH6].map(TcpListener::bind));
    let end = within(Duration::from_millis(1_500));
    scene.apply(
        &guarding(&[tcp(22)])
            .letting_in(FRIEND, tcp(22), end)
            .letting_in(FRIEND6, tcp(22), end),
    );
    let [one, other] = listeners.map(Result::unwrap);
    let begun = [
        (one, scene.connect(FRIEND, SSH)),
        (other, scene.connect(FRIEND6, SSH6)),
    ];
    wait_until("the end of the grants", || !end.is_after(now()));
    scene.host.must("conntrack -F", "");
    scene.firewall.rebuild(&guarding(&[tcp(22)]), now()).unwrap();
    scene.assert_shut(FRIEND, SSH);
    scene.assert_shut(FRIEND6, SSH6);
    (scene, begun)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let mut accepted = None;
    listener.set_nonblocking(true).unwrap();
    wait_until("a session to accept", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_session_that_nobody_has_accepted_yet_outlives_its_grant() {
    let (_scene, begun) = begun_under_a_grant();
    for (listener, mut session) in begun {
        session.set_read_timeout(Some(PATIENCE)).unwrap();
        session.write_all(b"anybody there?").unwrap();
        let mut accepted = accept(&listener);
        let mut heard = [0; 14];
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"anybody there?");
        accepted.write_all(b"yes").unwrap();
        session.read_exact(&mut heard[..3]).unwrap();
        assert_eq!(&heard[..3], b"yes");
    }
}

#[test]
fn what_a_closed_socket_has_still_to_send_arrives_after_the_end() {
    let (_scene, begun) = begun_under_a_grant();
    for (listener, mut session) in begun {
        let mut accepted = accept(&listener);
        accepted.set_nonblocking(true).unwrap();
        let mut written = 0;
        let full = loop {
            match accepted.write(&[7; 65_536]) {
                Ok(length) => written += length,
                Err(error) => break error.kind(),
            }
        };
        assert_eq!(full, io::ErrorKind::WouldBlock);
        drop(accepted);
        session.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut received = Vec::new();
        session.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), written);
    }
}
