//! Who gets in, to what, and for how long.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use nightlatch_agent::firewall::Applied;
use nightlatch_core::ruleset::End;

use crate::netns::{
    FRIEND, FRIEND6, HOST, HOST6, LettingIn, Netns, PATIENCE, SILENCE, STRANGER, STRANGER6, Scene,
    assert_lives, connect, guarding, guarding_with, is_silence, now, opening, output, seconds, tcp, udp,
    wait_until, within,
};
use crate::{LONG, SSH, SSH6};

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
fn what_is_let_in_besides_takes_nothing_away_and_ends_by_itself() {
    let mut scene = Scene::new();
    scene.serve(&[22, 3389]);
    let standing = guarding_with(&[tcp(22), udp(3389)], &[], Duration::from_secs(1))
        .letting_in(FRIEND, tcp(22), seconds(LONG))
        .letting_in("198.51.100.7", tcp(22), End::Never);
    scene.apply(&standing);
    let mut session = scene.connect(FRIEND, SSH);
    let besides = [
        opening(FRIEND, tcp(22)),
        opening("198.51.100.7", tcp(22)),
        opening(STRANGER, tcp(22)),
        opening("2001:db8:1::/64", tcp(22)),
        opening(STRANGER, udp(3389)),
    ];
    // By another process than the one that made the table.
    let end = now().plus(Duration::from_secs(3));
    scene.host.run(|| {
        let mut firewall = nightlatch_agent::firewall::Firewall::open().unwrap();
        assert!(firewall.let_in(&besides, end, now).unwrap());
        assert!(
            !firewall.let_in(&besides, now(), now).unwrap(),
            "its end has come"
        );
    });
    for (from, to) in [
        (FRIEND, SSH),
        ("198.51.100.7", SSH),
        (STRANGER, SSH),
        ("2001:db8:1::7", SSH6),
    ] {
        scene.connect(from, to);
    }
    assert!(scene.udp(STRANGER, crate::RDP).is_answered());
    scene.assert_shut(STRANGER6, SSH6);
    thread::sleep(end.since(now()) + Duration::from_millis(100));
    scene.assert_shut(STRANGER, SSH);
    scene.assert_shut("2001:db8:1::7", SSH6);
    // What was open for longer still is.
    scene.connect(FRIEND, SSH);
    scene.connect("198.51.100.7", SSH);
    assert_lives(&mut session);
    // Without a table there is nothing to open.
    scene.apply(&nightlatch_core::ruleset::Ruleset::default());
    let end = now().plus(Duration::from_secs(LONG));
    assert!(!scene.firewall.let_in(&besides, end, now).unwrap());
    scene.connect(STRANGER, SSH);
}
