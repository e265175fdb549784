//! `nightlatch-agent status` tells what is so in the kernel, not what should be.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait::{self, Outcome};
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const ROUNDS: u8 = 6;
const LOCKDOWNS: u8 = 60;

#[test]
fn status_says_when_others_changed_the_table() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.client().open("web-1", &["--port", "22", "--for", "1h"])?;
        expect(lab, "in_place", 0)?;
        // Alive it would mend the table while we look.
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        expect(lab, "in_place", 0).context("with the agent dead")?;
        for (change, table) in [
            ("flush table inet nightlatch", "differs"),
            ("delete table inet nightlatch", "missing"),
            ("flush ruleset", "missing"),
            ("add rule inet nightlatch prerouting accept", "differs"),
            ("add table inet nightlatch { flags dormant; }", "differs"),
            ("flush set inet nightlatch open4_32", "differs"),
            ("flush set inet nightlatch guarded", "differs"),
            (
                "add element inet nightlatch open4_32 { 203.0.113.9 . tcp . 22 }",
                "differs",
            ),
            ("add element inet nightlatch guarded { udp . 53 }", "differs"),
        ] {
            repair(lab).with_context(|| format!("before `{change}`"))?;
            lab.machine(1).run("nft", &[change])?.expect_success(change)?;
            expect(lab, table, 1).with_context(|| format!("after `{change}`"))?;
        }
        repair(lab)
    })
}

#[test]
fn the_running_agent_repairs_the_table_and_reports_it() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.machine(1)
            .run("nft", &["flush", "ruleset"])?
            .expect_success("nft")?;
        wait::until_true("the table was not made anew", PATIENCE, || {
            Ok(lab.machine(1).run_agent(&["status"])?.succeeded())
        })?;
        wait::until_true("no event tells of it", PATIENCE, || {
            let events = lab.client().events()?;
            Ok(events
                .iter()
                .any(|event| event["kind"] == "machine.reported" && event["reason"] == "TABLE_REPAIRED"))
        })
    })
}

#[test]
fn what_is_being_changed_while_status_looks_is_no_difference() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.client().open("web-1", &["--port", "22", "--for", "1h"])?;
        let is_over = AtomicBool::new(false);
        let look = || {
            let mut looks = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                let outcome = status(lab, &["--output", "json"])?;
                ensure!(outcome.succeeded(), "after {looks} looks: {outcome}");
                looks += 1;
            }
            Ok(looks)
        };
        thread::scope(|scope| {
            let watching = scope.spawn(look);
            let changed = change_everything(lab);
            is_over.store(true, Ordering::Relaxed);
            let looks = watching.join().ok().context("the look fell over")??;
            ensure!(looks >= u32::from(ROUNDS), "only {looks} looks");
            changed
        })
    })
}

/// As systemd-nspawn gives each start of a container one, which the agent's unit may not see.
#[test]
fn a_boot_id_that_only_the_shell_has_is_no_difference() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let machine = lab.machine(1);
        let grant = lab.client().open("web-1", &["--port", "22", "--for", "1h"])?;
        let id = machine.dir().join("boot_id");
        fs::write(&id, "01a202c1-76e9-4d53-b456-3c0e457891a5\n")?;
        let envelope = lab.client().run(&["grant", "show", &grant, "--envelope"])?;
        let file = machine.dir().join("envelope.json");
        fs::write(&file, envelope.expect_success("grant show")?.trim_end())?;
        let file = file.display().to_string();
        let expect = |arguments: &[&str], says: &str| {
            let mut command = machine.exec("unshare");
            command.args([
                "--mount",
                "sh",
                "-ec",
                "mount --bind \"$1\" \"$2\"; shift 2; exec \"$@\"",
                "sh",
            ]);
            command.arg(&id).arg("/proc/sys/kernel/random/boot_id");
            command
                .arg(lab.binary("nightlatch-agent"))
                .arg("--config")
                .arg(machine.config());
            command.arg("--state").arg(machine.state()).args(arguments);
            let outcome = wait::run(&mut command, PATIENCE)?;
            ensure!(outcome.stdout.contains(says), "no `{says}` in {outcome}");
            Ok(())
        };
        expect(&["status"], "table       in place")?;
        machine.end_agent(Signal::SIGKILL)?;
        expect(&["status"], "table       in place").context("with the agent dead")?;
        // In another boot the grant would have what remained at the last mark, and time would be the wall clock's.
        expect(&["ruleset"], "/32 to 22/tcp for PT59M")?;
        expect(
            &["verify", &file, "--output", "json"],
            "\"time_source\": \"server\"",
        )?;
        let change = "add element inet nightlatch open4_32 { 203.0.113.9 . tcp . 22 }";
        machine.run("nft", &[change])?.expect_success(change)?;
        expect(&["status"], "table       DIFFERS").context("with another opening")
    })
}

/// The table, or what it is compared with: starts, other guarded ports, sets that come, and the table made anew.
fn change_everything(lab: &Lab) -> Result<()> {
    let machine = lab.machine(1);
    let ports: [&[&str]; 2] = [&["22/tcp"], &["22/tcp", "3389/tcp"]];
    let signals = [Signal::SIGTERM, Signal::SIGKILL];
    for (round, (guarded, signal)) in (0..ROUNDS).zip(ports.into_iter().zip(signals).cycle()) {
        lab.guard(machine, guarded)?;
        // Confirmed once everything before it has been carried out; else a kill would leave a true difference.
        let source = format!("203.0.113.0/{}", 24 + round % 8);
        let arguments = ["--port", "22", "--from", &source, "--for", "1h"];
        lab.client().open("web-1", &arguments)?;
        machine.end_agent(signal)?;
        machine.start_agent()?;
        machine.wait_connected()?;
    }
    machine.end_agent(Signal::SIGTERM)?;
    for _ in 0..LOCKDOWNS {
        machine
            .run_agent(&["lockdown"])?
            .expect_success("nightlatch-agent lockdown")?;
    }
    Ok(())
}

/// What `status` says of the table, in both its forms.
fn expect(lab: &Lab, table: &str, code: i32) -> Result<()> {
    let outcome = status(lab, &["--output", "json"])?;
    let status_json: Value =
        serde_json::from_str(&outcome.stdout).with_context(|| format!("not JSON: {outcome}"))?;
    ensure!(
        status_json["table"] == table && outcome.code == Some(code),
        "{outcome}"
    );
    let words = match table {
        "in_place" => "in place",
        "missing" => "MISSING: guarded ports are open",
        _ => "DIFFERS from what should hold",
    };
    let outcome = status(lab, &[])?;
    ensure!(
        outcome.stdout.contains(words) && outcome.code == Some(code),
        "{outcome}"
    );
    Ok(())
}

fn status(lab: &Lab, arguments: &[&str]) -> Result<Outcome> {
    lab.machine(1).run_agent(&[&["status"], arguments].concat())
}

/// What a boot does; it takes the ledger's word for what holds.
fn repair(lab: &Lab) -> Result<()> {
    lab.machine(1)
        .run_agent(&["lockdown"])?
        .expect_success("nightlatch-agent lockdown")?;
    expect(lab, "in_place", 0)
}
