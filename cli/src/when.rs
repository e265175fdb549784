//! Moments and lengths of time as people write and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Days, Local, NaiveTime, TimeZone, Utc};
use nightlatch_core::time::{Timestamp, parse_iso8601};

/// The command line's only look at a clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn now() -> Timestamp {
    Utc::now().into()
}

/// Why a text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidLength {
    #[error("`{0}` is not a length of time: write it as 90m, 1h30m or PT3H")]
    NotALength(String),
    #[error("`{0}` is not a whole number of seconds")]
    Fraction(String),
    #[error("`{0}` is too short: at least one second")]
    TooShort(String),
    #[error("`{given}` is too long: at most {}", length_in_words(*most))]
    TooLong { given: String, most: Duration },
}

/// Reads `90m`, `1h30m`, `1h 30m` or ISO 8601 `PT3H`.
pub(crate) fn parse_length(text: &str) -> Result<Duration, InvalidLength> {
    let length = parse_iso8601(text).or_else(|_| humantime::parse_duration(text));
    let length = length
        .ok()
        .ok_or_else(|| InvalidLength::NotALength(text.to_string()))?;
    if length.subsec_nanos() == 0 {
        Ok(length)
    } else {
        Err(InvalidLength::Fraction(text.to_string()))
    }
}

/// The length of a request; how long it may be is for the policy to say.
pub(crate) fn parse_request_length(text: &str) -> Result<Duration, InvalidLength> {
    match parse_length(text)? {
        Duration::ZERO => Err(InvalidLength::TooShort(text.to_string())),
        // What a protobuf Duration can carry, and far beyond any policy.
        length if length > A_YEAR => Err(InvalidLength::TooLong {
            given: text.to_string(),
            most: A_YEAR,
        }),
        length => Ok(length),
    }
}

const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A day is the longest that a request can run.
pub(crate) fn parse_long_wait(text: &str) -> Result<Duration, InvalidLength> {
    parse_wait(text, Duration::from_secs(24 * 3600))
}

/// The server waits for a host for a minute at most.
pub(crate) fn parse_short_wait(text: &str) -> Result<Duration, InvalidLength> {
    parse_wait(text, Duration::from_secs(60))
}

fn parse_wait(text: &str, most: Duration) -> Result<Duration, InvalidLength> {
    match parse_length(text)? {
        length if length > most => Err(InvalidLength::TooLong {
            given: text.to_string(),
            most,
        }),
        length => Ok(length),
    }
}

/// The end of a request: a moment, or the next time that the local clock shows an hour and minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Moment(Timestamp),
    Local(NaiveTime),
}

/// Why a text is no end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time: write 18:30 (local time) or 2026-11-22T18:30:00Z")]
pub(crate) struct InvalidUntil(String);

impl FromStr for Until {
    type Err = InvalidUntil;

    fn from_str(text: &str) -> Result<Self, InvalidUntil> {
        let moment = DateTime::parse_from_rfc3339(text)
            .ok()
            .map(|at| Self::Moment(at.to_utc().into()));
        let local = || NaiveTime::parse_from_str(text, "%H:%M").ok().map(Self::Local);
        moment
            .or_else(local)
            .ok_or_else(|| InvalidUntil(text.to_string()))
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moment(moment) => f.write_str(&local(*moment)),
            Self::Local(time) => time.fmt(f),
        }
    }
}

impl Until {
    /// The moment that is meant, if `now` is now: today, or tomorrow where that hour has passed.
    pub(crate) fn moment(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Moment(moment) => Some(moment),
            Self::Local(time) => next(time, &DateTime::<Utc>::from(now).with_timezone(&Local)),
        }
    }
}

fn next<Z: TimeZone>(time: NaiveTime, now: &DateTime<Z>) -> Option<Timestamp> {
    let today = now.date_naive();
    let days = [
        Some(today),
        today.checked_add_days(Days::new(1)),
        today.checked_add_days(Days::new(2)),
    ];
    // An hour that a change to summer time leaves out isn't there that day.
    let moments = days
        .into_iter()
        .flatten()
        .filter_map(|day| now.timezone().from_local_datetime(&day.and_time(time)).earliest());
    moments
        .into_iter()
        .find(|moment| moment > now)
        .map(|moment| moment.to_utc().into())
}

/// `2h 5m`, `4m 10s`: the two largest units, rounded down.
pub(crate) fn length_in_words(length: Duration) -> String {
    let seconds = length.as_secs();
    let units = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let words: Vec<String> = units
        .iter()
        .skip_while(|(number, _)| *number == 0)
        .take(2)
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if words.is_empty() {
        "0s".to_string()
    } else {
        words.join(" ")
    }
}

