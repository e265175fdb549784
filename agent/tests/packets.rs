//! What the firewall promises, asked of a real kernel with packets between network namespaces. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod netns;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns::{
    FRIEND, FRIEND6, HOST, HOST6, LettingIn, Netns, PATIENCE, SILENCE, STRANGER, STRANGER6, Scene,
    assert_lives, connect, guarding, guarding_with, is_silence, now, opening, output, seconds, serve, tcp,
    udp, wait_until, within,
};
use nightlatch_agent::firewall::{Applied, Beside, Firewall};
use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::{End, OpeningKey, Ruleset};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const SSH: &str = "192.0.2.1:22";
const SSH6: &str = "[2001:db8::1]:22";
const RDP: &str = "192.0.2.1:3389";
const RDP6: &str = "[2001:db8::1]:3389";

/// Longer than any test runs.
const LONG: u64 = 600;

#[test]
fn a_granted_source_connects_and_others_do_not() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    scene.apply(&guarding(&[tcp(22)]));
    scene.assert_shut(FRIEND, SSH);
    scene.assert_shut(FRIEND6, SSH6);

    let ruleset = guarding(&[tcp(22)])
        .letting_in(FRIEND, tcp(22), seconds(LONG))
        .letting_in(FRIEND6, tcp(22), seconds(LONG));
    scene.apply(&ruleset);
    assert_lives(&mut scene.connect(FRIEND, SSH));
    assert_lives(&mut scene.connect(FRIEND6, SSH6));
    scene.assert_shut(STRANGER, SSH);
    scene.assert_shut(STRANGER6, SSH6);
    assert!(scene.firewall.read().unwrap().unwrap().denied >= 4);
}

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

#[test]
fn the_host_reaches_its_own_guarded_ports() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    scene.apply(&guarding(&[tcp(22), udp(22)]));
    for (from, to) in [
        ("127.0.0.1", "127.0.0.1:22"),
        (HOST, SSH),
        ("::1", "[::1]:22"),
        (HOST6, SSH6),
    ] {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        assert_lives(&mut scene.host.run(|| connect(from, to, PATIENCE)).unwrap());
    }
    let answered = scene.host.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"hello", "127.0.0.1:22").unwrap();
        socket.recv(&mut [0; 8])
    });
    assert_eq!(answered.unwrap(), 5);
}

#[test]
fn an_unguarded_port_is_left_alone() {
    let mut scene = Scene::new();
    scene.serve(&[22, 80]);
    scene.apply(&guarding(&[tcp(22)]));
    assert_lives(&mut scene.connect(STRANGER, "192.0.2.1:80"));
    assert!(scene.udp(STRANGER, "192.0.2.1:80").is_answered());
    // The same number, but the other protocol.
    assert!(scene.udp(STRANGER, "192.0.2.1:22").is_answered());
}

#[test]
fn overlapping_openings_hold_to_the_later_end_of_each() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let (short, long) = (within(Duration::from_millis(1_200)), seconds(LONG));
    let ruleset = guarding(&[tcp(22)])
        .letting_in("198.51.100.0/24", tcp(22), short)
        .letting_in("198.51.100.7", tcp(22), long)
        .letting_in("2001:db8:1::/64", tcp(22), long)
        .letting_in("2001:db8:1::7", tcp(22), short);
    scene.apply(&ruleset);
    scene.connect("198.51.100.7", SSH);
    scene.connect("198.51.100.200", SSH);
    scene.connect("2001:db8:1::7", SSH6);
    scene.connect("2001:db8:1::8", SSH6);

    wait_until("the earlier end", || !short.is_after(now()));
    scene.connect("198.51.100.7", SSH);
    scene.assert_shut("198.51.100.200", SSH);
    scene.connect("2001:db8:1::7", SSH6);
    scene.connect("2001:db8:1::8", SSH6);
}

