//! Network namespaces of a test: made, wired and taken away by it. Needs root.

#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

mod agent;
mod frames;
mod rulesets;
mod scene;

use std::fs::File;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use agent::*;
pub(crate) use frames::{Attempt, Wire};
use nightlatch_core::time::BootTime;
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
pub(crate) use rulesets::*;
pub(crate) use scene::*;

/// Within this a packet that is let in has long been answered, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// After this a packet without an answer counts as dropped.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);

/// A network namespace, gone with the value.
pub(crate) struct Netns {
    name: String,
    namespace: File,
}

impl Netns {
    pub(crate) fn new(label: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nlt-{}-{count}-{label}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &name]), "");
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        let netns = Self { name, namespace };
        netns.ip("link set lo up");
        netns
    }

    /// Runs `work` inside, on a thread of its own; what it opens stays inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs lines of `ip -batch`.
    pub(crate) fn ip(&self, lines: &str) {
        must(
            Command::new("ip").args(["-netns", &self.name, "-batch", "-"]),
            lines,
        );
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .args(line.split_whitespace());
        command
    }

    pub(crate) fn must(&self, line: &str, input: &str) -> String {
        must(&mut self.command(line), input)
    }

    /// Moves one end of a new pair of interfaces into each namespace and switches both on.
    pub(crate) fn wire(&self, own: &str, other: &Self, others: &str) {
        self.ip(&format!(
            "link add {own} type veth peer name {others} netns {}\nlink set {own} up",
            other.name
        ));
        other.ip(&format!("link set {others} up"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.name]).status();
        assert!(
            thread::panicking() || deleted.is_ok_and(|status| status.success()),
            "{} stayed behind",
            self.name
        );
    }
}

fn must(command: &mut Command, input: &str) -> String {
    let output = output(command, input);
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn output(command: &mut Command, input: &str) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Looks again and again until it is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: waited in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn now() -> BootTime {
    BootTime::new(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap().into())
}
