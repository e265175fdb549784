//! `nightlatch done` and `nightlatch revoke`: end grants before their time.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::client::calls::{GrantFilter, RequestFilter};
use crate::failure::{Exit, Failure, SHOWS_GRANTS};
use crate::grants::{end_verdict, table};
use crate::naming::{MachineRef, Target, request_resource};
use crate::output::{self, Output, printable};
use crate::record::{ErrorRecord, GrantRecord, GrantState, RequestRecord};
use crate::requests;
use crate::settings::Connection;
use crate::spinner::Spinner;
use crate::when;

/// Far below what a server lets one connection have under way.
const AT_ONCE: usize = 16;

const DONE_EXAMPLES: &str = "\
Examples:
  nightlatch done
  nightlatch done --machine web-1
  nightlatch done 019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11
  nightlatch done accessRequests/019aa0b2-7c10-7d00-8a3b-1f2e3d4c5b6a

At a terminal it asks before it ends all that is yours; a script is not asked.

Exit codes: 0 ended, 1 refused or failed, 2 usage, 3 ended, but the host is away and runs it to its end,
4 done, but the result could not be written.";

const REVOKE_EXAMPLES: &str = "\
Examples:
  nightlatch revoke 019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11
  nightlatch revoke accessRequests/019aa0b2-7c10-7d00-8a3b-1f2e3d4c5b6a

Exit codes: 0 ended, 1 refused or failed, 2 usage, 3 ended, but the host is away and runs it to its end,
4 done, but the result could not be written.";

/// End your own grants early, and withdraw requests that still wait.
#[derive(Clone, Debug, Args)]
#[command(after_help = DONE_EXAMPLES)]
pub(crate) struct Done {
    /// Grants to end, or requests to withdraw (accessRequests/ID). Without any: all of yours.
    #[arg(value_name = "GRANT")]
    targets: Vec<Target>,
    /// Only on this machine. Without GRANT: all of yours there; with it: those, which must be there.
    #[arg(long, short, value_name = "MACHINE")]
    machine: Option<MachineRef>,
    /// At a terminal, don't ask before all that is yours is ended.
    #[arg(long, short)]
    yes: bool,
    /// How long to wait for the hosts, a minute at most.
    #[arg(long, value_name = "LENGTH", default_value = "10s", value_parser = when::parse_short_wait)]
    timeout: Duration,
}

/// End anyone's grants early, and withdraw anyone's requests that still wait.
#[derive(Clone, Debug, Args)]
#[command(after_help = REVOKE_EXAMPLES)]
pub(crate) struct Revoke {
    /// Ids of grants: whole, as grants/ID, or at least the first eight characters. Requests to withdraw:
    /// accessRequests/ID.
    #[arg(required = true, value_name = "GRANT")]
    targets: Vec<Target>,
    /// How long to wait for the hosts, a minute at most.
    #[arg(long, value_name = "LENGTH", default_value = "10s", value_parser = when::parse_short_wait)]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// Only one's own.
    Own,
    Anyones,
}

/// What was ended or withdrawn.
enum Ended {
    Grant(Box<GrantRecord>),
    Request(Box<RequestRecord>),
}

pub(crate) async fn done(done: Done, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let names = if done.targets.is_empty() {
        all_own(&client, &done, output).await?
    } else {
        let names = names(&client, &done.targets).await?;
        if let Some(machine) = &done.machine {
            check_all_on(&client, &names, machine).await?;
        }
        names
    };
    end(&client, names, Right::Own, done.timeout, output).await
}

/// The caller's live grants and waiting requests, after a question to whoever sits there.
async fn all_own(client: &Client, done: &Done, output: &Output) -> Result<Vec<String>, Failure> {
    let filter = GrantFilter {
        machine: done.machine.clone(),
        live_only: true,
        own_only: true,
    };
    let grants = client.grants(&filter, usize::MAX).await?.items;
    let filter = RequestFilter {
        machine: done.machine.clone(),
        waiting_only: true,
        own_only: true,
    };
    let waiting = client.access_requests(&filter, usize::MAX).await?.items;
    let is_some = !(grants.is_empty() && waiting.is_empty());
    if is_some && done.machine.is_none() && !done.yes && somebody_sits_there() {
        confirm(&grants, &waiting, output).await?;
    }
    let grants = grants.into_iter().map(|grant| grant.name);
    Ok(grants
        .chain(waiting.into_iter().map(|request| request.name))
        .collect())
}

