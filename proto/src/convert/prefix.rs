//! Source prefixes travel as text.

use nightlatch_core::prefix::Prefix;

use super::{InvalidField, list};

/// # Errors
/// The first text that is no prefix, or too many of them.
pub fn read_prefixes(field: &str, texts: Vec<String>, most: usize) -> Result<Vec<Prefix>, InvalidField> {
    list(field, texts, most, |text| {
        text.parse().map_err(|error| InvalidField::new("", error))
    })
}

pub fn prefixes(prefixes: &[Prefix]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}
