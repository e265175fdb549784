//! One machine: sshd, the agent, and the namespace they live in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::lab::{Lab, with_log};
use crate::netns::Netns;
use crate::plan::{self, Addresses};
use crate::process::Process;
use crate::readiness::Readiness;
use crate::small_disk::{SmallDisk, on_small_disk};
use crate::wait::{self, Outcome};

const PATIENCE: Duration = Duration::from_secs(20);

/// The host's own limits are open, so that the policy alone decides.
pub const AGENT_TOML: &str = r#"guarded = []
udp_grace = "PT2S"

[ceiling]
ports = ["22/tcp", 3389, "5985-5986", "9000-9099"]
longest = "PT24H"
max_ahead = "PT24H"
widest_ipv4 = 0
widest_ipv6 = 0
"#;

/// The library that answers whoever asks for the time in place of the kernel.
fn faketime() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib").context("reading /usr/lib")?;
    let paths = folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let mut found = paths.filter(|path| path.exists());
    found.next().context("libfaketime is missing (Debian: faketime)")
}

/// A guarded machine.
#[derive(Clone, Copy)]
pub struct Machine<'l> {
    lab: &'l Lab,
    number: u16,
}

impl<'l> Machine<'l> {
    pub(crate) const fn of(lab: &'l Lab, number: u16) -> Self {
        Self { lab, number }
    }

    pub const fn number(self) -> u16 {
        self.number
    }

    pub fn name(self) -> String {
        plan::machine_name(self.number)
    }

    pub fn netns(self) -> Netns {
        self.lab.name().machine(self.number)
    }

    pub const fn addresses(self) -> Addresses {
        plan::machine_addresses(self.number)
    }

    pub fn dir(self) -> PathBuf {
        self.lab.dir().join(self.name())
    }

    pub fn config(self) -> PathBuf {
        self.dir().join("agent.toml")
    }

    pub fn state(self) -> PathBuf {
        self.dir().join("agent")
    }

    /// Beneath which break-glass is recorded.
    pub fn root(self) -> PathBuf {
        self.dir().join("root")
    }

    pub fn agent_log(self) -> PathBuf {
        self.dir().join("agent.log")
    }

    /// A command on the machine: in its namespace, with mounts of its own, under its host name.
    pub fn exec(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.netns().exec("unshare");
        command.args(["--uts", "sh", "-ec", "hostname \"$1\"; shift; exec \"$@\"", "sh"]);
        command.arg(self.name()).arg(program);
        command
    }

    pub fn run(self, program: &str, arguments: &[&str]) -> Result<Outcome> {
        wait::run(self.exec(program).args(arguments), PATIENCE)
    }

    /// `nightlatch-agent` with this machine's configuration and state.
    pub fn agent(self, arguments: &[&str]) -> Command {
        let mut command = self.exec(self.lab.binary("nightlatch-agent"));
        command.arg("--config").arg(self.config());
        command.arg("--state").arg(self.state());
        command.arg("--root").arg(self.root()).args(arguments);
        command
    }

    pub fn run_agent(self, arguments: &[&str]) -> Result<Outcome> {
        wait::run(&mut self.agent(arguments), PATIENCE)
    }

    /// Makes the files of sshd and the agent, and starts sshd.
    pub fn prepare(self) -> Result<()> {
        fs::create_dir_all(self.dir()).context("making a machine's folder")?;
        self.configure(AGENT_TOML)?;
        self.make_host_key()?;
        self.start_sshd()
    }

    /// Writes agent.toml; the agent reads it when it starts.
    pub fn configure(self, text: &str) -> Result<()> {
        fs::write(self.config(), text).context("writing agent.toml")
    }

    fn make_host_key(self) -> Result<()> {
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-C", ""])
            .arg("-f")
            .arg(self.dir().join("host_key"));
        wait::run(&mut keygen, PATIENCE)?
            .expect_success("ssh-keygen")
            .map(drop)
    }

