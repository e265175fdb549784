//! `status`: what file, keys and kernel say, with the daemon dead or alive.

use std::fmt::Write;
use std::time::Duration;

use nightlatch_core::host::HostRules;
use nightlatch_core::ledger::{Boot, Held};
use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::{End, OpeningKey, Ruleset};
use nightlatch_core::time::{BootTime, Timestamp, format_iso8601};
use serde::Serialize;

use crate::causes::causes;
use crate::clock::Clock;
use crate::firewall::{Beside, Firewall, TableState, ends_early_by};
use crate::inspection::Inspection;
use crate::ruleset_text::ports;
use crate::state::{StateDir, StateError};

/// Reading takes a moment, in which ends move.
const TOLERANCE: Duration = Duration::from_secs(2);

/// After which it is looked again while an agent works: what is in the ledger may be on its way to the kernel.
const PAUSES_MS: [u64; 7] = [10, 30, 60, 100, 200, 500, 900];

const MOST_DIFFERENCES: usize = 10;

/// Everything `status` knows; its JSON is for programs.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub machine: Option<MachineStatus>,
    pub agent_running: bool,
    pub table: TableStatus,
    /// In what it differs, for people.
    pub differences: Vec<String>,
    pub guarded: Vec<String>,
    pub guarded_by_file: Vec<String>,
    pub unguarded_interfaces: Vec<String>,
    pub trusted_sources: Vec<Prefix>,
    pub grants: Vec<GrantStatus>,
    /// Refused connection attempts since the table was made.
    pub denied: Option<u64>,
    pub generation: Option<u64>,
    pub policy: Option<Numbered>,
    pub keys: Option<Numbered>,
    pub ceiling: Option<CeilingStatus>,
    /// True time is at least this, as the server said and this boot's clock has carried on.
    pub known_time: Option<Timestamp>,
    pub wall_time: Timestamp,
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct MachineStatus {
    pub id: String,
    pub name: String,
    pub installation: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Numbered {
    pub epoch: u64,
    pub number: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct CeilingStatus {
    pub ports: Vec<String>,
    pub longest: String,
    pub max_ahead: String,
    pub widest_ipv4: u8,
    pub widest_ipv6: u8,
}

/// Whether the kernel's table is what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableStatus {
    InPlace,
    /// Nothing is guarded, and there is none.
    NotNeeded,
    Missing,
    Differs,
    /// It could not be read.
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub struct GrantStatus {
    pub id: String,
    pub subject: String,
    pub sources: Vec<Prefix>,
    pub ports: Vec<String>,
    pub state: GrantState,
    pub start_time: Timestamp,
    pub end_time: Timestamp,
    /// Until the host closes it, by its own clock.
    pub remaining_seconds: f64,
    /// What the kernel says of the opening that ends first; unset if one is missing.
    pub kernel_remaining_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    Open,
    /// Begins later.
    Ahead,
}

/// What is so, and what should be in the kernel. While an agent works, trouble counts only if it lasts.
pub fn status(rules: &HostRules, state: &StateDir, clock: &impl Clock) -> (Status, Ruleset) {
    settled(|| {
        let was_running = state.is_locked().unwrap_or(false);
        let seen = look(rules, state, clock.boot());
        let is_final = seen.0.is_sound() || !(was_running || seen.0.agent_running);
        (seen, is_final)
    })
}

fn look(rules: &HostRules, state: &StateDir, boot: Boot) -> (Status, Ruleset) {
    let in_boot = |boot| {
        let inspection = Inspection::of(rules.clone(), state, boot);
        let wanted = inspection.ruleset();
        let marked_in = inspection.marked_in;
        (marked_in, (Status::of(inspection, &wanted, state), wanted))
    };
    let (marked_in, seen) = in_boot(boot);
    // In some containers the agent's unit and a root shell see different boot ids. Openings that fit to the moment are
    // proof that no boot lies between: its clock would have begun anew.
    match marked_in {
        Some(id) if id != boot.id && !seen.0.is_sound() => {
            let (_, other) = in_boot(Boot { id, ..boot });
            if other.0.is_sound() { other } else { seen }
        }
        _ => seen,
    }
}

fn settled<T>(mut look: impl FnMut() -> (T, bool)) -> T {
    for pause in PAUSES_MS {
        let (seen, is_final) = look();
        if is_final {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(pause));
    }
    look().0
}

impl Status {
    fn of(inspection: Inspection, wanted: &Ruleset, state: &StateDir) -> Self {
        let now = inspection.boot.now;
        let mut problems = inspection.problems.clone();
        let read = Firewall::open().and_then(|mut firewall| firewall.read_beside(wanted));
        let (table, differences, found) = match read {
            Ok(Some(beside)) => {
                let differences = differences(wanted, &beside, now);
                let table = if differences.is_empty() {
                    TableStatus::InPlace
                } else {
                    TableStatus::Differs
                };
                (table, differences, Some(beside.found))
            }
            Ok(None) if wanted.is_empty() => (TableStatus::NotNeeded, Vec::new(), None),
            Ok(None) => (TableStatus::Missing, Vec::new(), None),
            Err(error) => {
                problems.push(format!("the kernel's table can't be read: {}", causes(&error)));
                (TableStatus::Unknown, Vec::new(), None)
            }
        };
        let agent_running = match state.is_locked() {
            Ok(running) => running,
            Err(StateError::Missing(_)) => false,
            Err(error @ (StateError::Io { .. } | StateError::InUse(_))) => {
                problems.push(causes(&error).to_string());
                false
            }
        };
        let ledger = inspection.ledger.as_ref();
        let grants = ledger.into_iter().flat_map(|ledger| ledger.held(now));
        Self {
            machine: inspection.enrollment.as_ref().map(|enrollment| MachineStatus {
                id: enrollment.machine_id.to_string(),
                name: enrollment.machine_name.to_string(),
                installation: enrollment.installation_id.to_string(),
            }),
            agent_running,
            table,
            differences,
            guarded: wanted.guarded().iter().map(ToString::to_string).collect(),
            guarded_by_file: inspection.rules.guarded.iter().map(ToString::to_string).collect(),
            unguarded_interfaces: inspection.rules.unguarded_interfaces.iter().cloned().collect(),
            trusted_sources: inspection.rules.trusted_sources.clone(),
            grants: grants
                .map(|held| GrantStatus::of(&held, found.as_ref(), now))
                .collect(),
            denied: found.as_ref().map(|found| found.denied),
            generation: ledger.map(|ledger| ledger.generation().0),
            policy: ledger.and_then(|ledger| ledger.policy()).map(|policy| {
                let (epoch, number) = policy.rank();
                Numbered { epoch, number }
            }),
            keys: ledger.and_then(|ledger| ledger.keys()).map(|keys| {
                let number = keys.number();
                Numbered {
                    epoch: number.epoch,
                    number: number.number,
                }
            }),
            ceiling: inspection.rules.ceiling.as_ref().map(|ceiling| CeilingStatus {
                ports: ceiling.ports.iter().map(ToString::to_string).collect(),
                longest: format_iso8601(ceiling.longest),
                max_ahead: format_iso8601(ceiling.max_ahead),
                widest_ipv4: ceiling.widest_ipv4,
                widest_ipv6: ceiling.widest_ipv6,
            }),
            known_time: inspection.time.earliest(now),
            wall_time: inspection.boot.wall,
            problems,
        }
    }

    /// Whether everything was readable and the table is what it should be.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && matches!(self.table, TableStatus::InPlace | TableStatus::NotNeeded)
    }
}

impl GrantStatus {
    fn of(held: &Held<'_>, table: Option<&TableState>, now: BootTime) -> Self {
        let Held { grant, start, end } = held;
        let keys = || grant.ports.iter().flat_map(|span| span.keys());
        let openings = grant
            .sources
            .iter()
            .flat_map(|source| keys().map(|key| OpeningKey { source: *source, key }));
        let remaining: Option<Vec<Option<Duration>>> = openings
            .map(|opening| table.and_then(|table| table.openings.get(&opening)).copied())
            .collect();
        Self {
            id: grant.id.to_string(),
            subject: grant.subject.to_string(),
            sources: grant.sources.clone(),
            ports: grant.ports.iter().map(ToString::to_string).collect(),
            state: if *start <= now {
                GrantState::Open
            } else {
                GrantState::Ahead
            },
            start_time: grant.not_before,
            end_time: grant.not_after,
            remaining_seconds: end.since(now).as_secs_f64(),
            kernel_remaining_seconds: remaining
                .and_then(|remaining| remaining.into_iter().flatten().min())
                .map(|least| least.as_secs_f64()),
        }
    }
}

/// For people, so a few do.
fn differences(wanted: &Ruleset, beside: &Beside, now: BootTime) -> Vec<String> {
    let mut all = frame_differences(wanted, beside);
    all.extend(opening_differences(wanted, &beside.found, now));
    let further = all.len().saturating_sub(MOST_DIFFERENCES);
    all.truncate(MOST_DIFFERENCES);
    if further > 0 {
        all.push(format!("and {further} more"));
    }
    all
}

fn frame_differences(wanted: &Ruleset, beside: &Beside) -> Vec<String> {
    let Beside { found, foreign_part } = beside;
    let mut differences: Vec<String> = foreign_part
        .iter()
        .map(|part| format!("its {part} are not those that it was made with"))
        .collect();
    for (these, others, what) in [
        (wanted.guarded(), &found.guarded, "is not guarded"),
        (&found.guarded, wanted.guarded(), "is guarded besides"),
    ] {
        differences.extend(these.difference(others).map(|key| format!("{key} {what}")));
    }
    if found.unguarded_interfaces != *wanted.unguarded_interfaces() {
        differences.push("the interfaces that it leaves alone are others".to_owned());
    }
    differences
}

fn opening_differences(wanted: &Ruleset, found: &TableState, now: BootTime) -> Vec<String> {
    let early = ends_early_by(wanted.openings().len());
    let mut differences = Vec::new();
    for (opening, end) in wanted.openings().iter() {
        let is_as_due = match (found.openings.get(opening), end) {
            (Some(remaining), End::Never) => remaining.is_none(),
            (Some(Some(remaining)), End::At(end)) => {
                let due = end.since(now);
                remaining.saturating_sub(due) <= TOLERANCE
                    && due.saturating_sub(*remaining) <= TOLERANCE.saturating_add(early)
            }
            (Some(None), End::At(_)) | (None, End::Never) => false,
            (None, End::At(end)) => end.since(now) <= TOLERANCE.saturating_add(early),
        };
        if !is_as_due {
            let OpeningKey { source, key } = opening;
            differences.push(format!("{key} is not open as it should be to {source}"));
        }
    }
    for (opening, remaining) in &found.openings {
        let is_over = remaining.is_some_and(|remaining| remaining <= TOLERANCE);
        if !is_over && !wanted.openings().contains_key(opening) {
            let OpeningKey { source, key } = opening;
            differences.push(format!("{key} is open to {source} besides"));
        }
    }
    differences
}

/// For people.
///
/// # Errors
/// As `text` says.
pub fn write_status(text: &mut impl Write, status: &Status, wanted: &Ruleset) -> std::fmt::Result {
    match &status.machine {
        Some(MachineStatus { id, name, .. }) => writeln!(text, "machine     {name} ({id})")?,
        None => writeln!(
            text,
            "machine     has not joined: `nightlatch-agent enroll TOKEN`"
        )?,
    }
    writeln!(
        text,
        "agent       {}",
        if status.agent_running {
            "runs"
        } else {
            "does not run"
        }
    )?;
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
    let guarded = ports(wanted.guarded());
    writeln!(
        text,
        "guarded     {}",
        if guarded.is_empty() { "nothing" } else { &guarded }
    )?;
    if !status.unguarded_interfaces.is_empty() {
        writeln!(text, "not on      {}", status.unguarded_interfaces.join(", "))?;
    }
    if !status.trusted_sources.is_empty() {
        writeln!(text, "trusted     {}", join(&status.trusted_sources))?;
    }
    write_ceiling(text, status.ceiling.as_ref())?;
    if let Some(denied) = status.denied {
        writeln!(
            text,
            "denied      {denied} connection attempts since the table was made"
        )?;
    }
    if let Some(generation) = status.generation {
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
        )?;
    }
    match status.known_time {
        Some(time) => writeln!(
            text,
            "time        {time:.0} as heard from the server, wall clock {:.0}",
            status.wall_time
        )?,
        None => writeln!(
            text,
            "time        wall clock {:.0}; the server was never heard",
            status.wall_time
        )?,
    }
    write_grants(text, &status.grants)?;
    for problem in &status.problems {
        writeln!(text, "problem     {problem}")?;
    }
    Ok(())
}

fn write_ceiling(text: &mut impl Write, ceiling: Option<&CeilingStatus>) -> std::fmt::Result {
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

fn write_grants(text: &mut impl Write, grants: &[GrantStatus]) -> std::fmt::Result {
    if grants.is_empty() {
        return writeln!(text, "grants      none");
    }
    writeln!(text, "grants")?;
    for grant in grants {
        let kernel = grant.kernel_remaining_seconds.map_or_else(
            || "not open in the kernel".to_owned(),
            |seconds| format!("kernel: {seconds:.0} s left"),
        );
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

fn join(prefixes: &[Prefix]) -> String {
    prefixes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
