//! The lab keeps its own promises, on which the other tests and outside tools rely.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::netns::{self, Netns};
use nightlatch_tests::plan::LabName;
use nightlatch_tests::process::Process;
use nightlatch_tests::wait::{self, Outcome};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn two_labs_stand_side_by_side_and_each_describes_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut environments = Vec::new();
    let mut labs = Vec::new();
    for number in [1, 2] {
        let lab = Named::new(number + 10);
        let file = folder.path().join(format!("lab-{number}.env"));
        lab.run(&[
            "up",
            "--machines",
            &number.to_string(),
            "--env",
            &file.display().to_string(),
        ])?
        .expect_success("up")?;
        environments.push(shell_reads(&file)?);
        labs.push(lab);
    }
    for (environment, machines) in environments.iter().zip([1, 2]) {
        check_contract(environment, machines)?;
    }
    for name in [
        "NL_SERVER_PID",
        "NL_CLIENT_NETNS",
        "NL_CA",
        "NL_SSH_KEY",
        "NL_M1_AGENT_PID",
    ] {
        ensure!(
            value(&environments[0], name)? != value(&environments[1], name)?,
            "both have the same {name}"
        );
    }
    labs[0].run(&["down"])?.expect_success("down")?;
    ensure!(leftovers(&labs[0].0).is_empty(), "{:?}", leftovers(&labs[0].0));
    labs[1]
        .run(&["status"])?
        .expect_success("the other lab after that")?;
    check_contract(&environments[1], 2)
}

#[test]
fn down_removes_every_trace_after_a_crash() -> Result<()> {
    let lab = Named::new(20);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lab.env");
    lab.run(&["up", "--machines", "1", "--env", &file.display().to_string()])?
        .expect_success("up")?;
    let environment = shell_reads(&file)?;
    let pid = |name: &str| -> Result<Process> {
        Process::running(value(&environment, name)?.parse()?).with_context(|| format!("{name} does not run"))
    };
    let (server, agent) = (pid("NL_SERVER_PID")?, pid("NL_M1_AGENT_PID")?);
    let sshd = Process::recorded(&lab.0.dir().join("web-1/sshd.pid")).context("no note of sshd")?;
    server.end(Signal::SIGKILL)?;
    std::fs::remove_file(lab.0.dir().join("lab.json"))?;
    ensure!(
        !lab.run(&["status"])?.succeeded(),
        "a lab without its server calls itself whole"
    );

    lab.run(&["down"])?.expect_success("down")?;
    ensure!(!agent.is_alive(), "the agent outlived its lab");
    ensure!(!sshd.is_alive(), "sshd outlived its lab");
    ensure!(leftovers(&lab.0).is_empty(), "{:?}", leftovers(&lab.0));
    ensure!(!file.exists(), "the file that described it is still there");
    lab.run(&["down"])?.expect_success("down once more")?;
    Ok(())
}

#[test]
fn down_after_everything_was_killed_removes_every_trace_and_nothing_of_others() -> Result<()> {
    let (lab, other) = (Named::new(21), Named::new(22));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lab.env");
    let up = |lab: &Named| {
        lab.run(&["up", "--machines", "1", "--env", &file.display().to_string()])?
            .expect_success("up")
    };
    up(&lab)?;
    let namespaces: Vec<Netns> = netns::all().into_iter().filter(|it| lab.0.owns(it)).collect();
    for netns in &namespaces {
        for process in netns.pids()?.into_iter().filter_map(Process::running) {
            process.end(Signal::SIGKILL)?;
        }
    }
    // By now the file describes another lab.
    up(&other)?;
    lab.run(&["down"])?.expect_success("down")?;
    ensure!(leftovers(&lab.0).is_empty(), "{:?}", leftovers(&lab.0));
    ensure!(
        value(&shell_reads(&file)?, "NL_DIR")? == other.0.dir().display().to_string(),
        "the other lab's description went"
    );
    other
        .run(&["status"])?
        .expect_success("the other lab after that")?;
    other.run(&["down"])?.expect_success("down")?;
    ensure!(!file.exists(), "the file that described it is still there");
    ensure!(leftovers(&other.0).is_empty(), "{:?}", leftovers(&other.0));
    Ok(())
}