#[test]
fn one_of_two_overlapping_openings_can_be_taken_out() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let narrow = guarding(&[tcp(22)]).letting_in("198.51.100.7", tcp(22), seconds(LONG));
    let wide = guarding(&[tcp(22)]).letting_in("198.51.100.0/24", tcp(22), seconds(LONG));
    let mut both = narrow.clone();
    both.open(
        opening("198.51.100.0/24", tcp(22)),
        *wide.openings().iter().next().unwrap().1,
    );

    scene.apply(&both);
    scene.connect("198.51.100.200", SSH);
    assert_eq!(scene.apply(&narrow), Applied::Difference { added: 0, removed: 1 });
    scene.connect("198.51.100.7", SSH);
    scene.assert_shut("198.51.100.200", SSH);
    assert_eq!(scene.apply(&both), Applied::Difference { added: 1, removed: 0 });
    assert_eq!(scene.apply(&wide), Applied::Difference { added: 0, removed: 1 });
    scene.connect("198.51.100.7", SSH);
    scene.connect("198.51.100.200", SSH);
    scene.assert_shut(STRANGER, SSH);
    assert!(scene.firewall.is_in_place(now()).unwrap());
}

#[test]
fn an_opening_can_be_given_a_later_and_an_earlier_end() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let first = within(Duration::from_millis(800));
    scene.apply(&guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), first));
    let later = guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(LONG));
    assert_eq!(scene.apply(&later), Applied::Difference { added: 1, removed: 0 });
    wait_until("the first end", || !first.is_after(now()));
    scene.connect(FRIEND, SSH);

    let earlier = within(Duration::from_millis(300));
    scene.apply(&guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), earlier));
    scene.connect(FRIEND, SSH);
    wait_until("the earlier end", || !earlier.is_after(now()));
    scene.assert_shut(FRIEND, SSH);

    // Long gone from the kernel, and wanted again.
    scene.apply(&guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(LONG)));
    scene.connect(FRIEND, SSH);
}

