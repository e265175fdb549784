//! Bringing a lab up and taking it down.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::control::Control;
use crate::env_file;
use crate::machine::Machine;
use crate::netns::{self, Netns, ip_batch};
use crate::plan::{Addresses, CLIENT, CONTROL, LabName, MOST_MACHINES, NEIGHBOURS, machine_addresses};
use crate::process::Process;
use crate::wait;

/// What every machine of a lab lets people ask for.
pub const POLICY: &str = "22/tcp,max=PT3H";

/// How far machines come by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// sshd runs; no agent.
    Bare,
    /// The agent is enrolled and connected; nothing is guarded.
    Enrolled,
    /// The policy is in force: port 22 is shut.
    Guarded,
}

/// What is wanted of a lab.
pub struct Wish {
    pub name: LabName,
    pub machines: u16,
    /// The folder with the binaries.
    pub binaries: PathBuf,
    pub stage: Stage,
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    about: About,
}

/// What a lab notes about itself, for whoever comes later.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    machines: u16,
    binaries: PathBuf,
    /// Whether it came up whole.
    complete: bool,
}

impl Lab {
    /// Brings a lab up, telling `progress` what it does. One that fails is left as it is, logs included, until
    /// the next `up` or `down`.
    pub fn up(wish: Wish, mut progress: impl FnMut(&str)) -> Result<Self> {
        let Wish {
            name,
            machines,
            binaries,
            stage,
        } = wish;
        ensure!(
            (1..=MOST_MACHINES).contains(&machines),
            "{machines} machines were asked for: a lab has 1 to {MOST_MACHINES}"
        );
        for binary in ["nightlatch", "nightlatch-server", "nightlatch-agent"] {
            let path = binaries.join(binary);
            ensure!(
                path.is_file(),
                "{} is missing: `make build` makes it",
                path.display()
            );
        }
        if Self::open(&name).is_ok() {
            bail!(
                "the lab {name} is up already: `make lab-down LAB={name}` ends it, LAB=NAME makes another one"
            );
        }
        Self::down(&name)?;

        let about = About {
            machines,
            binaries,
            complete: false,
        };
        let mut lab = Self { name, about };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(lab.dir())
            .with_context(|| format!("making {}", lab.dir().display()))?;
        lab.note()?;
        progress(&format!(
            "network: {machines} machine(s), {} and {}",
            NEIGHBOURS[0], NEIGHBOURS[1]
        ));
        lab.make_network()?;
        lab.machines()
            .try_for_each(|machine| lab.client().wait_path(None, machine.addresses()))?;
        progress("sshd on each machine");
        lab.make_login_key()?;
        lab.machines().try_for_each(Machine::prepare)?;
        lab.write_ssh_files()?;
        progress(&format!("server at {}", lab.control().url()));
        lab.control().init()?;
        lab.control().start()?;
        if stage >= Stage::Enrolled {
            for machine in lab.machines() {
                progress(&format!("{}: enrol, start the agent", machine.name()));
                machine.enroll()?;
                machine.start_agent()?;
            }
            lab.machines().try_for_each(Machine::wait_connected)?;
        }
        if stage >= Stage::Guarded {
            progress(&format!("policy {POLICY}"));
            lab.machines()
                .try_for_each(|machine| lab.guard(machine, &[POLICY]))?;
        }
        lab.about.complete = true;
        lab.note()?;
        Ok(lab)
    }

    /// A lab that someone brought up before.
    pub fn open(name: &LabName) -> Result<Self> {
        let path = name.dir().join("lab.json");
        let text = fs::read_to_string(&path).with_context(|| format!("there is no lab {name}"))?;
        let about: About =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        ensure!(
            about.complete,
            "the lab {name} did not come up whole: `make lab-down LAB={name}` removes it"
        );
        ensure!(
            name.control().exists(),
            "the lab {name} is gone: `make lab-down LAB={name}` removes its files"
        );
        Ok(Self {
            name: name.clone(),
            about,
        })
    }

