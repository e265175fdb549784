//! What is said and kept, whatever becomes of the agent's unit.

use nightlatch_core::port::Protocol;
use nightlatch_core::time::BootId;
use uuid::Uuid;

use super::*;

fn opened(by: By) -> Opened {
    let asked = Asked {
        ports: vec!["22".parse().unwrap()],
        source: "192.0.2.7".parse().unwrap(),
        length: Duration::from_secs(60),
        reason: read_reason("the server burns").unwrap(),
    };
    let ports = BTreeSet::from([PortKey {
        protocol: Protocol::Tcp,
        port: 22,
    }]);
    let boot = BootId(Uuid::from_u128(7));
    let at = (boot, BootTime::default(), "2026-11-22T09:30:00Z".parse().unwrap());
    let id = BreakGlassId::new(Uuid::from_u128(1));
    let used = BreakGlass::new(id, &asked, &ports, &Limits::default(), at, Opener::default()).unwrap();
    let key = SigningKey::from_seed(&[5; 32]);
    Opened {
        envelope: used.seal(&key),
        used,
        key: key.public(),
        by,
        unheard: Vec::new(),
        ended: Vec::new(),
    }
}

#[test]
fn whoever_had_the_agent_stopped_is_always_told_how_to_start_it() {
    let start = "systemctl start nightlatch-agent";
    for (unit, is_named) in [
        (Unit::Missing, false),
        (Unit::Stopping, true),
        (Unit::Stopped, true),
    ] {
        let source = FirewallError::NoAnswer;
        for text in [
            opened(By::Command(unit)).told(),
            opened(By::Unknown(unit, FirewallError::NoAnswer)).told(),
            NotBroken::NotLetIn { unit, source }.to_string(),
            NotBroken::Gone { unit }.to_string(),
        ] {
            assert_eq!(text.contains(start), is_named, "{unit:?}: {text}");
        }
    }
    let told = opened(By::Agent).told();
    assert!(
        told.contains("22/tcp is open to") && !told.contains(start),
        "{told}"
    );
}

#[test]
fn what_may_be_open_is_not_said_to_be() {
    let opened = opened(By::Unknown(Unit::Missing, FirewallError::NoAnswer));
    let told = opened.told();
    assert!(
        !opened.is_certain() && told.contains("may be open") && !told.contains("is open"),
        "{told}"
    );
}

#[test]
fn a_child_that_does_not_end_holds_nothing_up() {
    let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    assert_eq!(await_end(child, Duration::from_millis(30)), Ended::Late);
    assert_eq!(
        within(Duration::from_millis(30), || thread::sleep(Duration::from_secs(
            600
        ))),
        None
    );
}