#[test]
fn a_trusted_source_is_never_shortened() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let trusting = guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), End::Never);
    let end = within(Duration::from_millis(600));
    scene.apply(&trusting);
    scene.apply(
        &trusting
            .clone()
            .letting_in(FRIEND, tcp(22), end)
            .letting_in("192.0.2.0/24", tcp(22), end),
    );
    scene.connect(STRANGER, SSH);
    wait_until("the end of the grant", || !end.is_after(now()));
    scene.connect(FRIEND, SSH);
    scene.assert_shut(STRANGER, SSH);
    assert_eq!(
        scene.firewall.read().unwrap().unwrap().openings[&opening(FRIEND, tcp(22))],
        None
    );
}

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
    let flow_ends = |flow: &mut netns::UdpFlow| {
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
fn a_redirected_port_is_gated_by_the_number_the_client_asked_for() {
    let mut scene = Scene::new();
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
    let local = "192.0.2.1:5985";
    let forwarded = "192.0.2.1:5986";
    scene.connect(STRANGER, local);
    scene.connect(STRANGER, forwarded);

    let guarded = guarding(&[tcp(22), tcp(5985), tcp(5986)]);
    let end = within(Duration::from_millis(1_500));
    scene.apply(
        &guarded
            .letting_in(FRIEND, tcp(5985), end)
            .letting_in(FRIEND, tcp(5986), end),
    );
    let mut sessions = [scene.connect(FRIEND, local), scene.connect(FRIEND, forwarded)];
    scene.assert_shut(STRANGER, local);
    scene.assert_shut(STRANGER, forwarded);
    // From an unguarded number to a guarded one: shut, whatever the first number says.
    scene.assert_shut(FRIEND, "192.0.2.1:8022");
    wait_until("the end of the grants", || !end.is_after(now()));
    scene.assert_shut(FRIEND, local);
    scene.assert_shut(FRIEND, forwarded);
    sessions.iter_mut().for_each(assert_lives);

    // Traffic that only passes through is none of our business, whatever its port.
    scene.client.ip("route add 10.99.0.0/24 via 192.0.2.1");
    assert_lives(&mut scene.connect(STRANGER, "10.99.0.2:22"));
}

#[test]
fn an_unguarded_interface_lets_everything_through() {
    let mut scene = Scene::new();
    let inner = Netns::new("inner");
    scene.host.wire("inside", &inner, "eth0");
    scene.host.ip("addr add 10.99.0.1/24 dev inside");
    inner.ip("addr add 10.99.0.2/24 dev eth0");
    scene.serve(&[22]);
    let from_inside = |patience| {
        inner.run(|| {
            connect(
                "10.99.0.2".parse().unwrap(),
                "10.99.0.1:22".parse().unwrap(),
                patience,
            )
        })
    };
    scene.apply(&guarding(&[tcp(22)]));
    assert!(from_inside(SILENCE).is_err_and(|error| is_silence(&error)));
    scene.apply(&guarding_with(&[tcp(22)], &["inside"], PATIENCE));
    from_inside(PATIENCE).unwrap();
    scene.assert_shut(FRIEND, SSH);
    // A name that only begins alike, and one that no interface can have.
    scene.apply(&guarding_with(
        &[tcp(22)],
        &["insid", "inside0", "inside-but-much-too-long"],
        PATIENCE,
    ));
    assert!(from_inside(SILENCE).is_err_and(|error| is_silence(&error)));
    assert!(scene.firewall.is_in_place(now()).unwrap());
}

#[test]
fn scans_that_are_no_attempts_to_connect_get_no_answer() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    // 3389 is guarded too, but nothing listens there.
    scene.apply(&guarding(&[tcp(22), tcp(3389)]));
    let answers = |flags: &str, port: u16| {
        let line = format!("hping3 -c 2 -i u1000 {flags} -a {STRANGER} -p {port} {HOST}");
        let output = output(&mut scene.client.command(&line), "");
        let report = String::from_utf8(output.stderr).unwrap();
        let received = report.split(" packets transmitted, ").nth(1).unwrap();
        received.split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    thread::scope(|scope| {
        let scans = ["-S", "-F", "", "-F -P -U", "-S -F"]
            .map(|flags| scope.spawn(move || (flags, answers(flags, 22), answers(flags, 3389))));
        for scan in scans {
            let (flags, open, closed) = scan.join().unwrap();
            assert_eq!((open, closed), (0, 0), "hping3 {flags}");
        }
    });
    // That the host is up shows, but not which port is open.
    wait_until("the same answers", || {
        (answers("-A", 22), answers("-A", 3389)) == (2, 2)
    });
}

#[test]
fn an_empty_ruleset_removes_the_table_and_only_ours() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let others = "table inet other {\n chain input {\n type filter hook input priority 0; policy accept;\n tcp dport 99 drop\n }\n}\n";
    scene.host.must("nft -f -", others);
    let listing = |scene: &Scene| scene.host.must("nft list table inet other", "");
    let before = listing(&scene);

    assert_eq!(scene.apply(&Ruleset::default()), Applied::Unchanged);
    assert_eq!(scene.host.must("nft list tables", ""), "table inet other\n");
    scene.apply(&guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(LONG)));
    scene.assert_shut(STRANGER, SSH);
    assert_eq!(listing(&scene), before);
    assert_eq!(scene.apply(&Ruleset::default()), Applied::Removed);
    assert_eq!(scene.host.must("nft list tables", ""), "table inet other\n");
    scene.connect(STRANGER, SSH);
    assert_eq!(scene.apply(&Ruleset::default()), Applied::Unchanged);
    assert_eq!(scene.firewall.read().unwrap(), None);
    assert!(scene.firewall.is_in_place(now()).unwrap());

    scene.apply(&guarding(&[tcp(22)]));
    scene.firewall.remove().unwrap();
    scene.firewall.remove().unwrap();
    scene.connect(STRANGER, SSH);
    assert_eq!(listing(&scene), before);
}

