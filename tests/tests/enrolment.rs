//! How machines join, and how they don't.

use std::fs;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::database::Database;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait::Outcome;
use nix::sys::signal::Signal;

#[test]
fn a_token_counts_once() -> Result<()> {
    in_a_lab(2, Stage::Bare, |lab| {
        let token = token(lab, &[])?;
        lab.machine(1)
            .run_agent(&["enroll", &token])?
            .expect_success("the first")?;
        refused(lab.machine(2).run_agent(&["enroll", &token])?, "token")?;
        ensure!(
            !lab.machine(2).state().join("enrollment.json").exists(),
            "half enrolled"
        );
        ensure!(
            lab.client().machines()?.len() == 1,
            "{:?}",
            lab.client().machines()?
        );
        Ok(())
    })
}

#[test]
fn a_token_lapses_after_a_day() -> Result<()> {
    in_a_lab(1, Stage::Bare, |lab| {
        let token = token(lab, &[])?;
        lab.control().end(Signal::SIGTERM)?;
        let mut database = Database::open(lab.control())?;
        let span = database.text(
            "SELECT CAST((expires_at - created_at) / 1000000 AS TEXT) FROM tokens",
            &[],
        )?;
        ensure!(span == "86400", "a token is good for {span} s");
        database.execute(
            "UPDATE tokens SET expires_at = expires_at - 86400000000 - 60000000",
            &[],
        )?;
        database.close()?;
        lab.control().start()?;
        refused(lab.machine(1).run_agent(&["enroll", &token])?, "token")
    })
}

#[test]
fn a_taken_name_is_refused_unless_the_token_allows_replacing_it() -> Result<()> {
    in_a_lab(2, Stage::Bare, |lab| {
        lab.machine(1).enroll()?;
        lab.machine(1).start_agent()?;
        lab.machine(1).wait_connected()?;
        let plain = token(lab, &[])?;
        refused(
            lab.machine(2).run_agent(&["enroll", &plain, "--name", "web-1"])?,
            "web-1",
        )?;
        lab.machine(1).wait_connected()?;

        let replacing = token(lab, &["--machine", "web-1", "--replace"])?;
        lab.machine(2)
            .run_agent(&["enroll", &replacing, "--name", "web-1"])?
            .expect_success("replacing it")?;
        let machines = lab.client().machines()?;
        ensure!(
            machines.len() == 1 && machines[0]["machine"] == "web-1",
            "{machines:?}"
        );
        // The old machine's certificate no longer counts.
        nightlatch_tests::wait::until_true(
            "the replaced machine is still connected",
            std::time::Duration::from_secs(20),
            || {
                Ok(lab
                    .client()
                    .machines()?
                    .iter()
                    .all(|machine| machine["state"] == "away"))
            },
        )
    })
}

#[test]
fn a_token_for_one_machine_lets_no_other_join() -> Result<()> {
    in_a_lab(2, Stage::Bare, |lab| {
        let token = token(lab, &["--machine", "web-1"])?;
        refused(lab.machine(2).run_agent(&["enroll", &token])?, "web-1")?;
        lab.machine(1)
            .run_agent(&["enroll", &token])?
            .expect_success("the machine that it is for")?;
        Ok(())
    })
}

#[test]
fn the_machine_is_called_like_its_host_and_a_second_enrolment_is_refused() -> Result<()> {
    in_a_lab(1, Stage::Bare, |lab| {
        let first = token(lab, &[])?;
        lab.machine(1)
            .run_agent(&["enroll", &first])?
            .expect_success("nightlatch-agent enroll")?;
        ensure!(
            lab.client().machines()?[0]["machine"] == "web-1",
            "{:?}",
            lab.client().machines()?
        );
        let before = folder(lab)?;
        let second = token(lab, &[])?;
        refused(lab.machine(1).run_agent(&["enroll", &second])?, "joined already")?;
        ensure!(
            folder(lab)? == before,
            "a refused enrolment changed the state directory"
        );
        Ok(())
    })
}

#[test]
fn an_impostor_is_found_out_by_the_token() -> Result<()> {
    in_a_lab(1, Stage::Bare, |lab| {
        let token = token(lab, &[])?;
        // Another installation in the place of the one that the token names.
        lab.control().end(Signal::SIGTERM)?;
        fs::rename(lab.control().state(), lab.dir().join("honest"))?;
        lab.control().init()?;
        lab.control().start()?;
        let outcome = lab.machine(1).run_agent(&["enroll", &token])?;
        refused(outcome, "certificate")?;
        ensure!(
            !lab.machine(1).state().join("agent.key").exists(),
            "keys were left behind"
        );
        Ok(())
    })
}

#[test]
fn keys_are_for_their_owner_alone() -> Result<()> {
    in_a_lab(1, Stage::Enrolled, |lab| {
        for folder in [lab.machine(1).state(), lab.control().state()] {
            check_private(&folder)?;
        }
        Ok(())
    })
}

fn check_private(folder: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode =
        |path: &std::path::Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    ensure!(
        mode(folder)? == 0o700,
        "{} has mode {:o}",
        folder.display(),
        mode(folder)?
    );
    let mut keys = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "key") {
            keys += 1;
            ensure!(
                mode(&path)? == 0o600,
                "{} has mode {:o}",
                path.display(),
                mode(&path)?
            );
        }
    }
    ensure!(keys > 0, "no keys in {}", folder.display());
    Ok(())
}

fn token(lab: &Lab, options: &[&str]) -> Result<String> {
    let text = lab
        .control()
        .run(&[&["token", "create"], options].concat())?
        .expect_success("token create")?;
    let token = text.trim().to_owned();
    ensure!(
        token.starts_with("nlt1_") && !token.contains(char::is_whitespace),
        "not one string: {token}"
    );
    Ok(token)
}

fn refused(outcome: Outcome, word: &str) -> Result<()> {
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(
        outcome.stderr.to_lowercase().contains(word),
        "no `{word}` in {outcome}"
    );
    ensure!(!outcome.stderr.contains("panicked"), "{outcome}");
    Ok(())
}

fn folder(lab: &Lab) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(lab.machine(1).state()).context("reading the state directory")? {
        let path = entry?.path();
        files.push((path.display().to_string(), fs::read(&path)?));
    }
    files.sort();
    Ok(files)
}
