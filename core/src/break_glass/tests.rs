//! What break-glass opens, and what it doesn't.

use alloc::string::ToString;

use uuid::Uuid;

use super::*;
use crate::host::HostRules;
use crate::port::Protocol;

const BOOT: BootId = BootId(Uuid::from_u128(7));

fn second(second: u64) -> BootTime {
    BootTime::new(Duration::from_secs(second))
}

fn time() -> Timestamp {
    "2026-11-22T09:30:00Z".parse().unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_seed(&[5; 32])
}

fn tcp(port: u16) -> PortKey {
    PortKey {
        protocol: Protocol::Tcp,
        port,
    }
}

fn asked(port: &str, source: &str, minutes: u64) -> Asked {
    Asked {
        ports: alloc::vec![port.parse().unwrap()],
        source: source.parse().unwrap(),
        length: Duration::from_secs(minutes * 60),
        reason: Justification::try_from("the server burns".to_string()).unwrap(),
    }
}

/// Made at the hundredth second, within whatever limits.
fn used(source: &str, minutes: u64) -> BreakGlass {
    let limits = Limits {
        longest: Duration::MAX,
        widest_ipv4: 0,
        widest_ipv6: 0,
        ..Limits::default()
    };
    let asked = asked("22", source, minutes);
    let (id, ports) = (BreakGlassId::new(Uuid::from_u128(1)), BTreeSet::from([tcp(22)]));
    let at = (BOOT, second(100), time());
    BreakGlass::new(id, &asked, &ports, &limits, at, Opener::default()).unwrap()
}

fn verify(used: &BreakGlass, boot: OfBoot, now: BootTime) -> Result<VerifiedBreakGlass, NotOpened> {
    BreakGlass::verify(
        &used.seal(&key()),
        &[key().public()],
        &Limits::default(),
        boot,
        now,
    )
}

#[test]
fn a_use_opens_its_port_to_its_source_until_its_end_if_it_is_guarded() {
    let held = verify(&used("192.0.2.7", 15), OfBoot::Id(BOOT), second(100)).unwrap();
    let host = HostRules {
        guarded: alloc::vec!["22/tcp".parse::<PortPattern>().unwrap().spans().next().unwrap()],
        console: alloc::vec![held.clone()],
        ..HostRules::default()
    };
    let ruleset = host.ruleset_alone();
    let allows = |from: &str, at| ruleset.allows(from.parse().unwrap(), tcp(22), second(at));
    assert!(allows("192.0.2.7", 100) && allows("192.0.2.7", 999));
    assert!(!allows("192.0.2.7", 1_000), "its end has come");
    assert!(!allows("192.0.2.8", 100));
    let unguarded = HostRules {
        console: alloc::vec![held],
        ..HostRules::default()
    };
    assert!(unguarded.ruleset_alone().openings().is_empty());
}

#[test]
fn what_is_asked_for_stays_within_the_hosts_own_file() {
    let check = |source: &str, minutes| asked("22", source, minutes).check(&Limits::default());
    for (source, minutes) in [("192.0.2.7", 60), ("2001:db8::/64", 1), ("2001:db8::7", 15)] {
        assert_eq!(check(source, minutes), Ok(()));
    }
    for (source, minutes, says) in [
        ("192.0.2.0/31", 15, "/32"),
        ("2001:db8::/63", 15, "/64"),
        ("0.0.0.0/0", 15, "widest_ipv4"),
        ("127.0.0.1", 15, "nobody"),
        ("192.0.2.7", 61, "PT1H"),
        ("192.0.2.7", 0, "PT1S"),
    ] {
        let error = check(source, minutes).unwrap_err().to_string();
        let says_it = error.contains(says) || says == "nobody" && error.contains("none that anybody");
        assert!(says_it, "{source} for {minutes} min: {error}");
    }
    let off = Limits {
        is_enabled: false,
        ..Limits::default()
    };
    assert_eq!(asked("22", "192.0.2.7", 1).check(&off), Err(NotOpened::TurnedOff));
    let terse = Asked {
        reason: Justification::try_from("help".to_string()).unwrap(),
        ..asked("22", "192.0.2.7", 1)
    };
    assert_eq!(terse.check(&Limits::default()), Err(NotOpened::ReasonTooShort));
}

