//! Moments and lengths of time.
//!
//! A [`Timestamp`] is what people and grants speak of; a [`BootTime`] is what a host enforces by.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::time::Duration;

use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A moment in UTC, to the microsecond: what a store and a signature can carry without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timestamp(DateTime<Utc>);

/// Why a text is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time in UTC: write it as 2026-11-22T09:30:00Z")]
pub struct InvalidTimestamp(String);

impl Timestamp {
    /// The start of 1970. Earlier moments, and those past the year 9999, aren't moments for us.
    pub const EPOCH: Self = Self(DateTime::UNIX_EPOCH);

    /// Microseconds since 1970.
    pub fn micros(self) -> i64 {
        self.0.timestamp_micros()
    }

    /// `None` before 1970 and past the year 9999.
    pub fn from_micros(micros: i64) -> Option<Self> {
        DateTime::from_timestamp_micros(micros).and_then(Self::within_reach)
    }

    fn within_reach(at: DateTime<Utc>) -> Option<Self> {
        const YEAR_10000: i64 = 253_402_300_800;
        (0..YEAR_10000)
            .contains(&at.timestamp())
            .then(|| Self(at.trunc_subsecs(6)))
    }

    /// `None` past the year 9999.
    pub fn checked_add(self, length: Duration) -> Option<Self> {
        let delta = TimeDelta::from_std(length).ok()?;
        self.0.checked_add_signed(delta).and_then(Self::within_reach)
    }

    pub fn checked_sub(self, length: Duration) -> Option<Self> {
        let delta = TimeDelta::from_std(length).ok()?;
        self.0.checked_sub_signed(delta).and_then(Self::within_reach)
    }

    /// The time from `earlier` to this moment, zero if that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0
            .signed_duration_since(earlier.0)
            .to_std()
            .unwrap_or(Duration::ZERO)
    }
}

/// Below 1970 becomes 1970; finer than a microsecond is cut off.
impl From<DateTime<Utc>> for Timestamp {
    fn from(at: DateTime<Utc>) -> Self {
        Self::within_reach(at).unwrap_or(Self::EPOCH)
    }
}

impl From<Timestamp> for DateTime<Utc> {
    fn from(at: Timestamp) -> Self {
        at.0
    }
}

/// `{:.0}` leaves out what is finer than a second, for people.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = match f.precision() {
            Some(0) => SecondsFormat::Secs,
            _ => SecondsFormat::AutoSi,
        };
        f.write_str(&self.0.to_rfc3339_opts(detail, true))
    }
}

impl core::str::FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        DateTime::parse_from_rfc3339(text)
            .ok()
            .filter(|at| at.offset().local_minus_utc() == 0)
            .and_then(|at| Self::within_reach(at.to_utc()))
            .ok_or_else(|| InvalidTimestamp(text.to_string()))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = InvalidTimestamp;

    fn try_from(text: String) -> Result<Self, InvalidTimestamp> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(at: Timestamp) -> Self {
        at.to_string()
    }
}

/// A reading of CLOCK_BOOTTIME: time since the host started, suspended time included (clock_gettime(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootTime(Duration);

impl BootTime {
    pub const fn new(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this moment, zero if that lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    #[must_use]
    pub const fn plus(self, length: Duration) -> Self {
        Self(self.0.saturating_add(length))
    }
}

/// Which start of the host a [`BootTime`] belongs to (/proc/sys/kernel/random/boot_id, random(4)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub Uuid);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a length of time: write it in ISO 8601 as PT3H, PT90M, PT1H30M or PT45S, without days and fractions"
)]
pub struct InvalidLength(pub String);

/// Reads `PT[nH][nM][nS]` of ISO 8601: whole numbers, in that order, at least one of them. Azure writes lengths so.
///
/// # Errors
/// Days, months, fractions, signs, a wrong order, a value beyond 64 bits.
pub fn parse_iso8601(text: &str) -> Result<Duration, InvalidLength> {
    let invalid = || InvalidLength(text.to_string());
    let mut rest = text
        .strip_prefix("PT")
        .filter(|rest| !rest.is_empty())
        .ok_or_else(invalid)?;
    let mut seconds: u64 = 0;
    for (unit, factor) in [('H', 3600_u64), ('M', 60), ('S', 1)] {
        let Some((number, after)) = rest.split_once(unit) else {
            continue;
        };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let number: u64 = number.parse().ok().ok_or_else(invalid)?;
        seconds = number
            .checked_mul(factor)
            .and_then(|more| seconds.checked_add(more))
            .ok_or_else(invalid)?;
        rest = after;
    }
    if rest.is_empty() {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(invalid())
    }
}

/// Writes whole seconds as `PT3H`, `PT1H30M`, `PT45S`; below a second is cut off.
pub fn format_iso8601(length: Duration) -> String {
    let seconds = length.as_secs();
    let parts = [
        (seconds / 3600, 'H'),
        (seconds / 60 % 60, 'M'),
        (seconds % 60, 'S'),
    ];
    let body: String = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if body.is_empty() {
        "PT0S".to_string()
    } else {
        format!("PT{body}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written_as_azure_does() {
        for (text, seconds) in [
            ("PT3H", 10_800),
            ("PT5M", 300),
            ("PT1H30M", 5_400),
            ("PT45S", 45),
            ("PT24H", 86_400),
        ] {
            assert_eq!(parse_iso8601(text), Ok(Duration::from_secs(seconds)));
            assert_eq!(format_iso8601(Duration::from_secs(seconds)), text);
        }
        for text in [
            "",
            "PT",
            "P1D",
            "3H",
            "PT-3H",
            "PT1.5H",
            "PT3M1H",
            "PT3H3H",
            "PT3",
            "PT99999999999999999999S",
        ] {
            assert!(parse_iso8601(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_moment_is_utc_to_the_microsecond() {
        let at: Timestamp = "2026-11-22T09:30:00.123456789Z".parse().unwrap();
        assert_eq!(at.to_string(), "2026-11-22T09:30:00.123456Z");
        assert_eq!(Timestamp::from_micros(at.micros()), Some(at));
        assert!("2026-11-22T09:30:00+02:00".parse::<Timestamp>().is_err());
        assert!("1969-11-22T09:30:00Z".parse::<Timestamp>().is_err());
    }
}
