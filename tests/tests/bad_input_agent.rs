//! Bad input on the agent's commands and files: one clear error that names the field, the limit or the next step, the right
//! exit code, and nothing half-done.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::complaint::{Case, FAILED, USAGE, check, check_all};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_agent_says_what_is_wrong() -> Result<()> {
    in_a_lab(1, Stage::Bare, |lab| {
        let machine = lab.machine(1);
        let file = |name: &str, bytes: &[u8]| -> Result<String> {
            let path = lab.dir().join(name);
            fs::write(&path, bytes)?;
            Ok(path.display().to_string())
        };
        let token = lab.control().token("web-1")?;
        let cut = &token[..token.len() - 9];
        let garbage = file("garbage.json", b"{]")?;
        let folder = lab.dir().display().to_string();
        let unenrolled: &[Case<'_>] = &[
            (&[], USAGE, &["enroll"]),
            (&["enroll"], USAGE, &["TOKEN"]),
            (&["enroll", "nlt1_"], FAILED, &["token"]),
            (&["enroll", "hello"], FAILED, &["token", "nlt1_"]),
            (&["enroll", cut], FAILED, &["token"]),
            (
                &["enroll", &token, "--name", "a_b"],
                FAILED,
                &["not a machine name"],
            ),
            (&["run"], FAILED, &["enroll"]),
            (&["verify", &garbage], FAILED, &["enroll"]),
            (&["status", "--output", "xml"], USAGE, &["xml"]),
            // Without a terminal there is nobody to ask.
            (&["disable"], FAILED, &["nothing was changed", "--yes"]),
            (
                &["disable", "--table-only"],
                FAILED,
                &["nothing was changed", "--yes"],
            ),
            (&["disable", "--now"], USAGE, &["--now"]),
            (&["disable", "all"], USAGE, &["all"]),
        ];
        check_all("nightlatch-agent, not enrolled", unenrolled, |arguments| {
            machine.run_agent(arguments)
        })?;
        ensure!(
            !machine.state().join("agent.key").exists(),
            "keys without an enrolment"
        );

        machine
            .run_agent(&["enroll", &token])?
            .expect_success("nightlatch-agent enroll")?;
        machine.start_agent()?;
        wait::until_true("no keys to check grants with", PATIENCE, || {
            let outcome = machine.run_agent(&["status", "--output", "json"])?;
            let status: Value = serde_json::from_str(&outcome.stdout)?;
            Ok(!status["keys"].is_null())
        })?;
        machine.end_agent(Signal::SIGTERM)?;
        let huge = file("huge.json", &vec![b' '; 17 * 1024])?;
        let binary = file("binary.json", &[0xff; 64])?;
        let empty = file("empty.json", b"")?;
        let enrolled: &[Case<'_>] = &[
            (&["verify"], USAGE, &["GRANT"]),
            (&["verify", "/nonexistent"], FAILED, &["/nonexistent"]),
            (&["verify", &folder], FAILED, &[&folder]),
            (&["verify", &garbage], FAILED, &["ENVELOPE_MALFORMED"]),
            (&["verify", &huge], FAILED, &["ENVELOPE_TOO_LONG"]),
            (&["verify", &binary], FAILED, &["ENVELOPE_MALFORMED"]),
            (&["verify", &empty], FAILED, &["ENVELOPE_MALFORMED"]),
            (&["fly"], USAGE, &["fly"]),
        ];
        check_all("nightlatch-agent, enrolled", enrolled, |arguments| {
            machine.run_agent(arguments)
        })?;
        check_agent_files(lab)
    })
}

