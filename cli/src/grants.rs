//! `nightlatch list grants` and `nightlatch grant show`.

use clap::Args;
use nightlatch_core::time::Timestamp;
use serde::Serialize;

use crate::client::Client;
use crate::client::calls::GrantFilter;
use crate::failure::{Exit, Failure};
use crate::following::is_settled;
use crate::listing::{self, Extent};
use crate::naming::{MachineRef, Target, request_resource};
use crate::output::{Field, Output, Tone};
use crate::record::{GrantRecord, GrantState};
use crate::request;
use crate::settings::Connection;
use crate::when;

/// List grants, newest first: your own, and everyone's if your role lets you see them.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  nightlatch list grants --live\n  nightlatch list grants --machine web-1 --mine --output json"
)]
pub(crate) struct Filter {
    /// Only those of this machine.
    #[arg(long, short, value_name = "MACHINE")]
    machine: Option<MachineRef>,
    /// Only those that have not ended.
    #[arg(long)]
    live: bool,
    /// Only your own.
    #[arg(long)]
    mine: bool,
    #[command(flatten)]
    extent: Extent,
}

/// Show one grant, or what became of one access request.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  nightlatch grant show 019aa0b2-6a51-7c3e\n  nightlatch grant show 019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11 --envelope > grant.json"
)]
pub(crate) struct Shown {
    /// The grant's id, grants/ID, or at least the first eight characters of the id; or accessRequests/ID.
    #[arg(value_name = "GRANT")]
    target: Target,
    /// Print the signed DSSE envelope, byte for byte, for `nightlatch-agent verify` and other tools.
    #[arg(long)]
    envelope: bool,
}

#[derive(Serialize)]
struct One {
    grant: GrantRecord,
}

pub(crate) async fn list(filter: Filter, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let Filter {
        machine,
        live,
        mine,
        extent,
    } = filter;
    let client = Client::connect(connection).await?;
    let filter = GrantFilter {
        machine,
        live_only: live,
        own_only: mine,
    };
    let fetch = async |page| client.grants_page(&filter, page).await;
    listing::show("grants", extent, output, fetch, table).await?;
    Ok(Exit::Done)
}

pub(crate) async fn show(shown: Shown, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let name = match shown.target {
        Target::Grant(grant) => client.grant_name(&grant).await?,
        Target::Request(id) => {
            let found = client.access_request(request_resource(id)).await?;
            let exit = if is_settled(&found.outcomes) {
                Exit::Done
            } else {
                Exit::NotYet
            };
            request::show_all(found, output)?;
            return Ok(exit);
        }
    };
    if shown.envelope {
        // A file gets the signed bytes and nothing else; a terminal wants its line ended.
        output.write(&client.envelope(name).await?)?;
        return if output.is_terminal() {
            output.line("")
        } else {
            Ok(())
        }
        .map(|()| Exit::Done);
    }
    let grant = client.grant(name).await?;
    if output.is_json() {
        output.json(&One { grant })?;
    } else {
        output.table(&[], details(grant, when::now()))?;
    }
    Ok(Exit::Done)
}

/// # Errors
/// The result can't be written.
pub(crate) fn table(grants: &[GrantRecord], output: &Output) -> Result<(), Failure> {
    if grants.is_empty() {
        return output.line("no grants");
    }
    let now = when::now();
    let shortened = output.is_terminal().then(|| shortest_length(grants));
    let rows = grants.iter().map(|grant| row(grant, shortened, now)).collect();
    output.table(
        &[
            "ID", "MACHINE", "STATE", "PERSON", "PORTS", "SOURCES", "ENDS", "REASON",
        ],
        rows,
    )
}

/// With `shortened`, the least that a person at a terminal needs.
fn row(grant: &GrantRecord, shortened: Option<usize>, now: Timestamp) -> Vec<Field> {
    let id = shortened
        .and_then(|length| grant.id.get(..length))
        .unwrap_or(&grant.id);
    let ends = last_moment(grant).map(|end| match shortened {
        Some(_) => format!("{} ({})", when::brief(end, now), when::distance(end, now)),
        None => format!("{} ({})", when::local(end), when::distance(end, now)),
    });
    vec![
        id.into(),
        grant.machine.as_str().into(),
        Field::toned(grant.state.to_string(), tone(grant.state)),
        grant.subject.as_str().into(),
        grant.ports.join(", ").into(),
        grant.sources.join(", ").into(),
        ends.unwrap_or_default().into(),
        grant.justification.as_str().into(),
    ]
}

