//! The two renderings of the table are one table: nft's JSON form and the netlink form list alike.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod netns;

use std::collections::BTreeMap;
use std::time::Duration;

use netns::{LettingIn, Netns, guarding, guarding_with, now, tcp, udp};
use nightlatch_agent::firewall::{Firewall, rendering};
use nightlatch_core::ruleset::{End, Ruleset};
use serde_json::Value;

const GRACE: Duration = Duration::from_secs(120);

#[track_caller]
fn assert_same_table(ruleset: &Ruleset) {
    let moment = now();
    let by_nft = Netns::new("nft");
    let json = serde_json::to_string(&rendering(ruleset, moment)).unwrap();
    by_nft.must("nft -j -f -", &json);
    let by_netlink = Netns::new("netlink");
    by_netlink
        .run(Firewall::open)
        .unwrap()
        .apply(ruleset, moment)
        .unwrap();

    let (one, other) = (listing(&by_nft), listing(&by_netlink));
    let (one_text, other_text) = (text_listing(&by_nft), text_listing(&by_netlink));
    assert_eq!(one_text, other_text);
    assert_eq!(one, other);
    assert!(one.iter().any(|object| object.get("rule").is_some()), "{one:?}");
}

/// Everything that nft says about the table, without what differs from one loading to the next.
fn listing(netns: &Netns) -> Vec<Value> {
    let listing: Value = serde_json::from_str(&netns.must("nft -j list table inet nightlatch", "")).unwrap();
    let mut objects = listing["nftables"].as_array().unwrap().clone();
    objects.retain(|object| object.get("metainfo").is_none());
    objects.iter_mut().for_each(normalise);
    objects
}

/// The flag of learning sets is only in the text. Elements are compared in the JSON, where they can be sorted.
fn text_listing(netns: &Netns) -> Vec<String> {
    let text = netns.must("nft --terse list table inet nightlatch", "");
    text.lines().map(Into::into).collect()
}

fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            fields.remove("expires");
            // Ends are written to the millisecond by netlink, and to the second by nft.
            if let Some(Value::Number(timeout)) = fields.get_mut("timeout") {
                *timeout = (timeout.as_u64().unwrap().div_ceil(10) * 10).into();
            }
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.iter_mut().for_each(normalise);
                elements.sort_by_key(ToString::to_string);
            }
            fields.values_mut().for_each(normalise);
        }
        Value::Array(values) => values.iter_mut().for_each(normalise),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn ends_in(seconds: u64) -> End {
    End::At(now().plus(Duration::from_secs(seconds)))
}

#[test]
fn a_table_that_lets_nobody_in_is_rendered_alike() {
    assert_same_table(&guarding(&[tcp(22)]));
}

#[test]
fn sources_of_every_prefix_length_are_rendered_alike() {
    let mut ruleset = guarding(&[tcp(22), tcp(3389)]);
    for length in 0..=32 {
        let source = if length == 0 {
            "0.0.0.0/0".into()
        } else {
            format!("128.0.0.0/{length}")
        };
        ruleset = ruleset.letting_in(&source, tcp(22), ends_in(3_599));
    }
    for length in 0..=128 {
        let source = if length == 0 {
            "::/0".into()
        } else {
            format!("8000::/{length}")
        };
        ruleset = ruleset.letting_in(&source, tcp(3389), ends_in(3_599));
    }
    assert_same_table(&ruleset);
}

#[test]
fn udp_interfaces_and_trusted_sources_are_rendered_alike() {
    let ruleset = guarding_with(
        &[tcp(22), udp(3389), udp(40_000)],
        &["docker0", "wg-home.1"],
        GRACE,
    )
    .letting_in("192.0.2.7", tcp(22), ends_in(1_799))
    .letting_in("192.0.2.0/24", udp(3389), ends_in(7_199))
    .letting_in("2001:db8::7", udp(40_000), End::Never)
    .letting_in("2001:db8::/48", tcp(22), ends_in(86_399));
    assert_same_table(&ruleset);
}

#[test]
fn without_a_grace_udp_is_rendered_alike() {
    let ruleset =
        guarding_with(&[udp(500)], &[], Duration::ZERO).letting_in("192.0.2.7", udp(500), ends_in(1_799));
    assert_same_table(&ruleset);
}

#[test]
fn many_openings_are_rendered_alike() {
    let mut ruleset = guarding(&[tcp(22), tcp(5986)]);
    for host in 0..1_200_u32 {
        let source = std::net::Ipv4Addr::from(0xc633_6400 + host).to_string();
        ruleset =
            ruleset
                .letting_in(&source, tcp(22), ends_in(3_599))
                .letting_in(&source, tcp(5986), End::Never);
    }
    assert_same_table(&ruleset);
}

#[test]
fn what_has_less_than_a_second_left_is_not_rendered_for_ever() {
    let ruleset = guarding(&[tcp(22)])
        .letting_in(
            "192.0.2.7",
            tcp(22),
            End::At(now().plus(Duration::from_millis(900))),
        )
        .letting_in("192.0.2.8", tcp(22), End::At(now()));
    let json = serde_json::to_value(rendering(&ruleset, now())).unwrap();
    let mut elements: BTreeMap<String, usize> = BTreeMap::new();
    for element in json["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|command| command["add"].get("element"))
    {
        elements.insert(
            element["name"].as_str().unwrap().into(),
            element["elem"].as_array().unwrap().len(),
        );
    }
    assert_eq!(elements, BTreeMap::from([("guarded".into(), 1)]));
}
