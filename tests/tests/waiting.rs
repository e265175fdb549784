//! Whoever waits for a machine is told the moment that it is in vain.

use std::time::Duration;

use anyhow::{Result, ensure};
use nightlatch_tests::complaint::{FAILED, check};
use nightlatch_tests::forge::moment;
use nightlatch_tests::lab::Stage;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;

#[test]
fn waiting_ends_when_the_end_has_passed_with_the_host_away() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        wait::until_true("the host is still connected", Duration::from_secs(30), || {
            Ok(lab.client().machines()?[0]["state"] == "away")
        })?;
        let end = moment(Duration::from_secs(5))?.to_string();
        let asked = [
            "request", "web-1", "--port", "22", "--until", &end, "--reason", "x", "--wait",
        ];
        // What it may take before it is killed is far less than a day, and little more than the five seconds.
        let mut command = lab.client().nightlatch(&asked);
        let outcome = wait::run(&mut command, Duration::from_secs(30))?;
        check("request --wait", &outcome, FAILED, &["web-1", "END_PASSED"])?;
        let events = lab.client().events()?;
        let denied = events.iter().find(|event| event["kind"] == "access.denied");
        ensure!(
            denied.is_some_and(|event| event["actor"] == "server" && event["reason"] == "END_PASSED"),
            "{events:?}"
        );
        lab.machine(1).start_agent()?;
        lab.machine(1).wait_connected()?;
        ensure!(lab.client().grants()?.is_empty(), "{:?}", lab.client().grants()?);
        Ok(())
    })
}
