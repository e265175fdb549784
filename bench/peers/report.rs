//! What was found, side by side.

use anyhow::{Context, Result};
use nightlatch_bench::chart::{self, Bar, Group};
use nightlatch_bench::document::{Table, short};
use nightlatch_bench::moment;

use crate::examination::{AFTER, Examined, MANY_WITHIN};

type Found = (&'static str, Result<Examined>);

pub(crate) fn text(found: &[Found]) -> Result<String> {
    let date = moment::now()?.to_string();
    let kernel = nix::sys::utsname::uname().context("asking for the kernel")?;
    let mut table = Table::headed(&[
        "",
        "request → first connect, p50 (ms)",
        "min",
        "× nft",
        "end error, p50 (ms)",
        "max",
        "killed 1 s into a grant",
        "ruleset flushed: a stranger",
        "1,000 grants (s)",
        "daemons on the machine, empty → 1,000 (MiB)",
    ]);
    let nft = found
        .iter()
        .find(|(name, _)| *name == "nft by hand")
        .and_then(|(_, examined)| examined.as_ref().ok())
        .map_or(f64::NAN, |examined| examined.asks.median());
    let mut missing = String::new();
    for (name, examined) in found {
        match examined {
            Ok(examined) => table.row(&row(name, examined, nft)),
            Err(error) => missing += &format!("- {name} could not be examined: {error:#}\n"),
        }
    }
    Ok(format!(
        "Measured on {} by `make bench-peers`: Linux {}, two hosts on a cable, all in one run.\n\n{}\n{missing}",
        date.split('T').next().unwrap_or_default(),
        kernel.release().to_string_lossy(),
        table.into_text()
    ))
}

fn row(name: &str, examined: &Examined, nft: f64) -> Vec<String> {
    let Examined {
        asks,
        ends,
        endless,
        open_after_kill,
        stranger_after_flush,
        stranger_later,
        many,
        resident,
    } = examined;
    let ended = |share: f64| {
        if ends.count() == 0 {
            format!("none ended within {} s", AFTER.as_secs())
        } else if *endless > 0 && share >= 1.0 {
            format!("{endless} not within {} s", AFTER.as_secs())
        } else {
            short(ends.quantile(share))
        }
    };
    let flushed = match (stranger_after_flush, stranger_later) {
        (false, false) => "stays out",
        (true, false) => "gets in, within 10 s no more",
        (_, true) => "gets in, also 10 s later",
    };
    let thousand = if many.open == 1000 {
        short(many.seconds)
    } else {
        format!("{} open after {} s", many.open, MANY_WITHIN.as_secs())
    };
    vec![
        name.to_owned(),
        short(asks.median()),
        short(asks.quantile(0.0)),
        short(asks.median() / nft),
        ended(0.5),
        ended(1.0),
        if *open_after_kill {
            "**stays open**"
        } else {
            "shut"
        }
        .to_owned(),
        flushed.to_owned(),
        thousand,
        if resident.1 > 0.0 {
            format!("{} → {}", short(resident.0), short(resident.1))
        } else {
            "no daemon".to_owned()
        },
    ]
}

pub(crate) fn chart(found: &[Found]) -> String {
    let bars = |figure: fn(&Examined) -> f64| {
        let examined = found
            .iter()
            .filter_map(|(name, examined)| Some((name, examined.as_ref().ok()?)));
        examined
            .map(|(name, examined)| Bar {
                name: (*name).to_owned(),
                value: figure(examined),
                is_ours: *name == "Nightlatch",
            })
            .collect()
    };
    let groups = [
        Group {
            heading: "Request → first connect, p50".to_owned(),
            bars: bars(|examined| examined.asks.median()),
        },
        Group {
            heading: "How far from its end a grant ends, p50".to_owned(),
            bars: bars(|examined| examined.ends.median().abs()),
        },
    ];
    chart::draw("Beside the peers, in milliseconds", "ms", &groups)
}
