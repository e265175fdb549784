//! `nightlatch policy show`, `set` and `delete`.

use std::path::PathBuf;

use clap::Args;
use nightlatch_core::policy::{Policy, PortRule};
use serde::Serialize;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::naming::MachineRef;
use crate::output::{self, Field, Output};
use crate::policy_file::{self, InvalidPolicyFile};
use crate::record::{MachineState, PolicyRecord};
use crate::settings::Connection;

/// Show what may be asked for on a machine.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  nightlatch policy show web-1\n  nightlatch policy show web-1 --toml > web-1.toml"
)]
pub(crate) struct Shown {
    /// Name or id.
    #[arg(value_name = "MACHINE")]
    machine: MachineRef,
    /// In the form that `policy set -f` takes.
    #[arg(long)]
    toml: bool,
}

const SET_EXAMPLES: &str = "\
Examples:
  nightlatch policy set web-1 --port 22/tcp
  nightlatch policy set web-1 --port 22/tcp,from=192.0.2.0/24,max=PT3H --port 8000-8010/tcp,max=30m
  nightlatch policy set web-1 -f web-1.toml

A file says the same:
  [[rules]]
  port = \"22/tcp\"
  from = [\"192.0.2.0/24\"]
  max = \"PT3H\"

Without `from` any source may be asked for, without `max` three hours.

Exit codes: 0 set, 1 refused or failed, 2 usage, 3 set, but the machine is away: its ports are shut when it
connects.";

/// Set what may be asked for on a machine. The ports of the policy are shut there.
#[derive(Clone, Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub(crate) struct Wanted {
    /// Name or id.
    #[arg(value_name = "MACHINE")]
    machine: MachineRef,
    /// A rule: port or range and protocol, allowed sources, longest request. May be repeated.
    #[arg(
        long = "port",
        short = 'p',
        value_name = "PORT/PROTOCOL[,from=PREFIX...][,max=LENGTH]",
        required_unless_present = "file",
        value_parser = policy_file::parse_rule
    )]
    rules: Vec<PortRule>,
    /// Take the rules from a TOML file; `-` is standard input.
    #[arg(long, short, value_name = "FILE", conflicts_with = "rules")]
    file: Option<PathBuf>,
    /// Set it only if the policy is still the one with this etag.
    #[arg(long, value_name = "ETAG")]
    etag: Option<String>,
}

/// Delete a machine's policy: its ports are no longer guarded, unless the host's own file lists them, and
/// its grants end.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  nightlatch policy delete web-1")]
pub(crate) struct Doomed {
    /// Name or id.
    #[arg(value_name = "MACHINE")]
    machine: MachineRef,
    /// Delete it only if it is still the one with this etag.
    #[arg(long, value_name = "ETAG")]
    etag: Option<String>,
}

#[derive(Serialize)]
struct One {
    policy: PolicyRecord,
}

pub(crate) async fn show(shown: Shown, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let policy = client.policy(&shown.machine).await?;
    if shown.toml && !output.is_json() {
        output.write(policy_file::to_toml(&policy.rules).as_bytes())?;
    } else {
        write(policy, output)?;
    }
    Ok(Exit::Done)
}

pub(crate) async fn set(wanted: Wanted, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let Wanted {
        machine,
        rules,
        file,
        etag,
    } = wanted;
    let policy = match file {
        Some(path) => policy_file::read(&path)?,
        None => Policy::new(rules).map_err(InvalidPolicyFile::Options)?,
    };
    let client = Client::connect(connection).await?;
    let policy = client
        .set_policy(&machine, &policy, etag.unwrap_or_default())
        .await?;
    write(policy, output)?;
    let at = match client.machine(&machine).await {
        Ok(at) => at,
        Err(failure) => {
            output::warn(format_args!(
                "the policy is set, but whether {machine} is connected can't be found out: {failure}"
            ));
            return Ok(Exit::Done);
        }
    };
    if at.state == MachineState::Connected {
        return Ok(Exit::Done);
    }
    output::hint(format_args!(
        "{} is away: its ports are shut when it connects",
        output::printable(&at.machine)
    ));
    Ok(Exit::NotYet)
}

#[derive(Serialize)]
struct Deleted {
    deleted: String,
}

pub(crate) async fn delete(
    doomed: Doomed,
    connection: &Connection,
    output: &Output,
) -> Result<Exit, Failure> {
    let Doomed { machine, etag } = doomed;
    let client = Client::connect(connection).await?;
    client.delete_policy(&machine, etag.unwrap_or_default()).await?;
    if output.is_json() {
        output.json(&Deleted {
            deleted: machine.policy(),
        })?;
    } else {
        output.line(&format!("{machine}: the policy is deleted, its grants end"))?;
        output::hint("ports that the host's own agent.toml lists stay guarded");
    }
    Ok(Exit::Done)
}

fn write(policy: PolicyRecord, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&One { policy });
    }
    let rows = policy
        .rules
        .into_iter()
        .map(|rule| -> Vec<Field> { vec![rule.port.into(), rule.from.join(", ").into(), rule.max.into()] });
    output.line(&format!(
        "{} (etag {})",
        output::printable(&policy.machine),
        output::printable(&policy.etag)
    ))?;
    output.table(&["PORT", "FROM", "MAX"], rows.collect())
}
