//! What an error message owes to whoever gets it.

use anyhow::{Result, ensure};

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

/// One error on stderr that says these words; no stack trace, nothing on stdout that looks like a result.
pub fn check(called: &str, outcome: &Outcome, code: i32, words: &[&str]) -> Result<()> {
    ensure!(
        outcome.code == Some(code),
        "{called}: expected exit {code}: {outcome}"
    );
    let said = &outcome.stderr;
    ensure!(
        !said.contains("panicked") && !said.contains("RUST_BACKTRACE"),
        "{called}: {outcome}"
    );
    ensure!(
        said.lines().filter(|line| line.starts_with("error:")).count() <= 1,
        "{called}: more than one error: {outcome}"
    );
    let nothing = said.trim().is_empty() && outcome.stdout.trim().is_empty();
    ensure!(!nothing, "{called}: says nothing: {outcome}");
    for word in words {
        // `verify` says its verdict where results go.
        ensure!(
            said.contains(word) || outcome.stdout.contains(word),
            "{called}: no `{word}` in: {outcome}"
        );
    }
    Ok(())
}
