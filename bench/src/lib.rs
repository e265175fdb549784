//! What the benches share: probes, figures, tables, charts.

pub mod chart;
pub mod document;
pub mod figures;
pub mod footprint;
pub mod keeper;
pub mod moment;
pub mod probe;
