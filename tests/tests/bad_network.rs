//! A network that delays, trickles and breaks off: slower, never longer open, and nothing lost.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::doors::Doors;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::plan::CONTROL;
use nightlatch_tests::proxy::{Proxy, Weather};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const PROXY_PORT: u16 = 17_444;

#[test]
fn over_a_slow_network_access_opens_later_and_ends_no_later() -> Result<()> {
    let weather = Weather {
        delay: Duration::from_millis(400),
        piece: 100,
        breaks_after: None,
    };
    in_a_lab(1, Stage::Guarded, |lab| {
        let _proxy = relay(lab, weather)?;
        lab.machine(1).wait_connected()?;
        let doors = Doors::new(lab)?;
        for number in 1..=3 {
            let length = Duration::from_secs(6);
            doors.open_for(number, "6s")?;
            let opened = Instant::now();
            doors.check(&[number])?;
            wait::let_pass_until(opened + length);
            doors.check(&[])?;
        }
        let revoked = doors.open(4)?;
        doors.check(&[4])?;
        lab.client()
            .run(&["revoke", &revoked])?
            .expect_success("nightlatch revoke")?;
        doors.check(&[])
    })
}

#[test]
fn a_connection_that_breaks_off_anywhere_loses_nothing() -> Result<()> {
    // The first breaks within the handshake, later ones within the Hello, an assignment, receipts.
    let weather = Weather {
        delay: Duration::from_millis(1),
        piece: 7,
        breaks_after: Some(600),
    };
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        let proxy = relay(lab, weather)?;
        for number in 1..=3 {
            let outcome = doors.ask(number, "1s")?;
            ensure!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
        }
        doors.wait(&[1, 2, 3])?;
        ensure!(proxy.accepted() > 3, "only {} connections", proxy.accepted());
        wait::until_true("not each opening is on record", PATIENCE, || {
            let grants = lab.client().grants()?;
            Ok(grants.len() == 3 && grants.iter().all(|grant| grant["state"] == "open"))
        })
    })
}

/// Starts the agent anew, with the proxy for its server.
fn relay(lab: &Lab, weather: Weather) -> Result<Proxy> {
    let [proxy, agents] = [PROXY_PORT, 7444].map(|port| SocketAddr::from((CONTROL.ipv4, port)));
    let machine = lab.machine(1);
    machine.end_agent(Signal::SIGTERM)?;
    let file = machine.state().join("enrollment.json");
    let mut enrollment: Value = serde_json::from_slice(&fs::read(&file)?).context("reading the enrolment")?;
    enrollment["agent_addresses"] = json!([proxy.to_string()]);
    fs::write(&file, enrollment.to_string())?;
    let serving = Proxy::serve(&lab.control().netns(), proxy, agents, weather)?;
    machine.start_agent()?;
    Ok(serving)
}
