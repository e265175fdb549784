//! The figures as tables and as a chart.

use std::iter;

use anyhow::Result;
use nightlatch_bench::caller::AT_ONCE;
use nightlatch_bench::chart::{self, Bar, Group};
use nightlatch_bench::conditions::Conditions;
use nightlatch_bench::document::{Table, distribution, grouped, short};
use nightlatch_bench::figures::Figures;

use crate::aims;
use crate::asks::Asks;
use crate::survey::{Burst, Footprints, Survey, Under};
use crate::world::DOORS;

/// Everything, as Markdown.
pub(crate) fn text(survey: &Survey, profile: &str, quick: bool, conditions: &Conditions) -> Result<String> {
    let parts = [
        head(profile, quick, conditions)?,
        aims::table(survey),
        asks(survey),
        ends(survey),
        many(survey),
        doors(survey),
        idle(survey),
    ];
    Ok(parts.join("\n"))
}

fn head(profile: &str, quick: bool, conditions: &Conditions) -> Result<String> {
    let command = if quick {
        "nightlatch-bench --quick"
    } else {
        "make bench"
    };
    Ok(format!(
        "{}, profile {profile}. All of it is one run, so that ratios hold where absolute figures depend on the machine.\n",
        conditions.text(command)?
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
    table.figures("`nft add element` spawned by hand", by_hand);
    table.figures("for comparison: `nightlatch --version`", start);
    for Under { grants, asks, .. } in &survey.under {
        let name = format!("warm gRPC client alone, one more with {} open", grouped(*grants));
        table.figures(&name, asks);
    }
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
        "server, its answers to the bench's looks at the events included",
        "connecting and signing before, p50",
    ]);
    for burst in &survey.published {
        let Burst {
            grants,
            signing,
            passed,
            agent_busy,
            server_busy,
        } = burst;
        let median = passed.median();
        table.row(&[
            grouped(*grants),
            passed.count().to_string(),
            short(passed.quantile(0.0)),
            short(median),
            short(passed.quantile(1.0)),
            short(median / *grants as f64),
            short(agent_busy.median()),
            short(server_busy.median()),
            short(signing.median()),
        ]);
    }
    let calls = &survey.thousand_calls;
    format!(
        "### Many grants\n{}\n1,000 calls of one client with one certificate over one connection, {AT_ONCE} at a time, \
         each waiting for the host's word: {} ms until the last has its answer (median of {}).\n",
        table.into_text(),
        short(calls.median()),
        calls.count()
    )
}

fn doors(survey: &Survey) -> String {
    let mut table = Table::headed(&[
        "openings",
        "port",
        "connect p50 (µs)",
        "connects/s",
        "connect, of no rules",
    ]);
    let before = ("none, no policy yet".to_owned(), &survey.doors_before);
    let under = survey.under.iter();
    let under = under.map(|under| (grouped(under.openings), &under.doors));
    for (openings, doors) in iter::once(before).chain(under) {
        for (name, door) in DOORS.iter().zip(doors) {
            table.row(&[
                openings.as_str(),
                name,
                &short(door.connect.median()),
                &short(door.rate.median()),
                &format!("{:.3}", door.of_first.median()),
            ]);
        }
    }
    format!("### Connecting\n{}", table.into_text())
}

fn idle(survey: &Survey) -> String {
    let mut table = Table::headed(&[
        "open, idle",
        "agent (MiB)",
        "agent (% of a processor)",
        "server (MiB)",
        "server (% of a processor)",
    ]);
    for Under { grants, idle, .. } in &survey.under {
        let Footprints { agent, server } = idle;
        table.row(&[
            grouped(*grants),
            short(agent.mib),
            short(agent.percent),
            short(server.mib),
            short(server.percent),
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
    let more = survey.under.iter().filter(|under| under.grants > 0);
    let more = more.map(|under| {
        let name = format!("warm, {} open", grouped(under.grants));
        bar(&name, &under.asks, true)
    });
    let mut bars = vec![
        bar("nft add element, spawned by hand", &survey.asks.by_hand, false),
        bar("nightlatch request, whole command", &survey.asks.command, true),
        bar("warm gRPC client", &survey.asks.warm, true),
    ];
    bars.extend(more);
    let asks = Group {
        heading: "Request → first connect".to_owned(),
        bars,
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
