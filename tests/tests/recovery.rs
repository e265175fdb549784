//! Restarts, restored copies and damaged files: server and hosts agree again by themselves, nothing opens that
//! shouldn't, and what was revoked stays revoked.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::client::Answer;
use nightlatch_tests::doors::{Doors, GLANCE};
use nightlatch_tests::extent;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_restarted_server_still_knows_and_ends_its_grants() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        in_a_lab(1, Stage::Guarded, |lab| {
            let doors = Doors::new(lab)?;
            let kept = doors.open(1)?;
            let ended = doors.open(2)?;
            lab.control().end(signal)?;
            doors.check(&[1, 2])?;
            lab.control().start()?;
            lab.machine(1).wait_connected()?;
            doors.check(&[1, 2])?;
            lab.client()
                .run(&["revoke", &ended])?
                .expect_success("nightlatch revoke")?;
            doors.check(&[1])?;
            doors.open(3)?;
            doors.check(&[1, 3])?;
            lab.client()
                .run(&["done", &kept])?
                .expect_success("nightlatch done")?;
            doors.check(&[3])
        })
        .with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

#[test]
fn a_restarted_agent_opens_what_still_runs_and_nothing_else() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        in_a_lab(1, Stage::Guarded, |lab| {
            let doors = Doors::new(lab)?;
            doors.open(1)?;
            let revoked = doors.open(2)?;
            lab.client()
                .run(&["revoke", &revoked])?
                .expect_success("nightlatch revoke")?;
            // Without the server, so that the ledger alone decides.
            lab.control().end(Signal::SIGKILL)?;
            lab.machine(1).end_agent(signal)?;
            doors.check(&[1])?;
            lab.machine(1)
                .run("nft", &["delete", "table", "inet", "nightlatch"])?
                .expect_success("nft")?;
            lab.machine(1)
                .run_agent(&["lockdown"])?
                .expect_success("nightlatch-agent lockdown")?;
            doors.check(&[1])?;
            lab.machine(1).start_agent()?;
            doors.check(&[1])?;
            lab.control().start()?;
            lab.machine(1).wait_connected()?;
            doors.open(3)?;
            doors.check(&[1, 3])
        })
        .with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

#[test]
fn a_revoke_reaches_a_host_that_was_away() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        let revoked = doors.open(1)?;
        doors.open(2)?;
        let done = doors.open(3)?;
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        wait::until_true("the server has not missed the host", PATIENCE, || {
            Ok(lab
                .client()
                .machines()?
                .iter()
                .all(|machine| machine["state"] == "away"))
        })?;
        for (verb, grant) in [("revoke", &revoked), ("done", &done)] {
            let outcome = lab.client().run(&[verb, grant, "--timeout", "1s"])?;
            ensure!(
                outcome.code == Some(3)
                    && outcome.stdout.contains("web-1")
                    && outcome.stdout.contains("runs to its end"),
                "{verb}, which is not in force yet: {outcome}"
            );
        }
        doors.check(&[1, 2, 3])?;
        lab.machine(1).start_agent()?;
        doors.wait(&[2])
    })
}

#[test]
fn a_request_for_a_host_that_is_away_opens_when_it_connects() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        wait::until_true("the server has not missed the host", PATIENCE, || {
            Ok(lab
                .client()
                .machines()?
                .iter()
                .all(|machine| machine["state"] == "away"))
        })?;
        let source = Doors::source(1);
        let asked = [
            "request",
            "web-1",
            "--port",
            "22",
            "--from",
            &source,
            "--for",
            "1h",
            "--reason",
            "away",
            "--timeout",
            "1s",
        ];
        let outcome = lab.client().run(&asked)?;
        ensure!(outcome.code == Some(3), "approved, but not open yet: {outcome}");
        doors.check(&[])?;
        lab.machine(1).start_agent()?;
        doors.wait(&[1])
    })
}

