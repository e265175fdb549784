//! Hosts on cables: a user, a machine, and one without any rules, each a network namespace.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_bench::doors::{self, Door, Passage};
use nightlatch_bench::keeper;
use nightlatch_bench::probe::Doorkeeper;
use nightlatch_tests::lab::Lab;
use nightlatch_tests::netns::{self as namespaces, Netns, ip_batch};
use nightlatch_tests::plan::LabName;
use nightlatch_tests::process::Process;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;

use crate::peer::{At, netns};

pub(crate) const USER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// The other cable.
const USER_THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const FREE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// A port that nobody guards, on the machine as on the host without rules.
pub(crate) const UNGUARDED: u16 = 9200;
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a peer is examined.
pub(crate) struct Place {
    pub(crate) user: Netns,
    pub(crate) machine: Netns,
    /// Has no rules at all.
    free: Netns,
    pub(crate) door: SocketAddrV4,
    unguarded: SocketAddrV4,
    without_rules: SocketAddrV4,
    /// For configuration, state and logs.
    pub(crate) dir: PathBuf,
    pub(crate) daemons: Vec<Process>,
    doorkeeper: Option<Doorkeeper>,
}

impl Place {
    /// A fresh one; whatever was there before is gone.
    pub(crate) fn make() -> Result<Self> {
        remove_all();
        keeper::go_on()?;
        let [user, machine, free] = PARTS.map(|part| Netns::named(own(part)));
        let dir = dir();
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let hosts = [&user, &machine, &free].map(|netns| format!("netns add {}", netns.name()));
        ip_batch(None, &hosts)?;
        let cables = [("eth0", &machine), ("eth1", &free)]
            .map(|(end, other)| format!("link add {end} type veth peer name eth0 netns {}", other.name()));
        ip_batch(Some(&user), &cables)?;
        for (netns, device, address) in [
            (&user, "eth0", USER),
            (&machine, "eth0", MACHINE),
            (&user, "eth1", USER_THERE),
            (&free, "eth0", FREE),
        ] {
            let lines = [
                "link set lo up".to_owned(),
                format!("link set {device} up"),
                format!("addr add {address}/24 dev {device}"),
            ];
            ip_batch(Some(netns), &lines)?;
        }
        let mut place = Self {
            user,
            machine,
            free,
            door: SocketAddrV4::new(MACHINE, 22),
            unguarded: SocketAddrV4::new(MACHINE, UNGUARDED),
            without_rules: SocketAddrV4::new(FREE, UNGUARDED),
            dir,
            daemons: Vec::new(),
            doorkeeper: None,
        };
        place.widen(USER_THERE)?;
        Ok(place)
    }

    /// The hosts of a lab of two machines that is up; the second has no policy, so no rules.
    pub(crate) fn in_lab(lab: &Lab, port: u16) -> Result<Self> {
        let at = |number, port| SocketAddrV4::new(lab.machine(number).addresses().ipv4, port);
        let mut place = Self {
            user: lab.client().netns(),
            machine: lab.machine(1).netns(),
            free: lab.machine(2).netns(),
            door: at(1, port),
            unguarded: at(1, UNGUARDED),
            without_rules: at(2, UNGUARDED),
            dir: lab.dir(),
            daemons: Vec::new(),
            doorkeeper: None,
        };
        place.widen(USER)?;
        Ok(place)
    }

    /// All of the network for benchmarks (RFC 2544) is the user's, and somebody answers at the door.
    fn widen(&mut self, user_for_free: Ipv4Addr) -> Result<()> {
        ip_batch(
            Some(&self.user),
            &["route add local 198.18.0.0/15 dev lo".to_owned()],
        )?;
        for (host, user) in [(&self.machine, USER), (&self.free, user_for_free)] {
            ip_batch(Some(host), &[format!("route add 198.18.0.0/15 via {user}")])?;
        }
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

    /// Runs a client that lets many in, at most until then. Being too slow is no error: what is open will be counted.
    pub(crate) fn run_until(&self, at: At, mut client: Command, deadline: Instant) -> Result<Duration> {
        netns(self, at).inside(|| {
            let mut running = client.spawn().context("starting the client")?;
            loop {
                if let Some(status) = running.try_wait().context("waiting for the client")? {
                    ensure!(status.success(), "the client ended with {status}");
                    break;
                }
                if Instant::now() >= deadline {
                    running.kill().context("ending the client")?;
                    running.wait().context("waiting for the client")?;
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(Duration::ZERO)
        })
    }

    /// What connecting costs without rules, to an unguarded port and to the guarded one, which is open for `source`.
    pub(crate) fn passages(
        &mut self,
        source: Ipv4Addr,
        rounds: usize,
        connects: usize,
    ) -> Result<[Passage; 3]> {
        // Nobody is to wake up behind the door while its connects are timed.
        drop(self.doorkeeper.take());
        let without_rules = Door::open(&self.free, self.without_rules)?;
        let unguarded = Door::open(&self.machine, self.unguarded)?;
        let guarded = Door::open(&self.machine, self.door)?;
        let doors = [&without_rules, &unguarded, &guarded];
        let passages = self
            .user
            .inside(|| doors::compare(doors, source, rounds, connects))?;
        drop(guarded);
        self.doorkeeper = Some(Doorkeeper::answer(&self.machine, self.door)?);
        Ok(passages)
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

const PARTS: [&str; 3] = ["user", "machine", "free"];
const PREFIX: &str = "nlpeer-";

/// Whatever this process made, labs included.
pub(crate) fn remove_all() {
    remove(std::process::id());
    Lab::down(&lab_name()).ok();
}

/// What runs of this program left behind that were killed.
pub(crate) fn sweep() {
    let temporary = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let files = temporary.filter_map(|file| file.file_name().into_string().ok());
    let hosts = namespaces::all().into_iter().map(|netns| netns.name().to_owned());
    for name in hosts.chain(files) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        if let Some(pid) = pid.and_then(|(pid, _)| pid.parse().ok())
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            remove(pid);
        }
    }
}

fn remove(owner: u32) {
    for part in PARTS {
        let netns = Netns::named(own_of(owner, part));
        // A peer may have forked thousands: all get their signal before any is waited for.
        let all_gone = || {
            let pids = netns.pids()?.into_iter();
            // This process visits namespaces, on threads of its own.
            let others = pids.filter(|pid| pid.unsigned_abs() != std::process::id());
            let living: Vec<Process> = others.filter_map(Process::running).collect();
            living.iter().for_each(|process| process.signal(Signal::SIGKILL));
            Ok(living.is_empty())
        };
        wait::until_true("processes still live", PATIENCE, all_gone).ok();
        if namespaces::all().contains(&netns) {
            ip_batch(None, &[format!("netns del {}", netns.name())]).ok();
        }
    }
    fs::remove_dir_all(std::env::temp_dir().join(own_of(owner, "files"))).ok();
}

pub(crate) fn lab_name() -> LabName {
    LabName::of_test(std::process::id(), 1)
}

fn own(part: &str) -> String {
    own_of(std::process::id(), part)
}

fn own_of(owner: u32, part: &str) -> String {
    format!("{PREFIX}{owner}-{part}")
}

fn dir() -> PathBuf {
    std::env::temp_dir().join(own("files"))
}