fn check_agent_files(lab: &Lab) -> Result<()> {
    let machine = lab.machine(1);
    for (text, words) in [
        ("guarded = 22", "line 1: `guarded`"),
        ("\n[ceiling]\nports = 22", "line 3: `ceiling.ports`"),
        ("guarded = [0]", "1 to 65535"),
        ("server_may = [\"observe\"]", "server_may"),
        ("trusted_sources = [\"192.0.2.7/24\"]", "192.0.2.0/24"),
        ("udp_grace = \"1h\"", "udp_grace"),
        ("[ceiling]\nports = [22]\nwidest_ipv4 = 33", "widest_ipv4"),
        ("gaurded = []", "gaurded"),
        ("= 5", "agent.toml"),
    ] {
        machine.configure(text)?;
        for arguments in [
            &["run"][..],
            &["lockdown"],
            &["status"],
            &["ruleset"],
            &["verify", "grant.json"],
        ] {
            let outcome = machine.run_agent(arguments)?;
            check(
                &format!("{arguments:?} with {text}"),
                &outcome,
                FAILED,
                &["agent.toml", words],
            )?;
        }
        // It needs no file of the host's own to be turned off.
        let outcome = machine.run_agent(&["disable"])?;
        check(&format!("disable with {text}"), &outcome, FAILED, &["--yes"])?;
    }
    fs::write(machine.config(), b"\xff")?;
    let binary = machine.run_agent(&["run"])?;
    check("agent.toml is no text", &binary, FAILED, &["agent.toml", "UTF-8"])?;
    fs::remove_file(machine.config())?;
    check(
        "no agent.toml",
        &machine.run_agent(&["run"])?,
        FAILED,
        &["agent.toml"],
    )?;
    machine.configure(nightlatch_tests::machine::AGENT_TOML)?;
    for name in [
        "agent.key",
        "agent.pem",
        "ca.pem",
        "enrollment.json",
        "receipt.key",
    ] {
        let path = machine.state().join(name);
        let good = fs::read(&path).with_context(|| format!("reading {name}"))?;
        fs::write(&path, "not what it should be")?;
        let outcome = machine.run_agent(&["run"])?;
        check(&format!("{name} is garbage"), &outcome, FAILED, &[name])?;
        fs::write(&path, good)?;
        let aside = machine.dir().join(name);
        fs::rename(&path, &aside)?;
        let outcome = machine.run_agent(&["run"])?;
        check(&format!("{name} is missing"), &outcome, FAILED, &[name])?;
        fs::rename(&aside, &path)?;
    }
    check_damaged_records(lab)?;
    machine
        .start_agent()
        .context("with everything in its place again")?;
    let second = machine.run_agent(&["run"])?;
    check(
        "a second agent over the same state",
        &second,
        FAILED,
        &["another nightlatch-agent"],
    )?;
    let beneath = machine.run_agent(&["disable", "--yes", "--table-only"])?;
    check(
        "disable beneath an agent that runs",
        &beneath,
        FAILED,
        &["an agent works in", "stop it"],
    )
}

/// The agent starts all the same, shut where it must be, and says what is lost.
fn check_damaged_records(lab: &Lab) -> Result<()> {
    let machine = lab.machine(1);
    for (name, code) in [
        ("receipts", "RECEIPTS_DAMAGED"),
        ("ledger.floor", "LEDGER_DAMAGED"),
    ] {
        let told = || -> Result<bool> {
            let is_it = |event: &Value| event["kind"] == "machine.reported" && event["reason"] == code;
            Ok(lab.client().events()?.iter().any(is_it))
        };
        ensure!(!told()?, "{code} before {name} is garbage");
        fs::write(machine.state().join(name), "not what it should be")?;
        for verb in ["lockdown", "ruleset"] {
            machine
                .run_agent(&[verb])?
                .expect_success(&format!("{verb}, {name} is garbage"))?;
        }
        machine
            .start_agent()
            .with_context(|| format!("{name} is garbage"))?;
        wait::until_true(&format!("no event tells that {name} was garbage"), PATIENCE, told)?;
        machine.end_agent(Signal::SIGTERM)?;
        machine
            .run_agent(&["status"])?
            .expect_success(&format!("status, {name} was garbage"))?;
    }
    Ok(())
}
