//! What makes a policy, and what doesn't.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    reason = "a helper that fails fails the test"
)]

use std::time::Duration;

use nightlatch_core::policy::{AllowedSources, InvalidPolicy, Policy, PortRule};
use nightlatch_core::port::PortPattern;
use nightlatch_core::time::parse_iso8601;

fn rule(port: &str, longest: &str) -> Result<PortRule, InvalidPolicy> {
    let PortPattern { range, protocols } = port.parse().unwrap();
    PortRule::new(
        range,
        protocols.unwrap(),
        AllowedSources::Any,
        parse_iso8601(longest).unwrap(),
    )
}

fn policy(ports: &[&str]) -> Result<Policy, InvalidPolicy> {
    Policy::new(ports.iter().map(|port| rule(port, "PT3H").unwrap()).collect())
}

#[test]
fn rules_of_one_policy_never_overlap() {
    assert!(policy(&["22/tcp", "22/udp", "23-30/*"]).is_ok());
    for ports in [
        ["22/tcp", "22/tcp"],
        ["22/*", "22/udp"],
        ["20-30/tcp", "22/tcp"],
        ["22-40/udp", "1-22/*"],
    ] {
        let error = policy(&ports).unwrap_err();
        assert!(
            matches!(error, InvalidPolicy::Overlap { .. }),
            "{ports:?}: {error}"
        );
    }
}

#[test]
fn the_longest_request_is_five_minutes_to_a_day() {
    for (longest, valid) in [
        ("PT5M", true),
        ("PT24H", true),
        ("PT4M59S", false),
        ("PT24H1S", false),
    ] {
        assert_eq!(rule("22/tcp", longest).is_ok(), valid, "{longest}");
    }
    assert_eq!(PortRule::DEFAULT_LIMIT, Duration::from_secs(3 * 3600));
}

#[test]
fn a_policy_guards_one_to_1024_port_keys() {
    assert_eq!(Policy::new(Vec::new()), Err(InvalidPolicy::NoRules));
    let full = ["1-256/*", "257-512/*"];
    assert!(policy(&full).is_ok());
    assert_eq!(
        policy(&["1-256/*", "257-512/*", "600/tcp"]),
        Err(InvalidPolicy::TooManyPorts(1025))
    );
}

#[test]
fn an_empty_list_of_sources_allows_nothing_and_is_refused() {
    let PortPattern { range, protocols } = "22/tcp".parse().unwrap();
    let rule = PortRule::new(
        range,
        protocols.unwrap(),
        AllowedSources::Only(Vec::new()),
        PortRule::DEFAULT_LIMIT,
    );
    assert_eq!(rule, Err(InvalidPolicy::NoSources));
}
