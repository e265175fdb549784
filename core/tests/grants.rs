//! What a host refuses, each with its own reason, and the signed bytes themselves.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod common;

use common::{MACHINE, at, authority, ceiling, forged, grant, keys, policy, root, wish};
use nightlatch_core::ceiling::HostCeiling;
use nightlatch_core::grant::{GrantRejected, SignedGrant};
use nightlatch_core::receipt::{Done, Happening, Receipt};
use nightlatch_core::request::Span;
use nightlatch_core::signing::SigningKey;
use serde_json::json;

fn verdict(envelope: &SignedGrant, second: u64) -> Result<(), GrantRejected> {
    envelope
        .verify(&keys(), MACHINE, Some(&ceiling()), at(second))
        .map(|_| ())
}

#[test]
fn the_signed_bytes_are_those_of_the_golden_file() {
    let issued = grant(
        0x19a_a0b2_6a51,
        &["22/tcp", "3389"],
        &["192.0.2.7", "2001:db8::/64"],
        0,
        3600,
    );
    let text = String::from_utf8(issued.envelope.as_bytes().to_vec()).unwrap();
    assert_eq!(text, include_str!("golden/grant.dsse.json").trim_end());
}

#[test]
fn each_refusal_has_its_own_reason() {
    let good = grant(1, &["22"], &["192.0.2.7"], 10, 600).grant;
    let foreign_key = SigningKey::from_seed(&[9; 32]);
    let payload = serde_json::to_vec(&good).unwrap();
    let foreign = SignedGrant::from_bytes(foreign_key.seal(nightlatch_core::grant::PAYLOAD_TYPE, &payload));
    let mistyped = SignedGrant::from_bytes(authority().key().seal("application/json", &payload));
    let other_machine = json!("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b99");
    let wide = json!([{"protocol": "tcp", "first": 22, "last": 23}]);
    for (envelope, second, code) in [
        (foreign, 10, "KEY_UNKNOWN"),
        (mistyped, 10, "PAYLOAD_TYPE_WRONG"),
        (forged(&good, &[("machine", other_machine)]), 10, "OTHER_MACHINE"),
        (forged(&good, &[]), 610, "EXPIRED"),
        (
            forged(
                &good,
                &[
                    ("not_before", json!("2026-11-22T14:00:00Z")),
                    ("not_after", json!("2026-11-22T15:00:00Z")),
                ],
            ),
            10,
            "NOT_YET_VALID",
        ),
        (
            forged(&good, &[("only_interface", json!("eth0"))]),
            10,
            "FIELD_UNKNOWN",
        ),
        (forged(&good, &[("version", json!(2))]), 10, "PAYLOAD_MALFORMED"),
        (
            forged(&good, &[("at_end", json!("explode"))]),
            10,
            "PAYLOAD_MALFORMED",
        ),
        (forged(&good, &[("sources", json!([]))]), 10, "PAYLOAD_MALFORMED"),
        (
            forged(&good, &[("sources", json!(["192.0.2.7/24"]))]),
            10,
            "PAYLOAD_MALFORMED",
        ),
        (
            forged(&good, &[("not_after", json!("2026-11-22T12:00:10Z"))]),
            10,
            "PAYLOAD_MALFORMED",
        ),
        (forged(&good, &[("ports", wide)]), 10, "CEILING_PORT"),
        (
            forged(&good, &[("sources", json!(["0.0.0.0/0"]))]),
            10,
            "CEILING_SOURCE",
        ),
        (
            forged(&good, &[("not_after", json!("2026-11-24T12:00:00Z"))]),
            10,
            "CEILING_DURATION",
        ),
    ] {
        assert_eq!(verdict(&envelope, second).unwrap_err().code(), code);
    }
    assert_eq!(verdict(&forged(&good, &[]), 10), Ok(()));
    let no_ceiling = forged(&good, &[]).verify(&keys(), MACHINE, None, at(10));
    assert_eq!(no_ceiling.unwrap_err().code(), "NO_CEILING");
}

