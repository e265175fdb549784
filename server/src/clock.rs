//! The only place of the server that reads a clock.

use nightlatch_core::time::Timestamp;

/// Tells the time. A test brings its own.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the clock module")]
    fn now(&self) -> Timestamp {
        chrono::Utc::now().into()
    }
}