#[test]
fn two_thousand_openings_are_applied_at_once() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let mut many = guarding(&[tcp(22)]);
    let (end, later) = (seconds(LONG), seconds(2 * LONG));
    for number in 0..1_000_u32 {
        many.open(
            opening(&Ipv4Addr::from(0x0a00_0000 + number).to_string(), tcp(22)),
            end,
        );
        many.open(
            opening(
                &Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(number)).to_string(),
                tcp(22),
            ),
            end,
        );
    }
    let empty = guarding(&[tcp(22)]);
    scene.apply(&empty);
    assert_eq!(
        scene.apply(&many),
        Applied::Difference {
            added: 2_000,
            removed: 0
        }
    );
    assert_eq!(scene.firewall.read().unwrap().unwrap().openings.len(), 2_000);
    assert!(scene.firewall.is_in_place(now()).unwrap());

    let mut longer = empty.clone().letting_in(FRIEND, tcp(22), end);
    many.openings()
        .keys()
        .for_each(|opening| longer.open(*opening, later));
    assert_eq!(
        scene.apply(&longer),
        Applied::Difference {
            added: 2_001,
            removed: 0
        }
    );
    scene.connect(FRIEND, SSH);
    assert!(scene.firewall.is_in_place(now()).unwrap());
    assert_eq!(
        scene.apply(&empty),
        Applied::Difference {
            added: 0,
            removed: 2_001
        }
    );
    assert!(scene.firewall.read().unwrap().unwrap().openings.is_empty());
    assert_eq!(scene.firewall.rebuild(&longer, now()).unwrap(), Applied::Rebuilt);
    assert!(scene.firewall.is_in_place(now()).unwrap());
}

#[test]
fn an_opening_that_ends_while_it_is_changed_breaks_nothing() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let empty = guarding(&[tcp(22)]);
    let trusted = empty.letting_in(STRANGER, tcp(22), End::Never);
    scene.apply(&trusted);
    for round in 0..90_u64 {
        let end = within(Duration::from_millis(15));
        scene.apply(&trusted.clone().letting_in(FRIEND, tcp(22), end));
        // Around the end, to the tenth of a millisecond: just before, at, and just after it.
        let at = now().plus(Duration::from_micros(9_000 + 100 * round));
        while now() < at {
            std::hint::spin_loop();
        }
        let next = match round % 3 {
            0 => trusted.clone(),
            1 => trusted.clone().letting_in(FRIEND, tcp(22), seconds(LONG)),
            _ => trusted
                .clone()
                .letting_in(FRIEND, tcp(22), within(Duration::from_millis(30))),
        };
        let applied = scene.apply(&next);
        assert_ne!(applied, Applied::Rebuilt);
        if round % 3 == 1 {
            let found = scene.firewall.read().unwrap().unwrap().openings;
            let remaining = found[&opening(FRIEND, tcp(22))].unwrap();
            assert!(remaining > Duration::from_secs(LONG - 5), "{remaining:?}");
        }
        assert!(scene.firewall.is_in_place(now()).unwrap());
    }
    scene.connect(STRANGER, SSH);
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

#[test]
fn a_refused_change_is_made_good_by_the_next() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let ruleset = guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(LONG));
    scene.apply(&ruleset);
    scene.host.must("nft flush ruleset", "");
    let more = ruleset.clone().letting_in(STRANGER, tcp(22), seconds(LONG));
    scene.firewall.apply(&more, now()).unwrap_err();
    assert_eq!(scene.apply(&more), Applied::Rebuilt);
    scene.connect(STRANGER, SSH);
    scene.assert_shut("198.51.100.7", SSH);
}

