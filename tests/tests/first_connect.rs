//! When `request` says that a port is open, it is.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::client::Answer;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;

/// Below the second after which TCP tries again: a first attempt that was dropped doesn't count.
const FIRST_ATTEMPT: Duration = Duration::from_millis(700);

#[test]
fn the_first_connect_after_a_request_works_200_of_200_times() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (ipv4, ipv6) = (lab.machine(1).addresses().ipv4, lab.machine(1).addresses().ipv6);
        for number in 1..=100 {
            check_next(
                lab,
                &format!("198.51.100.{number}"),
                "24",
                SocketAddr::from((ipv4, 22)),
            )?;
            check_next(
                lab,
                &format!("2001:db8:1::{number:x}"),
                "64",
                SocketAddr::from((ipv6, 22)),
            )?;
        }
        Ok(())
    })
}

/// An address that nobody has asked for yet gets in at the first attempt after the request, and not before.
fn check_next(lab: &Lab, from: &str, length: &str, to: SocketAddr) -> Result<()> {
    let client = lab.client();
    client.add_address(&format!("{from}/{length}"))?;
    let source: IpAddr = from.parse()?;
    let before = client.knock(Some(source), to, Duration::from_millis(20))?;
    ensure!(
        matches!(before, Answer::Silent),
        "{from} before any request: {before:?}"
    );
    let asked = [
        "request",
        "web-1",
        "--port",
        "22",
        "--from",
        from,
        "--for",
        "5m",
        "--reason",
        "first connect",
    ];
    client.run(&asked)?.expect_success(&asked.join(" "))?;
    let after = client.knock(Some(source), to, FIRST_ATTEMPT)?;
    ensure!(
        matches!(after, Answer::Connected(_)),
        "{from} after exit 0: {after:?}"
    );
    Ok(())
}

#[test]
fn twenty_people_who_ask_at_once_all_get_in_at_once() -> Result<()> {
    in_a_lab(2, Stage::Guarded, |lab| {
        let client = lab.client();
        thread::scope(|scope| {
            let people: Vec<_> = (1..=20)
                .map(|number| {
                    scope.spawn(move || -> Result<()> {
                        let from = format!("198.51.100.{number}");
                        client.add_address(&format!("{from}/24"))?;
                        let asked = [
                            "request",
                            "web-1",
                            "web-2",
                            "--port",
                            "22",
                            "--from",
                            &from,
                            "--for",
                            "5m",
                            "--reason",
                            "all at once",
                        ];
                        client.run(&asked)?.expect_success(&asked.join(" "))?;
                        for machine in lab.machines() {
                            let to = SocketAddr::from((machine.addresses().ipv4, 22));
                            let answer = client.knock(Some(from.parse()?), to, FIRST_ATTEMPT)?;
                            ensure!(
                                matches!(answer, Answer::Connected(_)),
                                "{from} to {to}: {answer:?}"
                            );
                        }
                        Ok(())
                    })
                })
                .collect();
            people
                .into_iter()
                .try_for_each(|person| person.join().ok().context("a person fell over")?)
        })
    })
}

#[test]
fn an_address_that_nobody_asked_for_stays_out() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let client = lab.client();
        for address in ["198.51.100.7/24", "198.51.100.8/24"] {
            client.add_address(address)?;
        }
        client.open(
            "web-1",
            &["--port", "22", "--from", "198.51.100.7", "--for", "1m"],
        )?;
        let to = SocketAddr::from((lab.machine(1).addresses().ipv4, 22));
        ensure!(
            client.reaches_from(Some("198.51.100.7".parse()?), to)?,
            "who asked is not let in"
        );
        ensure!(
            !client.reaches_from(Some("198.51.100.8".parse()?), to)?,
            "the neighbour is let in"
        );
        ensure!(
            !client.reaches(to)?,
            "the same host under another address is let in"
        );
        Ok(())
    })
}
