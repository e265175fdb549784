//! `nightlatch list machines`.

use nightlatch_core::time::Timestamp;
use serde::Serialize;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::{Field, Output, Tone};
use crate::record::{MachineRecord, MachineState};
use crate::settings::Connection;
use crate::when;

#[derive(Serialize)]
struct Machines {
    machines: Vec<MachineRecord>,
}

pub(crate) async fn list(connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let machines = client.machines().await?;
    if output.is_json() {
        output.json(&Machines { machines })?;
    } else if machines.is_empty() {
        output.line(
            "no machines: one joins with `nightlatch-server token create` and `nightlatch-agent enroll`",
        )?;
    } else {
        let now = when::now();
        let rows = machines.iter().map(|machine| row(machine, now)).collect();
        output.table(&["MACHINE", "STATE", "POLICY", "OPEN", "ADDRESS", "AGENT"], rows)?;
    }
    Ok(Exit::Done)
}

fn row(machine: &MachineRecord, now: Timestamp) -> Vec<Field> {
    let state = match (machine.state, machine.last_seen_time) {
        (MachineState::Connected, _) => Field::toned("connected", Tone::Good),
        (MachineState::Away, Some(seen)) => Field::toned(
            format!("away, last seen {}", when::distance(seen, now)),
            Tone::Pending,
        ),
        (MachineState::Away, None) => Field::toned("never seen", Tone::Pending),
    };
    let policy = match (machine.configured, &machine.ceiling) {
        (false, _) => Field::toned("none", Tone::Past),
        // A host that has reported and has no limits of its own takes no grant.
        (true, None) if machine.last_seen_time.is_some() => {
            Field::toned("set, but the host has no ceiling", Tone::Bad)
        }
        (true, _) => "set".into(),
    };
    vec![
        machine.machine.as_str().into(),
        state,
        policy,
        machine.open_grants.to_string().into(),
        machine.address.as_str().into(),
        machine.agent_version.as_str().into(),
    ]
}
