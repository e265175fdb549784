//! `nightlatch events`: the audit log.

use clap::Args;
use nightlatch_core::id::Subject;

use crate::client::Client;
use crate::client::calls::EventFilter;
use crate::failure::{Exit, Failure};
use crate::listing::{self, JsonList, Listed, Page};
use crate::naming::{GrantRef, MachineRef};
use crate::output::{self, Field, Output, Tone};
use crate::record::EventRecord;
use crate::settings::Connection;
use crate::when;

/// As many as a person looks through.
const MOST_ROWS: i32 = 50;

/// Show what happened: the newest events, oldest of them first.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  nightlatch events --machine web-1\n  nightlatch events --person alice --all --output json"
)]
pub(crate) struct Filter {
    /// Only those of this machine.
    #[arg(long, short, value_name = "MACHINE")]
    machine: Option<MachineRef>,
    /// Only those of this grant.
    #[arg(long, short, value_name = "GRANT")]
    grant: Option<GrantRef>,
    /// Only those of this person or program.
    #[arg(long, short, value_name = "NAME")]
    person: Option<Subject>,
    /// So many of the newest. Without it tables have 50, and JSON has all.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1000))]
    limit: Option<i32>,
    /// All of them, from the first.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

pub(crate) async fn events(
    filter: Filter,
    connection: &Connection,
    output: &Output,
) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let Filter {
        machine,
        grant,
        person,
        limit,
        all,
    } = filter;
    let grant = match grant {
        Some(grant) => Some(client.grant_name(&grant).await?),
        None => None,
    };
    let filter = EventFilter {
        machine,
        grant,
        person: person.map(Into::into),
    };
    match limit {
        Some(limit) => newest(&client, &filter, limit, output).await?,
        None if output.is_json() => {
            let fetch = async |page| client.events_page(&filter, page).await;
            listing::stream("events", usize::MAX, output, fetch).await?;
        }
        None if all => every(&client, &filter, output).await?,
        None => newest(&client, &filter, MOST_ROWS, output).await?,
    }
    Ok(Exit::Done)
}

async fn newest(client: &Client, filter: &EventFilter, most: i32, output: &Output) -> Result<(), Failure> {
    let Listed { items, is_cut } = client.newest_events(filter, most).await?;
    if output.is_json() {
        let mut list = JsonList::new("events", output);
        list.write(&items)?;
        list.end(is_cut)?;
    } else if items.is_empty() {
        output.line("no events")?;
    } else {
        output.table(&HEADER, items.iter().map(row).collect())?;
    }
    if is_cut && !output.is_closed() {
        let shown = items.len();
        output::hint(format!(
            "only the newest {shown} are shown: --limit N shows more, --all shows all"
        ));
    }
    Ok(())
}

const HEADER: [&str; 5] = ["TIME", "EVENT", "ACTOR", "MACHINE", "MESSAGE"];

/// A table for each page, as they come: a whole log need not fit into memory.
async fn every(client: &Client, filter: &EventFilter, output: &Output) -> Result<(), Failure> {
    let (mut header, mut token) = (&HEADER[..], None);
    loop {
        let Page { items, next } = client.events_page(filter, token).await?;
        if !items.is_empty() {
            output.table(header, items.iter().map(row).collect())?;
            header = &[];
        }
        token = next;
        // A reader who left, as `head` does, needs no more pages.
        if token.is_none() || output.is_closed() {
            break;
        }
    }
    if header.is_empty() {
        Ok(())
    } else {
        output.line("no events")
    }
}

fn row(event: &EventRecord) -> Vec<Field> {
    let reason = if event.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", event.reason)
    };
    vec![
        event.time.map(when::local).unwrap_or_default().into(),
        Field::toned(event.kind.as_str(), tone(&event.kind)),
        event.actor.as_str().into(),
        event.machine.as_str().into(),
        format!("{}{reason}", event.message).into(),
    ]
}

fn tone(kind: &str) -> Tone {
    match kind {
        "grant.opened" => Tone::Good,
        "grant.refused"
        | "access.denied"
        | "call.refused"
        | "machine.refused"
        | "machine.reported"
        | "machine.break_glass" => Tone::Bad,
        "access.waiting" | "machine.disconnected" => Tone::Pending,
        _ => Tone::Plain,
    }
}
