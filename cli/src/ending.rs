//! `nightlatch done` and `nightlatch revoke`: end grants before their time.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::client::calls::{GrantFilter, RequestFilter};
use crate::ended::{self, Ended, Withdrawal};
use crate::failure::{Exit, Failure};
use crate::grants::table;
use crate::naming::{MachineRef, Target, request_resource};
use crate::output::Output;
use crate::record::{GrantRecord, RequestRecord};
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

/// End your own grants early, and withdraw what still waits.
#[derive(Clone, Debug, Args)]
#[command(after_help = DONE_EXAMPLES)]
pub(crate) struct Done {
    /// Grants to end, or requests (accessRequests/ID): withdrawn where they wait, their grants ended. Without any: all
    /// of yours.
    #[arg(value_name = "GRANT")]
    targets: Vec<Target>,
    /// Only on this machine. Without GRANT: all of yours there; with it: those, which must be there;
    /// of a request, its part there.
    #[arg(long, short, value_name = "MACHINE")]
    machine: Option<MachineRef>,
    /// At a terminal, don't ask before all that is yours is ended.
    #[arg(long, short)]
    yes: bool,
    /// How long to wait for the hosts, a minute at most.
    #[arg(long, value_name = "LENGTH", default_value = "10s", value_parser = when::parse_short_wait)]
    timeout: Duration,
}

/// End anyone's grants early, and withdraw what still waits.
#[derive(Clone, Debug, Args)]
#[command(after_help = REVOKE_EXAMPLES)]
pub(crate) struct Revoke {
    /// Ids of grants: whole, as grants/ID, or at least the first eight characters. Requests,
    /// accessRequests/ID: withdrawn where they wait, their grants ended.
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

/// How everything that is named is ended.
#[derive(Clone)]
struct How {
    right: Right,
    /// Only there.
    machine: Option<MachineRef>,
    wait: Duration,
}

pub(crate) async fn done(done: Done, connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let (names, unlisted) = if done.targets.is_empty() {
        all_own(&client, &done, output).await?
    } else {
        let names = names(&client, &done.targets).await?;
        if let Some(machine) = &done.machine {
            check_all_on(&client, &names, machine).await?;
        }
        (names, None)
    };
    let how = How {
        right: Right::Own,
        machine: done.machine,
        wait: done.timeout,
    };
    let mut results = end(&client, names, how).await?;
    results.extend(unlisted.map(Err));
    ended::show(results, output)
}

/// The caller's live grants and waiting requests, after a question to whoever sits there; with them, why one of the two
/// lists can't be had.
async fn all_own(
    client: &Client,
    done: &Done,
    output: &Output,
) -> Result<(Vec<String>, Option<Failure>), Failure> {
    let filter = RequestFilter {
        machine: done.machine.clone(),
        waiting_only: true,
        own_only: true,
    };
    // First, so that what is signed in between is among the grants.
    let waiting = client.access_requests(&filter, usize::MAX).await;
    let filter = GrantFilter {
        machine: done.machine.clone(),
        live_only: true,
        own_only: true,
    };
    let grants = client.grants(&filter, usize::MAX).await;
    let (grants, waiting, unlisted) = match (grants, waiting) {
        (Ok(grants), Ok(waiting)) => (grants.items, waiting.items, None),
        (Ok(grants), Err(failure)) => (grants.items, Vec::new(), Some(failure)),
        (Err(failure), Ok(waiting)) => (Vec::new(), waiting.items, Some(failure)),
        (Err(failure), Err(_)) => return Err(failure),
    };
    let is_some = !(grants.is_empty() && waiting.is_empty());
    if is_some && done.machine.is_none() && !done.yes && somebody_sits_there() {
        confirm(&grants, &waiting, output).await?;
    }
    let grants = grants.into_iter().map(|grant| grant.name);
    let names = grants.chain(waiting.into_iter().map(|request| request.name));
    Ok((names.collect(), unlisted))
}

pub(crate) async fn revoke(
    revoke: Revoke,
    connection: &Connection,
    output: &Output,
) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let names = names(&client, &revoke.targets).await?;
    let how = How {
        right: Right::Anyones,
        machine: None,
        wait: revoke.timeout,
    };
    ended::show(end(&client, names, how).await?, output)
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
        if !at.iter().any(|(place, id)| machine.is(place, id)) {
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
        Ok(places.collect())
    };
    if name.starts_with("accessRequests/") {
        return of_request(name.to_string()).await;
    }
    let grant = client.grant(name.to_string()).await;
    let found = grant.map(|grant| vec![(grant.machine, grant.machine_id)]);
    or_request(found, name, of_request).await
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

async fn end(client: &Client, names: Vec<String>, how: How) -> Result<Vec<Result<Ended, Failure>>, Failure> {
    let _spinner = Spinner::start("waiting for the hosts to confirm".to_string());
    tokio::select! {
        results = end_all(client, names, how) => Ok(results),
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    }
}

/// What a withdrawn request still waited for is not signed any more, so the grants that its answer names are all.
async fn end_all(client: &Client, names: Vec<String>, how: How) -> Vec<Result<Ended, Failure>> {
    let mut results = end_each(client, names.clone(), &how).await;
    let mut signed = Vec::new();
    for ended in results.iter().flatten() {
        if let Ended::Request(withdrawal) = ended {
            signed.extend(withdrawal.grants.iter().cloned());
        }
    }
    let mut known: BTreeSet<String> = names.into_iter().collect();
    signed.retain(|grant| known.insert(grant.clone()));
    results.extend(end_each(client, signed, &how).await);
    results
}

/// Each on its own: one that fails keeps no other from ending.
async fn end_each(client: &Client, names: Vec<String>, how: &How) -> Vec<Result<Ended, Failure>> {
    let mut waiting = names.into_iter().enumerate();
    let mut running = JoinSet::new();
    let mut results = Vec::new();
    loop {
        while running.len() < AT_ONCE
            && let Some((position, name)) = waiting.next()
        {
            let (client, how) = (client.clone(), how.clone());
            running.spawn(async move { (position, end_one(&client, name, &how).await) });
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

async fn end_one(client: &Client, name: String, how: &How) -> Result<Ended, Failure> {
    if name.starts_with("accessRequests/") {
        return withdraw(client, name, how).await;
    }
    let ended = match how.right {
        Right::Own => client.end_grant(name.clone(), how.wait).await,
        Right::Anyones => client.revoke_grant(name.clone(), how.wait).await,
    };
    let ended = ended.map(|grant| Ended::Grant(Box::new(grant)));
    or_request(ended, &name, |request| withdraw(client, request, how)).await
}

async fn withdraw(client: &Client, name: String, how: &How) -> Result<Ended, Failure> {
    let machine = how.machine.as_ref();
    let request = client.cancel_access_request(name, machine).await?;
    Ok(Ended::Request(Box::new(Withdrawal::new(request, machine))))
}

/// A bare id that is none of a grant may be that of a request; what is neither is told as an unknown grant.
async fn or_request<T, F: Future<Output = Result<T, Failure>>>(
    found: Result<T, Failure>,
    name: &str,
    ask: impl FnOnce(String) -> F,
) -> Result<T, Failure> {
    let unknown = match found {
        Err(Failure::Refused(refusal)) if refusal.is_unknown() => refusal,
        found => return found,
    };
    match ask(name.replacen("grants/", "accessRequests/", 1)).await {
        Err(Failure::Refused(refusal)) if refusal.is_unknown() => Err(unknown.into()),
        found => found,
    }
}
