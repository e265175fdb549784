//! What was found, side by side.

use anyhow::Result;
use nightlatch_bench::chart::{self, Bar, Group};
use nightlatch_bench::conditions::Conditions;
use nightlatch_bench::document::{Table, distribution, grouped, short};
use nightlatch_bench::figures::Figures;
use nightlatch_bench::footprint::Footprint;

use crate::examination::{AFTER, Daemons, Ends, Examined, Flushed, Under};
use crate::many::{Many, WITHIN};

type Found = (&'static str, Examined);

/// What was not found, and why: below the tables.
#[derive(Default)]
struct Notes(String);

impl Notes {
    /// The answer; without one the cell says so, and a note why.
    fn take<'a, T>(&mut self, name: &str, question: &str, answer: &'a Result<T>) -> Option<&'a T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.add(name, question, &format!("{error:#}"));
                None
            }
        }
    }

    fn add(&mut self, name: &str, question: &str, why: &str) {
        // What a command has printed may have many lines.
        let why: Vec<&str> = why.split_whitespace().collect();
        let line = format!("- {name}, {question}: {}\n", why.join(" "));
        if !self.0.contains(&line) {
            self.0 += &line;
        }
    }
}

const NOTHING: &str = "–";

pub(crate) fn text(found: &[Found], command: &str, conditions: &Conditions) -> Result<String> {
    let mut notes = Notes::default();
    let tables = [
        asks(found, &mut notes),
        ends(found, &mut notes),
        many(found, &mut notes),
        connecting(found, &mut notes),
        memory(found, &mut notes),
    ];
    let missing = if notes.0.is_empty() {
        String::new()
    } else {
        format!("\n### What is missing above, and why\n{}", notes.0)
    };
    Ok(format!(
        "{}, all in one run.\n\n{}{missing}",
        conditions.text(command)?,
        tables.join("\n"),
    ))
}

fn asks(found: &[Found], notes: &mut Notes) -> String {
    let by_hand = found
        .iter()
        .find(|(name, _)| *name == "nft by hand")
        .and_then(|(_, examined)| examined.asks.as_ref().ok())
        .map_or(f64::NAN, Figures::median);
    let mut columns = distribution("request → first connect (ms)").to_vec();
    columns.extend(["× nft, p50", "one more among many: open before", "n", "p50"]);
    let mut table = Table::headed(&columns);
    for (name, examined) in found {
        let mut cells = vec![(*name).to_owned()];
        let asks = notes.take(name, "request → first connect", &examined.asks);
        cells.extend(asks.map_or_else(
            || vec![NOTHING.to_owned(); 6],
            |asks| {
                let quantiles = [0.0, 0.5, 0.95, 1.0].map(|share| short(asks.quantile(share)));
                let ratio = short(asks.median() / by_hand);
                [vec![asks.count().to_string()], quantiles.to_vec(), vec![ratio]].concat()
            },
        ));
        // Whoever was let in to time connects is one of them.
        let open = examined
            .under_thousand
            .as_ref()
            .map(|under| grouped(under.openings));
        let more = notes.take(name, "one more among many", &examined.asks_among_many);
        cells.push(open.unwrap_or_else(|_| NOTHING.to_owned()));
        cells.push(more.map_or_else(|| NOTHING.to_owned(), |more| more.count().to_string()));
        cells.push(more.map_or_else(|| NOTHING.to_owned(), |more| short(more.median())));
        table.row(&cells);
    }
    format!("### Request → first connect\n{}", table.into_text())
}

fn ends(found: &[Found], notes: &mut Notes) -> String {
    let mut table = Table::headed(&[
        "first refused attempt − (request + length) (ms)",
        "n",
        "min",
        "p50",
        "max",
        "killed within the grant: n",
        "min",
        "p50",
        "max",
        "ruleset flushed: a stranger",
    ]);
    for (name, daemons) in with_daemons(found) {
        let mut cells = vec![name.to_owned()];
        cells.extend(
            notes
                .take(name, "ends", &daemons.ends)
                .map_or_else(missing_ends, ended),
        );
        let dead = notes.take(name, "ends after a kill", &daemons.ends_dead);
        cells.extend(dead.map_or_else(missing_ends, ended));
        let flushed = notes.take(name, "a flushed ruleset", &daemons.flushed);
        cells.push(flushed.map_or(NOTHING, stranger).to_owned());
        table.row(&cells);
    }
    format!("### End\n{}", table.into_text())
}

