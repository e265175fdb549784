//! Two hosts on a cable: a user and a machine, each a network namespace.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nightlatch_bench::probe::Doorkeeper;
use nightlatch_tests::lab::Lab;
use nightlatch_tests::netns::{self, Netns, ip_batch};
use nightlatch_tests::plan::LabName;
use nightlatch_tests::process::Process;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;

pub(crate) const USER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a peer is examined.
pub(crate) struct Place {
    pub(crate) user: Netns,
    pub(crate) machine: Netns,
    pub(crate) door: SocketAddrV4,
    /// For configuration, state and logs.
    pub(crate) dir: PathBuf,
    pub(crate) daemons: Vec<Process>,
    doorkeeper: Option<Doorkeeper>,
}

impl Place {
    /// A fresh one; whatever was there before is gone.
    pub(crate) fn make() -> Result<Self> {
        remove_all();
        let (user, machine) = (Netns::named(own("user")), Netns::named(own("machine")));
        let dir = dir();
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let hosts = [&user, &machine].map(|netns| format!("netns add {}", netns.name()));
        ip_batch(None, &hosts)?;
        let cable = format!("link add eth0 type veth peer name eth0 netns {}", machine.name());
        ip_batch(Some(&user), &[cable])?;
        for (netns, address) in [(&user, USER), (&machine, MACHINE)] {
            let up = ["link set lo up".to_owned(), "link set eth0 up".to_owned()];
            let address = format!("addr add {address}/24 dev eth0");
            ip_batch(Some(netns), &[up.as_slice(), &[address]].concat())?;
        }
        let door = SocketAddrV4::new(MACHINE, 22);
        let mut place = Self {
            user,
            machine,
            door,
            dir,
            daemons: Vec::new(),
            doorkeeper: None,
        };
        place.widen()?;
        Ok(place)
    }

    /// The hosts of a lab that is up.
    pub(crate) fn in_lab(lab: &Lab, door: SocketAddrV4) -> Result<Self> {
        let mut place = Self {
            user: lab.client().netns(),
            machine: lab.machine(1).netns(),
            door,
            dir: lab.dir(),
            daemons: Vec::new(),
            doorkeeper: None,
        };
        place.widen()?;
        Ok(place)
    }

    /// All of the network for benchmarks (RFC 2544) is the user's, and somebody answers at the door.
    fn widen(&mut self) -> Result<()> {
        ip_batch(
            Some(&self.user),
            &["route add local 198.18.0.0/15 dev lo".to_owned()],
        )?;
        ip_batch(
            Some(&self.machine),
            &[format!("route add 198.18.0.0/15 via {USER}")],
        )?;
        self.doorkeeper = Some(Doorkeeper::answer(&self.machine, self.door)?);
        Ok(())
    }

    /// From now on clients that don't choose an address come from this one.
    pub(crate) fn speak_from(&self, source: Ipv4Addr) -> Result<()> {
        let way = format!("route replace {MACHINE}/32 dev eth0 src {source}");
        ip_batch(Some(&self.user), &[way])
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Runs a command on the machine, which must succeed.
    pub(crate) fn on_machine(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.machine.exec(program);
        wait::run(command.args(arguments), PATIENCE)?.expect_success(&format!("{program} {arguments:?}"))
    }

    /// Starts a daemon on the machine: a shell script that ends in `exec`, with mounts of its own.
    pub(crate) fn start_daemon(&mut self, name: &str, script: &str) -> Result<()> {
        let mut command = self.machine.exec("sh");
        command.args(["-ec", script, "sh"]).arg(&self.dir);
        let log = self.dir.join(format!("{name}.log"));
        let record = self.dir.join(format!("{name}.pid"));
        self.daemons.push(Process::start(&command, &log, &record)?);
        Ok(())
    }

    /// Ends them as a crash does.
    pub(crate) fn kill_daemons(&mut self) -> Result<()> {
        self.daemons
            .drain(..)
            .try_for_each(|daemon| daemon.end(Signal::SIGKILL))
    }

    pub(crate) fn flush_ruleset(&self) -> Result<()> {
        self.on_machine("nft", &["flush", "ruleset"]).map(drop)
    }
}

/// A command as it will run: no input, its output away.
pub(crate) fn quiet(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Whatever this process made, labs included.
pub(crate) fn remove_all() {
    for part in ["user", "machine"] {
        let netns = Netns::named(own(part));
        for pid in netns.pids().unwrap_or_default() {
            // This process visits namespaces, on threads of its own.
            if let Some(process) = Process::running(pid)
                && pid.unsigned_abs() != std::process::id()
            {
                process.end(Signal::SIGKILL).ok();
            }
        }
        if netns::all().contains(&netns) {
            ip_batch(None, &[format!("netns del {}", netns.name())]).ok();
        }
    }
    fs::remove_dir_all(dir()).ok();
    Lab::down(&lab_name()).ok();
}

pub(crate) fn lab_name() -> LabName {
    LabName::of_test(std::process::id(), 1)
}

fn own(part: &str) -> String {
    format!("nlpeer-{}-{part}", std::process::id())
}

fn dir() -> PathBuf {
    std::env::temp_dir().join(own("files"))
}
