//! `status` for people.

use std::fmt::{Result, Write};

use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::Ruleset;

use super::{BreakGlassStatus, CeilingStatus, GrantState, GrantStatus, MachineStatus, Numbered, Status};
use crate::break_glass::opened_by;
use crate::comparison::TableStatus;
use crate::ruleset_text::ports;

/// For people.
///
/// # Errors
/// As `text` says.
pub fn write_status(text: &mut impl Write, status: &Status, wanted: &Ruleset) -> Result {
    match &status.machine {
        Some(MachineStatus { id, name, .. }) => writeln!(text, "machine     {name} ({id})")?,
        None => writeln!(
            text,
            "machine     has not joined: `nightlatch-agent enroll TOKEN`"
        )?,
    }
    let agent = if status.agent_running {
        "runs"
    } else {
        "does not run"
    };
    writeln!(text, "agent       {agent}")?;
    write_table(text, status)?;
    write_guarded(text, status, wanted)?;
    write_ceiling(text, status.ceiling.as_ref())?;
    if let Some(denied) = status.denied {
        writeln!(
            text,
            "denied      {denied} connection attempts since the table was made"
        )?;
    }
    write_assignment(text, status)?;
    write_time(text, status)?;
    write_grants(text, &status.grants)?;
    write_break_glass(text, &status.break_glass)?;
    for problem in &status.problems {
        writeln!(text, "problem     {problem}")?;
    }
    Ok(())
}

fn write_table(text: &mut impl Write, status: &Status) -> Result {
    let table = match status.table {
        TableStatus::InPlace => "in place",
        TableStatus::NotNeeded => "none, nothing is guarded",
        TableStatus::Missing => "MISSING: guarded ports are open",
        TableStatus::Differs => "DIFFERS from what should hold",
        TableStatus::Unknown => "can't be read",
    };
    writeln!(text, "table       {table}")?;
    for difference in &status.differences {
        writeln!(text, "            {difference}")?;
    }
    Ok(())
}

fn write_guarded(text: &mut impl Write, status: &Status, wanted: &Ruleset) -> Result {
    let guarded = ports(wanted.guarded());
    let guarded = if guarded.is_empty() { "nothing" } else { &guarded };
    writeln!(text, "guarded     {guarded}")?;
    if !status.unguarded_interfaces.is_empty() {
        writeln!(text, "not on      {}", status.unguarded_interfaces.join(", "))?;
    }
    if !status.trusted_sources.is_empty() {
        writeln!(text, "trusted     {}", join(&status.trusted_sources))?;
    }
    Ok(())
}

fn write_assignment(text: &mut impl Write, status: &Status) -> Result {
    let Some(generation) = status.generation else {
        return Ok(());
    };
    let numbered = |numbered: Option<Numbered>| {
        numbered.map_or_else(
            || "none".to_owned(),
            |Numbered { epoch, number }| format!("{epoch}.{number}"),
        )
    };
    let (policy, keys) = (numbered(status.policy), numbered(status.keys));
    writeln!(
        text,
        "assignment  generation {generation}, policy {policy}, keys {keys}"
    )
}

fn write_time(text: &mut impl Write, status: &Status) -> Result {
    let wall = status.wall_time;
    match status.known_time {
        Some(time) => writeln!(
            text,
            "time        {time:.0} as heard from the server, wall clock {wall:.0}"
        ),
        None => writeln!(
            text,
            "time        wall clock {wall:.0}; the server was never heard"
        ),
    }
}

fn write_ceiling(text: &mut impl Write, ceiling: Option<&CeilingStatus>) -> Result {
    let Some(CeilingStatus {
        ports,
        longest,
        max_ahead,
        widest_ipv4,
        widest_ipv6,
    }) = ceiling
    else {
        return writeln!(text, "ceiling     none: this host takes no grant");
    };
    let ports = ports.join(", ");
    writeln!(
        text,
        "ceiling     {ports}; at most {longest}, {max_ahead} ahead; sources from /{widest_ipv4} and /{widest_ipv6}"
    )
}

fn write_grants(text: &mut impl Write, grants: &[GrantStatus]) -> Result {
    if grants.is_empty() {
        return writeln!(text, "grants      none");
    }
    writeln!(text, "grants")?;
    for grant in grants {
        let kernel = kernel(grant.kernel_remaining_seconds);
        let state = match grant.state {
            GrantState::Open => format!("open until {:.0} ({kernel})", grant.end_time),
            GrantState::Ahead => format!("from {:.0} until {:.0}", grant.start_time, grant.end_time),
        };
        let (id, subject, sources) = (&grant.id, &grant.subject, join(&grant.sources));
        writeln!(
            text,
            "  {id}  {subject}  {sources} to {}  {state}",
            grant.ports.join(", ")
        )?;
    }
    Ok(())
}

/// Where there is none, there is nothing to say.
fn write_break_glass(text: &mut impl Write, used: &[BreakGlassStatus]) -> Result {
    if !used.is_empty() {
        writeln!(text, "BREAK-GLASS")?;
    }
    for used in used {
        let kernel = kernel(used.kernel_remaining_seconds);
        let BreakGlassStatus {
            id,
            source,
            ports,
            reason,
            opener,
            end_time,
            ..
        } = used;
        let (ports, opener) = (ports.join(", "), opened_by(opener));
        writeln!(
            text,
            "  {id}  {source} to {ports}  open until {end_time:.0} ({kernel})  {reason} ({opener})"
        )?;
    }
    Ok(())
}

fn kernel(remaining_seconds: Option<f64>) -> String {
    remaining_seconds.map_or_else(
        || "not open in the kernel".to_owned(),
        |seconds| format!("kernel: {seconds:.0} s left"),
    )
}

fn join(prefixes: &[Prefix]) -> String {
    prefixes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
