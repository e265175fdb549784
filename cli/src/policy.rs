//! `nightlatch policy show`, `set` and `delete`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use nightlatch_core::policy::{Policy, PortRule};
use serde::Serialize;

use crate::client::Client;
use crate::consequences::{self, Before, Consequences};
use crate::failure::{Exit, Failure};
use crate::naming::MachineRef;
use crate::output::{self, Field, Output, printable};
use crate::policy_file::{self, InvalidPolicyFile};
use crate::record::{MachineRecord, MachineState, PolicyRecord};
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

Without `from` any source may be asked for, without `max` three hours. Open TCP connections go on; of a UDP port that
nothing guarded before, open flows may be cut, and a warning names it.

Exit codes: 0 set, 1 refused or failed, 2 usage, 3 set, but the machine is away: its ports are shut when it
connects, 4 set, but the result could not be written.";

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
    #[arg(long, value_name = "ETAG", value_parser = NonEmptyStringValueParser::new())]
    etag: Option<String>,
}

/// Delete a machine's policy: its ports are no longer guarded, unless the host's own file lists them, and
/// its grants end.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Example:\n  nightlatch policy delete web-1\n\nExit codes: 0 deleted, 1 refused or failed, 2 usage, 3 deleted, but the machine is away: all stays there until it\nconnects, 4 deleted, but the result could not be written."
)]
pub(crate) struct Doomed {
    /// Name or id.
    #[arg(value_name = "MACHINE")]
    machine: MachineRef,
    /// Delete it only if it is still the one with this etag.
    #[arg(long, value_name = "ETAG", value_parser = NonEmptyStringValueParser::new())]
    etag: Option<String>,
}

#[derive(Serialize)]
struct One {
    policy: PolicyRecord,
}

#[derive(Serialize)]
struct Changed<'a> {
    policy: PolicyRecord,
    #[serde(flatten)]
    consequences: Option<&'a Consequences>,
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
    let before = Before::read(&client, &machine).await;
    let set = client
        .set_policy(&machine, &policy, etag.unwrap_or_default())
        .await?;
    let after = async {
        let before = before?;
        let at = client.machine(&machine).await?;
        let live = consequences::live(&client, &machine).await?;
        Ok::<_, Failure>((Consequences::of(&before, Some(&policy), &at, &live), at))
    };
    let after = after.await;
    let consequences = after.as_ref().ok().map(|(consequences, _)| consequences);
    // Told first: it holds whether the result can be written or not.
    let exit = match &after {
        Ok((consequences, at)) => {
            consequences.tell(at);
            in_effect(at, "its ports are shut when it connects")
        }
        Err(failure) => {
            output::warn(format_args!(
                "the policy is set, but whether {machine} is connected and what is open there can't be found out: {failure}"
            ));
            Exit::Done
        }
    };
    write_set(set, consequences, output).map_err(|failure| {
        failure.or_untold(|| {
            let stands = format!("the policy of {machine} is set all the same");
            Some((stands, shows_policy(&machine)))
        })
    })?;
    Ok(exit)
}

/// Whether a change is in effect on the host; where it is not, what is to come is told.
fn in_effect(at: &MachineRecord, to_come: &str) -> Exit {
    if at.state == MachineState::Connected {
        return Exit::Done;
    }
    output::hint(format_args!("{} is away: {to_come}", at.machine));
    Exit::NotYet
}

fn shows_policy(machine: &MachineRef) -> String {
    format!("`nightlatch policy show {machine}` shows what holds")
}

fn write_set(
    policy: PolicyRecord,
    consequences: Option<&Consequences>,
    output: &Output,
) -> Result<(), Failure> {
    if output.is_json() {
        output.json(&Changed { policy, consequences })
    } else {
        write(policy, output)
    }
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: String,
    /// Ports that nothing guards any more.
    unguarded: Option<&'a Vec<String>>,
    /// The grants that end.
    ended: Option<&'a Vec<String>>,
}

pub(crate) async fn delete(
    doomed: Doomed,
    connection: &Connection,
    output: &Output,
) -> Result<Exit, Failure> {
    let Doomed { machine, etag } = doomed;
    let client = Client::connect(connection).await?;
    let before = Before::read(&client, &machine).await;
    let live = consequences::live(&client, &machine).await;
    client.delete_policy(&machine, etag.unwrap_or_default()).await?;
    let after = async {
        let (before, live) = (before?, live?);
        let at = client.machine(&machine).await?;
        let ended: Vec<String> = live.into_iter().map(|grant| grant.id).collect();
        Ok::<_, Failure>((Consequences::of(&before, None, &at, &[]), ended, at))
    };
    let after = after.await;
    // Told first: it holds whether the result can be written or not.
    let exit = match &after {
        Ok((consequences, _, at)) => {
            consequences.tell(at);
            in_effect(at, "its ports stay shut and its grants run on until it connects")
        }
        Err(failure) => {
            output::warn(format_args!(
                "the policy is deleted, but what is open on {machine} now can't be found out: {failure}"
            ));
            Exit::Done
        }
    };
    write_deleted(&machine, after.as_ref().ok(), output).map_err(|failure| {
        failure.or_untold(|| {
            let stands = format!("the policy of {machine} is deleted all the same");
            Some((stands, shows_policy(&machine)))
        })
    })?;
    Ok(exit)
}

fn write_deleted(
    machine: &MachineRef,
    after: Option<&(Consequences, Vec<String>, MachineRecord)>,
    output: &Output,
) -> Result<(), Failure> {
    let ended = after.map(|(_, ended, _)| ended);
    if output.is_json() {
        return output.json(&Deleted {
            deleted: machine.policy(),
            unguarded: after.map(|(consequences, ..)| &consequences.unguarded),
            ended,
        });
    }
    let grants = match ended {
        Some(ended) if ended.is_empty() => "there were no live grants".to_string(),
        Some(ended) => format!("these grants end: {}", consequences::some_of(ended)),
        None => "its grants end".to_string(),
    };
    output::hint("ports that the host's own agent.toml lists stay guarded");
    output.line(&printable(&format!("{machine}: the policy is deleted, {grants}")))
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
        printable(&policy.machine),
        printable(&policy.etag)
    ))?;
    output.table(&["PORT", "FROM", "MAX"], rows.collect())
}