#[test]
fn a_lab_that_came_up_half_says_which_log_to_read_and_goes_without_a_trace() -> Result<()> {
    let lab = Named::new(30);
    let binaries = tempfile::tempdir()?;
    for name in ["nightlatch", "nightlatch-server", "nightlatch-agent"] {
        let script = "#!/bin/sh\ncase \"$*\" in *init*) ;; *) echo 'the disk is on fire'; exit 1 ;; esac\n";
        let path = binaries.path().join(name);
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let outcome = lab.run(&["up", "--bin", &binaries.path().display().to_string()])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    for words in ["server.log", "the disk is on fire", "make lab-down"] {
        ensure!(outcome.stderr.contains(words), "no `{words}` in {outcome}");
    }
    ensure!(!leftovers(&lab.0).is_empty(), "the log went with the lab");
    lab.run(&["down"])?.expect_success("down")?;
    ensure!(leftovers(&lab.0).is_empty(), "{:?}", leftovers(&lab.0));
    Ok(())
}

#[test]
fn the_lab_leaves_the_machine_itself_alone() -> Result<()> {
    let facts = || -> Result<String> {
        let mut all = String::new();
        for command in [
            "ip -o link",
            "ip -o addr",
            "ip route",
            "nft list ruleset",
            "hostname",
        ] {
            all += &wait::run(Command::new("sh").args(["-c", command]), PATIENCE)?.expect_success(command)?;
        }
        Ok(all + &std::fs::read_to_string("/proc/mounts")?.replace("/run/netns", ""))
    };
    let mounts_aside = |facts: String| -> Vec<String> {
        facts
            .lines()
            .filter(|line| !line.starts_with("nsfs") && !line.starts_with("tmpfs "))
            .map(str::to_owned)
            .collect()
    };
    let before = mounts_aside(facts()?);
    let lab = Named::new(40);
    lab.run(&["up", "--machines", "1"])?.expect_success("up")?;
    let during = mounts_aside(facts()?);
    ensure!(before == during, "before {before:#?}\nduring {during:#?}");
    Ok(())
}

#[test]
fn impossible_wishes_are_refused_before_anything_is_made() -> Result<()> {
    let lab = Named::new(50);
    let empty = tempfile::tempdir()?;
    let empty = empty.path().display().to_string();
    for (arguments, words) in [
        (&["up", "--machines", "0"][..], "1 to 200"),
        (&["up", "--machines", "201"], "1 to 200"),
        (&["up", "--bin", &empty], "make build"),
        (&["up", "--bin", "/nonexistent"], "no folder"),
        (&["status"], "there is no lab"),
    ] {
        let outcome = lab.run(arguments)?;
        ensure!(
            outcome.code == Some(1) && outcome.stderr.contains(words),
            "{arguments:?}: {outcome}"
        );
        ensure!(
            leftovers(&lab.0).is_empty(),
            "{arguments:?} left {:?}",
            leftovers(&lab.0)
        );
    }
    Ok(())
}

/// What outside tools rely on.
fn check_contract(environment: &BTreeMap<String, String>, machines: usize) -> Result<()> {
    let get = |name: &str| value(environment, name);
    ensure!(
        get("NL_SERVER")?.starts_with("https://192.0.2."),
        "NL_SERVER has no IPv4 address"
    );
    for name in ["NL_CA", "NL_ADMIN_CERT", "NL_ADMIN_KEY", "NL_SSH_KEY"] {
        ensure!(Path::new(get(name)?).is_file(), "{name} names no file");
    }
    for binary in ["nightlatch", "nightlatch-server", "nightlatch-agent"] {
        ensure!(
            Path::new(get("NL_BIN")?).join(binary).is_file(),
            "no {binary} in NL_BIN"
        );
    }
    let comm = |name: &str| -> Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/comm", get(name)?))?
            .trim()
            .to_owned())
    };
    // The kernel keeps 15 characters of a name.
    ensure!(
        comm("NL_SERVER_PID")? == "nightlatch-serv",
        "NL_SERVER_PID is {}",
        comm("NL_SERVER_PID")?
    );
    ensure!(
        get("NL_MACHINES")?.split_whitespace().count() == machines,
        "{}",
        get("NL_MACHINES")?
    );
    ensure!(
        netns::all()
            .iter()
            .any(|netns| netns.name() == environment["NL_CONTROL_NETNS"]),
        "no control"
    );
    for (number, name) in (1..).zip(get("NL_MACHINES")?.split_whitespace()) {
        let of = |part: &str| format!("NL_M{number}_{part}");
        ensure!(get(&of("NAME"))? == name, "{} is not {name}", of("NAME"));
        ensure!(
            netns::all()
                .iter()
                .any(|netns| netns.name() == environment[&of("NETNS")]),
            "no {}",
            of("NETNS")
        );
        ensure!(
            comm(&of("AGENT_PID"))? == "nightlatch-agen",
            "{}",
            comm(&of("AGENT_PID"))?
        );
    }
    // As an outside tool would: the command line in the client's namespace, then ssh as root over both families.
    let script = "set -eu; nl() { ip netns exec \"$NL_CLIENT_NETNS\" \"$NL_BIN/nightlatch\" --server \"$NL_SERVER\" \
         --ca \"$NL_CA\" --cert \"$NL_ADMIN_CERT\" --key \"$NL_ADMIN_KEY\" \"$@\"; }; \
         nl policy show \"$NL_M1_NAME\"; for a in \"$NL_M1_IP4\" \"$NL_M1_IP6\"; do \
         case $a in *:*) me=2001:db8::2;; *) me=192.0.2.2;; esac; \
         nl request \"$NL_M1_NAME\" --port 22 --from $me --for 1m --reason contract >&2; \
         ip netns exec \"$NL_CLIENT_NETNS\" ssh -F none -i \"$NL_SSH_KEY\" -o BatchMode=yes \
         -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=3 root@$a id -un; done";
    let mut shell = Command::new("sh");
    let output = wait::run(shell.args(["-c", script]).envs(environment), PATIENCE)?;
    let text = output.clone().expect_success("using the lab from outside")?;
    ensure!(
        text.contains("PT3H") && text.contains("22") && text.ends_with("root\nroot\n"),
        "{output}"
    );
    Ok(())
}

