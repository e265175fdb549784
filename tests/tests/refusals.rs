//! What a host refuses, whoever signed it: each refusal says why, and the door that it was for stays shut.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nightlatch_core::grant::PAYLOAD_TYPE;
use nightlatch_core::signing::SigningKey;
use nightlatch_tests::client::{Answer, SILENCE};
use nightlatch_tests::database::{Bind, Database};
use nightlatch_tests::echo::Echo;
use nightlatch_tests::extent;
use nightlatch_tests::forge::{Forge, moment, past, random_id};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(30);

/// Narrower than the lab's usual one, so that there is something to exceed.
const NARROW: &str = r#"guarded = []
[ceiling]
ports = ["9000-9031/tcp"]
longest = "PT3H"
max_ahead = "PT2H"
widest_ipv4 = 24
widest_ipv6 = 64
"#;
/// The ceiling's ports, and some beyond it.
const POLICY: [&str; 2] = ["9000-9049/tcp", "9040/udp"];
/// The first port that the policy guards and the ceiling doesn't have.
const BEYOND: u16 = 9032;
const BEYOND_UDP: u16 = 9040;

/// Where a grant would let someone in.
#[derive(Clone, Copy, Debug)]
struct Door {
    from: IpAddr,
    protocol: &'static str,
    port: u16,
}

impl Door {
    /// Each grant has a source and a port of its own, so that no other grant can answer for it.
    fn numbered(number: u8) -> Self {
        Self {
            from: [198, 51, 100, number].into(),
            protocol: "tcp",
            port: 9000 + u16::from(number),
        }
    }

    /// Whether a knock from its source is answered by what listens behind it.
    fn is_open(self, lab: &Lab) -> Result<bool> {
        let machine = lab.machine(1).addresses();
        let host: IpAddr = if self.from.is_ipv4() {
            machine.ipv4.into()
        } else {
            machine.ipv6.into()
        };
        let to = SocketAddr::from((host, self.port));
        let client = lab.client();
        if self.protocol == "udp" {
            let socket = client.netns().inside(|| Ok(UdpSocket::bind((self.from, 0))?))?;
            return client.echoes(&socket, to);
        }
        match client.knock(Some(self.from), to, SILENCE)? {
            Answer::Connected(_) => Ok(true),
            Answer::Silent => Ok(false),
            Answer::Refused => bail!("nobody listens behind {self:?}, so a knock says nothing"),
        }
    }
}

/// A grant that is planted, and what should become of it: opened, or refused for that reason.
struct Planted {
    name: String,
    id: String,
    door: Door,
    envelope: Vec<u8>,
    refused: Option<&'static str>,
}

#[test]
fn each_odd_grant_is_refused_with_its_own_reason_opens_nothing_and_blocks_no_other() -> Result<()> {
    in_a_lab(1, Stage::Enrolled, |lab| {
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        lab.machine(1).configure(NARROW)?;
        lab.machine(1).start_agent()?;
        lab.machine(1).wait_connected()?;
        let forge = Forge::of(lab, "web-1")?;
        let planted = planted(&forge)?;
        let _services = serve(lab, &planted)?;
        // While nothing is guarded every door answers: a knock that is let through would be seen.
        check_doors(lab, &planted, |_| true).context("before anything is guarded")?;
        lab.guard(lab.machine(1), &POLICY)?;
        check_doors(lab, &planted, |_| false).context("before anything is granted")?;
        let like = lab.client().open(
            "web-1",
            &["--port", "9000", "--from", "198.51.100.250", "--for", "1h"],
        )?;
        check_verify(lab, &planted)?;

        // A thief of the server writes them into its database.
        lab.control().end(Signal::SIGTERM)?;
        let mut database = Database::open(lab.control())?;
        for grant in &planted {
            forge
                .plant(&mut database, &like, &grant.id, grant.envelope.clone())
                .with_context(|| grant.name.clone())?;
        }
        database.close()?;
        lab.control().start()?;

        check_answers(lab, &planted)?;
        let sound = |grant: &Planted| grant.refused.is_none();
        check_doors(lab, &planted, sound)?;
        // What is on its disk opens no more than what it heard.
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        lab.machine(1)
            .run("nft", &["delete", "table", "inet", "nightlatch"])?
            .expect_success("nft")?;
        lab.machine(1).start_agent()?;
        check_doors(lab, &planted, sound).context("after a restart of the agent")
    })
}

