//! Network namespaces, by their names in `ip netns`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace that `ip netns` knows, or could.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Netns(String);

impl Netns {
    pub fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Runs `work` in the namespace, on a thread of its own. Sockets and processes made there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("the namespace {} is gone", self.0))?;
        thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).context("entering a network namespace takes root")?;
                work()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip netns exec`, which also gives the command mounts of its own: what it mounts, nobody else sees.
    pub fn exec(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(program);
        command
    }

    /// The processes whose main thread is in the namespace.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let Ok(namespace) = fs::metadata(self.path()) else {
            return Ok(Vec::new());
        };
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").context("reading /proc")? {
            let Some(pid) = entry
                .ok()
                .and_then(|entry| entry.file_name().to_str()?.parse().ok())
            else {
                continue;
            };
            // A process that has just ended has no namespace any more.
            if let Ok(own) = fs::metadata(format!("/proc/{pid}/ns/net"))
                && (own.dev(), own.ino()) == (namespace.dev(), namespace.ino())
            {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

/// The namespaces that `ip netns` knows.
pub fn all() -> Vec<Netns> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut all: Vec<Netns> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(Netns)
        .collect();
    all.sort();
    all
}

/// Runs lines of `ip` in one go, inside a namespace or outside of all; the first that fails ends it.
pub fn ip_batch(within: Option<&Netns>, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(netns) = within {
        command.args(["-n", netns.name()]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (Debian: iproute2)")?;
    let mut input = child.stdin.take().context("ip takes no input")?;
    // An ip that has already refused a line reads no further; its own message says more than EPIPE.
    let written = input.write_all(lines.join("\n").as_bytes());
    drop(input);
    let output = child.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        bail!("ip -batch: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.context("writing to ip")
}
