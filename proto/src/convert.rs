//! Where the generated types end: inward by `TryFrom`, which refuses what can't be meant, outward by `From`.
//!
//! Generated structs are taken apart field by field, so that a new field breaks the build here instead of
//! being ignored.

pub mod access;
pub mod agent;
pub mod break_glass;
pub mod ceiling;
pub mod policy;
pub mod port;
pub mod prefix;
pub mod resource;
pub mod time;

use core::fmt;

/// A field of a message that can't be meant, by its path: `rules[2].range.first`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    pub field: String,
    pub reason: String,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, reason } = self;
        if field.is_empty() {
            f.write_str(reason)
        } else {
            write!(f, "{field}: {reason}")
        }
    }
}

impl core::error::Error for InvalidField {}

impl InvalidField {
    pub fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            reason: reason.to_string(),
        }
    }

    /// The same, seen from the message that holds it.
    #[must_use]
    pub fn within(self, outer: impl fmt::Display) -> Self {
        let Self { field, reason } = self;
        let field = if field.is_empty() {
            outer.to_string()
        } else {
            format!("{outer}.{field}")
        };
        Self { field, reason }
    }
}

/// A message field that must be there.
pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or_else(|| InvalidField::new(field, "is missing"))
}

/// A list of at most `most`, each converted, errors with their position.
pub(crate) fn list<T, U>(
    field: &str,
    values: Vec<T>,
    most: usize,
    convert: impl Fn(T) -> Result<U, InvalidField>,
) -> Result<Vec<U>, InvalidField> {
    if values.len() > most {
        return Err(InvalidField::new(
            field,
            format_args!("has {} entries, at most {most} are taken", values.len()),
        ));
    }
    let at =
        |(position, value)| convert(value).map_err(|error| error.within(format_args!("{field}[{position}]")));
    values.into_iter().enumerate().map(at).collect()
}

/// A whole message in the place of a field.
pub(crate) fn message<T, U: TryFrom<T, Error = InvalidField>>(
    field: &str,
    value: Option<T>,
) -> Result<U, InvalidField> {
    U::try_from(required(field, value)?).map_err(|error| error.within(field))
}

/// A short text of printable characters.
pub(crate) fn text(field: &str, value: String, most: usize) -> Result<String, InvalidField> {
    if value.chars().count() > most || value.chars().any(char::is_control) {
        let reason = format_args!("has more than {most} characters or a control character");
        Err(InvalidField::new(field, reason))
    } else {
        Ok(value)
    }
}
