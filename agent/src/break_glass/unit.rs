//! The agent's unit, stopped whether the agent wants it or not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::await_end;

const UNIT: &str = "nightlatch-agent.service";
/// What systemd has to take a job.
const AT_ONCE: Duration = Duration::from_secs(3);
/// What it has to see the end of processes that were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says whether it is stopped. The job comes before the signal, so that nothing starts it again.
pub(super) fn stop() -> bool {
    if !Path::new("/run/systemd/system").exists() {
        return false;
    }
    systemctl(&["stop", "--no-block", UNIT], AT_ONCE);
    systemctl(&["kill", "--signal=KILL", UNIT], AT_ONCE);
    systemctl(&["stop", UNIT], PATIENCE)
}

fn systemctl(arguments: &[&str], patience: Duration) -> bool {
    let mut systemctl = Command::new("systemctl");
    let child = systemctl
        .arg("--quiet")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.is_ok_and(|child| await_end(child, patience))
}