pub(crate) async fn revoke(
    revoke: Revoke,
    connection: &Connection,
    output: &Output,
) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let names = names(&client, &revoke.targets).await?;
    end(&client, names, Right::Anyones, revoke.timeout, output).await
}

/// Everything is looked up before anything is ended.
async fn names(client: &Client, targets: &[Target]) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for target in targets {
        let name = match target {
            Target::Grant(grant) => client.grant_name(grant).await?,
            Target::Request(id) => request_resource(*id),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// # Errors
/// One that is elsewhere, which is named.
async fn check_all_on(client: &Client, names: &[String], machine: &MachineRef) -> Result<(), Failure> {
    for name in names {
        let at = places(client, name).await?;
        if !at
            .iter()
            .any(|(place, id)| machine.is_named(place) || machine.is_named(id))
        {
            let at: Vec<String> = at.into_iter().map(|(place, _)| place).collect();
            return Err(Failure::Elsewhere {
                name: name.clone(),
                at: at.join(", "),
                machine: machine.to_string(),
            });
        }
    }
    Ok(())
}

/// Names and ids of the machines that a grant or a request is for.
async fn places(client: &Client, name: &str) -> Result<Vec<(String, String)>, Failure> {
    let of_request = async |name: String| {
        let outcomes = client.access_request(name).await?.outcomes;
        let places = outcomes
            .into_iter()
            .map(|outcome| (outcome.machine, outcome.machine_id));
        Ok::<_, Failure>(places.collect())
    };
    if name.starts_with("accessRequests/") {
        return of_request(name.to_string()).await;
    }
    match client.grant(name.to_string()).await {
        // A bare id may be that of a request.
        Err(Failure::Refused(refusal)) if refusal.is_unknown() => {
            let request = name.replacen("grants/", "accessRequests/", 1);
            of_request(request).await.map_err(|failure| match failure {
                Failure::Refused(request) if request.is_unknown() => refusal.into(),
                other => other,
            })
        }
        found => found.map(|grant| vec![(grant.machine, grant.machine_id)]),
    }
}

fn somebody_sits_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// # Errors
/// The answer is no, or can't be read.
async fn confirm(grants: &[GrantRecord], waiting: &[RequestRecord], output: &Output) -> Result<(), Failure> {
    let count = grants.len() + waiting.len();
    if !output.is_json() && !grants.is_empty() {
        table(grants, output)?;
    }
    if !output.is_json() && !waiting.is_empty() {
        requests::table(waiting, output)?;
    }
    // Off the runtime's thread, so that the connection stays alive however long someone thinks.
    let answer = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        write!(
            io::stderr(),
            "End {}? [y/N] ",
            if count == 1 {
                "it".to_string()
            } else {
                format!("all {count}")
            }
        )?;
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let answer = answer
        .await
        .map_err(|error| Failure::Ask(error.into()))?
        .map_err(Failure::Ask)?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Failure::Declined)
    }
}

async fn end(
    client: &Client,
    names: Vec<String>,
    right: Right,
    wait: Duration,
    output: &Output,
) -> Result<Exit, Failure> {
    let spinner = Spinner::start("waiting for the hosts to confirm".to_string());
    let results = tokio::select! {
        results = end_all(client, names, right, wait) => results,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
    };
    drop(spinner);
    show(results, output)
}

/// Each on its own: one that fails keeps no other from ending.
async fn end_all(
    client: &Client,
    names: Vec<String>,
    right: Right,
    wait: Duration,
) -> Vec<Result<Ended, Failure>> {
    let mut waiting = names.into_iter().enumerate();
    let mut running = JoinSet::new();
    let mut results = Vec::new();
    loop {
        while running.len() < AT_ONCE
            && let Some((position, name)) = waiting.next()
        {
            let client = client.clone();
            running.spawn(async move { (position, end_one(&client, name, right, wait).await) });
        }
        match running.join_next().await {
            None => break,
            Some(Ok(result)) => results.push(result),
            Some(Err(_)) => {}
        }
    }
    results.sort_by_key(|(position, _)| *position);
    results.into_iter().map(|(_, result)| result).collect()
}

