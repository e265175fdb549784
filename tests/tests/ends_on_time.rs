//! A grant ends on time with everything of ours dead, and the sessions that it let in live on.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::client::Answer;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::machine::Machine;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;

const LENGTH: Duration = Duration::from_secs(5);
/// Of one attempt; the end is known no more exactly.
const GLANCE: Duration = Duration::from_millis(100);
/// Between attempts: sshd starts a process for each.
const PACE: Duration = Duration::from_millis(50);

#[test]
fn with_the_agent_killed() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        check(lab, lab.machine(1), |lab| {
            lab.machine(1).end_agent(Signal::SIGKILL)
        })?;
        lab.machine(1).start_agent()?;
        check_agreement(lab)
    })
}

#[test]
fn with_the_server_killed() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        check(lab, lab.machine(1), |lab| lab.control().end(Signal::SIGKILL))?;
        lab.control().start()?;
        check_agreement(lab)
    })
}

#[test]
fn with_agent_and_server_killed() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        check(lab, lab.machine(1), |lab| {
            lab.control().end(Signal::SIGKILL)?;
            lab.machine(1).end_agent(Signal::SIGKILL)
        })?;
        lab.control().start()?;
        lab.machine(1).start_agent()?;
        check_agreement(lab)
    })
}

#[test]
fn with_the_agent_stopped_until_after_the_end() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let agent = lab.machine(1).agent_process()?;
        check(lab, lab.machine(1), |_| {
            agent.signal(Signal::SIGSTOP);
            Ok(())
        })?;
        agent.signal(Signal::SIGCONT);
        check_agreement(lab)
    })
}

#[test]
fn with_everything_alive_on_several_machines_at_once() -> Result<()> {
    in_a_lab(4, Stage::Guarded, |lab| {
        thread::scope(|scope| {
            let checks: Vec<_> = lab
                .machines()
                .map(|machine| scope.spawn(move || check(lab, machine, |_| Ok(()))))
                .collect();
            checks
                .into_iter()
                .try_for_each(|check| check.join().ok().context("a check fell over")?)
        })
    })
}

/// One second into a grant of five something dies. The door stays open to its end and not longer.
fn check(lab: &Lab, machine: Machine<'_>, die: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let client = lab.client();
    let to = SocketAddr::from((machine.addresses().ipv4, 22));
    let asked = Instant::now();
    client.open(&machine.name(), &["--port", "22", "--for", "5s"])?;
    let opened = Instant::now();
    let mut session = client.session(&machine.name())?;

    wait::let_pass_until(opened + Duration::from_secs(1));
    die(lab)?;
    wait::let_pass_until(opened + Duration::from_millis(3500));
    // The grant's time began after the asking, however long the answer took.
    ensure!(
        client.reaches(to)? || Instant::now() >= asked + LENGTH,
        "shut before its time"
    );

    wait::let_pass_until(asked + LENGTH - Duration::from_millis(400));
    let mut last_open = None;
    let first_shut = loop {
        let tried = Instant::now();
        match client.knock(None, to, GLANCE)? {
            Answer::Connected(_) => {
                last_open = Some(tried);
                wait::let_pass_until(tried + PACE);
            }
            Answer::Silent => break tried,
            Answer::Refused => anyhow::bail!("sshd is gone"),
        }
        ensure!(
            tried < opened + 2 * LENGTH,
            "still open {:?} after the request",
            tried - opened
        );
    };
    ensure!(
        first_shut + GLANCE >= asked + LENGTH,
        "shut {:?} too early",
        asked + LENGTH - first_shut
    );
    if let Some(last_open) = last_open {
        ensure!(
            last_open <= opened + LENGTH,
            "open {:?} too long",
            last_open - opened - LENGTH
        );
    }
    session
        .check_alive()
        .context("the session that the grant had let in")?;
    ensure!(!client.reaches(to)?, "open again after the end");
    session.check_alive().context("the session, a little later")
}

/// Alive again, server and machine tell the same story, and it is the true one.
fn check_agreement(lab: &Lab) -> Result<()> {
    lab.machine(1).wait_connected()?;
    wait::until_true(
        "the grant is not on record as ended by its host",
        Duration::from_secs(20),
        || {
            let events = lab.client().events()?;
            Ok(events
                .iter()
                .any(|event| event["kind"] == "grant.closed" && event["reason"] == "EXPIRED"))
        },
    )?;
    let grants = lab.client().grants()?;
    ensure!(grants.iter().all(|grant| grant["state"] == "ended"), "{grants:?}");
    let to = SocketAddr::from((lab.machine(1).addresses().ipv4, 22));
    ensure!(
        !lab.client().reaches(to)?,
        "open after everything has started again"
    );
    lab.client().open("web-1", &["--port", "22", "--for", "1m"])?;
    ensure!(lab.client().reaches(to)?, "a new request does not open");
    Ok(())
}
