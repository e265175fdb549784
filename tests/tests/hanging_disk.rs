//! A disk that doesn't answer: what must close closes by packets, nothing opens, nothing is acknowledged, and once
//! it is back both are right. An ext4 file system in a file is frozen as fsfreeze(8) does it.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::client::Answer;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

const PATIENCE: Duration = Duration::from_secs(30);
/// Far less than the disk takes.
const AT_ONCE: Duration = Duration::from_secs(8);
const GLANCE: Duration = Duration::from_millis(150);
const FIRST: &str = "198.51.100.1";
const SECOND: &str = "198.51.100.2";

#[test]
fn while_the_disk_hangs_a_revoke_closes_and_a_request_does_not_open() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        for source in [FIRST, SECOND] {
            lab.client().add_address(&format!("{source}/24"))?;
        }
        let machine = lab.machine(1);
        machine.end_agent(Signal::SIGTERM)?;
        let disk = Disk::under(&machine.state())?;
        machine.start_agent()?;
        machine.wait_connected()?;
        let revoked = lab
            .client()
            .open("web-1", &["--port", "22", "--from", FIRST, "--for", "1h"])?;
        ensure!(gets_in(lab, FIRST)?, "what was granted does not open");

        disk.freeze()?;
        let asked = [
            "request",
            "web-1",
            "--port",
            "22",
            "--from",
            SECOND,
            "--for",
            "1h",
            "--reason",
            "wait",
            "--timeout",
            "2s",
        ];
        let outcome = lab.client().run(&asked)?;
        ensure!(
            outcome.code == Some(3),
            "open without a record, or refused: {outcome}"
        );
        ensure!(!gets_in(lab, SECOND)?, "open without a record");

        // Behind the request, which the host has not answered.
        let outcome = lab.client().run(&["revoke", &revoked, "--timeout", "1s"])?;
        ensure!(
            outcome.code == Some(3),
            "acknowledged, but not on disk: {outcome}"
        );
        wait::until_true("the revoke waits for the disk", AT_ONCE, || {
            Ok(!gets_in(lab, FIRST)?)
        })?;
        ensure!(!gets_in(lab, SECOND)?, "open without a record");

        disk.thaw()?;
        wait::until_true("the disk is back and nothing opens", PATIENCE, || {
            gets_in(lab, SECOND)
        })?;
        ensure!(!gets_in(lab, FIRST)?, "open again");
        wait::until_true("no receipt of the revoke", PATIENCE, || {
            let closed = |event: &serde_json::Value| event["kind"] == "grant.closed";
            Ok(lab.client().events()?.iter().any(closed))
        })?;

        // What the disk has now is enough.
        lab.control().end(Signal::SIGKILL)?;
        machine.end_agent(Signal::SIGKILL)?;
        machine.start_agent()?;
        ensure!(gets_in(lab, SECOND)? && !gets_in(lab, FIRST)?, "after a restart");
        machine.end_agent(Signal::SIGKILL)
    })
}

#[test]
fn while_nobody_takes_the_log_a_revoke_closes_all_the_same() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.client().add_address(&format!("{FIRST}/24"))?;
        let machine = lab.machine(1);
        machine.end_agent(Signal::SIGTERM)?;
        // A pipe whose reader reads nothing, as journald does when it hangs.
        let log = machine.agent_log();
        fs::rename(&log, log.with_extension("before")).context("setting the log aside")?;
        nix::unistd::mkfifo(&log, Mode::S_IRUSR | Mode::S_IWUSR).context("making a pipe")?;
        let mut pipe = fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&log)
            .context("opening the pipe")?;
        machine.start_agent()?;
        machine.wait_connected()?;
        while pipe.write(&[b'x'; 512]).is_ok() {}
        let source = ["--port", "22", "--from", FIRST, "--for", "1h"];
        let granted = lab.client().open("web-1", &source)?;
        ensure!(gets_in(lab, FIRST)?, "what was granted does not open");
        let outcome = lab.client().run(&["revoke", &granted, "--timeout", "5s"])?;
        ensure!(outcome.code == Some(0), "not acknowledged: {outcome}");
        ensure!(!gets_in(lab, FIRST)?, "the revoke waits for the log");

        // Once somebody reads, what was said meanwhile is there.
        let mut text = Vec::new();
        wait::until_true("the log is not written", PATIENCE, || {
            let mut part = [0; 4096];
            while let Ok(length) = pipe.read(&mut part) {
                text.extend_from_slice(&part[..length]);
            }
            Ok(String::from_utf8_lossy(&text).contains("closed"))
        })?;
        machine.end_agent(Signal::SIGTERM)
    })
}

fn gets_in(lab: &Lab, source: &str) -> Result<bool> {
    let source: IpAddr = source.parse()?;
    let to = SocketAddr::from((lab.machine(1).addresses().ipv4, 22));
    let answer = lab.client().knock(Some(source), to, GLANCE)?;
    Ok(matches!(answer, Answer::Connected(_)))
}

/// A file system of its own under a folder, with what was in it.
struct Disk {
    folder: PathBuf,
    /// Thaws and unmounts it when its input ends: also if the test is killed, so that nothing hangs for ever.
    keeper: Child,
}

impl Disk {
    fn under(folder: &Path) -> Result<Self> {
        let image = folder.with_extension("image");
        let before = folder.with_extension("before");
        fs::rename(folder, &before).context("setting the folder aside")?;
        fs::create_dir(folder).context("making a mount point")?;
        fs::File::create(&image)
            .and_then(|file| file.set_len(64 << 20))
            .context("making an image")?;
        run("mkfs.ext4", &["-q".as_ref(), image.as_ref()])?;
        run(
            "mount",
            &["-o".as_ref(), "loop".as_ref(), image.as_ref(), folder.as_ref()],
        )?;
        let script = "read -r _; fsfreeze -u \"$1\" 2>/dev/null; umount -l \"$1\"";
        let keeper = Command::new("setsid")
            .args(["sh", "-c", script, "sh"])
            .arg(folder)
            .stdin(Stdio::piped())
            .spawn()
            .context("starting the keeper")?;
        let disk = Self {
            folder: folder.to_owned(),
            keeper,
        };
        let all = before.join(".");
        run("cp", &["-a".as_ref(), all.as_ref(), folder.as_ref()])?;
        Ok(disk)
    }

    fn freeze(&self) -> Result<()> {
        run("fsfreeze", &["-f".as_ref(), self.folder.as_ref()])
    }

    fn thaw(&self) -> Result<()> {
        run("fsfreeze", &["-u".as_ref(), self.folder.as_ref()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().ok();
    }
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    wait::run(Command::new(program).args(arguments), PATIENCE)?
        .expect_success(program)
        .map(drop)
}
