//! Brings labs up and takes them down, and tells the story of one.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to people"
)]

mod demo;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use nightlatch_tests::env_file;
use nightlatch_tests::lab::{Lab, Stage, Wish};
use nightlatch_tests::plan::{LabName, binaries_beside};
use nightlatch_tests::scratch;

/// The Nightlatch lab: a server, a client and machines as network namespaces on one bridge.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The lab's name; several may stand side by side. By default `nl`, for the demo `demo`.
    #[arg(long, global = true)]
    name: Option<LabName>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Brings a lab up and leaves it running.
    Up {
        /// How many machines: 1 to 200.
        #[arg(long, default_value_t = 2)]
        machines: u16,
        /// Where to write the shell assignments that describe the lab.
        #[arg(long, value_name = "FILE")]
        env: Option<PathBuf>,
        /// The folder with the binaries; by default the one that this program is in.
        #[arg(long, value_name = "DIR")]
        bin: Option<PathBuf>,
        /// How far machines come by themselves.
        #[arg(long, value_enum, default_value_t = HowFar::Guarded)]
        stage: HowFar,
    },
    /// Ends everything of a lab and removes every trace, also of one that came up half or crashed.
    Down,
    /// Removes the labs that tests left behind when they were killed.
    Sweep,
    /// Says what runs.
    Status,
    /// A shell, or one command, at the client, on the server's host or on a machine.
    Shell {
        /// `client`, `control` or a machine's name.
        #[arg(default_value = "client")]
        place: String,
        /// The command, instead of a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Tells the story of one access, by the real commands, in a lab of its own.
    Demo {
        #[arg(long, value_name = "DIR")]
        bin: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum HowFar {
    /// sshd runs; no agent.
    Bare,
    /// The agent is enrolled and connected; nothing is guarded.
    Enrolled,
    /// The policy is in force: port 22 is shut.
    Guarded,
}

impl From<HowFar> for Stage {
    fn from(stage: HowFar) -> Self {
        match stage {
            HowFar::Bare => Self::Bare,
            HowFar::Enrolled => Self::Enrolled,
            HowFar::Guarded => Self::Guarded,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces: run it as root"
    );
    let Arguments { name, verb } = arguments;
    let name = match (name, &verb) {
        (Some(name), _) => name,
        (None, Verb::Demo { .. }) => "demo".parse()?,
        (None, _) => "nl".parse()?,
    };
    match verb {
        Verb::Up {
            machines,
            env,
            bin,
            stage,
        } => up(name, machines, env.as_deref(), bin, stage.into()),
        Verb::Down => {
            Lab::down(&name)?;
            eprintln!("lab {name}: gone");
            Ok(ExitCode::SUCCESS)
        }
        Verb::Sweep => {
            for swept in scratch::sweep()? {
                eprintln!("lab {swept}: its test is gone, and now the lab is");
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Status => Ok(status(&Lab::open(&name)?)),
        Verb::Shell { place, command } => shell(&Lab::open(&name)?, &place, &command),
        Verb::Demo { bin } => demo::tell(&name, &binaries(bin)?),
    }
}

fn up(
    name: LabName,
    machines: u16,
    env: Option<&Path>,
    bin: Option<PathBuf>,
    stage: Stage,
) -> Result<ExitCode> {
    let start = Instant::now();
    let wish = Wish {
        name: name.clone(),
        machines,
        binaries: binaries(bin)?,
        stage,
    };
    let lab = Lab::up(wish, |step| eprintln!("lab {name}: {step}")).with_context(|| {
        format!("the lab {name} did not come up (`make lab-down LAB={name}` removes what there is)")
    })?;
    if let Some(path) = env {
        env_file::write(&lab, path)?;
        eprintln!("lab {name}: described in {}", path.display());
    }
    eprintln!("lab {name}: up after {:.1} s", start.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

fn binaries(given: Option<PathBuf>) -> Result<PathBuf> {
    let dir = match given {
        Some(dir) => dir
            .canonicalize()
            .with_context(|| format!("there is no folder {}", dir.display()))?,
        None => {
            let own = std::env::current_exe().context("finding this program's own path")?;
            binaries_beside(&own).context("there is no nightlatch-server beside this program: name --bin")?
        }
    };
    Ok(dir)
}

fn status(lab: &Lab) -> ExitCode {
    let mut whole = true;
    let mut line = |name: &str, netns: &str, process: Result<nightlatch_tests::process::Process>| {
        let (pid, alive) = process.map_or_else(
            |_| ("-".to_owned(), false),
            |it| (it.pid().to_string(), it.is_alive()),
        );
        whole &= alive;
        println!(
            "{name:<10} {netns:<20} pid {pid:<8} {}",
            if alive { "runs" } else { "is gone" }
        );
    };
    let control = lab.control();
    line("server", control.netns().name(), control.process());
    for machine in lab.machines() {
        line(&machine.name(), machine.netns().name(), machine.agent_process());
    }
    if whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn shell(lab: &Lab, place: &str, command: &[String]) -> Result<ExitCode> {
    let interactive = ["bash".to_owned()];
    let words = if command.is_empty() {
        interactive.as_slice()
    } else {
        command
    };
    let (program, arguments) = words.split_first().context("no command")?;
    let mut entered = match place {
        "client" => lab.client().desk(),
        "control" => lab.control().netns().exec("env"),
        name => {
            let machine = lab.machines().find(|machine| machine.name() == name);
            machine
                .with_context(|| format!("`{name}` is not client, control or a machine of this lab"))?
                .exec("env")
        }
    };
    Err(entered.arg(program).args(arguments).exec()).context("entering the namespace")
}
