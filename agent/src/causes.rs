//! An error with its causes in one line, for the log and for reports.

use std::error::Error;
use std::fmt;

/// Prints an error and everything behind it.
pub struct Causes<'e>(&'e dyn Error);

pub fn causes(error: &dyn Error) -> Causes<'_> {
    Causes(error)
}

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
