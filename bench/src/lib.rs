//! What the benches share: callers, probes, figures, tables, charts.

use std::time::Duration;

pub mod caller;
pub mod chart;
pub mod conditions;
pub mod document;
pub mod doors;
pub mod figures;
pub mod footprint;
pub mod keeper;
pub mod moment;
pub mod probe;

/// How long anything may take that should take milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(30);
