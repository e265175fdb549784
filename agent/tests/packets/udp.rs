//! Datagrams: flows, their grace, and what the host asks for itself.

use std::net::{Ipv6Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use nightlatch_core::ruleset::End;

use crate::netns::{
    FRIEND, FRIEND6, HOST, LettingIn, PATIENCE, SILENCE, STRANGER, STRANGER6, Scene, UdpFlow, guarding,
    guarding_with, now, seconds, serve, udp, wait_until, within,
};
use crate::{LONG, RDP, RDP6};

#[test]
fn a_udp_flow_goes_on_for_its_grace_and_not_longer() {
    let grace = Duration::from_millis(1_500);
    let mut scene = Scene::new();
    scene.serve(&[3389]);
    let end = within(Duration::from_millis(2_000));
    let ruleset = guarding_with(&[udp(3389)], &[], grace)
        .letting_in(FRIEND, udp(3389), end)
        .letting_in(FRIEND6, udp(3389), end);
    scene.apply(&ruleset);
    let (mut flow, mut flow6) = (scene.udp(FRIEND, RDP), scene.udp(FRIEND6, RDP6));
    let mut stranger = scene.udp(STRANGER, RDP);
    assert!(flow.is_answered());
    assert!(flow6.is_answered());
    assert!(stranger.is_ignored());

    // The client and the server never fall silent, and yet both flows end.
    let flow_ends = |flow: &mut UdpFlow| {
        let mut answered_after_the_end = false;
        loop {
            let sent = now();
            let is_answered = flow.is_answered_within(Duration::from_millis(100));
            let End::At(end) = end else { unreachable!() };
            answered_after_the_end |= is_answered && sent > end;
            assert!(!is_answered || sent < end.plus(grace), "answered after the grace");
            if !is_answered && sent > end.plus(grace) {
                return answered_after_the_end;
            }
        }
    };
    let (had_grace, had_grace6) = thread::scope(|scope| {
        let flow6 = scope.spawn(|| flow_ends(&mut flow6));
        (flow_ends(&mut flow), flow6.join().unwrap())
    });
    assert!(had_grace && had_grace6);
    assert!(scene.udp(FRIEND, RDP).is_ignored());
    assert!(flow.is_ignored());
    assert!(flow6.is_ignored());
}

#[test]
fn no_new_udp_flow_begins_after_the_end() {
    let mut scene = Scene::new();
    scene.serve(&[3389]);
    let end = within(Duration::from_millis(700));
    scene.apply(&guarding(&[udp(3389)]).letting_in(FRIEND, udp(3389), end));
    let mut flow = scene.udp(FRIEND, RDP);
    assert!(flow.is_answered());
    wait_until("the end of the grant", || !end.is_after(now()));
    assert!(scene.udp(FRIEND, RDP).is_ignored());
    assert!(flow.is_answered());
}

#[test]
fn remembered_udp_flows_survive_a_rebuild_and_keep_their_end() {
    let grace = Duration::from_millis(2_500);
    let mut scene = Scene::new();
    scene.serve(&[3389]);
    let end = within(Duration::from_millis(500));
    let ruleset = guarding_with(&[udp(3389)], &[], grace).letting_in(FRIEND, udp(3389), end);
    scene.apply(&ruleset);
    let mut flow = scene.udp(FRIEND, RDP);
    assert!(flow.is_answered());
    wait_until("the end of the grant", || !end.is_after(now()));
    let End::At(ended_at) = end else { unreachable!() };
    let mut answered = 0;
    while now() < ended_at.plus(grace) {
        scene.firewall.rebuild(&ruleset, now()).unwrap();
        answered += u32::from(flow.is_answered_within(Duration::from_millis(100)));
    }
    assert!(answered > 0);
    // Neither the rebuilds nor the server's answers made it longer.
    assert!(flow.is_ignored());
}

#[test]
fn answers_to_the_hosts_own_udp_come_in() {
    let mut scene = Scene::new();
    scene.apply(&guarding(&[udp(40_000)]));
    for answerer in ["192.0.2.2:53", "[2001:db8::2]:53"] {
        let socket = scene.client.run(|| UdpSocket::bind(answerer)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 8];
            loop {
                let (length, asker) = socket.recv_from(&mut buffer).unwrap();
                socket.send_to(&buffer[..length], asker).unwrap();
            }
        });
    }
    let ask = |from: &str, to: &str| {
        scene.host.run(|| {
            let socket = UdpSocket::bind(from).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(b"who", to).unwrap();
            socket.recv(&mut [0; 8])
        })
    };
    assert_eq!(ask("192.0.2.1:40000", "192.0.2.2:53").unwrap(), 3);
    assert_eq!(ask("[2001:db8::1]:40000", "[2001:db8::2]:53").unwrap(), 3);
    // Only from whom it asked, and only to where it asked from.
    serve(&scene.host, 40_000);
    assert!(scene.udp(FRIEND, "192.0.2.1:40000").is_ignored());
    assert!(scene.udp(STRANGER, "192.0.2.1:40000").is_ignored());
}

