//! What a host refuses, whoever signed it, and that each refusal says why.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_core::signing::SigningKey;
use nightlatch_tests::database::Database;
use nightlatch_tests::forge::{Forge, moment, past, random_id};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3600);

/// Narrower than the lab's usual one, so that there is something to exceed.
const NARROW: &str = r#"guarded = []
[ceiling]
ports = ["22/tcp"]
longest = "PT3H"
max_ahead = "PT2H"
widest_ipv4 = 24
widest_ipv6 = 64
"#;

/// A forged grant: what it is, the id it goes by, its envelope, and the reason the host should give.
struct Forgery {
    name: &'static str,
    id: String,
    envelope: Vec<u8>,
    reason: &'static str,
}

#[test]
fn each_odd_grant_is_refused_with_its_own_reason_and_blocks_no_other() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        lab.machine(1).configure(NARROW)?;
        lab.machine(1).start_agent()?;
        lab.machine(1).wait_connected()?;
        let like = lab.client().open(
            "web-1",
            &["--port", "22", "--from", "198.51.100.1", "--for", "1h"],
        )?;
        let forge = Forge::of(lab, "web-1")?;
        let forgeries = forgeries(&forge)?;
        check_verify(lab, &forge, &forgeries)?;

        // A thief of the server writes them into its database, a sound one last.
        lab.control().end(Signal::SIGTERM)?;
        let mut database = Database::open(lab.control())?;
        for forgery in &forgeries {
            forge
                .plant(&mut database, &like, &forgery.id, forgery.envelope.clone())
                .context(forgery.name)?;
        }
        let sound = forge.payload()?;
        forge.plant(&mut database, &like, &id(&sound), forge.seal(&sound))?;
        database.close()?;
        lab.control().start()?;

        let events = wait::until(
            "the host has not answered for each grant",
            Duration::from_secs(30),
            || {
                let events = answers(lab)?;
                let answered = |forgery: &Forgery| events.contains_key(&forgery.id);
                Ok((forgeries.iter().all(answered) && events.contains_key(&id(&sound))).then_some(events))
            },
        )?;
        for forgery in &forgeries {
            let expected = ("grant.refused".to_owned(), forgery.reason.to_owned());
            ensure!(
                events.get(&forgery.id) == Some(&expected),
                "{}: {:?}",
                forgery.name,
                events.get(&forgery.id)
            );
        }
        ensure!(
            events[&id(&sound)].0 == "grant.opened",
            "the sound one: {:?}",
            events[&id(&sound)]
        );
        check_doors(lab)
    })
}

#[test]
fn any_flipped_bit_is_refused() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let forge = Forge::of(lab, "web-1")?;
        let envelope = forge.seal(&forge.payload()?);
        let file = lab.dir().join("grant.json");
        let long = std::env::var_os("NIGHTLATCH_LONG").is_some();
        let stride = if long { 1 } else { 37 };
        for bit in (0..envelope.len() * 8).step_by(stride) {
            let mut tampered = envelope.clone();
            tampered[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, &tampered)?;
            let path = file.display().to_string();
            let outcome = lab.machine(1).run_agent(&["verify", &path])?;
            ensure!(outcome.code == Some(1), "bit {bit}: {outcome}");
            ensure!(!outcome.stderr.contains("panicked"), "bit {bit}: {outcome}");
        }
        Ok(())
    })
}

