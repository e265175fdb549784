//! How much the tests try.

/// Whether `make test-long` runs them: every bit, more kills, longer waits.
pub fn is_long() -> bool {
    std::env::var_os("NIGHTLATCH_LONG").is_some()
}
