//! `status`: what file, keys and kernel say, with the daemon dead or alive.

mod text;

use std::time::Duration;

use nightlatch_core::break_glass::{BreakGlass, Opener, VerifiedBreakGlass};
use nightlatch_core::ceiling::Ceiling;
use nightlatch_core::host::HostRules;
use nightlatch_core::keys::{ListNumber, VerifiedKeys};
use nightlatch_core::ledger::{Held, Ledger};
use nightlatch_core::policy::VerifiedPolicy;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::{OpeningKey, Ruleset};
use nightlatch_core::time::{BootTime, Timestamp, format_iso8601};
use serde::Serialize;

use crate::causes::causes;
use crate::clock::Clock;
use crate::comparison::{Comparison, TableStatus};
use crate::firewall::TableState;
use crate::identity::Enrollment;
use crate::inspection::Inspection;
use crate::look::Look;
use crate::state::{StateDir, StateError};

pub use text::write_status;

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
    /// What root has opened on the console.
    pub break_glass: Vec<BreakGlassStatus>,
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
    let Look {
        inspection,
        wanted,
        comparison,
        agent_running,
    } = Look::settled(rules, state, clock);
    let status = Status::of(inspection, &wanted, comparison, agent_running);
    (status, wanted)
}

#[derive(Clone, Debug, Serialize)]
pub struct BreakGlassStatus {
    pub id: String,
    pub source: Prefix,
    pub ports: Vec<String>,
    pub reason: String,
    pub opener: Opener,
    /// By this host's wall clock.
    pub start_time: Timestamp,
    pub end_time: Timestamp,
    pub remaining_seconds: f64,
    /// What the kernel says of the opening that ends first; unset if one is missing.
    pub kernel_remaining_seconds: Option<f64>,
}

impl Status {
    fn of(
        inspection: Inspection,
        wanted: &Ruleset,
        comparison: Comparison,
        agent_running: Result<bool, StateError>,
    ) -> Self {
        let Inspection {
            rules,
            enrollment,
            ledger,
            time,
            boot,
            marked_in: _,
            mut problems,
        } = inspection;
        let Comparison {
            table,
            differences,
            found,
            error,
        } = comparison;
        let unreadable = error.map(|error| format!("the kernel's table can't be read: {}", causes(&error)));
        problems.extend(unreadable);
        let agent_running = agent_running.unwrap_or_else(|error| {
            problems.push(causes(&error).to_string());
            false
        });
        let now = boot.now;
        let held = ledger.iter().flat_map(|ledger| ledger.held(now));
        let grants = held
            .map(|held| GrantStatus::of(&held, found.as_ref(), now))
            .collect();
        let console = rules.console.iter().map(VerifiedBreakGlass::of);
        let break_glass = console
            .map(|used| BreakGlassStatus::of(used, found.as_ref(), now))
            .collect();
        let policy = ledger.as_ref().and_then(Ledger::policy).map(VerifiedPolicy::rank);
        let keys = ledger.as_ref().and_then(Ledger::keys).map(VerifiedKeys::number);
        Self {
            machine: enrollment.as_ref().map(MachineStatus::of),
            agent_running,
            table,
            differences,
            guarded: wanted.guarded().iter().map(ToString::to_string).collect(),
            guarded_by_file: rules.guarded.iter().map(ToString::to_string).collect(),
            unguarded_interfaces: rules.unguarded_interfaces.iter().cloned().collect(),
            ceiling: rules.ceiling.as_ref().map(CeilingStatus::of),
            trusted_sources: rules.trusted_sources,
            grants,
            break_glass,
            denied: found.map(|found| found.denied),
            generation: ledger.as_ref().map(|ledger| ledger.generation().0),
            policy: policy.map(|(epoch, number)| Numbered { epoch, number }),
            keys: keys.map(|ListNumber { epoch, number }| Numbered { epoch, number }),
            known_time: time.earliest(now),
            wall_time: boot.wall,
            problems,
        }
    }

    /// Whether everything was readable and the table is what it should be.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.table.is_right()
    }
}

impl MachineStatus {
    fn of(enrollment: &Enrollment) -> Self {
        Self {
            id: enrollment.machine_id.to_string(),
            name: enrollment.machine_name.to_string(),
            installation: enrollment.installation_id.to_string(),
        }
    }
}

impl CeilingStatus {
    fn of(ceiling: &Ceiling) -> Self {
        Self {
            ports: ceiling.ports.iter().map(ToString::to_string).collect(),
            longest: format_iso8601(ceiling.longest),
            max_ahead: format_iso8601(ceiling.max_ahead),
            widest_ipv4: ceiling.widest_ipv4,
            widest_ipv6: ceiling.widest_ipv6,
        }
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
            kernel_remaining_seconds: kernel_remaining(openings, table),
        }
    }
}

impl BreakGlassStatus {
    fn of(used: &BreakGlass, table: Option<&TableState>, now: BootTime) -> Self {
        let source = used.source;
        let openings = used.keys().map(|key| OpeningKey { source, key });
        Self {
            id: used.id.to_string(),
            source,
            ports: used.ports.iter().map(ToString::to_string).collect(),
            reason: used.reason.as_str().to_owned(),
            opener: used.opener.clone(),
            start_time: used.time,
            end_time: used.time.checked_add(used.length()).unwrap_or(used.time),
            remaining_seconds: used.end.since(now).as_secs_f64(),
            kernel_remaining_seconds: kernel_remaining(openings, table),
        }
    }
}

/// Of the opening that ends first.
fn kernel_remaining(openings: impl Iterator<Item = OpeningKey>, table: Option<&TableState>) -> Option<f64> {
    let remaining: Option<Vec<Option<Duration>>> = openings
        .map(|opening| table.and_then(|table| table.openings.get(&opening)).copied())
        .collect();
    let least = remaining?.into_iter().flatten().min()?;
    Some(least.as_secs_f64())
}
