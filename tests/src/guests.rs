//! Booted machines: systemd guests on one bridge, for what packages, units and a boot do.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::lab::{Lab, tail};
use crate::netns::{Netns, ip_batch};
use crate::plan::{LabName, binaries_beside};
use crate::process::Process;
use crate::session::Session;
use crate::wait::{self, Outcome};

const PATIENCE: Duration = Duration::from_secs(60);
const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// Making a root unpacks some hundred packages.
const ROOT_PATIENCE: Duration = Duration::from_secs(900);
/// What a container of its own must not do: the clock, the modules and the log are this machine's.
const WITHHELD: &str = "-sys_time,-sys_module,-sys_rawio,-syslog,-wake_alarm,-mac_admin,-mac_override";

/// A Debian release to install on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    Bookworm,
    Trixie,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The root folder that guests of this release have beneath theirs; made once.
    fn root(self) -> Result<PathBuf> {
        let folder = target()?.join("guests");
        fs::create_dir_all(&folder).context("making the folder of the guests' roots")?;
        let root = folder.join(self.name());
        let mut make = Command::new("flock");
        make.arg(folder.join(format!("{}.lock", self.name())))
            .arg(source("root.sh"))
            .arg(self.name())
            .arg(&root);
        wait::run(&mut make, ROOT_PATIENCE)?.expect_success("making a guest's root")?;
        Ok(root)
    }
}

/// The packages that `make test-packages` built.
pub fn packages() -> Result<PathBuf> {
    let folder = target()?.join("ci/packages");
    let beside = binaries_beside(&std::env::current_exe()?).map(|folder| folder.join("packages"));
    let folder = beside.unwrap_or(folder);
    ensure!(
        folder.join("upgrade").is_dir(),
        "there are no packages in {}: run `make test-packages` first",
        folder.display()
    );
    Ok(folder)
}

fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the test's own path")?;
    let binaries = binaries_beside(&own).context("the binaries are not built: run `make build`")?;
    binaries
        .parent()
        .map(Path::to_path_buf)
        .context("no target folder")
}

fn source(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guests")).join(name)
}

/// A bridge with guests, and this side of it. Everything goes when it is dropped.
pub struct Site {
    name: LabName,
}

impl Site {
    /// `addresses` are those that this side has on the bridge.
    pub fn open(addresses: &[IpAddr]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1001);
        let name = LabName::of_test(std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let site = Self { name };
        fs::create_dir_all(site.dir()).context("making the guests' folder")?;
        let netns = site.netns();
        ip_batch(None, &[format!("netns add {}", netns.name())])?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link add bridge type bridge".to_owned(),
            "link set bridge up".to_owned(),
        ];
        lines.extend(addresses.iter().map(|address| match address {
            IpAddr::V4(address) => format!("addr add {address}/24 dev bridge"),
            IpAddr::V6(address) => format!("addr add {address}/64 dev bridge nodad"),
        }));
        ip_batch(Some(&netns), &lines)?;
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(site.key());
        wait::run(&mut keygen, PATIENCE)?.expect_success("ssh-keygen")?;
        Ok(site)
    }

    pub fn netns(&self) -> Netns {
        self.name.bridge()
    }

    fn dir(&self) -> PathBuf {
        self.name.dir()
    }

    /// Logs in as root on every guest.
    fn key(&self) -> PathBuf {
        self.dir().join("ssh_key")
    }

    /// Boots a new guest and waits until it is up.
    pub fn boot(&self, suite: Suite, name: &str, address: Ipv4Addr) -> Result<Guest<'_>> {
        let guest = Guest {
            site: self,
            name: name.to_owned(),
            address,
            base: suite.root()?,
        };
        guest.prepare()?;
        guest.start()?;
        guest.remember_hardware_address()?;
        Ok(guest)
    }

    /// `ssh` as root from one of this side's addresses.
    pub fn ssh(&self, from: Ipv4Addr, to: Ipv4Addr) -> Command {
        let mut command = self.netns().exec("ssh");
        command.args(["-F", "none", "-q", "-T", "-i"]).arg(self.key());
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ConnectTimeout=5",
            "ServerAliveInterval=0",
        ] {
            command.args(["-o", option]);
        }
        command.args(["-b", &from.to_string(), &format!("root@{to}")]);
        command
    }

    /// A session that stays.
    pub fn session(&self, from: Ipv4Addr, to: Ipv4Addr) -> Result<Session> {
        let mut command = self.ssh(from, to);
        command.arg("sh");
        Session::open(command)
    }
}