    /// Its public key, as known_hosts wants it.
    pub(crate) fn host_key(self) -> Result<String> {
        let path = self.dir().join("host_key.pub");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    fn start_sshd(self) -> Result<()> {
        let dir = self.dir();
        let config = format!(
            "Port 22\nAddressFamily any\nHostKey {dir}/host_key\nPidFile none\nUsePAM no\nUseDNS no\n\
             StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nAuthorizedKeysFile {lab}/ssh_key.pub\nPrintMotd no\n\
             PrintLastLog no\nMaxStartups 500\nMaxSessions 100\nSubsystem sftp internal-sftp\n",
            dir = dir.display(),
            lab = self.lab.dir().display(),
        );
        fs::write(dir.join("sshd_config"), config).context("writing sshd_config")?;
        // Without PAM sshd refuses a locked root, as many machines have it.
        fs::write(dir.join("shadow"), "root:*:20000:0:99999:7:::\n").context("writing shadow")?;
        // sshd wants /run/sshd and writes to /var/log: mounts that only it sees keep the machine itself clean.
        let script = "mount -t tmpfs tmpfs /run; mkdir -m 0755 /run/sshd; mount -t tmpfs tmpfs /var/log; \
                      mount --bind \"$1/shadow\" /etc/shadow; exec /usr/sbin/sshd -D -e -f \"$1/sshd_config\"";
        let mut command = self.exec("sh");
        command.args(["-ec", script, "sh"]).arg(&dir);
        let log = dir.join("sshd.log");
        let process = Process::start(&command, &log, &dir.join("sshd.pid"))?;
        let listening = || {
            if !process.is_alive() {
                anyhow::bail!("sshd ended");
            }
            Ok(fs::read_to_string(&log)
                .unwrap_or_default()
                .contains("Server listening on :: port 22"))
        };
        let ready = wait::until_true("not listening on port 22", PATIENCE, listening);
        with_log(ready, &format!("sshd of {}", self.name()), &log)
    }

    /// Joins with a fresh token.
    pub fn enroll(self) -> Result<()> {
        let token = self.lab.control().token(&self.name())?;
        let outcome = self.run_agent(&["enroll", &token])?;
        outcome
            .expect_success(&format!("nightlatch-agent enroll on {}", self.name()))
            .map(drop)
    }

    /// Starts the agent and waits until it says that it is ready.
    pub fn start_agent(self) -> Result<Process> {
        self.start_agent_by(self.agent(&["run"]))
    }

    /// The same with its state on a disk of so many KiB, which goes with it.
    pub fn start_agent_on_small_disk(self, kib: u32) -> Result<SmallDisk> {
        let command = on_small_disk(&self.agent(&["run"]), &self.state(), kib);
        SmallDisk::of(self.start_agent_by(command)?, &self.state())
    }

    /// The same with a wall clock that is as far off as `off` says, in seconds (`+3600`), whenever that is written.
    /// The clocks that only go forward stay true.
    pub fn start_agent_by_false_clock(self, off: &Path) -> Result<Process> {
        let mut command = self.exec("env");
        command.arg(format!("LD_PRELOAD={}", faketime()?.display()));
        command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", off.display()));
        command.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
        command.arg(self.lab.binary("nightlatch-agent"));
        command.arg("--config").arg(self.config());
        command.arg("--state").arg(self.state()).arg("run");
        self.start_agent_by(command)
    }

    fn start_agent_by(self, mut command: Command) -> Result<Process> {
        let readiness = Readiness::expect_of(&mut command, &self.dir())?;
        let process = Process::start(&command, &self.agent_log(), &self.record())?;
        with_log(readiness.wait(process), &self.who(), &self.agent_log())?;
        Ok(process)
    }

    pub fn agent_process(self) -> Result<Process> {
        Process::recorded(&self.record())
            .with_context(|| format!("the agent of {} was never started", self.name()))
    }

    pub fn end_agent(self, signal: Signal) -> Result<()> {
        self.agent_process()?.end(signal)
    }

    /// Waits until the server has this machine connected.
    pub fn wait_connected(self) -> Result<()> {
        let name = self.name();
        let connected = wait::until_true("not connected to the server", Duration::from_secs(40), || {
            let machines = self.lab.client().machines()?;
            Ok(machines
                .iter()
                .any(|machine| machine["machine"] == name.as_str() && machine["state"] == "connected"))
        });
        with_log(connected, &self.who(), &self.agent_log())
    }

    fn who(self) -> String {
        format!("nightlatch-agent of {}", self.name())
    }

    fn record(self) -> PathBuf {
        self.dir().join("agent.pid")
    }
}