async fn end_one(client: &Client, name: String, right: Right, wait: Duration) -> Result<Ended, Failure> {
    if name.starts_with("accessRequests/") {
        return client
            .cancel_access_request(name)
            .await
            .map(|request| Ended::Request(Box::new(request)));
    }
    let ended = match right {
        Right::Own => client.end_grant(name.clone(), wait).await,
        Right::Anyones => client.revoke_grant(name.clone(), wait).await,
    };
    match ended {
        // A bare id may be that of a request that still waits.
        Err(Failure::Refused(refusal)) if refusal.is_unknown() => {
            let request = name.replacen("grants/", "accessRequests/", 1);
            match client.cancel_access_request(request).await {
                Ok(request) => Ok(Ended::Request(Box::new(request))),
                Err(_) => Err(refusal.into()),
            }
        }
        ended => ended.map(|grant| Ended::Grant(Box::new(grant))),
    }
}

#[derive(Default, Serialize)]
struct Shown {
    grants: Vec<GrantRecord>,
    access_requests: Vec<RequestRecord>,
    /// What could not be ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorRecord>,
    /// The first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorRecord>,
}

impl Shown {
    /// What was done, for those who can't be told the result.
    fn stands(&self) -> Option<String> {
        let grants = self.grants.iter().map(grant_line);
        let requests = self.access_requests.iter().map(request_line);
        let lines: Vec<String> = grants.chain(requests).collect();
        (!lines.is_empty()).then(|| lines.join(", "))
    }
}

fn show(results: Vec<Result<Ended, Failure>>, output: &Output) -> Result<Exit, Failure> {
    let mut exits = Vec::new();
    let mut shown = Shown::default();
    let nothing = results.is_empty();
    for result in results {
        match result {
            Ok(Ended::Grant(grant)) => {
                exits.push(end_verdict(grant.state));
                shown.grants.push(*grant);
            }
            Ok(Ended::Request(request)) => {
                exits.push(Exit::Done);
                shown.access_requests.push(*request);
            }
            Err(failure) => {
                output::report(&failure);
                exits.push(failure.exit());
                shown.errors.push(failure.record());
            }
        }
    }
    shown.error = shown.errors.first().cloned();
    write(&shown, nothing, output)
        .map_err(|failure| failure.or_untold(|| Some((shown.stands()?, SHOWS_GRANTS.to_string()))))?;
    Ok(worst(&exits))
}

fn write(shown: &Shown, nothing: bool, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(shown);
    }
    if nothing {
        output.line("nothing to end: you have neither live grants nor waiting requests there")?;
    }
    let grants = shown.grants.iter().map(grant_line);
    for line in grants.chain(shown.access_requests.iter().map(request_line)) {
        output.line(&printable(&line))?;
    }
    Ok(())
}

fn request_line(request: &RequestRecord) -> String {
    format!("request {}: withdrawn", request.id)
}

fn grant_line(grant: &GrantRecord) -> String {
    let GrantRecord {
        machine,
        id,
        state,
        message,
        ..
    } = grant;
    match state {
        GrantState::Ended => format!("{machine}: ended ({id})"),
        GrantState::Refused => format!("{machine}: was never open ({id})"),
        _ => format!("{machine}: {message} ({id})"),
    }
}

fn worst(exits: &[Exit]) -> Exit {
    [Exit::Failed, Exit::NotYet]
        .into_iter()
        .find(|exit| exits.contains(exit))
        .unwrap_or(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_outweighs_what_is_pending_and_that_what_is_done() {
        assert_eq!(worst(&[]), Exit::Done);
        assert_eq!(worst(&[Exit::Done, Exit::NotYet]), Exit::NotYet);
        assert_eq!(worst(&[Exit::NotYet, Exit::Failed, Exit::Done]), Exit::Failed);
    }
}