#[test]
fn any_flipped_bit_of_a_grant_is_refused() {
    let envelope = grant(1, &["22"], &["192.0.2.7"], 0, 600).envelope;
    for position in 0..envelope.as_bytes().len() {
        for bit in 0..8 {
            let mut bytes = envelope.as_bytes().to_vec();
            bytes[position] ^= 1 << bit;
            assert!(
                verdict(&SignedGrant::from_bytes(bytes), 0).is_err(),
                "byte {position}, bit {bit}"
            );
        }
    }
}

#[test]
fn a_denial_names_the_field_and_the_limit() {
    let until = |mut wish: nightlatch_core::request::AccessRequest, second| {
        wish.span = Span::Until(at(second));
        wish
    };
    let many: Vec<String> = (0..33).map(|host| format!("192.0.2.{host}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (wish, field, code, says) in [
        (
            wish(&["80"], &["192.0.2.7"], 60),
            "ports[0]",
            "PORT_NOT_IN_POLICY",
            "22/tcp, 3389/*",
        ),
        (
            wish(&["22", "22/udp"], &["192.0.2.7"], 60),
            "ports[1]",
            "PORT_NOT_IN_POLICY",
            "22/udp",
        ),
        (
            // Neither the policy nor the ceiling has it: the policy is to be changed first.
            wish(&["9000/udp"], &["192.0.2.7"], 60),
            "ports[0]",
            "PORT_NOT_IN_POLICY",
            "9000/udp",
        ),
        (
            wish(&["22"], &["192.0.2.7", "224.0.0.1"], 60),
            "sources[1]",
            "SOURCE_CANNOT_SEND",
            "224.0.0.1",
        ),
        (
            wish(&["22"], &["192.0.2.7"], 10_801),
            "duration",
            "DURATION_TOO_LONG",
            "PT3H",
        ),
        (
            wish(&["22"], &["192.0.2.7"], 0),
            "duration",
            "DURATION_TOO_SHORT",
            "one second",
        ),
        (
            until(wish(&["22"], &["192.0.2.7"], 0), 100),
            "end_time",
            "END_PASSED",
            "12:01:40",
        ),
        (
            until(wish(&["22"], &["192.0.2.7"], 0), 20_000),
            "end_time",
            "DURATION_TOO_LONG",
            "PT3H",
        ),
        (wish(&[], &["192.0.2.7"], 60), "ports", "NO_PORTS", "at least one"),
        (wish(&["22"], &[], 60), "sources", "NO_SOURCES", "at least one"),
        (wish(&["22"], &many, 60), "sources", "TOO_MANY_PARTS", "32"),
        (
            wish(&["22"], &["192.0.2.7", "0.0.0.0/0"], 60),
            "sources[1]",
            "CEILING_SOURCE",
            "/8",
        ),
    ] {
        let known = ceiling();
        let denial = policy()
            .decide(wish, HostCeiling::Known(&known), at(200))
            .unwrap_err();
        assert_eq!((denial.field.as_str(), denial.reason.code()), (field, code));
        assert!(denial.to_string().contains(says), "{denial}");
    }
    let denial = policy()
        .decide(wish(&["22"], &["192.0.2.7"], 60), HostCeiling::Missing, at(0))
        .unwrap_err();
    assert_eq!(denial.reason.code(), "NO_CEILING");
}

#[test]
fn a_port_without_a_protocol_means_the_protocols_of_the_policy() {
    let ports = |port: &str| {
        let spans = grant(1, &[port], &["192.0.2.7"], 0, 60).grant.ports;
        spans.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ports("22"), ["22/tcp"]);
    assert_eq!(ports("3389"), ["3389/tcp", "3389/udp"]);
    assert_eq!(ports("3389/udp"), ["3389/udp"]);
}

#[test]
fn only_the_machine_s_own_key_makes_its_receipts() {
    let key = SigningKey::from_seed(&[5; 32]);
    let happening = Happening {
        grant: grant(1, &["22"], &["192.0.2.7"], 0, 60).grant.id,
        event: Done::Opened,
        at: at(1),
        reason: String::new(),
    };
    let receipt = Receipt::new(MACHINE, common::FIRST_BOOT, happening, 1, String::new());
    let envelope = receipt.seal(&key);
    assert_eq!(Receipt::verify(&envelope, &key.public()), Ok(receipt));
    assert_eq!(
        Receipt::verify(&envelope, &root().public()).unwrap_err().code(),
        "KEY_UNKNOWN"
    );
}
