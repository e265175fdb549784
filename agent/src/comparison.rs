//! The kernel's table beside the ruleset that it should hold.

use std::time::Duration;

use nightlatch_core::ruleset::{End, OpeningKey, Ruleset};
use nightlatch_core::time::BootTime;
use serde::Serialize;

use crate::firewall::{Beside, Firewall, FirewallError, TableState, ends_early_by};

/// Reading takes a moment, in which ends move.
const TOLERANCE: Duration = Duration::from_secs(2);

const MOST_DIFFERENCES: usize = 10;

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

/// What was found, and what is not as it should be.
pub struct Comparison {
    pub table: TableStatus,
    /// In what it differs, for people.
    pub differences: Vec<String>,
    pub found: Option<TableState>,
    /// Why it can't be said.
    pub error: Option<FirewallError>,
}

impl Comparison {
    /// With the table of this network namespace.
    pub fn with_kernel(wanted: &Ruleset, now: BootTime) -> Self {
        let read = Firewall::open().and_then(|mut firewall| firewall.read_beside(wanted));
        let plain = |table| Self {
            table,
            differences: Vec::new(),
            found: None,
            error: None,
        };
        match read {
            Ok(Some(beside)) => {
                let differences = differences(wanted, &beside, now);
                let table = if differences.is_empty() {
                    TableStatus::InPlace
                } else {
                    TableStatus::Differs
                };
                Self {
                    differences,
                    found: Some(beside.found),
                    ..plain(table)
                }
            }
            Ok(None) if wanted.is_empty() => plain(TableStatus::NotNeeded),
            Ok(None) => plain(TableStatus::Missing),
            Err(error) => Self {
                error: Some(error),
                ..plain(TableStatus::Unknown)
            },
        }
    }
}

impl TableStatus {
    pub const fn is_right(self) -> bool {
        matches!(self, Self::InPlace | Self::NotNeeded)
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