fn forgeries(forge: &Forge) -> Result<Vec<Forgery>> {
    let with = |name, member: &str, value: Value, reason| -> Result<Forgery> {
        let mut payload = forge.payload()?;
        payload[member] = value;
        Ok(Forgery {
            name,
            id: id(&payload),
            envelope: forge.seal(&payload),
            reason,
        })
    };
    let between = |name, start: String, end: String, reason| -> Result<Forgery> {
        let mut payload = forge.payload()?;
        (payload["not_before"], payload["not_after"]) = (start.into(), end.into());
        Ok(Forgery {
            name,
            id: id(&payload),
            envelope: forge.seal(&payload),
            reason,
        })
    };
    let now = moment(Duration::ZERO)?.to_string();
    let tampered = {
        let payload = forge.payload()?;
        let mut other = payload.clone();
        other["sources"] = json!(["198.51.100.67"]);
        let sealed: Value = serde_json::from_slice(&forge.seal(&payload))?;
        let mut envelope: Value = serde_json::from_slice(&forge.seal(&other))?;
        envelope["signatures"] = sealed["signatures"].clone();
        Forgery {
            name: "tampered",
            id: id(&payload),
            envelope: envelope.to_string().into_bytes(),
            reason: "SIGNATURE_INVALID",
        }
    };
    let unknown_key = {
        let payload = forge.payload()?;
        let envelope = Forge::seal_with(&SigningKey::from_seed(&[7; 32]), &payload);
        Forgery {
            name: "signed by an unknown key",
            id: id(&payload),
            envelope,
            reason: "KEY_UNKNOWN",
        }
    };
    let garbage = Forgery {
        name: "no envelope at all",
        id: random_id()?,
        envelope: b"{}".to_vec(),
        reason: "ENVELOPE_MALFORMED",
    };
    Ok(vec![
        with(
            "for another machine",
            "machine",
            random_id()?.into(),
            "OTHER_MACHINE",
        )?,
        between(
            "expired",
            past(HOUR)?.to_string(),
            past(HOUR / 2)?.to_string(),
            "EXPIRED",
        )?,
        between(
            "not yet valid",
            moment(3 * HOUR)?.to_string(),
            moment(4 * HOUR)?.to_string(),
            "NOT_YET_VALID",
        )?,
        tampered,
        unknown_key,
        with(
            "with an unknown field",
            "only_interface",
            "eth0".into(),
            "FIELD_UNKNOWN",
        )?,
        with("with an unknown end", "at_end", "cut".into(), "PAYLOAD_MALFORMED")?,
        with("of another version", "version", 2.into(), "PAYLOAD_MALFORMED")?,
        with(
            "for a port beyond the ceiling",
            "ports",
            json!([{ "protocol": "tcp", "first": 22, "last": 23 }]),
            "CEILING_PORT",
        )?,
        with(
            "for UDP beyond the ceiling",
            "ports",
            json!([{ "protocol": "udp", "first": 22, "last": 22 }]),
            "CEILING_PORT",
        )?,
        between(
            "longer than the ceiling",
            now,
            moment(4 * HOUR)?.to_string(),
            "CEILING_DURATION",
        )?,
        with(
            "wider than the ceiling",
            "sources",
            json!(["198.51.0.0/16"]),
            "CEILING_SOURCE",
        )?,
        with(
            "wider than the ceiling in IPv6",
            "sources",
            json!(["::/0"]),
            "CEILING_SOURCE",
        )?,
        garbage,
    ])
}

/// On the host itself, without the daemon: why it would be accepted or refused.
fn check_verify(lab: &Lab, forge: &Forge, forgeries: &[Forgery]) -> Result<()> {
    let file = lab.dir().join("grant.json");
    let path = file.display().to_string();
    fs::write(&file, forge.seal(&forge.payload()?))?;
    lab.machine(1)
        .run_agent(&["verify", &path])?
        .expect_success("verifying a sound grant")?;
    for forgery in forgeries {
        fs::write(&file, &forgery.envelope)?;
        let outcome = lab.machine(1).run_agent(&["verify", &path, "--output", "json"])?;
        ensure!(outcome.code == Some(1), "{}: {outcome}", forgery.name);
        ensure!(
            format!("{outcome}").contains(forgery.reason),
            "{}: {outcome}",
            forgery.name
        );
    }
    Ok(())
}

/// The host's answers by grant: kind and reason.
fn answers(lab: &Lab) -> Result<BTreeMap<String, (String, String)>> {
    let text = |event: &Value, member: &str| event[member].as_str().unwrap_or_default().to_owned();
    let events = lab.client().events()?;
    let ours = events
        .iter()
        .filter(|event| matches!(event["kind"].as_str(), Some("grant.opened" | "grant.refused")));
    let by_grant = ours.map(|event| {
        let grant = text(event, "grant");
        let id = grant.strip_prefix("grants/").unwrap_or(&grant).to_owned();
        (id, (text(event, "kind"), text(event, "reason")))
    });
    Ok(by_grant.collect())
}

/// Only the grants that stand have opened anything.
fn check_doors(lab: &Lab) -> Result<()> {
    let client = lab.client();
    let to = SocketAddr::from((lab.machine(1).addresses().ipv4, 22));
    for (source, gets_in) in [
        ("198.51.100.1", true),
        ("198.51.100.66", true),
        ("198.51.100.67", false),
        ("198.51.100.68", false),
    ] {
        client.add_address(&format!("{source}/24"))?;
        ensure!(
            client.reaches_from(Some(source.parse()?), to)? == gets_in,
            "{source} gets in: {}",
            !gets_in
        );
    }
    Ok(())
}

fn id(payload: &Value) -> String {
    payload["id"].as_str().unwrap_or_default().to_owned()
}
