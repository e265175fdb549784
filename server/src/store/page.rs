//! Page tokens: where the next page begins, opaque to callers.

use std::fmt::Display;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use sqlx::any::AnyRow;
use tracing::warn;

use super::StoreError;
use super::connection::Statement;
use super::row::{or_left_out, text};

/// The page size where a call names none.
pub const DEFAULT_SIZE: i64 = 100;
/// The most entries of one page.
pub const LARGEST_SIZE: i64 = 1000;

/// A list's entries, and the token of the page after them if there is one.
pub struct Page<T> {
    pub entries: Vec<T>,
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// `entries` has one more than `size` if there is a next page, which begins after `key` of the last that
    /// fits. What would make a longer message than clients take (by the `bytes` of each) waits for it too.
    pub fn cut<K: Display>(
        mut entries: Vec<T>,
        size: i64,
        list: &str,
        key: impl Fn(&T) -> K,
        bytes: impl Fn(&T) -> usize,
    ) -> Self {
        let fits = fitting(&entries, bytes).min(usize::try_from(size).unwrap_or(usize::MAX));
        let more = entries.len() > fits;
        entries.truncate(fits);
        let last = entries.last().filter(|_| more);
        let next = last.map(|last| URL_SAFE_NO_PAD.encode(format!("{list}:{}", key(last))));
        Self { entries, next }
    }

    /// As [`Self::cut`], by the column `id`, of what can be `read`: a damaged row is in no list, and hides no other.
    pub(super) fn of_rows(
        rows: &[AnyRow],
        size: i64,
        list: &str,
        read: impl Fn(&AnyRow) -> Result<T, StoreError>,
        bytes: impl Fn(&T) -> usize,
    ) -> Result<Self, StoreError> {
        let entry = |row: &AnyRow| {
            let id = text(row, "id")?;
            let entry = or_left_out(read(row), |error| {
                warn!(list, id, error, "it can't be read, so no list has it");
            })?;
            Ok((id, entry))
        };
        let entries = rows.iter().map(entry).collect::<Result<_, StoreError>>()?;
        let bytes = |(_, entry): &(String, Option<T>)| entry.as_ref().map_or(0, &bytes);
        let Page { entries, next } = Page::cut(entries, size, list, |(id, _)| id.clone(), bytes);
        let entries = entries.into_iter().filter_map(|(_, entry)| entry).collect();
        Ok(Self { entries, next })
    }
}

/// How many of the first entries make a message that clients take (4 MiB, the common default); at least one.
pub(super) fn fitting<T>(entries: &[T], bytes: impl Fn(&T) -> usize) -> usize {
    const LARGEST: usize = 3 * 1024 * 1024;
    let mut total: usize = 0;
    let fits = |entry: &&T| {
        total = total.saturating_add(bytes(entry));
        total <= LARGEST
    };
    entries.iter().take_while(fits).count().max(1)
}

/// Reads a token of `list`. Empty: the first page.
///
/// # Errors
/// Anything that [`Page::cut`] did not make for this list.
pub fn read_token<K: FromStr>(list: &str, token: &str) -> Result<Option<K>, InvalidToken> {
    if token.is_empty() {
        return Ok(None);
    }
    let text = URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let key = text
        .as_deref()
        .and_then(|text| text.strip_prefix(list)?.strip_prefix(':'));
    key.and_then(|key| key.parse().ok()).map(Some).ok_or(InvalidToken)
}

/// Columns that must equal given values, as `AND` clauses, so that each filter can use its index.
#[derive(Default)]
pub(super) struct Conditions {
    columns: Vec<&'static str>,
    values: Vec<String>,
}

impl Conditions {
    pub(super) fn equal(&mut self, column: &'static str, value: Option<String>) {
        if let Some(value) = value {
            self.columns.push(column);
            self.values.push(value);
        }
    }

    /// The clauses, their parameters numbered from `first`.
    pub(super) fn sql(&self, first: usize) -> String {
        let clause = |(number, column)| format!(" AND {column} = ${number}");
        (first..).zip(&self.columns).map(clause).collect()
    }

    pub(super) fn bind(self, query: Statement) -> Statement {
        self.values
            .into_iter()
            .fold(query, |query, value| query.bind(value))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a token of this list: begin without one")]
pub struct InvalidToken;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_to_the_next_page_of_its_own_list_only() {
        let cut = |entries, bytes| Page::cut(entries, 2, "events", |entry| *entry, |_| bytes);
        let page = cut(vec![7_u64, 8, 9], 100);
        assert_eq!(page.entries, [7, 8]);
        let token = page.next.unwrap();
        assert_eq!(read_token::<u64>("events", &token), Ok(Some(8)));
        assert_eq!(read_token::<u64>("events", ""), Ok(None));
        for bad in ["x", "!!", &format!("{token}a")] {
            assert!(read_token::<u64>("events", bad).is_err());
        }
        assert!(read_token::<u64>("grants", &token).is_err());
        assert_eq!(cut(vec![7, 8], 100).next, None);
        let heavy = cut(vec![7, 8], 2 * 1024 * 1024);
        assert_eq!((heavy.entries, heavy.next.is_some()), (vec![7], true));
    }
}
