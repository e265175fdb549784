//! Measures Nightlatch in a lab of its own: real binaries, real nftables, one bridge between namespaces.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report goes to stdout, progress to stderr"
)]

mod aims;
mod asks;
mod ends;
mod part;
mod published;
mod report;
mod sizes;
mod survey;
mod world;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nightlatch_bench::conditions::Conditions;
use nightlatch_bench::{document, keeper};
use nightlatch_tests::lab::Lab;
use nightlatch_tests::plan::{LabName, binaries_beside};
use nightlatch_tests::scratch;

use crate::part::Part;
use crate::sizes::Sizes;

/// Measures what docs/performance.md tells, in a lab that is made for it and removed afterwards.
///
/// Example: nightlatch-bench --quick
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Fewer runs of everything: about two minutes.
    #[arg(long)]
    quick: bool,
    /// Only this part, in plain lines: for comparing before and after.
    #[arg(long, value_name = "PART", conflicts_with = "docs")]
    only: Option<Part>,
    /// The folder whose performance.md gets the tables, and performance.svg the chart.
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    /// The folder with the binaries. Default: where this program lies.
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Arguments {
        quick,
        only,
        docs,
        bin,
    } = Arguments::parse();
    ensure!(
        docs.is_none() || !cfg!(debug_assertions),
        "--docs: figures of a build that isn't optimised are not published: `make bench` builds the right one"
    );
    let own = std::env::current_exe().context("finding this program")?;
    let binaries = bin
        .or_else(|| binaries_beside(&own))
        .context("no binaries beside this program: name their folder with --bin")?;
    let profile = binaries
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let sizes = if quick { Sizes::QUICK } else { Sizes::FULL };

    for name in scratch::sweep()? {
        eprintln!("removed {name}, which an earlier run left behind");
    }
    let name = LabName::of_test(std::process::id(), 1);
    let doomed = name.clone();
    keeper::keep(sizes.longest, move || {
        if let Err(error) = Lab::down(&doomed) {
            eprintln!("{error:#}");
        }
    })?;
    if let Some(part) = only {
        let measured = part::measure(&name, binaries, part, &sizes);
        keeper::hold();
        let down = Lab::down(&name);
        print!("{}", measured?);
        return down;
    }
    eprintln!("this takes {} on a quiet machine", sizes.expected);
    let conditions = Conditions::begin()?;
    let surveyed = survey::survey(&name, binaries, &sizes, |step| {
        eprintln!("[{:4.0} s] {step}", conditions.elapsed().as_secs_f64());
    });
    keeper::hold();
    let down = Lab::down(&name);
    let survey = surveyed?;
    down?;
    let text = report::text(&survey, &profile, quick, &conditions)?;
    println!("{text}");
    if let Some(docs) = docs {
        let chart = docs.join("performance.svg");
        fs::write(&chart, report::chart(&survey)).with_context(|| format!("writing {}", chart.display()))?;
        let text = text + "\n![The medians as bars](performance.svg)";
        document::replace_part(&docs.join("performance.md"), "measured", &text)?;
    }
    Ok(())
}
