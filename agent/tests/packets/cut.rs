//! Ports whose open connections end with what let them in, by the kernel alone: nothing of ours acts when a test waits.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nightlatch_agent::firewall::{Applied, Firewall};
use nightlatch_core::ruleset::End;

use crate::netns::{
    FRIEND, FRIEND6, HOST, HOST6, LettingIn, PATIENCE, SILENCE, STRANGER, STRANGER6, Scene, assert_lives,
    connect, connect_from, cutting, guarding, now, seconds, tcp, udp, wait_until, within,
};
use crate::{LONG, RDP, SSH, SSH6};

const SHORT: Duration = Duration::from_millis(1_500);

/// What the client says is not answered, and nothing tells it so.
#[track_caller]
fn assert_cut(session: &mut TcpStream) {
    session.set_read_timeout(Some(SILENCE)).unwrap();
    session.write_all(b"still there?").unwrap();
    let answer = session.read(&mut [0; 12]);
    let is_silent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    assert!(answer.as_ref().is_err_and(is_silent), "{answer:?}");
}

fn wait_for(end: End) {
    wait_until("the end of the grant", || !end.is_after(now()));
    // The kernel counts from when it was told, which on a busy machine is a moment after the ruleset's `now`.
    thread::sleep(Duration::from_millis(250));
}

#[test]
fn a_session_on_a_cut_port_ends_with_its_grant_and_one_on_a_kept_port_lives_on() {
    let mut scene = Scene::new();
    scene.serve(&[22, 3389]);
    let end = within(SHORT);
    let cut_and_kept = guarding(&[tcp(22), tcp(3389)]).cutting([tcp(22)]);
    scene.apply(
        &cut_and_kept
            .letting_in(FRIEND, tcp(22), end)
            .letting_in(FRIEND6, tcp(22), end)
            .letting_in(FRIEND, tcp(3389), end),
    );
    let mut sessions = [scene.connect(FRIEND, SSH), scene.connect(FRIEND6, SSH6)];
    let mut kept = scene.connect(FRIEND, RDP);
    sessions.iter_mut().for_each(assert_lives);
    // As with the agent dead: nobody holds the table any more.
    scene.firewall = scene.host.run(Firewall::open).unwrap();
    wait_for(end);
    sessions.iter_mut().for_each(assert_cut);
    assert_lives(&mut kept);
    scene.assert_shut(FRIEND, SSH);
    scene.assert_shut(FRIEND, RDP);
}

#[test]
fn whoever_is_still_let_in_is_not_cut() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let end = within(SHORT);
    // Two grants of one source, by another prefix and by another end, and a trusted source.
    scene.apply(
        &cutting(&[tcp(22)])
            .letting_in(FRIEND, tcp(22), end)
            .letting_in("192.0.2.2/31", tcp(22), seconds(LONG))
            .letting_in(STRANGER6, tcp(22), end)
            .letting_in("2001:db8::/64", tcp(22), End::Never),
    );
    let mut sessions = [
        scene.connect(FRIEND, SSH),
        scene.connect(STRANGER, SSH),
        scene.connect(FRIEND6, SSH6),
        scene.connect(STRANGER6, SSH6),
    ];
    wait_for(end);
    sessions.iter_mut().for_each(assert_lives);
    let host = HOST.parse().unwrap();
    assert_lives(
        &mut scene
            .host
            .run(|| connect(host, SSH.parse().unwrap(), PATIENCE))
            .unwrap(),
    );
}

#[test]
fn a_source_that_is_let_in_again_goes_on_where_it_was_cut() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let end = within(SHORT);
    scene.apply(&cutting(&[tcp(22)]).letting_in(FRIEND, tcp(22), end));
    let mut session = scene.connect(FRIEND, SSH);
    wait_for(end);
    assert_cut(&mut session);
    scene.apply(&cutting(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(LONG)));
    // TCP itself sends again what nobody took.
    let mut answers = [0; 12];
    session.set_read_timeout(Some(PATIENCE)).unwrap();
    session.read_exact(&mut answers).unwrap();
    assert_lives(&mut session);
}

#[test]
fn a_port_that_becomes_cut_ends_what_nobody_is_let_in_for_and_one_that_no_longer_is_leaves_alone() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let friend =
        |ruleset: nightlatch_core::ruleset::Ruleset| ruleset.letting_in(FRIEND, tcp(22), seconds(LONG));
    let (mut granted, mut other) = (scene.connect(FRIEND, SSH), scene.connect(STRANGER, SSH));
    scene.apply(&friend(guarding(&[tcp(22)])));
    assert_lives(&mut other);
    assert_eq!(scene.apply(&friend(cutting(&[tcp(22)]))), Applied::Rebuilt);
    assert_lives(&mut granted);
    assert_cut(&mut other);
    assert!(scene.firewall.is_in_place(now()).unwrap());
    let found = scene.firewall.read().unwrap().unwrap();
    assert_eq!((found.cut, found.guarded), ([tcp(22)].into(), [tcp(22)].into()));
    scene.apply(&friend(guarding(&[tcp(22)])));
    let mut answers = [0; 12];
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    other.read_exact(&mut answers).unwrap();
    assert_lives(&mut other);
}

#[test]
fn a_udp_flow_on_a_cut_port_has_no_grace() {
    let mut scene = Scene::new();
    scene.serve(&[3389, 5985]);
    let end = within(SHORT);
    let ruleset = guarding(&[udp(3389), udp(5985)]).cutting([udp(3389)]);
    scene.apply(
        &ruleset
            .letting_in(FRIEND, udp(3389), end)
            .letting_in(FRIEND, udp(5985), end),
    );
    let (mut cut, mut kept) = (scene.udp(FRIEND, RDP), scene.udp(FRIEND, "192.0.2.1:5985"));
    assert!(cut.is_answered() && kept.is_answered());
    wait_for(end);
    assert!(cut.is_ignored());
    assert!(kept.is_answered());
}

#[test]
fn what_the_host_itself_connects_to_from_a_cut_port_is_not_cut() {
    let mut scene = Scene::new();
    let listen = |address: &'static str| scene.client.run(move || TcpListener::bind((address, 7)).unwrap());
    let listeners = [listen(STRANGER), listen(STRANGER6)];
    scene.apply(&cutting(&[tcp(4_022)]));
    let dial = |from: &str, to: &str| {
        let (from, to) = (SocketAddr::new(from.parse().unwrap(), 4_022), to.parse().unwrap());
        scene.host.run(|| connect_from(from, to, PATIENCE)).unwrap()
    };
    let mut pairs = Vec::new();
    for (listener, (from, to)) in listeners
        .iter()
        .zip([(HOST, "192.0.2.3:7"), (HOST6, "[2001:db8::3]:7")])
    {
        let near = dial(from, to);
        pairs.push((near, listener.accept().unwrap().0));
    }
    for rebuilt in [false, true] {
        if rebuilt {
            scene.firewall.rebuild(&cutting(&[tcp(4_022)]), now()).unwrap();
        }
        for (near, far) in &pairs {
            for (mut one, mut other) in [(near, far), (far, near)] {
                one.write_all(b"hello").unwrap();
                other.set_read_timeout(Some(PATIENCE)).unwrap();
                other.read_exact(&mut [0; 5]).unwrap();
            }
        }
    }
    // Nobody gets in by it: not the other end from another port, and nobody else.
    scene.serve(&[4_022]);
    scene.assert_shut(STRANGER, "192.0.2.1:4022");
    scene.assert_shut(FRIEND, "192.0.2.1:4022");
}
