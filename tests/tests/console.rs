//! On the host's console, with the daemon dead: what is open, what would be taken, and how to see it in nft.

use std::fs;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn status_tells_the_truth_with_the_daemon_dead() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let grant = lab.client().open(
            "web-1",
            &["--port", "22", "--from", "198.51.100.7", "--for", "1h"],
        )?;
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        lab.control().end(Signal::SIGKILL)?;
        let status = status(lab)?;
        ensure!(status["agent_running"] == false, "{status}");
        ensure!(status["table"] == "in_place", "{status}");
        ensure!(status["guarded"] == serde_json::json!(["22/tcp"]), "{status}");
        ensure!(
            status["grants"][0]["id"] == grant.as_str() && status["grants"][0]["state"] == "open",
            "{status}"
        );
        let left = status["grants"][0]["kernel_remaining_seconds"]
            .as_f64()
            .context("no time left in the kernel")?;
        ensure!((3500.0..=3600.0).contains(&left), "{left} s left in the kernel");

        lab.machine(1)
            .run("nft", &["delete", "table", "inet", "nightlatch"])?
            .expect_success("nft delete table")?;
        let outcome = lab.machine(1).run_agent(&["status", "--output", "json"])?;
        let without: Value = serde_json::from_str(&outcome.stdout)?;
        ensure!(
            outcome.code == Some(1),
            "all is well without the table: {outcome}"
        );
        ensure!(
            without["table"] == "missing",
            "a table that is gone is called {}",
            without["table"]
        );
        Ok(())
    })
}

#[test]
fn a_shown_envelope_is_what_the_host_verifies() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let grant = lab.client().open("web-1", &["--port", "22", "--for", "1h"])?;
        let envelope = lab
            .client()
            .run(&["grant", "show", &grant, "--envelope"])?
            .expect_success("grant show")?;
        let file = lab.dir().join("grant.json");
        fs::write(&file, envelope.trim_end())?;
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        let path = file.display().to_string();
        let verdict = lab
            .machine(1)
            .run_agent(&["verify", &path])?
            .expect_success("nightlatch-agent verify")?;
        ensure!(!verdict.trim().is_empty(), "no word about it");
        // A revoked grant is no longer one that the host would take.
        lab.machine(1).start_agent()?;
        lab.machine(1).wait_connected()?;
        lab.client()
            .run(&["revoke", &grant])?
            .expect_success("nightlatch revoke")?;
        let after = lab.machine(1).run_agent(&["verify", &path])?;
        ensure!(
            after.code == Some(1) && after.stdout.contains("REVOKED"),
            "{after}"
        );
        Ok(())
    })
}

#[test]
fn nft_can_read_the_ruleset_that_should_hold() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.client().open(
            "web-1",
            &[
                "--port",
                "22",
                "--from",
                "198.51.100.0/24",
                "--from",
                "2001:db8:1::/64",
                "--for",
                "1h",
            ],
        )?;
        let json = lab
            .machine(1)
            .run_agent(&["ruleset", "--json"])?
            .expect_success("nightlatch-agent ruleset")?;
        let file = lab.dir().join("ruleset.json");
        fs::write(&file, json)?;
        let path = file.display().to_string();
        // In a namespace that has nothing else.
        let mut nft = lab.client().netns().exec("nft");
        nft.args(["--json", "--file", &path]);
        nightlatch_tests::wait::run(&mut nft, std::time::Duration::from_secs(20))?.expect_success("nft")?;
        let text = lab
            .machine(1)
            .run_agent(&["ruleset"])?
            .expect_success("nightlatch-agent ruleset")?;
        ensure!(
            text.contains("198.51.100.0/24") && text.contains("2001:db8:1::/64"),
            "{text}"
        );
        Ok(())
    })
}

fn status(lab: &Lab) -> Result<Value> {
    let outcome = lab.machine(1).run_agent(&["status", "--output", "json"])?;
    let text = outcome.expect_success("nightlatch-agent status")?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}