/// What a shell makes of the file, NL_ names only.
fn shell_reads(file: &Path) -> Result<BTreeMap<String, String>> {
    let mut shell = Command::new("sh");
    shell
        .args(["-ec", "set -a; . \"$1\"; env -0", "sh"])
        .arg(file)
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let text = wait::run(&mut shell, PATIENCE)?.expect_success("reading the environment file")?;
    let pairs = text.split('\0').filter_map(|line| line.split_once('='));
    let ours = pairs.filter(|(name, _)| name.starts_with("NL_"));
    Ok(ours
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

fn value<'e>(environment: &'e BTreeMap<String, String>, name: &str) -> Result<&'e str> {
    environment
        .get(name)
        .map(String::as_str)
        .with_context(|| format!("{name} is not set"))
}

fn leftovers(name: &LabName) -> Vec<String> {
    let namespaces = netns::all()
        .into_iter()
        .filter(|netns| name.owns(netns))
        .map(|netns| netns.name().to_owned());
    let folder = name.dir().exists().then(|| name.dir().display().to_string());
    namespaces.chain(folder).collect()
}

/// A lab that is known by its name only, and goes whatever happens.
struct Named(LabName);

impl Named {
    fn new(number: u32) -> Self {
        Self(LabName::of_test(std::process::id(), number))
    }

    fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        let mut lab = Command::new(env!("CARGO_BIN_EXE_nightlatch-lab"));
        wait::run(
            lab.args(["--name", &self.0.to_string()]).args(arguments),
            PATIENCE,
        )
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // Of the tests above, the one that matters has checked it already.
        self.run(&["down"]).ok();
    }
}
