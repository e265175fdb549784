//! The same questions, put to Nightlatch and to what people use today, each in network namespaces of its own.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report goes to stdout, progress to stderr"
)]

mod crowdsec;
mod examination;
mod firewalld;
mod fwknop;
mod knockd;
mod letmein;
mod many;
mod nightlatch;
mod peer;
mod place;
mod report;
mod spawned_nft;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nightlatch_bench::conditions::Conditions;
use nightlatch_bench::{document, keeper};
use nightlatch_tests::plan::binaries_beside;
use nightlatch_tests::scratch;

use crate::examination::{Amount, examine};
use crate::peer::Peer;

/// Measures what docs/performance.md tells of the peers. They must be there: `make bench-peers` gets them.
///
/// Example: nightlatch-bench-peers --tools target/peers --only fwknop
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where peers lie that are not installed: `letmein/bin`, `crowdsec/usr/bin`.
    #[arg(long, value_name = "DIR")]
    tools: PathBuf,
    /// Only these, by their names.
    #[arg(long, value_name = "NAME", conflicts_with = "docs")]
    only: Vec<String>,
    /// Fewer runs of everything.
    #[arg(long, conflicts_with = "docs")]
    quick: bool,
    /// The folder whose performance.md gets the table, and peers.svg the chart.
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.docs.is_none() || !cfg!(debug_assertions),
        "--docs: figures of a build that isn't optimised are not published: `make bench-peers` builds the right one"
    );
    let own = std::env::current_exe().context("finding this program")?;
    let binaries = binaries_beside(&own).context("no binaries of Nightlatch beside this program")?;
    let tools = fs::canonicalize(&arguments.tools)
        .with_context(|| format!("--tools: {}", arguments.tools.display()))?;
    scratch::sweep()?;
    place::sweep();
    keeper::keep(Duration::from_secs(40 * 60), place::remove_all)?;

    let mut peers: Vec<Box<dyn Peer>> = vec![
        Box::new(nightlatch::Nightlatch::new(binaries.clone())),
        Box::new(nightlatch::Warm::new(binaries)),
        Box::new(spawned_nft::SpawnedNft),
        Box::new(letmein::Letmein::new(&tools)),
        Box::new(fwknop::Fwknop),
        Box::new(knockd::Knockd),
        Box::new(firewalld::Firewalld),
        Box::new(crowdsec::Crowdsec::new(&tools)),
    ];
    for name in &arguments.only {
        let names: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
        ensure!(
            names.contains(&name.as_str()),
            "--only: `{name}` is none of {}",
            names.join(", ")
        );
    }
    peers.retain(|peer| arguments.only.is_empty() || arguments.only.iter().any(|name| name == peer.name()));
    let amount = if arguments.quick {
        Amount::QUICK
    } else {
        Amount::FULL
    };
    if arguments.only.is_empty() {
        eprintln!(
            "this takes about {} minutes on a quiet machine",
            if arguments.quick { 11 } else { 14 }
        );
    }
    let conditions = Conditions::begin()?;
    let mut found = Vec::new();
    for mut peer in peers {
        let name = peer.name();
        let progress =
            |step: &str| eprintln!("[{:4.0} s] {name}: {step}", conditions.elapsed().as_secs_f64());
        let examined = examine(peer.as_mut(), amount, progress);
        keeper::hold();
        place::remove_all();
        found.push((name, examined));
    }
    // What isn't published says that it is less than what is.
    let command = if arguments.docs.is_some() {
        "make bench-peers"
    } else {
        "nightlatch-bench-peers"
    };
    let text = report::text(&found, command, &conditions)?;
    println!("{text}");
    if let Some(docs) = arguments.docs {
        let chart = docs.join("peers.svg");
        fs::write(&chart, report::chart(&found)).with_context(|| format!("writing {}", chart.display()))?;
        let text = text + "\n![The same as bars](peers.svg)";
        document::replace_part(&docs.join("performance.md"), "peers", &text)?;
    }
    Ok(())
}