fn missing_ends() -> [String; 4] {
    [(); 4].map(|()| NOTHING.to_owned())
}

/// n, min, p50, max. What has not ended counts as later than all that has.
fn ended(ends: &Ends) -> [String; 4] {
    let Ends { errors, endless } = ends;
    let count = errors.count() + endless;
    let late = std::iter::repeat_n(f64::INFINITY, *endless);
    let mut all = errors.clone();
    all.extend(late);
    let [least, median, most] = [0.0, 0.5, 1.0].map(|share| match all.quantile(share) {
        f64::INFINITY => format!("**open after {} s**", AFTER.as_secs()),
        error => short(error),
    });
    [count.to_string(), least, median, most]
}

const fn stranger(flushed: &Flushed) -> &'static str {
    match (flushed.stranger_at_once, flushed.stranger_later) {
        (false, false) => "stays out",
        (true, false) => "gets in, 10 s later no more",
        (_, true) => "gets in, also 10 s later",
    }
}

fn many(found: &[Found], notes: &mut Notes) -> String {
    let mut table = Table::headed(&[
        "grants asked for at once → the last connects (s), n = 1",
        "1 (p50 of the first table)",
        "100",
        "1,000",
        "10,000",
    ]);
    for (name, examined) in found {
        let one = examined.asks.as_ref();
        let mut cells = vec![
            (*name).to_owned(),
            one.map_or_else(
                |_| NOTHING.to_owned(),
                |one| format!("{:.4}", one.median() / 1000.0),
            ),
        ];
        for (question, answer) in [
            ("100 grants", &examined.hundred),
            ("1,000 grants", &examined.thousand),
        ] {
            let many = notes.take(name, question, answer);
            cells.push(many.map_or_else(|| NOTHING.to_owned(), |many| seconds(name, many, notes)));
        }
        let ten_thousand = notes.take(name, "10,000 grants", &examined.ten_thousand);
        cells.push(match ten_thousand {
            None => NOTHING.to_owned(),
            Some(None) => format!("not asked: more than {} s by the 1,000", WITHIN.as_secs()),
            Some(Some(many)) => seconds(name, many, notes),
        });
        table.row(&cells);
    }
    format!("### Many grants\n{}", table.into_text())
}

fn seconds(name: &str, many: &Many, notes: &mut Notes) -> String {
    if let Some(complaint) = &many.complaint {
        notes.add(
            name,
            &format!("while {} were asked for", grouped(many.asked)),
            complaint,
        );
    }
    if !many.is_complete() {
        let later = if many.settled > many.open {
            format!(", {} in the end", grouped(many.settled))
        } else {
            String::new()
        };
        return format!("{} open after {} s{later}", grouped(many.open), WITHIN.as_secs());
    }
    if many.aside > 0.0 {
        let changing = short(many.aside);
        return format!(
            "{} ({changing} of it changing the client's address)",
            short(many.seconds)
        );
    }
    // A transaction by hand takes milliseconds.
    if many.seconds < 1.0 {
        return format!("{:.3}", many.seconds);
    }
    short(many.seconds)
}