#[test]
fn a_revoked_grant_that_a_thief_publishes_again_stays_shut() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (client, to) = (
            lab.client(),
            SocketAddr::from((lab.machine(1).addresses().ipv4, 22)),
        );
        let revoked = client.open("web-1", &["--port", "22", "--for", "1h"])?;
        ensure!(client.reaches(to)?, "the grant opened nothing");
        client
            .run(&["revoke", &revoked])?
            .expect_success("nightlatch revoke")?;
        ensure!(!client.reaches(to)?, "open after the revoke");

        lab.control().end(Signal::SIGTERM)?;
        let mut database = Database::open(lab.control())?;
        let renewed = database.execute(
            "UPDATE grants SET removed_generation = NULL, ended_at = NULL, ended_by = NULL, end_reason = NULL,
               opened_at = NULL, closed_at = NULL, close_reason = NULL, leaves_at = not_after,
               added_generation = (SELECT generation + 1 FROM machines)
             WHERE id = $1",
            &[Bind::Text(revoked.clone())],
        )?;
        ensure!(renewed == 1, "there is no grant {revoked}");
        database.execute("UPDATE machines SET generation = generation + 1", &[])?;
        database.close()?;
        lab.control().start()?;

        let refused = ("grant.refused".to_owned(), "REVOKED".to_owned());
        wait::until_true("the host has not refused it", PATIENCE, || {
            Ok(answers(lab)?.get(&revoked) == Some(&refused))
        })?;
        ensure!(!client.reaches(to)?, "what was revoked is open again");
        client.open("web-1", &["--port", "22", "--for", "1h"])?;
        ensure!(client.reaches(to)?, "another grant opens nothing");
        Ok(())
    })
}

#[test]
fn any_flipped_bit_is_refused() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let forge = Forge::of(lab, "web-1")?;
        let envelope = forge.seal(&forge.payload()?);
        let file = lab.dir().join("grant.json");
        let path = file.display().to_string();
        let verify = |bytes: &[u8]| {
            fs::write(&file, bytes)?;
            lab.machine(1).run_agent(&["verify", &path])
        };
        verify(&envelope)?.expect_success("verifying it untouched")?;
        let stride = if extent::is_long() { 1 } else { 37 };
        for bit in (0..envelope.len() * 8).step_by(stride) {
            let mut tampered = envelope.clone();
            tampered[bit / 8] ^= 1 << (bit % 8);
            let outcome = verify(&tampered)?;
            ensure!(outcome.code == Some(1), "bit {bit}: {outcome}");
            ensure!(!outcome.stderr.contains("panicked"), "bit {bit}: {outcome}");
        }
        Ok(())
    })
}

