//! The figures as tables and as a chart.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nightlatch_bench::chart::{self, Bar, Group};
use nightlatch_bench::document::{Table, distribution, short};
use nightlatch_bench::figures::Figures;
use nightlatch_bench::moment;

use crate::asks::Asks;
use crate::doors::Doors;
use crate::survey::{Footprints, Survey};

/// Everything, as Markdown.
pub(crate) fn text(survey: &Survey, profile: &str, quick: bool, took: Duration) -> Result<String> {
    let parts = [
        conditions(profile, quick, took)?,
        asks(survey),
        ends(survey),
        many(survey),
        doors(survey),
        idle(survey),
    ];
    Ok(parts.join("\n"))
}

fn conditions(profile: &str, quick: bool, took: Duration) -> Result<String> {
    let date = moment::now()?.to_string();
    let date = date.split('T').next().unwrap_or_default();
    let kernel = nix::sys::utsname::uname().context("asking for the kernel")?;
    let processors = std::thread::available_parallelism().context("counting processors")?;
    let load = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let command = if quick {
        "nightlatch-bench --quick"
    } else {
        "make bench"
    };
    Ok(format!(
        "Measured on {date} by `{command}` in {:.0} s: profile {profile}, Linux {}, {processors} processors, load {load} \
         at the end. All of it is one run, so that ratios hold where absolute figures depend on the machine.\n",
        took.as_secs_f64(),
        kernel.release().to_string_lossy(),
    ))
}

fn asks(survey: &Survey) -> String {
    let Asks {
        command,
        warm,
        by_hand,
        start,
    } = &survey.asks;
    let mut table = Table::headed(&distribution("request → first connect (ms)"));
    table.figures("`nightlatch request`, whole command", command);
    table.figures("warm gRPC client", warm);
    table.figures(
        &format!(
            "warm gRPC client, one more with {} open",
            grouped(survey.most.grants)
        ),
        &survey.most.asks,
    );
    table.figures("`nft add element` spawned by hand", by_hand);
    table.figures("for comparison: `nightlatch --version`", start);
    let ratio = |figures: &Figures| short(figures.median() / by_hand.median());
    format!(
        "### Request → first connect\n{}\nBy p50, the whole command takes {} × the spawned `nft`, the warm client {} ×.\n",
        table.into_text(),
        ratio(command),
        ratio(warm)
    )
}

fn ends(survey: &Survey) -> String {
    let mut table = Table::headed(&distribution("first refused attempt − end of the grant (ms)"));
    table.figures("agent alive", &survey.ends_agent_alive);
    table.figures("agent killed while it was open", &survey.ends_agent_dead);
    format!("### End\n{}", table.into_text())
}

fn many(survey: &Survey) -> String {
    let mut table = Table::headed(&[
        "grants at once, publishing → last receipt (ms)",
        "n",
        "min",
        "p50",
        "max",
        "a grant, p50",
        "processor: agent",
        "server",
        "connecting and signing before, p50",
    ]);
    for burst in &survey.published {
        let median = burst.passed.median();
        table.row(&[
            grouped(burst.grants),
            burst.passed.count().to_string(),
            short(burst.passed.quantile(0.0)),
            short(median),
            short(burst.passed.quantile(1.0)),
            short(median / burst.grants as f64),
            short(burst.agent_busy.median()),
            short(burst.server_busy.median()),
            short(burst.signing.median()),
        ]);
    }
    let callers = &survey.thousand_callers;
    format!(
        "### Many grants\n{}\n1,000 callers, 64 at a time, each waiting for the host's word: {} ms until the last has its \
         answer (median of {}).\n",
        table.into_text(),
        short(callers.median()),
        callers.count()
    )
}

fn doors(survey: &Survey) -> String {
    let mut table = Table::headed(&[
        "openings",
        "port",
        "connect p50 (µs)",
        "connects/s",
        "of no rules",
    ]);
    for (openings, doors) in &survey.doors {
        let openings = openings.map_or_else(|| "no policy yet".to_owned(), grouped);
        let Doors {
            without_rules,
            without_rules_again,
            unguarded,
            guarded,
        } = doors;
        for (name, door) in [
            ("no rules at all", without_rules),
            ("no rules, again", without_rules_again),
            ("unguarded", unguarded),
            ("guarded, open", guarded),
        ] {
            table.row(&[
                openings.as_str(),
                name,
                &short(door.connect.median()),
                &short(door.rate.median()),
                &format!("{:.3}", door.of_no_rules.median()),
            ]);
        }
    }
    format!("### Connecting\n{}", table.into_text())
}

fn idle(survey: &Survey) -> String {
    let mut table = Table::headed(&[
        "idle",
        "agent (MiB)",
        "agent (% of a processor)",
        "server (MiB)",
        "server (% of a processor)",
    ]);
    let most = format!("{} open", grouped(survey.most.grants));
    for (name, footprints) in [("nothing open", survey.idle), (most.as_str(), survey.most.idle)] {
        let Footprints { agent, server } = footprints;
        table.row(&[
            name.to_owned(),
            short(agent.0),
            short(agent.1),
            short(server.0),
            short(server.1),
        ]);
    }
    format!("### Memory and processor\n{}", table.into_text())
}

/// The same as bars.
pub(crate) fn chart(survey: &Survey) -> String {
    let bar = |name: &str, figures: &Figures, is_ours| Bar {
        name: name.to_owned(),
        value: figures.median(),
        is_ours,
    };
    let asks = Group {
        heading: "Request → first connect".to_owned(),
        bars: vec![
            bar("nft add element, spawned by hand", &survey.asks.by_hand, false),
            bar("nightlatch request, whole command", &survey.asks.command, true),
            bar("warm gRPC client", &survey.asks.warm, true),
            bar(
                &format!("warm, {} open", grouped(survey.most.grants)),
                &survey.most.asks,
                true,
            ),
        ],
    };
    let bursts = survey.published.iter().map(|burst| {
        let name = format!("{} at once", grouped(burst.grants));
        bar(&name, &burst.passed, true)
    });
    let many = Group {
        heading: "Grants, from publishing to the last receipt".to_owned(),
        bars: bursts.collect(),
    };
    chart::draw("Medians of one run, in milliseconds", "ms", &[asks, many])
}

/// 10000 as 10,000.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 100, 1_000, 10_000, 1_234_567].map(grouped),
            ["0", "100", "1,000", "10,000", "1,234,567"]
        );
    }
}
