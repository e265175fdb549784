//! Waiting for conditions, always with a deadline.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
const PACE: Duration = Duration::from_millis(5);

/// Looks until `condition` gives something; else fails with `otherwise`, which says what is still not so.
pub fn until<T>(
    otherwise: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("{otherwise}, after {patience:?}");
        }
        thread::sleep(PACE);
    }
}

/// As [`until`], for a condition that is only true or false.
pub fn until_true(
    otherwise: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(otherwise, patience, || Ok(condition()?.then_some(())))
}

/// Lets time pass, where the passing of time is what a test is about.
pub fn let_pass_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub const fn succeeded(&self) -> bool {
        matches!(self.code, Some(0))
    }

    /// The standard output of a command that must have succeeded.
    pub fn expect_success(self, what: &str) -> Result<String> {
        if self.succeeded() {
            Ok(self.stdout)
        } else {
            bail!("{what}: {self}")
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => write!(f, "exit {code}")?,
            None => write!(f, "ended by a signal")?,
        }
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n{name}: {}", text.trim())?;
            }
        }
        Ok(())
    }
}

/// Runs a command to its end, which must come within `patience`.
pub fn run(command: &mut Command, patience: Duration) -> Result<Outcome> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let deadline = Instant::now() + patience;
    let Some(status) = status_before(&mut child, deadline)? else {
        child.kill().with_context(|| format!("ending {name}"))?;
        child.wait().with_context(|| format!("waiting for {name}"))?;
        bail!("{command:?} did not end within {patience:?}");
    };
    // Something that it left running may hold its output open.
    let rest = || deadline.saturating_duration_since(Instant::now()) + PACE;
    Ok(Outcome {
        code: status.code(),
        stdout: stdout.recv_timeout(rest()).unwrap_or_default(),
        stderr: stderr.recv_timeout(rest()).unwrap_or_default(),
    })
}

fn status_before(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().context("waiting for a command")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe
            && pipe.read_to_end(&mut bytes).is_ok()
        {
            // Whoever asked may have given up.
            sender.send(String::from_utf8_lossy(&bytes).into_owned()).ok();
        }
    });
    receiver
}
