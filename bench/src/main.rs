//! Measures Nightlatch in a lab of its own: real binaries, real nftables, one bridge between namespaces.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report goes to stdout, progress to stderr"
)]

mod measure;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use nightlatch_tests::lab::{Lab, Stage, Wish};
use nightlatch_tests::plan::{LabName, binaries_beside};

/// Measures request → first connect, the error of the end, and memory, in a lab that is made for it.
///
/// Example: nightlatch-bench --runs 50 --ends 20
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How often access is requested and used.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(3..=200))]
    runs: u16,
    /// How many ends are watched (3 s each), with the agent alive and again with it dead.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(3..=100))]
    ends: u16,
    /// The folder with the binaries. Default: where this program lies.
    #[arg(long)]
    bin: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let own = std::env::current_exe().context("finding this program")?;
    let binaries = arguments
        .bin
        .or_else(|| binaries_beside(&own))
        .context("no binaries beside this program: name their folder with --bin")?;
    let name: LabName = "bench".parse().context("naming the lab")?;
    let wish = Wish {
        name: name.clone(),
        machines: 1,
        binaries,
        stage: Stage::Guarded,
    };
    let measured = Lab::up(wish, |step| eprintln!("{step}"))
        .and_then(|lab| measure::everything(&lab, arguments.runs, arguments.ends));
    let down = Lab::down(&name);
    report::print(&measured?);
    down
}