#[test]
fn what_comes_in_does_not_keep_the_hosts_own_request_open() {
    let mut scene = Scene::new();
    scene.apply(&guarding(&[udp(40_000)]));
    let asker = scene.host.run(|| UdpSocket::bind("192.0.2.1:40000")).unwrap();
    let answerer = scene.client.run(|| UdpSocket::bind("192.0.2.2:53")).unwrap();
    asker.send_to(b"who", "192.0.2.2:53").unwrap();
    asker.set_read_timeout(Some(PATIENCE)).unwrap();
    let remaining = || {
        let listing = scene.host.must("nft list set inet nightlatch own4", "");
        listing
            .split("expires ")
            .nth(1)
            .and_then(|rest| rest.split(['}', ',', ' ']).next().map(String::from))
    };
    let before = remaining().unwrap();
    wait_until("an older entry", || remaining() != Some(before.clone()));
    answerer.send_to(b"me", "192.0.2.1:40000").unwrap();
    assert_eq!(asker.recv(&mut [0; 8]).unwrap(), 2);
    assert!(!remaining().unwrap().starts_with("2m"));
}

#[test]
fn broadcast_and_multicast_reach_no_guarded_port() {
    let mut scene = Scene::new();
    let (listener, listener6) = scene.host.run(|| {
        let listener = UdpSocket::bind("0.0.0.0:3389").unwrap();
        listener
            .join_multicast_v4(&"224.0.0.251".parse().unwrap(), &HOST.parse().unwrap())
            .unwrap();
        // On a port of its own, since a socket on `::` would take the first one for both families.
        let listener6 = UdpSocket::bind("[::]:3390").unwrap();
        let group: Ipv6Addr = "ff02::fb".parse().unwrap();
        let index = nix::net::if_::if_nametoindex("outside").unwrap();
        listener6.join_multicast_v6(&group, index).unwrap();
        (listener, listener6)
    });
    let send = |from: &'static str| {
        scene.client.run(|| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.set_broadcast(true).unwrap();
            for to in ["192.0.2.255:3389", "255.255.255.255:3389", "224.0.0.251:3389"] {
                socket.send_to(from.as_bytes(), to).unwrap();
            }
        });
    };
    let index = scene
        .client
        .run(|| nix::net::if_::if_nametoindex("uplink"))
        .unwrap();
    let send6 = |from: &'static str| {
        scene.client.run(|| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            let to = std::net::SocketAddrV6::new("ff02::fb".parse().unwrap(), 3390, 0, index);
            socket.send_to(from.as_bytes(), to).unwrap();
        });
    };
    let heard = |socket: &UdpSocket, patience| {
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 64];
        socket
            .recv_from(&mut buffer)
            .ok()
            .map(|(length, _)| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    // The wire carries them: without a guard all four arrive.
    send(STRANGER);
    send6(STRANGER6);
    for _ in 0..3 {
        assert_eq!(heard(&listener, PATIENCE).as_deref(), Some(STRANGER));
    }
    assert_eq!(heard(&listener6, PATIENCE).as_deref(), Some(STRANGER6));

    let ruleset = guarding(&[udp(3389), udp(3390)])
        .letting_in(FRIEND, udp(3389), seconds(LONG))
        .letting_in(FRIEND6, udp(3390), seconds(LONG));
    scene.firewall.apply(&ruleset, now()).unwrap();
    send(STRANGER);
    send6(STRANGER6);
    send(FRIEND);
    send6(FRIEND6);
    // Whatever the stranger sent would have come first.
    for _ in 0..3 {
        assert_eq!(heard(&listener, PATIENCE).as_deref(), Some(FRIEND));
    }
    assert_eq!(heard(&listener6, PATIENCE).as_deref(), Some(FRIEND6));
    assert_eq!(heard(&listener, SILENCE), None);
}
