//! What an error message owes to whoever gets it.

use anyhow::{Result, bail, ensure};

use crate::wait::Outcome;

/// Exit code of a command that failed or was refused.
pub const FAILED: i32 = 1;
/// Exit code of a command that can't be understood.
pub const USAGE: i32 = 2;

/// Arguments, the exit code, and what the error must say.
pub type Case<'c> = (&'c [&'c str], i32, &'c [&'c str]);

/// Tries all of them before it complains of any.
pub fn check_all(who: &str, cases: &[Case<'_>], run: impl Fn(&[&str]) -> Result<Outcome>) -> Result<()> {
    let mut wrong = Vec::new();
    for (arguments, code, words) in cases {
        let called = format!("{who} {}", arguments.join(" "));
        if let Err(error) = check(&called, &run(arguments)?, *code, words) {
            wrong.push(format!("{error:#}"));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// One error on stderr that says these words and a next step; no stack trace, nothing else that looks like a result.
pub fn check(called: &str, outcome: &Outcome, code: i32, words: &[&str]) -> Result<()> {
    ensure!(!words.is_empty(), "{called}: nothing is asked of the error");
    ensure!(
        outcome.code == Some(code),
        "{called}: expected exit {code}: {outcome}"
    );
    let said = &outcome.stderr;
    ensure!(
        !said.contains("panicked") && !said.contains("RUST_BACKTRACE"),
        "{called}: {outcome}"
    );
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error:")).collect();
    // `verify` says its verdict where results go, and without a verb there is only help.
    let verdict = called.contains(" verify ") && outcome.stdout.contains("refused");
    let help = code == USAGE && said.contains("Usage:");
    match errors[..] {
        [_] => check_step(called, outcome, code)?,
        [] if verdict || help => {}
        _ => bail!("{called}: {} errors instead of one: {outcome}", errors.len()),
    }
    for word in words {
        ensure!(
            said.contains(word) || verdict && outcome.stdout.contains(word),
            "{called}: no `{word}` in: {outcome}"
        );
    }
    Ok(())
}

/// What can't be understood leads to the help. The command line has a line of its own for the next step, unless the
/// error ends with it; the daemons put it behind a colon.
fn check_step(called: &str, outcome: &Outcome, code: i32) -> Result<()> {
    let said = &outcome.stderr;
    let hint = said.lines().any(|line| line.starts_with("hint:"));
    let step = if code == USAGE {
        hint || said.contains("--help")
    } else if called.starts_with("nightlatch ") {
        hint || said.contains("`nightlatch")
    } else {
        said.lines()
            .any(|line| line.starts_with("error:") && line.matches(": ").count() > 1)
    };
    ensure!(step, "{called}: no next step: {outcome}");
    Ok(())
}