/// Odd ones of every kind, and a sound one before, between and behind them.
fn planted(forge: &Forge) -> Result<Vec<Planted>> {
    let mut grants = Vec::new();
    let mut add = |name: &str, refused, twist: &Twist<'_>| {
        let mut door = Door::numbered(u8::try_from(grants.len())? + 1);
        let mut payload = forge.payload()?;
        payload["sources"] = json!([door.from]);
        payload["ports"] = ports(door);
        let envelope = twist(&mut payload, &mut door)?;
        let id = payload["id"].as_str().unwrap_or_default().to_owned();
        grants.push(Planted {
            name: name.to_owned(),
            id,
            door,
            envelope: envelope.unwrap_or_else(|| forge.seal(&payload)),
            refused,
        });
        anyhow::Ok(())
    };
    let sound = |_: &mut Value, _: &mut Door| Ok(None);
    add("sound, the first", None, &sound)?;
    for (name, reason, member, value) in odd_members()? {
        add(name, Some(reason), &|payload, _| {
            payload[member] = value.clone();
            Ok(None)
        })?;
    }
    add("sound, in the middle", None, &sound)?;
    for (name, reason, start, end) in odd_times()? {
        add(name, Some(reason), &|payload, _| {
            (payload["not_before"], payload["not_after"]) = (json!(start), json!(end));
            Ok(None)
        })?;
    }
    for (name, protocol, port) in [
        ("for a port beyond the ceiling", "tcp", BEYOND),
        ("for UDP beyond the ceiling", "udp", BEYOND_UDP),
    ] {
        add(name, Some("CEILING_PORT"), &|payload, door| {
            (door.protocol, door.port) = (protocol, port);
            payload["ports"] = ports(*door);
            Ok(None)
        })?;
    }
    add(
        "for ports on both sides of the ceiling's edge",
        Some("CEILING_PORT"),
        &|payload, door| {
            payload["ports"] = json!([{ "protocol": "tcp", "first": door.port, "last": BEYOND }]);
            Ok(None)
        },
    )?;
    add(
        "wider than the ceiling in IPv6",
        Some("CEILING_SOURCE"),
        &|payload, door| {
            door.from = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77).into();
            payload["sources"] = json!(["2001:db8::/32"]);
            Ok(None)
        },
    )?;
    for (name, reason, forged) in odd_envelopes() {
        add(name, Some(reason), &|payload, _| forged(forge, payload).map(Some))?;
    }
    add("sound, the last", None, &sound)?;
    Ok(grants)
}

/// Makes a sound payload odd, for that door; an envelope if it isn't to be sealed as it should.
type Twist<'t> = dyn Fn(&mut Value, &mut Door) -> Result<Option<Vec<u8>>> + 't;