fn connecting(found: &[Found], notes: &mut Notes) -> String {
    let mut table = Table::headed(&[
        "connecting",
        "openings",
        "no rules: p50 (µs)",
        "connects/s",
        "unguarded port: p50 (µs)",
        "connects/s",
        "connect, of no rules",
        "guarded port: p50 (µs)",
        "connects/s",
        "connect, of no rules",
    ]);
    for (name, examined) in found {
        let Some(daemons) = &examined.daemons else {
            continue;
        };
        for (question, under) in [
            ("connects with nothing else open", &daemons.empty),
            ("connects with many open", &examined.under_thousand),
        ] {
            let Some(under) = notes.take(name, question, under) else {
                continue;
            };
            let [without_rules, unguarded, guarded] = &under.passages;
            let mut cells = vec![(*name).to_owned(), grouped(under.openings)];
            cells
                .extend([&without_rules.connect, &without_rules.rate].map(|figures| short(figures.median())));
            for passage in [unguarded, guarded] {
                cells.extend([&passage.connect, &passage.rate].map(|figures| short(figures.median())));
                cells.push(format!("{:.3}", passage.of_first.median()));
            }
            table.row(&cells);
        }
    }
    format!("### Connecting\n{}", table.into_text())
}

fn memory(found: &[Found], notes: &mut Notes) -> String {
    let mut table = Table::headed(&[
        "daemons on the machine",
        "nothing open (MiB)",
        "idle (% of a processor)",
        "many open",
        "MiB",
        "idle (% of a processor)",
        "10,000 open (MiB)",
    ]);
    for (name, examined) in found {
        let mut cells = vec![(*name).to_owned()];
        match &examined.daemons {
            None => cells.extend(["the same daemons", "", "", "", ""].map(ToOwned::to_owned)),
            Some(daemons) => {
                let empty = notes.take(name, "memory with nothing open", &daemons.empty);
                cells.extend(taken(empty));
                let many = notes.take(name, "memory with many open", &examined.under_thousand);
                // When memory was looked at, the one who knocks at the doors had not asked yet.
                let open = many.map(|under| grouped(under.openings.saturating_sub(1)));
                cells.push(open.unwrap_or_else(|| NOTHING.to_owned()));
                cells.extend(taken(many));
            }
        }
        cells.push(ten_thousand_mib(examined));
        table.row(&cells);
    }
    format!("### Memory and processor\n{}", table.into_text())
}

fn taken(under: Option<&Under>) -> [String; 2] {
    match under {
        None => [NOTHING, NOTHING].map(ToOwned::to_owned),
        Some(Under { idle: None, .. }) => ["no daemon", ""].map(ToOwned::to_owned),
        Some(Under {
            idle: Some(Footprint { mib, percent }),
            ..
        }) => [short(*mib), short(*percent)],
    }
}

fn ten_thousand_mib(examined: &Examined) -> String {
    match (&examined.ten_thousand, examined.ten_thousand_mib) {
        (Ok(Some(many)), Some(mib)) if many.is_complete() => short(mib),
        (Ok(Some(many)), Some(mib)) => format!("{} with {} open", short(mib), grouped(many.open)),
        (Ok(Some(_)), None) => "no daemon".to_owned(),
        (Ok(None), _) => "not asked".to_owned(),
        (Err(_), _) => NOTHING.to_owned(),
    }
}

fn with_daemons(found: &[Found]) -> impl Iterator<Item = (&'static str, &Daemons)> {
    found
        .iter()
        .filter_map(|(name, examined)| Some((*name, examined.daemons.as_ref()?)))
}

/// The same as bars.
pub(crate) fn chart(found: &[Found]) -> String {
    let bar = |name: &str, value: f64| Bar {
        name: name.to_owned(),
        value,
        is_ours: name.starts_with("Nightlatch"),
    };
    let asks = found
        .iter()
        .filter_map(|(name, examined)| Some(bar(name, examined.asks.as_ref().ok()?.median())));
    let ends = with_daemons(found).filter_map(|(name, daemons)| {
        let errors = &daemons.ends.as_ref().ok()?.errors;
        (errors.count() > 0).then(|| bar(name, errors.median().abs()))
    });
    let groups = [
        Group {
            heading: "Request → first connect, p50".to_owned(),
            bars: asks.collect(),
        },
        Group {
            heading: "How far from its end a grant ends, p50".to_owned(),
            bars: ends.collect(),
        },
    ];
    chart::draw("Beside the peers, in milliseconds", "ms", &groups)
}
