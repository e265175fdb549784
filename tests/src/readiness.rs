//! Waiting for a daemon to say READY=1, as systemd does (sd_notify(3)).

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(20);

/// A socket that takes a daemon's notifications.
pub struct Readiness {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Readiness {
    /// Sets NOTIFY_SOCKET for `command`.
    pub fn expect_of(command: &mut Command, dir: &Path) -> Result<Self> {
        let path = dir.join("notify");
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context("setting a timeout")?;
        command.env("NOTIFY_SOCKET", &path);
        Ok(Self { socket, path })
    }

    /// Waits until the process says that it is ready; one that ends first never will.
    pub fn wait(self, process: Process) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut message = [0; 4096];
        loop {
            match self.socket.recv(&mut message) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
                    if text.lines().any(|line| line == "READY=1") {
                        return fs::remove_file(&self.path).context("removing the notification socket");
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if !process.is_alive() {
                        bail!("it ended before it was ready");
                    }
                }
                Err(error) => return Err(error).context("reading a notification"),
            }
            if Instant::now() >= deadline {
                bail!("it was not ready within {PATIENCE:?}");
            }
        }
    }
}
