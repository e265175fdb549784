//! `nightlatch events`: the audit log.

use clap::Args;
use nightlatch_core::id::Subject;

use crate::client::Client;
use crate::client::calls::{EventFilter, EventPage};
use crate::failure::{Exit, Failure};
use crate::naming::{GrantRef, MachineRef};
use crate::output::{Field, Output, Tone};
use crate::record::EventRecord;
use crate::settings::Connection;
use crate::when;

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
    /// So many of the newest.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=1000))]
    limit: i32,
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
    let mut pages = Pages::new(output);
    let limit = (!all).then_some(limit);
    match fill(&mut pages, &client, &filter, limit).await {
        Ok(()) => pages.end()?,
        Err(failure) => {
            pages.break_off(&failure)?;
            return Err(failure);
        }
    }
    Ok(Exit::Done)
}

/// The newest, or without a limit all.
async fn fill(
    pages: &mut Pages<'_>,
    client: &Client,
    filter: &EventFilter,
    limit: Option<i32>,
) -> Result<(), Failure> {
    if let Some(limit) = limit {
        return pages.write(client.newest_events(filter, limit).await?);
    }
    let mut page = None;
    loop {
        let EventPage { events, next } = client.events_after(filter, page).await?;
        pages.write(events)?;
        page = next;
        // A reader who left, as `head` does, needs no more pages.
        if page.is_none() || pages.output.is_closed() {
            return Ok(());
        }
    }
}

/// Writes events as they come: a whole log need not fit into memory.
struct Pages<'o> {
    output: &'o Output,
    is_first: bool,
}

impl<'o> Pages<'o> {
    const fn new(output: &'o Output) -> Self {
        Self {
            output,
            is_first: true,
        }
    }

    fn write(&mut self, events: Vec<EventRecord>) -> Result<(), Failure> {
        if events.is_empty() {
            return Ok(());
        }
        if self.output.is_json() {
            for event in events {
                let comma = if self.is_first { "{\"events\":[\n" } else { ",\n" };
                let json = serde_json::to_string(&event).map_err(|error| Failure::Write(error.into()))?;
                self.output.write(format!("{comma}{json}").as_bytes())?;
                self.is_first = false;
            }
            return Ok(());
        }
        let header: &[&str] = if self.is_first {
            &["TIME", "EVENT", "ACTOR", "MACHINE", "MESSAGE"]
        } else {
            &[]
        };
        self.is_first = false;
        self.output.table(header, events.iter().map(row).collect())
    }

    /// What has begun is made whole, with the failure beside what came before it.
    fn break_off(&self, failure: &Failure) -> Result<(), Failure> {
        if self.is_first || !self.output.is_json() {
            return Ok(());
        }
        let json = serde_json::to_string(&failure.record()).map_err(|error| Failure::Write(error.into()))?;
        self.output.line(&format!("\n],\n\"error\":{json}}}"))
    }

    fn end(self) -> Result<(), Failure> {
        match (self.output.is_json(), self.is_first) {
            (true, true) => self.output.line("{\"events\":[\n]}"),
            (true, false) => self.output.line("\n]}"),
            (false, true) => self.output.line("no events"),
            (false, false) => Ok(()),
        }
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
        "grant.refused" | "access.denied" | "call.refused" | "machine.refused" | "machine.reported" => {
            Tone::Bad
        }
        "access.waiting" | "machine.disconnected" => Tone::Pending,
        _ => Tone::Plain,
    }
}
