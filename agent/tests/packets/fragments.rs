//! Fragments, options and chains of headers: whatever hides a port or a SYN lets nobody in.

use std::collections::BTreeSet;

use crate::netns::{
    Attempt, FRIEND, FRIEND6, HOST, HOST6, LettingIn, PATIENCE, SILENCE, STRANGER, STRANGER6, Scene, Wire,
    guarding, guarding_with, seconds, tcp,
};
use crate::{LONG, SSH, SSH6};

/// One way to send a SYN.
struct Shape {
    name: &'static str,
    packets: fn(Attempt) -> Vec<Vec<u8>>,
    /// Whether it gets through to a socket if nothing is against it: not all of this is put together.
    arrives: bool,
    /// The same where connection tracking puts fragments together before all else.
    arrives_tracked: bool,
}

const fn shape(name: &'static str, arrives: bool, packets: fn(Attempt) -> Vec<Vec<u8>>) -> Shape {
    Shape {
        name,
        packets,
        arrives,
        arrives_tracked: arrives,
    }
}

const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;

/// An extension header of eight bytes that says nothing but what comes next.
fn options_before(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

/// To a port that nothing guards.
fn elsewhere(attempt: Attempt) -> Attempt {
    Attempt { port: 80, ..attempt }
}

const IPV4: &[Shape] = &[
    shape("whole", true, |attempt| {
        vec![attempt.ipv4(&[], 0, true, &attempt.syn(&[]))]
    }),
    shape("behind options", true, |attempt| {
        vec![attempt.ipv4(&[1, 1, 1, 0], 0, true, &attempt.syn(&[]))]
    }),
    shape("flags in the second fragment", true, |attempt| {
        let (first, second) = (&attempt.syn(&[])[..8], &attempt.syn(&[])[8..]);
        vec![
            attempt.ipv4(&[], 0, false, first),
            attempt.ipv4(&[], 8, true, second),
        ]
    }),
    shape("flags in the fragment that comes first", true, |attempt| {
        let (first, second) = (&attempt.syn(&[])[..8], &attempt.syn(&[])[8..]);
        vec![
            attempt.ipv4(&[], 8, true, second),
            attempt.ipv4(&[], 0, false, first),
        ]
    }),
    shape("an ACK made a SYN by an overlap", false, |attempt| {
        vec![
            attempt.ipv4(&[], 0, false, &attempt.ack()),
            attempt.ipv4(&[], 8, true, &attempt.syn(&[0; 8])[8..]),
        ]
    }),
    shape("another port made this one by an overlap", false, |attempt| {
        vec![
            attempt.ipv4(&[], 0, false, &elsewhere(attempt).syn(&[0; 16])[..24]),
            attempt.ipv4(&[], 0, false, &attempt.syn(&[0; 16])[..32]),
            attempt.ipv4(&[], 32, true, &[0; 8]),
        ]
    }),
];

const IPV6: &[Shape] = &[
    shape("whole", true, |attempt| {
        vec![attempt.ipv6(TCP, &attempt.syn(&[]))]
    }),
    shape("behind hop-by-hop options", true, |attempt| {
        let payload = [options_before(TCP), attempt.syn(&[])].concat();
        vec![attempt.ipv6(HOP_BY_HOP, &payload)]
    }),
    shape("behind destination options", true, |attempt| {
        let payload = [options_before(TCP), attempt.syn(&[])].concat();
        vec![attempt.ipv6(DESTINATION, &payload)]
    }),
    shape("in an only fragment", true, |attempt| {
        vec![attempt.ipv6_fragment(TCP, 0, true, &attempt.syn(&[]))]
    }),
    shape("behind options in an only fragment", true, |attempt| {
        let payload = [options_before(TCP), attempt.syn(&[])].concat();
        vec![attempt.ipv6_fragment(DESTINATION, 0, true, &payload)]
    }),
    shape("whole in the first fragment", true, |attempt| {
        let syn = attempt.syn(&[0; 8]);
        vec![
            attempt.ipv6_fragment(TCP, 0, false, &syn[..24]),
            attempt.ipv6_fragment(TCP, 24, true, &syn[24..]),
        ]
    }),
    shape("whole in the first fragment, which comes last", true, |attempt| {
        let syn = attempt.syn(&[0; 8]);
        vec![
            attempt.ipv6_fragment(TCP, 24, true, &syn[24..]),
            attempt.ipv6_fragment(TCP, 0, false, &syn[..24]),
        ]
    }),
    shape("flags in the second fragment", false, |attempt| {
        let syn = attempt.syn(&[]);
        vec![
            attempt.ipv6_fragment(TCP, 0, false, &syn[..8]),
            attempt.ipv6_fragment(TCP, 8, true, &syn[8..]),
        ]
    }),
    shape("port in the second fragment", false, |attempt| {
        let rest = attempt.syn(&[]);
        vec![
            attempt.ipv6_fragment(DESTINATION, 0, false, &options_before(TCP)),
            attempt.ipv6_fragment(DESTINATION, 8, true, &rest),
        ]
    }),
    // What the kernel itself looks for in a first fragment, it doesn't look for behind an end like this one.
    Shape {
        arrives_tracked: true,
        ..shape("port behind a header of the second fragment", false, |attempt| {
            let rest = [options_before(TCP), attempt.syn(&[])].concat();
            vec![
                attempt.ipv6_fragment(DESTINATION, 0, false, &options_before(DESTINATION)),
                attempt.ipv6_fragment(DESTINATION, 8, true, &rest),
            ]
        })
    },
    shape("an ACK made a SYN by an overlap", false, |attempt| {
        vec![
            attempt.ipv6_fragment(TCP, 0, false, &attempt.ack()),
            attempt.ipv6_fragment(TCP, 8, true, &attempt.syn(&[0; 8])[8..]),
        ]
    }),
    shape("another port made this one by an overlap", false, |attempt| {
        vec![
            attempt.ipv6_fragment(TCP, 0, false, &elsewhere(attempt).syn(&[0; 16])[..24]),
            attempt.ipv6_fragment(TCP, 0, false, &attempt.syn(&[0; 16])[..32]),
            attempt.ipv6_fragment(TCP, 32, true, &[0; 8]),
        ]
    }),
];

/// Sends each shape from a stranger and from a friend, and compares which of them the host answers.
#[track_caller]
fn assert_only_grants_count(scene: &Scene, is_tracked: bool) {
    let wire = Wire::of(scene);
    let families = [(IPV4, STRANGER, FRIEND, HOST), (IPV6, STRANGER6, FRIEND6, HOST6)];
    let (mut attempts, mut wanted, mut names) = (Vec::new(), BTreeSet::new(), Vec::new());
    let first = if is_tracked { 1_000 } else { 0 };
    for (shapes, stranger, friend, host) in families {
        for shape in shapes {
            // The stranger's own attempt comes first, and the answers to the others show that the wire is well.
            for (from, port, may) in [(stranger, 22, false), (stranger, 80, true), (friend, 22, true)] {
                let attempt = Attempt {
                    from: from.parse().unwrap(),
                    to: host.parse().unwrap(),
                    port,
                    number: first + u16::try_from(attempts.len()).unwrap(),
                };
                for packet in (shape.packets)(attempt) {
                    wire.send(&packet);
                }
                let arrives = if is_tracked {
                    shape.arrives_tracked
                } else {
                    shape.arrives
                };
                if may && arrives {
                    wanted.insert(attempt);
                }
                attempts.push(attempt);
                names.push(shape.name);
            }
        }
    }
    let answered = wire.answered(&attempts, wanted.len(), PATIENCE, SILENCE);
    let named = |set: &BTreeSet<Attempt>| -> Vec<String> {
        let of = attempts.iter().zip(&names);
        of.filter(|(attempt, _)| set.contains(attempt))
            .map(|(attempt, name)| format!("{} -> {}: {name}", attempt.from, attempt.port))
            .collect()
    };
    assert_eq!(named(&answered), named(&wanted), "tracked: {is_tracked}");
}

#[test]
fn a_syn_in_fragments_or_behind_other_headers_needs_a_grant_like_any_other() {
    let mut scene = Scene::new();
    scene.serve(&[22, 80]);
    scene.apply(
        &guarding(&[tcp(22)])
            .letting_in(FRIEND, tcp(22), seconds(LONG))
            .letting_in(FRIEND6, tcp(22), seconds(LONG)),
    );
    assert_only_grants_count(&scene, false);
    scene.host.must(
        "nft -f -",
        "table inet other {\n chain input {\n type filter hook input priority 0; policy accept;\n\
         ct state new counter\n }\n}\n",
    );
    assert_only_grants_count(&scene, true);
    scene.assert_shut(STRANGER, SSH);
    scene.assert_shut(STRANGER6, SSH6);
}

#[test]
fn an_unguarded_interface_lets_in_fragments_that_hide_their_port() {
    let mut scene = Scene::new();
    scene.serve(&[22]);
    let hiding = IPV6.iter().find(|shape| !shape.arrives && shape.arrives_tracked);
    let hiding = hiding.unwrap();
    for (number, unguarded) in [(0, &[][..]), (1, &["outside"][..])] {
        scene.apply(&guarding_with(&[tcp(22)], unguarded, PATIENCE));
        let attempt = Attempt {
            from: STRANGER6.parse().unwrap(),
            to: HOST6.parse().unwrap(),
            port: 22,
            number,
        };
        let wire = Wire::of(&scene);
        for packet in (hiding.packets)(attempt) {
            wire.send(&packet);
        }
        let answered = wire.answered(&[attempt], unguarded.len(), PATIENCE, SILENCE);
        assert_eq!(answered.len(), unguarded.len(), "{unguarded:?}: {}", hiding.name);
    }
}