type Member = (&'static str, &'static str, &'static str, Value);

fn odd_members() -> Result<Vec<Member>> {
    Ok(vec![
        (
            "for another machine",
            "OTHER_MACHINE",
            "machine",
            json!(random_id()?),
        ),
        (
            "with an unknown field",
            "FIELD_UNKNOWN",
            "only_interface",
            json!("eth0"),
        ),
        ("with an unknown end", "PAYLOAD_MALFORMED", "at_end", json!("cut")),
        ("of another version", "PAYLOAD_MALFORMED", "version", json!(2)),
        ("without a source", "PAYLOAD_MALFORMED", "sources", json!([])),
        (
            "wider than the ceiling",
            "CEILING_SOURCE",
            "sources",
            json!(["198.51.0.0/16"]),
        ),
    ])
}

type Times = (&'static str, &'static str, String, String);

fn odd_times() -> Result<Vec<Times>> {
    let ahead = |hours| moment(hours * HOUR).map(|moment| moment.to_string());
    Ok(vec![
        (
            "expired",
            "EXPIRED",
            past(HOUR)?.to_string(),
            past(HOUR / 2)?.to_string(),
        ),
        ("not yet valid", "NOT_YET_VALID", ahead(3)?, ahead(4)?),
        (
            "longer than the ceiling",
            "CEILING_DURATION",
            ahead(0)?,
            ahead(4)?,
        ),
        (
            "with its end before its start",
            "PAYLOAD_MALFORMED",
            ahead(1)?,
            ahead(0)?,
        ),
    ])
}

type Forged = fn(&Forge, &Value) -> Result<Vec<u8>>;

fn odd_envelopes() -> [(&'static str, &'static str, Forged); 4] {
    [
        ("tampered", "SIGNATURE_INVALID", |forge, payload| {
            let mut innocent = payload.clone();
            innocent["sources"] = json!(["198.51.100.200"]);
            let sealed: Value = serde_json::from_slice(&forge.seal(&innocent))?;
            let mut envelope: Value = serde_json::from_slice(&forge.seal(payload))?;
            envelope["signatures"] = sealed["signatures"].clone();
            Ok(envelope.to_string().into_bytes())
        }),
        ("signed by an unknown key", "KEY_UNKNOWN", |_, payload| {
            Ok(Forge::seal_with(&SigningKey::from_seed(&[7; 32]), payload))
        }),
        (
            "signed as another kind of word",
            "PAYLOAD_TYPE_WRONG",
            |forge, payload| {
                let other = PAYLOAD_TYPE.replace("grant", "receipt");
                Ok(forge.key().seal(&other, payload.to_string().as_bytes()))
            },
        ),
        ("without an envelope", "ENVELOPE_MALFORMED", |_, payload| {
            Ok(payload.to_string().into_bytes())
        }),
    ]
}

fn ports(door: Door) -> Value {
    json!([{ "protocol": door.protocol, "first": door.port, "last": door.port }])
}

/// Lets the client have all sources, and something listen behind each door.
fn serve(lab: &Lab, planted: &[Planted]) -> Result<(Vec<TcpListener>, Echo)> {
    let netns = lab.machine(1).netns();
    let mut listeners = Vec::new();
    for Planted { door, .. } in planted {
        let length = if door.from.is_ipv4() { 24 } else { 64 };
        lab.client().add_address(&format!("{}/{length}", door.from))?;
        if door.protocol == "tcp" {
            let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, door.port));
            listeners.push(netns.inside(|| TcpListener::bind(at).with_context(|| format!("binding {at}")))?);
        }
    }
    let at = SocketAddr::from((lab.machine(1).addresses().ipv4, BEYOND_UDP));
    Ok((listeners, Echo::serve(&netns, at)?))
}

fn check_doors(lab: &Lab, planted: &[Planted], expected: impl Fn(&Planted) -> bool) -> Result<()> {
    for grant in planted {
        let open = grant.door.is_open(lab)?;
        ensure!(
            open == expected(grant),
            "{}: {:?} is open: {open}",
            grant.name,
            grant.door
        );
    }
    Ok(())
}

/// On the host itself, without the daemon: why it would be accepted or refused.
fn check_verify(lab: &Lab, planted: &[Planted]) -> Result<()> {
    let file = lab.dir().join("grant.json");
    let path = file.display().to_string();
    for grant in planted {
        fs::write(&file, &grant.envelope)?;
        let outcome = lab.machine(1).run_agent(&["verify", &path, "--output", "json"])?;
        let verdict: Value =
            serde_json::from_str(&outcome.stdout).with_context(|| format!("{}: {outcome}", grant.name))?;
        let (exit, code) = grant.refused.map_or((0, "ACCEPTED"), |reason| (1, reason));
        ensure!(
            outcome.code == Some(exit) && verdict["code"] == code,
            "{}: {outcome}",
            grant.name
        );
    }
    Ok(())
}

fn check_answers(lab: &Lab, planted: &[Planted]) -> Result<()> {
    let otherwise = "the host has not answered for each grant";
    let answers = wait::until(otherwise, PATIENCE, || {
        let answers = answers(lab)?;
        let all = planted.iter().all(|grant| answers.contains_key(&grant.id));
        Ok(all.then_some(answers))
    })?;
    for grant in planted {
        let (kind, reason) = match grant.refused {
            Some(reason) => ("grant.refused", reason),
            None => ("grant.opened", ""),
        };
        ensure!(
            answers[&grant.id] == (kind.to_owned(), reason.to_owned()),
            "{}: {:?}",
            grant.name,
            answers[&grant.id]
        );
    }
    Ok(())
}

/// The host's last answer by grant: kind and reason.
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