#[test]
fn a_new_prefix_length_leaves_the_others_in_place() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let mut ruleset = guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(LONG));
    scene.apply(&ruleset);
    for (source, address, to) in [
        ("198.51.100.0/25", "198.51.100.7", SSH),
        ("2001:db8:1::/64", "2001:db8:1::7", SSH6),
        ("203.0.112.0/22", "203.0.113.5", SSH),
    ] {
        scene.assert_shut(address, to);
        ruleset.open(opening(source, tcp(22)), seconds(LONG));
        assert_eq!(
            scene.apply(&ruleset),
            Applied::Difference { added: 1, removed: 0 }
        );
        scene.connect(address, to);
        scene.connect(FRIEND, SSH);
        scene.assert_shut("198.51.100.200", SSH);
        assert!(scene.firewall.is_in_place(now()).unwrap());
    }
    // Lengths that went out of use don't get in the way of those that stay, or come back.
    let other = guarding(&[tcp(22)]).letting_in("198.51.100.192/26", tcp(22), seconds(LONG));
    assert_eq!(scene.apply(&other), Applied::Difference { added: 1, removed: 4 });
    scene.connect("198.51.100.200", SSH);
    scene.assert_shut(FRIEND, SSH);
    scene.apply(&ruleset);
    scene.connect(FRIEND, SSH);
    scene.assert_shut("198.51.100.200", SSH);
    assert!(scene.firewall.is_in_place(now()).unwrap());
}

