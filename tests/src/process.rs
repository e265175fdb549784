//! Processes that outlive whoever started them, known by pid and start time.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::iter::successors;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A process. A pid alone could by now belong to another one; with the start time it can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    /// In clock ticks since the start of the machine (field 22 of /proc/PID/stat, proc(5)).
    started: u64,
}

impl Process {
    /// Starts `command` in a session of its own, its output appended to `log`, and notes it in `record`.
    pub fn start(command: &Command, log: &Path, record: &Path) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        // setsid, ip netns exec, unshare and sh exec in place, so the pid stays that of the program.
        let mut detached = Command::new("setsid");
        detached
            .arg(command.get_program())
            .args(command.get_args())
            .envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing a log")?)
            .stderr(output);
        let mut child = detached.spawn().context("starting setsid (Debian: util-linux)")?;
        let pid = i32::try_from(child.id()).context("a pid beyond 31 bits")?;
        let process = Self::running(pid);
        // Reaps it, should it end while this process still lives.
        thread::spawn(move || child.wait());
        let process = process.with_context(|| format!("{command:?} ended at once, see {}", log.display()))?;
        fs::write(record, format!("{} {}\n", process.pid, process.started))
            .with_context(|| format!("writing {}", record.display()))?;
        Ok(process)
    }

    /// What [`Self::start`] noted, whether or not it still runs.
    pub fn recorded(record: &Path) -> Option<Self> {
        let text = fs::read_to_string(record).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        })
    }

    /// The process that has this pid now.
    pub fn running(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, parentheses included.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Killed, it is a zombie at once, but its other threads may hold files and locks for a moment more.
        let has_threads = || {
            let threads = fs::read_dir(format!("/proc/{pid}/task"));
            threads.is_ok_and(|threads| threads.count() > 1)
        };
        let ended = match *fields.first()? {
            "X" => true,
            "Z" => !has_threads(),
            _ => false,
        };
        let started = fields.get(19)?.parse().ok()?;
        (!ended).then_some(Self { pid, started })
    }

    pub const fn pid(self) -> i32 {
        self.pid
    }

    /// Its children and theirs, in whatever namespaces they are.
    pub fn descendants(self) -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let parents: BTreeMap<i32, i32> = entries
            .filter_map(|entry| {
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
                Some((entry.file_name().to_str()?.parse().ok()?, parent.parse().ok()?))
            })
            .collect();
        let descends = |pid: &&i32| {
            let mut ancestors = successors(parents.get(pid), |parent| parents.get(parent));
            ancestors.any(|ancestor| *ancestor == self.pid)
        };
        let found = parents.keys().filter(descends);
        found.filter_map(|pid| Self::running(*pid)).collect()
    }

    pub fn is_alive(self) -> bool {
        Self::running(self.pid) == Some(self)
    }

    /// Sends a signal and waits for the end.
    pub fn end(self, signal: Signal) -> Result<()> {
        self.signal(signal);
        let otherwise = format!("process {} still lives after {signal}", self.pid);
        wait::until_true(&otherwise, Duration::from_secs(10), || Ok(!self.is_alive()))
    }

    /// Sends a signal, if the process still lives.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end in between; then there is nothing left to tell.
            kill(Pid::from_raw(self.pid), signal).ok();
        }
    }

    /// Resident memory in KiB (VmRSS, proc(5)).
    pub fn resident_kib(self) -> Result<u64> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid)).context("reading its status")?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
            .context("the process has no VmRSS")
    }
}