impl Drop for Site {
    #[expect(clippy::print_stderr, reason = "what stays behind should be known")]
    fn drop(&mut self) {
        if let Err(error) = Lab::down(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// The IPv6 address of whoever has that one.
pub const fn ipv6_beside(address: Ipv4Addr) -> Ipv6Addr {
    let [.., last] = address.octets();
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last as u16)
}

/// Whether units fail during a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    No,
    Expected,
}

/// One booted machine.
pub struct Guest<'s> {
    site: &'s Site,
    name: String,
    address: Ipv4Addr,
    base: PathBuf,
}

impl Guest<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn dir(&self) -> PathBuf {
        self.site.dir().join(&self.name)
    }

    fn console(&self) -> PathBuf {
        self.dir().join("console.log")
    }

    fn record(&self) -> PathBuf {
        self.dir().join("guest.pid")
    }

    fn prepare(&self) -> Result<()> {
        let upper = self.dir().join("upper");
        for folder in [
            "work",
            "root",
            "upper/etc/systemd/network",
            "upper/root/.ssh",
            "upper/etc/ssh",
        ] {
            fs::create_dir_all(self.dir().join(folder)).context("making a guest's folder")?;
        }
        fs::set_permissions(upper.join("root"), fs::Permissions::from_mode(0o700))?;
        let network = format!(
            "[Match]\nName=host0\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n[Address]\nAddress={}/24\n\
             [Address]\nAddress={}/64\nDuplicateAddressDetection=none\n",
            self.address,
            ipv6_beside(self.address)
        );
        fs::write(upper.join("etc/systemd/network/10-guest.network"), network)?;
        fs::create_dir_all(upper.join("etc/ssh/sshd_config.d"))?;
        fs::write(
            upper.join("etc/ssh/sshd_config.d/guest.conf"),
            "MaxStartups 1000\n",
        )?;
        fs::write(upper.join("etc/hostname"), format!("{}\n", self.name))?;
        fs::copy(
            self.site.key().with_extension("pub"),
            upper.join("root/.ssh/authorized_keys"),
        )?;
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(upper.join("etc/ssh/ssh_host_ed25519_key"));
        wait::run(&mut keygen, PATIENCE)?
            .expect_success("ssh-keygen")
            .map(drop)
    }

    /// Starts it and waits until it is up.
    pub fn start(&self) -> Result<()> {
        let mut command = self.site.netns().exec(source("boot.sh"));
        // The leading part keeps the names of the interfaces on the bridge apart.
        let machine = format!("{}-{}", self.name, self.site.name);
        command.arg(self.dir()).arg(&self.base).arg(machine);
        Process::start(&command, &self.console(), &self.record())?;
        self.wait_up(None, Failures::No)
    }

    /// The guest's init; `None` while there is none.
    fn init(&self) -> Option<i32> {
        let boot = Process::recorded(&self.record()).filter(|boot| boot.is_alive())?;
        let nspawn = child_of(boot.pid(), Some("systemd-nspawn"))?;
        child_of(nspawn, None)
    }

    /// The same as a process of this machine, to tell whether it still lives.
    pub fn init_process(&self) -> Option<Process> {
        self.init().and_then(Process::running)
    }

    fn wait_up(&self, before: Option<i32>, failures: Failures) -> Result<()> {
        let up = wait::until_true("it is not up", BOOT_PATIENCE, || {
            let Some(boot) = Process::recorded(&self.record()) else {
                bail!("it was never started");
            };
            ensure!(
                boot.is_alive(),
                "systemd-nspawn ended; it takes root and control groups"
            );
            if self.init().is_none_or(|init| Some(init) == before) {
                return Ok(false);
            }
            // One that goes down may be gone by now.
            let Ok(state) = self.run(&["systemctl", "is-system-running"]) else {
                return Ok(false);
            };
            if state.stdout.trim() == "degraded" {
                if failures == Failures::Expected {
                    return Ok(true);
                }
                bail!("{}", self.run(&["systemctl", "--failed", "--no-pager"])?);
            }
            Ok(state.stdout.trim() == "running")
        });
        up.with_context(|| format!("guest {}:\n{}", self.name, tail(&self.console())))
    }

    /// A boot takes no longer to be found on the network than the guest takes to answer.
    fn remember_hardware_address(&self) -> Result<()> {
        let hardware = self.sh("cat /sys/class/net/host0/address")?;
        let addresses: [IpAddr; 2] = [self.address.into(), ipv6_beside(self.address).into()];
        let lines = addresses.map(|address| {
            let hardware = hardware.trim();
            format!("neigh replace {address} lladdr {hardware} dev bridge nud permanent")
        });
        ip_batch(Some(&self.site.netns()), &lines)
    }

    /// A command as the guest's root, in all its namespaces and without rights over this machine.
    pub fn exec(&self, words: &[&str]) -> Result<Command> {
        let init = self
            .init()
            .with_context(|| format!("guest {} is off", self.name))?;
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &init.to_string(), "-m", "-u", "-i", "-n", "-p", "-C", "--"])
            .args(["setpriv", "--bounding-set", WITHHELD, "--inh-caps", WITHHELD])
            .args([
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LANG=C.UTF-8",
            ])
            .args(words);
        Ok(command)
    }

    pub fn run(&self, words: &[&str]) -> Result<Outcome> {
        wait::run(&mut self.exec(words)?, PATIENCE)
    }

    /// What a script prints, which must succeed.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script])?
            .expect_success(&format!("{}: {script}", self.name))
    }

    /// Copies a file into the running guest.
    pub fn put(&self, file: &Path, to: &str) -> Result<()> {
        let init = self
            .init()
            .with_context(|| format!("guest {} is off", self.name))?;
        let place = format!("/proc/{init}/root{to}");
        fs::copy(file, &place).with_context(|| format!("copying {} to {to}", file.display()))?;
        Ok(())
    }

    /// Restarts it as its owner would, and waits until it is up again. Gives a moment at which the new start had begun.
    pub fn reboot(&self) -> Result<Instant> {
        self.reboot_with(Failures::No)
    }

    /// The same, for a boot during which units may fail.
    pub fn reboot_with(&self, failures: Failures) -> Result<Instant> {
        let before = self.init();
        self.run(&["systemctl", "--no-block", "reboot"])?
            .expect_success("systemctl reboot")?;
        let begun = wait::until("it does not start again", BOOT_PATIENCE, || {
            let is_new = self.init().is_some_and(|init| Some(init) != before);
            Ok(is_new.then(Instant::now))
        })?;
        self.wait_up(before, failures)?;
        Ok(begun)
    }

    /// Cuts the power: nothing in the guest is told.
    pub fn cut_power(&self) -> Result<()> {
        let boot = Process::recorded(&self.record()).context("it was never started")?;
        let init = self.init().and_then(Process::running).context("it is off")?;
        init.end(Signal::SIGKILL)?;
        wait::until_true("systemd-nspawn still runs", PATIENCE, || Ok(!boot.is_alive()))
    }

    /// The ends of its console and journal, for a test that failed.
    pub fn logs(&self) -> String {
        let journal = self
            .run(&["journalctl", "--no-pager", "-n", "60", "-u", "nightlatch-*"])
            .map_or_else(|error| format!("{error:#}"), |outcome| outcome.stdout);
        format!("guest {}:\n{}\n{journal}", self.name, tail(&self.console()))
    }
}

/// The first child of a process, of some name or any (proc(5), /proc/PID/stat).
fn child_of(parent: i32, name: Option<&str>) -> Option<i32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids.into_iter().find(|pid| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return false;
        };
        let Some((head, rest)) = stat.rsplit_once(')') else {
            return false;
        };
        let own = head.split_once('(').map(|(_, own)| own);
        let is_child = rest
            .split_whitespace()
            .nth(1)
            .is_some_and(|field| field == parent.to_string());
        is_child && name.is_none_or(|name| own == name.get(..15).or(Some(name)))
    })
}
