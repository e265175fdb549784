//! Moments and lengths of time. Both sides' types are foreign here, so these are functions.

use core::time::Duration;

use chrono::{DateTime, Utc};
use nightlatch_core::time::Timestamp;

use super::{InvalidField, required};

/// # Errors
/// A time outside 1970 to 9999, or with nanoseconds that are none.
pub fn read_timestamp(field: &str, value: Option<prost_types::Timestamp>) -> Result<Timestamp, InvalidField> {
    let prost_types::Timestamp { seconds, nanos } = required(field, value)?;
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    nanos
        .and_then(|nanos| DateTime::<Utc>::from_timestamp(seconds, nanos))
        .and_then(|at| Timestamp::from_micros(at.timestamp_micros()))
        .ok_or_else(|| InvalidField::new(field, "is not a time between 1970 and 9999"))
}

pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let at = DateTime::<Utc>::from(at);
    prost_types::Timestamp {
        seconds: at.timestamp(),
        nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or_default(),
    }
}

/// # Errors
/// A missing or negative length, or nanoseconds that are none.
pub fn read_duration(field: &str, value: Option<prost_types::Duration>) -> Result<Duration, InvalidField> {
    let prost_types::Duration { seconds, nanos } = required(field, value)?;
    let seconds = u64::try_from(seconds).ok();
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    seconds
        .zip(nanos)
        .map(|(seconds, nanos)| Duration::new(seconds, nanos))
        .ok_or_else(|| InvalidField::new(field, "is not a length of time"))
}

/// Lengths beyond what a signed 64-bit number of seconds holds become the longest there is.
pub fn duration(length: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(length.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_lengths_survive_the_wire() {
        let at: Timestamp = "2026-11-22T09:30:00.123456Z".parse().unwrap();
        assert_eq!(read_timestamp("at", Some(timestamp(at))), Ok(at));
        let length = Duration::new(3600, 5);
        assert_eq!(read_duration("length", Some(duration(length))), Ok(length));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (0, 1_000_000_000),
            (253_402_300_800, 0),
            (i64::MAX, 0),
        ] {
            let value = prost_types::Timestamp { seconds, nanos };
            assert!(read_timestamp("at", Some(value)).is_err(), "{seconds} {nanos}");
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
            let value = prost_types::Duration { seconds, nanos };
            assert!(read_duration("length", Some(value)).is_err(), "{seconds} {nanos}");
        }
        assert!(read_timestamp("at", None).is_err());
    }
}