#[test]
fn a_server_restored_from_an_old_copy_agrees_with_its_hosts_again() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        let old = doors.open(1)?;
        let revoked = doors.open(2)?;
        lab.control().end(Signal::SIGTERM)?;
        let copy = lab.dir().join("yesterday");
        copy_folder(&lab.control().state(), &copy)?;
        lab.control().start()?;
        lab.machine(1).wait_connected()?;

        lab.client()
            .run(&["revoke", &revoked])?
            .expect_success("nightlatch revoke")?;
        doors.open(3)?;
        lab.guard(lab.machine(1), &["22/tcp,max=PT2H"])?;
        doors.check(&[1, 3])?;

        lab.control().end(Signal::SIGKILL)?;
        fs::remove_dir_all(lab.control().state())?;
        copy_folder(&copy, &lab.control().state())?;
        lab.control().start()?;
        lab.machine(1).wait_connected()?;
        // The restored server knows nothing of the third; the host knows that the second was revoked.
        doors.wait(&[1])?;

        doors.open(4)?;
        doors.check(&[1, 4])?;
        lab.client()
            .run(&["revoke", &old])?
            .expect_success("nightlatch revoke")?;
        doors.check(&[4])?;
        // A policy that is set now counts, although the host has seen that number before.
        lab.client()
            .run(&[
                "policy",
                "set",
                "web-1",
                "--port",
                "22/tcp,max=PT2H",
                "--port",
                "9000/tcp",
            ])?
            .expect_success("policy set")?;
        let port = SocketAddr::from((lab.machine(1).addresses().ipv4, 9000));
        wait::until_true(
            "the policy of the restored server is not in force",
            PATIENCE,
            || Ok(matches!(lab.client().knock(None, port, GLANCE)?, Answer::Silent)),
        )?;
        doors.check(&[4])
    })
}

#[test]
fn a_host_restored_from_an_old_copy_agrees_with_its_server_again() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        doors.open(1)?;
        let revoked = doors.open(2)?;
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        let copy = lab.dir().join("yesterday");
        copy_folder(&lab.machine(1).state(), &copy)?;
        lab.machine(1).start_agent()?;
        lab.machine(1).wait_connected()?;
        lab.client()
            .run(&["revoke", &revoked])?
            .expect_success("nightlatch revoke")?;
        doors.open(3)?;

        lab.machine(1).end_agent(Signal::SIGKILL)?;
        fs::remove_dir_all(lab.machine(1).state())?;
        copy_folder(&copy, &lab.machine(1).state())?;
        lab.machine(1).start_agent()?;
        doors.wait(&[1, 3])?;
        doors.open(4)?;
        doors.check(&[1, 3, 4])
    })
}

#[test]
fn a_ledger_cut_at_any_byte_heals_and_opens_nothing_that_it_should_not() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        doors.open(1)?;
        let revoked = doors.open(2)?;
        lab.client()
            .run(&["revoke", &revoked])?
            .expect_success("nightlatch revoke")?;
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        let file = lab.machine(1).state().join("ledger");
        let ledger = fs::read(&file).context("reading the ledger")?;
        let cuts = cuts(&ledger)?;
        for cut in &cuts {
            fs::write(&file, ledger.get(..*cut).context("a cut beyond the end")?)?;
            lab.machine(1)
                .start_agent()
                .with_context(|| format!("cut at {cut} of {}", ledger.len()))?;
            doors
                .wait(&[1])
                .with_context(|| format!("cut at {cut} of {}", ledger.len()))?;
            lab.machine(1).end_agent(Signal::SIGKILL)?;
        }
        Ok(())
    })
}

#[test]
fn a_ledger_cut_anywhere_never_brings_back_what_was_revoked_although_the_server_is_gone() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        doors.open(1)?;
        let revoked = doors.open(2)?;
        lab.client()
            .run(&["revoke", &revoked])?
            .expect_success("nightlatch revoke")?;
        doors.open(3)?;
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        lab.control().end(Signal::SIGKILL)?;
        let file = lab.machine(1).state().join("ledger");
        let ledger = fs::read(&file).context("reading the ledger")?;
        let (header, ends) = frames(&ledger)?;
        let source = Doors::source(2);
        for cut in cuts(&ledger)? {
            fs::write(&file, ledger.get(..cut).context("a cut beyond the end")?)?;
            let outcome = lab.machine(1).run_agent(&["ruleset"])?;
            let ruleset = outcome.expect_success("nightlatch-agent ruleset")?;
            ensure!(
                !ruleset.contains(&source),
                "cut at {cut} of {}: {ruleset}",
                ledger.len()
            );
        }
        // At the seams between frames, by packets.
        let seams = [header].into_iter().chain(ends.iter().copied());
        for cut in seams.filter(|cut| *cut < ledger.len()).step_by(2) {
            fs::write(&file, ledger.get(..cut).context("a cut beyond the end")?)?;
            lab.machine(1)
                .run_agent(&["lockdown"])?
                .expect_success("nightlatch-agent lockdown")?;
            let open = doors.open_now()?;
            ensure!(
                !open.contains(&2) && !open.contains(&4),
                "cut at {cut} of {}: open are {open:?}",
                ledger.len()
            );
        }
        // One that lost nothing which must stay opens what it has.
        fs::write(&file, &ledger)?;
        lab.machine(1)
            .run_agent(&["lockdown"])?
            .expect_success("nightlatch-agent lockdown")?;
        doors.check(&[1, 3])?;
        let cut = *ends.first().context("an empty ledger")?;
        fs::write(&file, ledger.get(..cut).context("a cut beyond the end")?)?;
        lab.machine(1).start_agent()?;
        doors.check(&[])?;
        lab.control().start()?;
        doors.wait(&[1, 3])?;
        let told = |event: &Value| event["reason"] == "LEDGER_SHORTENED";
        wait::until_true("no event tells of it", PATIENCE, || {
            Ok(lab.client().events()?.iter().any(told))
        })
    })
}

