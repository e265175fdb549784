//! The wall clock: the end of a grant is a moment of it.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nightlatch_core::time::Timestamp;

pub fn now() -> Result<Timestamp> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the end of a grant is a moment of the wall clock here"
    )]
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("reading the clock")?;
    Timestamp::from_micros(i64::try_from(since.as_micros())?).context("a clock out of range")
}

/// `later` − `earlier`, negative if they came the other way round.
pub fn milliseconds_between(earlier: Timestamp, later: Timestamp) -> f64 {
    (later.micros() - earlier.micros()) as f64 / 1000.0
}