/// The end that holds: for what was closed early, the moment it was.
fn last_moment(grant: &GrantRecord) -> Option<Timestamp> {
    match (grant.state, grant.close_time, grant.end_time) {
        (GrantState::Ended, Some(closed), Some(end)) => Some(closed.min(end)),
        (_, _, end) => end,
    }
}

/// An id's first 18 characters hold its millisecond and its counter, mostly enough to tell ids apart.
fn shortest_length(grants: &[GrantRecord]) -> usize {
    let is_unique = |length: usize| {
        let starts: std::collections::BTreeSet<_> =
            grants.iter().map(|grant| grant.id.get(..length)).collect();
        starts.len() == grants.len()
    };
    if is_unique(18) { 18 } else { 36 }
}

const fn tone(state: GrantState) -> Tone {
    match state {
        GrantState::Open => Tone::Good,
        GrantState::Opening | GrantState::Closing => Tone::Pending,
        GrantState::Refused => Tone::Bad,
        GrantState::Ended => Tone::Past,
        GrantState::Unknown => Tone::Plain,
    }
}

fn details(grant: GrantRecord, now: Timestamp) -> Vec<Vec<Field>> {
    let moment = |at: Option<Timestamp>| {
        at.map(|at| format!("{}, {}", when::local(at), when::distance(at, now)))
            .unwrap_or_default()
    };
    let state = Field::toned(grant.state.to_string(), tone(grant.state));
    let ends = if last_moment(&grant) == grant.end_time {
        "ends"
    } else {
        "was to end"
    };
    [
        ("grant", grant.id.into()),
        (
            "machine",
            format!("{} ({})", grant.machine, grant.machine_id).into(),
        ),
        ("state", state),
        ("", grant.message.into()),
        ("person", grant.subject.into()),
        ("ports", grant.ports.join(", ").into()),
        ("sources", grant.sources.join(", ").into()),
        ("starts", moment(grant.start_time).into()),
        (ends, moment(grant.end_time).into()),
        ("opened", moment(grant.open_time).into()),
        ("closed", moment(grant.close_time).into()),
        ("ended by", grant.ended_by.into()),
        ("code", grant.reason.into()),
        ("reason", grant.justification.into()),
        ("request", grant.access_request.into()),
    ]
    .into_iter()
    .filter(|(_, field): &(&str, Field)| !field.is_empty())
    .map(|(title, field)| vec![title.into(), field])
    .collect()
}

/// Whether the early end holds on the host.
pub(crate) const fn end_verdict(state: GrantState) -> Exit {
    match state {
        GrantState::Ended | GrantState::Refused => Exit::Done,
        GrantState::Closing | GrantState::Open | GrantState::Opening => Exit::NotYet,
        GrantState::Unknown => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(id: &str) -> GrantRecord {
        GrantRecord::example(id, GrantState::Open)
    }

    #[test]
    fn ids_are_shortened_only_where_they_stay_apart() {
        let first = grant("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11");
        let near = grant("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b12");
        let far = grant("019aa0b2-6a51-7c3f-9d6a-0f6d1f6f2b11");
        assert_eq!(shortest_length(&[first.clone(), far]), 18);
        assert_eq!(shortest_length(&[first, near]), 36);
        assert_eq!(shortest_length(&[]), 18);
    }

    #[test]
    fn an_end_counts_once_the_host_has_confirmed_it() {
        assert_eq!(end_verdict(GrantState::Ended), Exit::Done);
        assert_eq!(end_verdict(GrantState::Closing), Exit::NotYet);
        assert_eq!(end_verdict(GrantState::Unknown), Exit::Failed);
    }

    #[test]
    fn what_was_closed_early_has_ended_then() {
        let [closed, end] = ["2026-11-22T12:00:00Z", "2026-11-22T13:00:00Z"].map(|text| text.parse().ok());
        let mut grant = GrantRecord {
            end_time: end,
            ..grant("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11")
        };
        assert_eq!(last_moment(&grant), end);
        grant.state = GrantState::Ended;
        assert_eq!(last_moment(&grant), end);
        grant.close_time = closed;
        assert_eq!(last_moment(&grant), closed);
    }

    #[test]
    fn details_leave_out_what_is_not_known() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let details = details(grant("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11"), now);
        assert_eq!(details.len(), 3);
    }
}