/// `in 2h 5m`, `5m ago`, to the nearest second.
pub(crate) fn distance(at: Timestamp, now: Timestamp) -> String {
    let rounded = |length: Duration| length_in_words(length.saturating_add(Duration::from_millis(500)));
    if at > now {
        format!("in {}", rounded(at.since(now)))
    } else {
        format!("{} ago", rounded(now.since(at)))
    }
}

/// The moment on the local clock, in few characters: the day only where it isn't today.
pub(crate) fn brief(at: Timestamp, now: Timestamp) -> String {
    let [at, now] = [at, now].map(|moment| DateTime::<Utc>::from(moment).with_timezone(&Local));
    let form = if at.date_naive() == now.date_naive() {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M"
    };
    at.format(form).to_string()
}

/// The moment on the local clock, with the clock's offset.
pub(crate) fn local(at: Timestamp) -> String {
    on_clock(at, &Local)
}

fn on_clock<Z: TimeZone<Offset: fmt::Display>>(at: Timestamp, zone: &Z) -> String {
    let at = DateTime::<Utc>::from(at).with_timezone(zone);
    let text = at.format("%Y-%m-%d %H:%M:%S").to_string();
    match at.format("%:z").to_string().as_str() {
        "+00:00" => format!("{text} UTC"),
        offset => format!("{text} {offset}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::FixedOffset;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn lengths_are_read_as_people_and_as_azure_write_them() {
        for (text, seconds) in [
            ("1h", 3600),
            ("90m", 5400),
            ("30s", 30),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("PT3H", 10_800),
        ] {
            assert_eq!(
                parse_request_length(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "1",
            "h",
            "-1h",
            "1x",
            "P1D",
            "soon",
            "1h30",
            "999999999999999999999h",
            "0s",
            "1500ms",
            "2years",
        ] {
            assert!(parse_request_length(text).is_err(), "{text}");
        }
        assert_eq!(parse_short_wait("0s"), Ok(Duration::ZERO));
        assert!(
            parse_short_wait("61s")
                .unwrap_err()
                .to_string()
                .ends_with("at most 1m")
        );
    }

    #[test]
    fn an_hour_means_today_or_else_tomorrow() {
        let zone = FixedOffset::east_opt(3600).unwrap();
        let now = zone.with_ymd_and_hms(2026, 11, 22, 17, 0, 0).unwrap();
        let time = |text| NaiveTime::parse_from_str(text, "%H:%M").unwrap();
        assert_eq!(next(time("18:30"), &now), Some(at("2026-11-22T17:30:00Z")));
        assert_eq!(next(time("16:59"), &now), Some(at("2026-11-23T15:59:00Z")));
        assert_eq!(next(time("17:00"), &now), Some(at("2026-11-23T16:00:00Z")));
    }

    #[test]
    fn an_end_is_a_moment_or_a_time_of_day() {
        assert_eq!(
            "2026-11-22T18:30:00Z".parse(),
            Ok(Until::Moment(at("2026-11-22T18:30:00Z")))
        );
        assert_eq!(
            "2026-11-22T18:30:00+02:00".parse(),
            Ok(Until::Moment(at("2026-11-22T16:30:00Z")))
        );
        for text in ["", "24:00", "18", "tomorrow", "2026-11-22", "2026-11-22T18:30:00"] {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_and_moments_are_told_in_few_words() {
        for (seconds, words) in [
            (0, "0s"),
            (59, "59s"),
            (3600, "1h"),
            (3599, "59m 59s"),
            (7_530, "2h 5m"),
            (86_401, "1d"),
        ] {
            assert_eq!(length_in_words(Duration::from_secs(seconds)), words);
        }
        let noon = at("2026-11-22T12:00:00Z");
        assert_eq!(distance(at("2026-11-22T12:59:58Z"), noon), "in 59m 58s");
        assert_eq!(distance(at("2026-11-22T12:59:59.99Z"), noon), "in 1h");
        assert_eq!(distance(at("2026-11-22T11:00:00Z"), noon), "1h ago");
        assert_eq!(on_clock(noon, &Utc), "2026-11-22 12:00:00 UTC");
        assert_eq!(
            on_clock(noon, &FixedOffset::east_opt(3600).unwrap()),
            "2026-11-22 13:00:00 +01:00"
        );
    }
}
