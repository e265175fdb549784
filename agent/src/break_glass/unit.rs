//! The agent's unit, stopped whether the agent wants it or not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Ended, await_end, within};

const UNIT: &str = "nightlatch-agent.service";
/// What systemd has to take a job.
const AT_ONCE: Duration = Duration::from_secs(3);
/// What it has to see the end of processes that were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has become of the agent's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// There is none that could be stopped.
    Missing,
    /// It is to stop, and nobody has seen its end yet.
    Stopping,
    Stopped,
}

pub(super) fn stop() -> Unit {
    if Path::new("/run/systemd/system").exists() {
        stop_by(systemctl)
    } else {
        Unit::Missing
    }
}

/// The job comes before the signal, so that nothing starts it again.
fn stop_by(systemctl: impl Fn(&'static [&'static str], Duration) -> Ended) -> Unit {
    let asked = systemctl(&["stop", "--no-block", UNIT], AT_ONCE);
    let killed = systemctl(&["kill", "--signal=KILL", UNIT], AT_ONCE);
    match systemctl(&["stop", UNIT], PATIENCE) {
        Ended::Well => Unit::Stopped,
        Ended::Badly if asked == Ended::Badly && killed == Ended::Badly => Unit::Missing,
        Ended::Badly | Ended::Late => Unit::Stopping,
    }
}

fn systemctl(arguments: &'static [&'static str], patience: Duration) -> Ended {
    // Starting a program reads a disk that may not answer.
    let ran = within(patience, move || {
        let child = Command::new("systemctl")
            .arg("--quiet")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        child.map_or(Ended::Badly, |child| await_end(child, patience))
    });
    ran.unwrap_or(Ended::Late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_was_asked_to_stop_is_never_taken_for_one_that_runs() {
        use Ended::{Badly, Late, Well};
        for (answers, unit) in [
            ([Badly, Badly, Badly], Unit::Missing),
            ([Well, Well, Well], Unit::Stopped),
            ([Well, Badly, Well], Unit::Stopped),
            ([Well, Well, Late], Unit::Stopping),
            ([Late, Badly, Badly], Unit::Stopping),
            ([Badly, Well, Badly], Unit::Stopping),
            ([Badly, Badly, Late], Unit::Stopping),
        ] {
            let left = std::cell::RefCell::new(answers.into_iter());
            let found = stop_by(|_, _| left.borrow_mut().next().unwrap());
            assert_eq!(found, unit, "{answers:?}");
        }
    }
}