#[test]
fn a_port_without_a_protocol_means_those_that_are_guarded() {
    let guarded = BTreeSet::from([tcp(22), tcp(3389)]);
    let (ports, unguarded) = asked("22", "192.0.2.7", 1).guarded_ports(&guarded);
    assert_eq!((ports, unguarded.len()), (BTreeSet::from([tcp(22)]), 0));
    let (ports, unguarded) = asked("22/udp", "192.0.2.7", 1).guarded_ports(&guarded);
    assert_eq!((ports.len(), unguarded.len()), (0, 1));
}

#[test]
fn a_record_that_is_not_as_it_should_be_opens_nothing() {
    let good = used("192.0.2.7", 15);
    assert!(verify(&good, OfBoot::Id(BOOT), second(100)).is_ok());
    let other = OfBoot::Id(BootId(Uuid::from_u128(8)));
    assert_eq!(verify(&good, other, second(100)), Err(NotOpened::OtherBoot));
    assert!(verify(&good, OfBoot::Certain, second(100)).is_ok());
    assert_eq!(verify(&good, OfBoot::Id(BOOT), second(99)), Err(NotOpened::Ahead));
    assert_eq!(
        verify(&good, OfBoot::Id(BOOT), second(1_000)),
        Err(NotOpened::Ended)
    );
    for wide in ["192.0.2.0/24", "2001:db8::/32"] {
        let error = verify(&used(wide, 15), OfBoot::Id(BOOT), second(100)).unwrap_err();
        assert!(matches!(error, NotOpened::TooWide { .. }), "{error}");
    }
    let error = verify(&used("192.0.2.7", 61), OfBoot::Id(BOOT), second(100)).unwrap_err();
    assert!(matches!(error, NotOpened::TooLong { .. }), "{error}");
    let forged = good.seal(&SigningKey::from_seed(&[6; 32]));
    let error = BreakGlass::verify(
        &forged,
        &[key().public()],
        &Limits::default(),
        OfBoot::Certain,
        second(100),
    );
    assert!(matches!(
        error,
        Err(NotOpened::Rejected(EnvelopeRejected::UnknownKey(_)))
    ));
}

fn of_ports(ports: impl Iterator<Item = u16>, reason: &Justification) -> Result<BreakGlass, NotOpened> {
    let opener = Opener {
        uid: 0,
        login_uid: Some(u32::MAX - 1),
        sudo_user: Some("\u{10ffff}".repeat(64)),
        terminal: Some("\u{10ffff}".repeat(64)),
    };
    let asked = Asked {
        reason: reason.clone(),
        ..asked("22", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 60)
    };
    let (id, ports) = (BreakGlassId::new(Uuid::from_u128(1)), ports.map(tcp).collect());
    let at = (BOOT, second(u64::from(u32::MAX)), time());
    BreakGlass::new(id, &asked, &ports, &Limits::default(), at, opener)
}

#[test]
fn the_largest_use_has_a_record_that_is_read() {
    let most = u16::try_from(MOST_PORTS).unwrap();
    let apart = |count| (0..count).map(|number| 65_535 - 2 * number);
    let reason = Justification::try_from("\u{10ffff}".repeat(Justification::LONGEST)).unwrap();
    let used = of_ports(apart(most), &reason).unwrap();
    assert_eq!(used.ports.len(), MOST_PORTS);
    let held = verify(&used, OfBoot::Id(BOOT), used.start).unwrap();
    assert_eq!(held.openings().count(), MOST_PORTS);
    assert_eq!(of_ports(apart(most + 1), &reason), Err(NotOpened::Ports));
}

#[test]
fn neighbouring_ports_are_recorded_as_one_range() {
    let reason = Justification::try_from("the server burns".to_string()).unwrap();
    let used = of_ports([22, 23, 24, 80, 65_534, 65_535].into_iter(), &reason).unwrap();
    let texts: Vec<_> = used.ports.iter().map(PortSpan::to_string).collect();
    assert_eq!(texts, ["22-24/tcp", "80/tcp", "65534-65535/tcp"]);
}

#[test]
fn any_flipped_bit_of_a_record_is_refused() {
    let envelope = used("192.0.2.7", 15).seal(&key());
    for place in 0..envelope.len() {
        for bit in 0..8 {
            let mut changed = envelope.clone();
            changed[place] ^= 1 << bit;
            let verified = BreakGlass::verify(
                &changed,
                &[key().public()],
                &Limits::default(),
                OfBoot::Certain,
                second(100),
            );
            assert!(verified.is_err(), "byte {place}, bit {bit}");
        }
    }
}
