//! The kernel against the ruleset, over many rulesets and packets.

use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use nightlatch_core::port::{PortKey, PortSpan, Protocol};
use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::{End, OpeningKey};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::LONG;
use crate::netns::{
    FRIEND, FRIEND6, HOST, HOST6, PATIENCE, STRANGER, STRANGER6, Scene, connect, guarding_with, now, seconds,
    tcp, udp,
};

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

/// Ports as a grant names them, which need not be those that are guarded.
fn spans() -> impl Strategy<Value = PortSpan> {
    let ranges = ["22", "3389", "8000-8003", "8001-8002", "8002-8010", "8003"];
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    (protocol, prop::sample::select(ranges.to_vec())).prop_map(|(protocol, range)| PortSpan {
        protocol,
        range: range.parse().unwrap(),
    })
}

fn rulesets() -> impl Strategy<Value = Vec<(Prefix, PortSpan, u8)>> {
    prop::collection::vec((sources(), spans(), 0..3_u8), 0..6)
}

/// One protocol of each number is guarded, so that the other one shows; of a range all but its ends.
fn guarded() -> Vec<PortKey> {
    let single = [tcp(22), udp(22), tcp(3389)];
    let range = (8_001..=8_003).flat_map(|port| [tcp(port), udp(port)]);
    single.into_iter().chain(range).collect()
}

/// What is tried from each source.
fn tried() -> impl Iterator<Item = PortKey> {
    let single = [tcp(22), tcp(3389), tcp(80), udp(22), udp(3389)];
    let range = [
        tcp(8_000),
        tcp(8_001),
        tcp(8_003),
        tcp(8_004),
        udp(8_002),
        udp(8_003),
    ];
    single.into_iter().chain(range)
}

#[test]
fn the_kernel_answers_each_packet_as_the_ruleset_does() {
    let mut scene = Scene::new();
    scene.serve(&[22, 3389, 80, 8_000, 8_001, 8_002, 8_003, 8_004]);
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
            // Without a grace, or a flow of an earlier ruleset might have the same numbers.
            let mut ruleset = guarding_with(&guarded(), &[], Duration::ZERO);
            for (source, span, end) in openings {
                let end = match end {
                    0 => End::Never,
                    1 => seconds(LONG),
                    _ => End::At(now()),
                };
                span.keys()
                    .for_each(|key| ruleset.open(OpeningKey { source, key }, end));
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
                        for key in tried() {
                            let is_allowed = ruleset.allows(from, key, now());
                            let patience = if is_allowed {
                                PATIENCE
                            } else {
                                Duration::from_millis(150)
                            };
                            waiting.push(scope.spawn(move || {
                                let got_in = match key.protocol {
                                    Protocol::Tcp => connect(from, (to, key.port).into(), patience).is_ok(),
                                    Protocol::Udp => {
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
