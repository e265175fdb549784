//! `nightlatch list requests`.

use clap::Args;
use nightlatch_core::time::Timestamp;

use crate::client::Client;
use crate::client::calls::RequestFilter;
use crate::failure::{Exit, Failure};
use crate::listing::{self, Extent};
use crate::naming::MachineRef;
use crate::output::{Field, Output};
use crate::record::RequestRecord;
use crate::settings::Connection;
use crate::when;

/// List access requests, newest first: your own, and everyone's if your role lets you see them.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  nightlatch list requests --waiting\n  nightlatch list requests --machine web-1 --mine"
)]
pub(crate) struct Filter {
    /// Only those for this machine.
    #[arg(long, short, value_name = "MACHINE")]
    machine: Option<MachineRef>,
    /// Only those that still wait for a machine.
    #[arg(long)]
    waiting: bool,
    /// Only your own.
    #[arg(long)]
    mine: bool,
    #[command(flatten)]
    extent: Extent,
}

pub(crate) async fn list(filter: Filter, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let Filter {
        machine,
        waiting,
        mine,
        extent,
    } = filter;
    let client = Client::connect(connection).await?;
    let filter = RequestFilter {
        machine,
        waiting_only: waiting,
        own_only: mine,
    };
    let fetch = async |page| client.access_requests_page(&filter, page).await;
    listing::show("access_requests", extent, output, fetch, table).await?;
    Ok(Exit::Done)
}

pub(crate) fn table(requests: &[RequestRecord], output: &Output) -> Result<(), Failure> {
    if requests.is_empty() {
        return output.line("no access requests");
    }
    let now = when::now();
    let rows = requests.iter().map(|request| row(request, now)).collect();
    output.table(&["ID", "ASKED", "PERSON", "PORTS", "MACHINES", "REASON"], rows)
}

fn row(request: &RequestRecord, now: Timestamp) -> Vec<Field> {
    let asked = request
        .create_time
        .map(|asked| when::distance(asked, now))
        .unwrap_or_default();
    let machines: Vec<String> = request
        .outcomes
        .iter()
        .map(|outcome| format!("{} {}", outcome.machine, outcome.state))
        .collect();
    vec![
        request.id.as_str().into(),
        asked.into(),
        request.subject.as_str().into(),
        request.ports.join(" ").into(),
        machines.join(", ").into(),
        request.justification.as_str().into(),
    ]
}