#[test]
fn no_attempt_slips_through_or_is_lost_while_the_table_is_rebuilt() {
    let mut scene = Scene::new();
    let listener = scene.host.run(|| TcpListener::bind(SSH)).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    let friend = FRIEND.parse().unwrap();
    let ruleset = guarding(&[tcp(22), udp(3389)]).letting_in(FRIEND, tcp(22), seconds(LONG));
    let wider = ruleset
        .clone()
        .letting_in("203.0.113.0/24", tcp(22), seconds(LONG));
    scene.apply(&ruleset);
    let is_done = AtomicBool::new(false);
    let Scene { firewall, client, .. } = &mut scene;
    let (let_in, lost, slipped) = thread::scope(|scope| {
        let friends = scope.spawn(|| {
            client.run(|| {
                let (mut let_in, mut lost) = (0, 0);
                while !is_done.load(Ordering::Relaxed) {
                    // A lost attempt is repeated after a second, so it would be late.
                    let began = Instant::now();
                    let mut session = connect(friend, SSH.parse().unwrap(), PATIENCE).unwrap();
                    lost += u32::from(began.elapsed() > Duration::from_millis(900));
                    // Not faster than the server takes them, whose queue would drop some too.
                    assert_eq!(session.read(&mut [0]).unwrap(), 0);
                    let_in += 1;
                }
                (let_in, lost)
            })
        });
        let strangers = scope.spawn(|| {
            client.run(|| {
                let mut slipped = 0;
                while !is_done.load(Ordering::Relaxed) {
                    let outcome = connect(
                        STRANGER.parse().unwrap(),
                        SSH.parse().unwrap(),
                        Duration::from_millis(1),
                    );
                    slipped += u32::from(outcome.is_ok());
                }
                slipped
            })
        });
        for _ in 0..300 {
            firewall.rebuild(&ruleset, now()).unwrap();
            firewall.apply(&wider, now()).unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        let (let_in, lost) = friends.join().unwrap();
        (let_in, lost, strangers.join().unwrap())
    });
    assert!(let_in > 0);
    assert_eq!((lost, slipped), (0, 0), "of {let_in}");
}

/// A source and where it shows up: addresses that the client has, and prefixes around them.
fn sources() -> impl Strategy<Value = Prefix> {
    let address = prop::sample::select(vec![
        FRIEND,
        STRANGER,
        "198.51.100.7",
        "198.51.100.200",
        "203.0.113.5",
        FRIEND6,
        STRANGER6,
        "2001:db8:1::7",
        "2001:db8:2::5",
    ]);
    (
        address,
        prop::sample::select(vec![0_u8, 1, 8, 22, 24, 25, 31, 32, 48, 63, 64, 127, 128]),
    )
        .prop_map(|(address, length)| {
            let address: IpAddr = address.parse().unwrap();
            let bits = if address.is_ipv4() { 32 } else { 128 };
            Prefix::around(address, length.min(bits)).unwrap()
        })
}

fn rulesets() -> impl Strategy<Value = Vec<(Prefix, bool, u16, u8)>> {
    prop::collection::vec(
        (
            sources(),
            any::<bool>(),
            prop::sample::select(vec![22_u16, 3389]),
            0..3_u8,
        ),
        0..6,
    )
}

#[test]
fn the_kernel_answers_each_packet_as_the_ruleset_does() {
    let mut scene = Scene::new();
    scene.serve(&[22, 3389, 80]);
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: 40,
            failure_persistence: None,
            ..Config::default()
        },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let scene = std::cell::RefCell::new(&mut scene);
    runner
        .run(&rulesets(), |openings| {
            let scene = &mut **scene.borrow_mut();
            // One protocol of each number is guarded, so that the other one shows.
            // Without a grace, or a flow of an earlier ruleset might have the same numbers.
            let mut ruleset = guarding_with(&[tcp(22), udp(22), tcp(3389)], &[], Duration::ZERO);
            for (source, is_tcp, port, end) in openings {
                let key = if is_tcp { tcp(port) } else { udp(port) };
                let end = match end {
                    0 => End::Never,
                    1 => seconds(LONG),
                    _ => End::At(now()),
                };
                ruleset.open(OpeningKey { source, key }, end);
            }
            scene.firewall.apply(&ruleset, now()).unwrap();
            let probes: Vec<(&str, &str)> =
                [FRIEND, STRANGER, "198.51.100.7", "198.51.100.200", "203.0.113.5"]
                    .into_iter()
                    .map(|from| (from, HOST))
                    .chain([FRIEND6, STRANGER6, "2001:db8:1::7", "2001:db8:2::5"].map(|from| (from, HOST6)))
                    .collect();
            let outcomes: Vec<(String, bool, bool)> = scene.client.run(|| {
                thread::scope(|scope| {
                    let mut waiting = Vec::new();
                    for (from, to) in probes {
                        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
                        for key in [tcp(22), tcp(3389), tcp(80), udp(22), udp(3389)] {
                            let is_allowed = ruleset.allows(from, key, now());
                            let patience = if is_allowed {
                                PATIENCE
                            } else {
                                Duration::from_millis(150)
                            };
                            waiting.push(scope.spawn(move || {
                                let got_in = match key.protocol {
                                    nightlatch_core::port::Protocol::Tcp => {
                                        connect(from, (to, key.port).into(), patience).is_ok()
                                    }
                                    nightlatch_core::port::Protocol::Udp => {
                                        let socket = UdpSocket::bind((from, 0)).unwrap();
                                        socket.set_read_timeout(Some(patience)).unwrap();
                                        socket.send_to(b"?", (to, key.port)).unwrap();
                                        socket.recv(&mut [0; 8]).is_ok()
                                    }
                                };
                                (format!("{from} -> {key}"), is_allowed, got_in)
                            }));
                        }
                    }
                    waiting.into_iter().map(|probe| probe.join().unwrap()).collect()
                })
            });
            for (probe, is_allowed, got_in) in outcomes {
                prop_assert_eq!(is_allowed, got_in, "{}", probe);
            }
            prop_assert!(scene.firewall.is_in_place(now()).unwrap());
            Ok(())
        })
        .unwrap();
}

#[test]
fn without_the_capability_the_error_says_so() {
    const INSIDE: &str = "NIGHTLATCH_TEST_WITHOUT_CAPABILITY";
    if std::env::var_os(INSIDE).is_some() {
        let error = Firewall::open().err().map(|error| error.to_string());
        panic!("{}", error.unwrap_or_default());
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "without_the_capability_the_error_says_so",
            "--nocapture",
        ])
        .env(INSIDE, "1");
    let said = String::from_utf8(output(&mut command, "").stderr).unwrap();
    assert!(said.contains("needs the capability CAP_NET_ADMIN"), "{said}");
}
