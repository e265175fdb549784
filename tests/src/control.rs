//! The host of the control server.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::lab::{Lab, with_log};
use crate::netns::Netns;
use crate::plan::{CONTROL, PEOPLE_PORT};
use crate::process::Process;
use crate::readiness::Readiness;
use crate::small_disk::{SmallDisk, on_small_disk};
use crate::wait::{self, Outcome};

const PATIENCE: Duration = Duration::from_secs(20);

/// The control server and its host.
#[derive(Clone, Copy)]
pub struct Control<'l> {
    lab: &'l Lab,
}

impl<'l> Control<'l> {
    pub(crate) const fn of(lab: &'l Lab) -> Self {
        Self { lab }
    }

    pub fn netns(self) -> Netns {
        self.lab.name().control()
    }

    pub fn dir(self) -> PathBuf {
        self.lab.dir().join("control")
    }

    pub fn state(self) -> PathBuf {
        self.dir().join("state")
    }

    pub fn log(self) -> PathBuf {
        self.dir().join("server.log")
    }

    /// What people and programs connect to.
    pub fn url(self) -> String {
        format!("https://{}", SocketAddr::from((CONTROL.ipv4, PEOPLE_PORT)))
    }

    /// `nightlatch-server` with the lab's configuration and state.
    pub fn server(self, arguments: &[&str]) -> Command {
        let mut command = self.netns().exec(self.lab.binary("nightlatch-server"));
        command.arg("--config").arg(self.config());
        command.arg("--state").arg(self.state()).args(arguments);
        command
    }

    pub fn run(self, arguments: &[&str]) -> Result<Outcome> {
        wait::run(&mut self.server(arguments), PATIENCE)
    }

    pub fn init(self) -> Result<()> {
        fs::create_dir_all(self.dir()).context("making the server's folder")?;
        fs::write(
            self.config(),
            // One person asks for as many grants as a machine takes.
            "listen = \"[::]:7443\"\nlisten_agents = \"[::]:7444\"\nlimits = { grants_per_caller_and_machine = 20000, grants_per_machine = 20000 }\n",
        )
        .context("writing server.toml")?;
        let [ipv4, ipv6] = [CONTROL.ipv4.to_string(), CONTROL.ipv6.to_string()];
        let outcome = self.run(&["init", "--name", &ipv4, "--name", &ipv6])?;
        outcome.expect_success("nightlatch-server init").map(drop)
    }

    pub fn start(self) -> Result<Process> {
        self.start_by(self.server(&["run"]))
    }

    /// The same with its state on a disk of so many KiB, which goes with it.
    pub fn start_on_small_disk(self, kib: u32) -> Result<SmallDisk> {
        let command = on_small_disk(&self.server(&["run"]), &self.state(), kib);
        SmallDisk::of(self.start_by(command)?, &self.state())
    }

    fn start_by(self, mut command: Command) -> Result<Process> {
        let readiness = Readiness::expect_of(&mut command, &self.dir())?;
        let process = Process::start(&command, &self.log(), &self.record())?;
        with_log(readiness.wait(process), "nightlatch-server", &self.log())?;
        Ok(process)
    }

    pub fn process(self) -> Result<Process> {
        Process::recorded(&self.record()).context("the server was never started")
    }

    pub fn end(self, signal: Signal) -> Result<()> {
        self.process()?.end(signal)
    }

    /// A token that lets one machine join.
    pub fn token(self, machine: &str) -> Result<String> {
        let outcome = self.run(&["token", "create", "--machine", machine])?;
        let token = outcome.expect_success("nightlatch-server token create")?;
        Ok(token.trim().to_owned())
    }

    fn config(self) -> PathBuf {
        self.dir().join("server.toml")
    }

    fn record(self) -> PathBuf {
        self.dir().join("server.pid")
    }
}
