//! A machine's console: where root breaks the glass, and what is heard of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::doors::Doors;
use crate::machine::Machine;
use crate::wait::{self, Outcome};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Console<'l> {
    machine: Machine<'l>,
    journal: UnixDatagram,
}

impl<'l> Console<'l> {
    /// With a journal of the machine's own, and a `wall` that writes into a file.
    pub fn of(machine: Machine<'l>) -> Result<Self> {
        let dev = machine.root().join("dev");
        fs::create_dir_all(&dev).context("making the machine's /dev")?;
        let journal = UnixDatagram::bind(dev.join("log")).context("listening as a journal")?;
        journal.set_nonblocking(true)?;
        let console = Self { machine, journal };
        fs::create_dir_all(console.programs())?;
        let wall = console.programs().join("wall");
        let script = format!("#!/bin/sh\ncat >>{}\n", console.terminal().display());
        fs::write(&wall, script).context("writing a wall")?;
        fs::set_permissions(&wall, fs::Permissions::from_mode(0o755))?;
        Ok(console)
    }

    /// From now on with a `wall` that fails, and a terminal of the machine's own, which is given.
    pub fn without_wall(&self) -> Result<PathBuf> {
        fs::write(self.programs().join("wall"), "#!/bin/sh\nexit 1\n").context("writing a wall")?;
        let terminal = self.machine.root().join("dev/console");
        fs::write(&terminal, "").context("making a terminal")?;
        Ok(terminal)
    }

    fn programs(&self) -> PathBuf {
        self.machine.dir().join("programs")
    }

    fn terminal(&self) -> PathBuf {
        self.machine.dir().join("terminal")
    }

    /// Where an agent finds what root has opened.
    pub fn live(&self) -> PathBuf {
        self.machine.root().join("run/nightlatch-break-glass")
    }

    pub fn lasting(&self) -> PathBuf {
        self.machine.root().join("var/lib/nightlatch-break-glass")
    }

    /// The records in a folder.
    pub fn records(folder: &PathBuf) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            paths.push(entry?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
        Ok(paths)
    }

    /// Opens port 22 to the source of one of the doors.
    pub fn open(&self, door: u8, length: &str) -> Result<String> {
        let source = Doors::source(door);
        let outcome = self.run(&["--port", "22", "--from", &source, "--for", length])?;
        outcome.expect_success("break-glass")
    }

    /// `nightlatch-agent break-glass` with a reason.
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        wait::run(&mut self.command(arguments), PATIENCE)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let reason = ["break-glass", "--reason", "the server burns"];
        let mut command = self.machine.agent(&[&reason[..], arguments].concat());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.programs().display()));
        command
    }

    /// What every terminal was told.
    pub fn told(&self) -> String {
        fs::read_to_string(self.terminal()).unwrap_or_default()
    }

    /// The next message in the journal.
    pub fn journal(&self) -> Result<String> {
        let mut buffer = [0; 8192];
        let length = self
            .journal
            .recv(&mut buffer)
            .context("the journal was told nothing")?;
        let bytes = buffer.get(..length).unwrap_or_default();
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}