    /// Ends everything that lives in the lab's namespaces, then removes them, the file that describes it and its
    /// folder. Does no harm where nothing is left to remove.
    pub fn down(name: &LabName) -> Result<()> {
        let own: Vec<Netns> = netns::all()
            .into_iter()
            .filter(|netns| name.owns(netns))
            .collect();
        let processes = || -> Result<Vec<Process>> {
            let mut found = recorded_processes(&name.dir());
            // A guest lives in namespaces of its own, and outlives what started it.
            let started = found.iter().filter(|process| process.is_alive());
            let descendants: Vec<Process> = started.flat_map(|process| process.descendants()).collect();
            found.extend(descendants);
            for netns in &own {
                found.extend(netns.pids()?.into_iter().filter_map(Process::running));
            }
            Ok(found.into_iter().filter(|process| process.is_alive()).collect())
        };
        wait::until_true(
            &format!("processes of the lab {name} still live"),
            Duration::from_secs(20),
            || {
                let living = processes()?;
                living.iter().for_each(|process| process.signal(Signal::SIGKILL));
                Ok(living.is_empty())
            },
        )?;
        let deletions: Vec<String> = own
            .iter()
            .map(|netns| format!("netns del {}", netns.name()))
            .collect();
        ip_batch(None, &deletions)?;
        let dir = name.dir();
        env_file::remove(&dir)?;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", dir.display()))
            }
            _ => Ok(()),
        }
    }

    pub const fn name(&self) -> &LabName {
        &self.name
    }

    pub fn dir(&self) -> PathBuf {
        self.name.dir()
    }

    pub fn binaries(&self) -> &Path {
        &self.about.binaries
    }

    pub fn binary(&self, name: &str) -> PathBuf {
        self.about.binaries.join(name)
    }

    /// The key that logs in as root on every machine.
    pub fn login_key(&self) -> PathBuf {
        self.dir().join("ssh_key")
    }

    pub const fn control(&self) -> Control<'_> {
        Control::of(self)
    }

    pub const fn client(&self) -> Client<'_> {
        Client::of(self)
    }

    pub fn machines(&self) -> impl Iterator<Item = Machine<'_>> {
        (1..=self.about.machines).map(|number| Machine::of(self, number))
    }

    /// The machine of that number, counted from 1.
    pub const fn machine(&self, number: u16) -> Machine<'_> {
        Machine::of(self, number)
    }

    /// Sets a machine's policy by the command line, and waits until the host guards its ports.
    pub fn guard(&self, machine: Machine<'_>, rules: &[&str]) -> Result<()> {
        let name = machine.name();
        let mut arguments = vec!["policy", "set", &name];
        arguments.extend(rules.iter().flat_map(|rule| ["--port", rule]));
        self.client()
            .run(&arguments)?
            .expect_success(&format!("nightlatch {}", arguments.join(" ")))?;
        let table = || {
            Ok(machine
                .run("nft", &["list", "table", "inet", "nightlatch"])?
                .succeeded())
        };
        let guarding = wait::until_true("no table of its own", Duration::from_secs(20), table);
        with_log(
            guarding,
            &format!("nightlatch-agent of {name}"),
            &machine.agent_log(),
        )
    }

    fn note(&self) -> Result<()> {
        let text = serde_json::to_string(&self.about).context("writing JSON")?;
        fs::write(self.dir().join("lab.json"), text).context("writing lab.json")
    }

    fn hosts(&self) -> Vec<(Netns, Addresses)> {
        let machines = self
            .machines()
            .map(|machine| (machine.netns(), machine_addresses(machine.number())));
        let people = [(self.name.control(), CONTROL), (self.name.client(), CLIENT)];
        people.into_iter().chain(machines).collect()
    }

    fn make_network(&self) -> Result<()> {
        let bridge = self.name.bridge();
        let hosts = self.hosts();
        let add = |netns: &Netns| format!("netns add {}", netns.name());
        let mut namespaces = vec![add(&bridge)];
        namespaces.extend(hosts.iter().map(|(netns, _)| add(netns)));
        ip_batch(None, &namespaces).context("making network namespaces")?;

        let mut links = vec![
            "link add br0 type bridge mcast_snooping 0".to_owned(),
            "link set br0 up".to_owned(),
        ];
        for (position, (netns, _)) in hosts.iter().enumerate() {
            links.push(format!(
                "link add p{position} type veth peer name eth0 netns {}",
                netns.name()
            ));
            links.push(format!("link set p{position} master br0 up"));
        }
        ip_batch(Some(&bridge), &links).context("making the bridge")?;
        for (netns, addresses) in &hosts {
            let mut lines = vec![
                "link set lo up".to_owned(),
                "link set eth0 up".to_owned(),
                format!("addr add {}/24 dev eth0", addresses.ipv4),
                format!("addr add {}/64 dev eth0 nodad", addresses.ipv6),
            ];
            let further = NEIGHBOURS.iter().skip(2);
            lines.extend(further.map(|network| format!("route add {network} dev eth0")));
            ip_batch(Some(netns), &lines).with_context(|| format!("setting up {}", netns.name()))?;
        }
        Ok(())
    }

    fn make_login_key(&self) -> Result<()> {
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab"])
            .arg("-f")
            .arg(self.login_key());
        wait::run(&mut keygen, Duration::from_secs(20))?
            .expect_success("ssh-keygen")
            .map(drop)
    }

    /// Host keys, ssh_config and hosts, so that `ssh web-1` means the same as on a configured machine.
    fn write_ssh_files(&self) -> Result<()> {
        let dir = self.dir();
        let mut known_hosts = String::new();
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        let mut config = String::new();
        for machine in self.machines() {
            let (name, Addresses { ipv4, ipv6 }) = (machine.name(), machine.addresses());
            known_hosts += &format!("{name},{ipv4},{ipv6} {}", machine.host_key()?);
            hosts += &format!("{ipv4} {name}\n{ipv6} {name}\n");
            config += &format!("Host {name}\n  HostName {ipv4}\n");
        }
        config += &format!(
            "Host *\n  User root\n  IdentityFile {dir}/ssh_key\n  IdentitiesOnly yes\n  BatchMode yes\n  \
             UserKnownHostsFile {dir}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  \
             ConnectTimeout 3\n  LogLevel ERROR\n",
            dir = dir.display()
        );
        for (name, text) in [
            ("known_hosts", known_hosts),
            ("hosts", hosts),
            ("ssh_config", config),
        ] {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).context("setting permissions")?;
        }
        Ok(())
    }
}

/// All that were started for a lab, by the notes in its folder.
fn recorded_processes(dir: &Path) -> Vec<Process> {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
        .filter_map(|path| Process::recorded(&path))
        .collect()
}

/// Lets an error say which log to read, and how it ends.
pub(crate) fn with_log<T>(result: Result<T>, who: &str, log: &Path) -> Result<T> {
    result.map_err(|error| {
        anyhow!(
            "{who}: {error:#}\nread {}, which ends with\n{}",
            log.display(),
            tail(log)
        )
    })
}

/// The last lines of a file, indented.
pub(crate) fn tail(file: &Path) -> String {
    const LINES: usize = 20;
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    last.iter().map(|line| format!("    {line}\n")).collect()
}
