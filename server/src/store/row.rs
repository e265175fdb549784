//! Reading columns into domain types.

use std::fmt::Display;
use std::str::FromStr;

use nightlatch_core::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::StoreError;
use crate::causes::in_one_line;

pub(super) fn unreadable(column: &str, why: impl Display) -> StoreError {
    StoreError::Unreadable {
        column: column.to_owned(),
        why: why.to_string(),
    }
}

pub(super) fn text(row: &AnyRow, column: &str) -> Result<String, StoreError> {
    Ok(row.try_get(column)?)
}

pub(super) fn maybe_text(row: &AnyRow, column: &str) -> Result<Option<String>, StoreError> {
    Ok(row.try_get(column)?)
}

pub(super) fn bytes(row: &AnyRow, column: &str) -> Result<Vec<u8>, StoreError> {
    Ok(row.try_get(column)?)
}

pub(super) fn maybe_bytes(row: &AnyRow, column: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(row.try_get(column)?)
}

pub(super) fn number(row: &AnyRow, column: &str) -> Result<u64, StoreError> {
    let number: i64 = row.try_get(column)?;
    u64::try_from(number).map_err(|error| unreadable(column, error))
}

pub(super) fn parsed<T: FromStr<Err: Display>>(row: &AnyRow, column: &str) -> Result<T, StoreError> {
    text(row, column)?
        .parse()
        .map_err(|error| unreadable(column, error))
}

pub(super) fn maybe_parsed<T: FromStr<Err: Display>>(
    row: &AnyRow,
    column: &str,
) -> Result<Option<T>, StoreError> {
    let parse = |text: String| text.parse().map_err(|error| unreadable(column, error));
    maybe_text(row, column)?.map(parse).transpose()
}

pub(super) fn time(row: &AnyRow, column: &str) -> Result<Timestamp, StoreError> {
    maybe_time(row, column)?.ok_or_else(|| unreadable(column, "missing"))
}

pub(super) fn maybe_time(row: &AnyRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = row.try_get(column)?;
    let time = |micros| Timestamp::from_micros(micros).ok_or_else(|| unreadable(column, "not a time"));
    micros.map(time).transpose()
}

pub(super) fn json<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T, StoreError> {
    serde_json::from_str(&text(row, column)?).map_err(|error| unreadable(column, error))
}

pub(super) fn maybe_json<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<Option<T>, StoreError> {
    let read = |text: String| serde_json::from_str(&text).map_err(|error| unreadable(column, error));
    maybe_text(row, column)?.map(read).transpose()
}

/// Writes what [`json`] reads. Strings, numbers and lists can't fail to be written.
pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Numbers beyond 63 bits don't come up: they count microseconds or changes.
pub(super) fn from_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `None` for what is damaged, once that is `told`. It lasts, and must not keep the rest from being read.
pub(super) fn or_left_out<T>(
    read: Result<T, StoreError>,
    told: impl FnOnce(&str),
) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_damage() => {
            told(&in_one_line(&error));
            Ok(None)
        }
        Err(other) => Err(other),
    }
}