#[test]
fn a_damaged_ledger_means_lockdown_and_an_event() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let doors = Doors::new(lab)?;
        doors.open(1)?;
        let file = lab.machine(1).state().join("ledger");
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        let ledger = fs::read(&file).context("reading the ledger")?;
        let (header, frames) = frames(&ledger)?;
        let first = *frames.first().context("an empty ledger")?;
        // In the header, and of the first record in its length, its checksum, its middle and its last byte.
        for position in [2, header + 2, header + 7, header + 40, first - 1] {
            let told_before = told_of_damage(lab)?;
            lab.control().end(Signal::SIGKILL)?;
            let mut damaged = ledger.clone();
            *damaged.get_mut(position).context("a position beyond the end")? ^= 4;
            fs::write(&file, &damaged)?;
            lab.machine(1)
                .start_agent()
                .with_context(|| format!("byte {position}"))?;
            // The server is away: nothing is open, and the ports are shut all the same.
            doors.check(&[]).with_context(|| format!("byte {position}"))?;
            lab.control().start()?;
            doors
                .wait(&[1])
                .with_context(|| format!("byte {position}, with the server"))?;
            wait::until_true("no event tells of the damage", PATIENCE, || {
                Ok(told_of_damage(lab)? > told_before)
            })
            .with_context(|| format!("byte {position}"))?;
            lab.machine(1).end_agent(Signal::SIGKILL)?;
        }
        Ok(())
    })
}

fn told_of_damage(lab: &Lab) -> Result<usize> {
    let is_it = |event: &&Value| event["kind"] == "machine.reported" && event["reason"] == "LEDGER_DAMAGED";
    Ok(lab.client().events()?.iter().filter(is_it).count())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let outcome = wait::run(Command::new("cp").arg("-a").arg(from).arg(to), PATIENCE)?;
    outcome.expect_success("cp -a").map(drop)
}

/// Where to cut: around the ends of the header and of each frame, and evenly in between.
fn cuts(ledger: &[u8]) -> Result<Vec<usize>> {
    let (header, ends) = frames(ledger)?;
    let mut cuts = vec![0, 1, header - 1, header, header + 1];
    cuts.extend(ends.iter().flat_map(|end| [end - 1, *end, end + 1]));
    let between = if extent::is_long() { 400 } else { 12 };
    cuts.extend((0..ledger.len()).step_by((ledger.len() / between).max(1)));
    cuts.retain(|cut| *cut <= ledger.len());
    cuts.sort_unstable();
    cuts.dedup();
    Ok(cuts)
}

/// The length of the header line, and where each frame {length, checksum, payload} ends.
fn frames(ledger: &[u8]) -> Result<(usize, Vec<usize>)> {
    const PREAMBLE: usize = 12;
    let header = ledger
        .iter()
        .position(|byte| *byte == b'\n')
        .context("a ledger without a header")?
        + 1;
    let mut ends = Vec::new();
    let mut at = header;
    while let Some(length) = ledger.get(at..at + 4) {
        at += PREAMBLE + usize::try_from(u32::from_be_bytes(length.try_into()?))?;
        ends.push(at);
    }
    ensure!(
        ends.last() == Some(&ledger.len()),
        "frames end at {ends:?}, the ledger at {}",
        ledger.len()
    );
    Ok((header, ends))
}
