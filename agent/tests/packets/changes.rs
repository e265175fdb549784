//! From one ruleset to the next, without a gap and without leaving anything behind.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nightlatch_agent::firewall::{Applied, Firewall};
use nightlatch_core::ruleset::{End, Ruleset};

use crate::netns::{
    FRIEND, LettingIn, PATIENCE, STRANGER, Scene, connect, guarding, now, opening, output, seconds, tcp, udp,
    within,
};
use crate::{LONG, SSH};

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
            "changes::without_the_capability_the_error_says_so",
            "--nocapture",
        ])
        .env(INSIDE, "1");
    let said = String::from_utf8(output(&mut command, "").stderr).unwrap();
    assert!(said.contains("needs the capability CAP_NET_ADMIN"), "{said}");
}
