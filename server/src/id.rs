//! Fresh ids, ordered by time (UUIDv7, RFC 9562).

use nightlatch_core::time::Timestamp;
use uuid::{NoContext, Uuid};

pub fn fresh(now: Timestamp) -> Uuid {
    let micros = u64::try_from(now.micros()).unwrap_or_default();
    let nanos = u32::try_from(micros % 1_000_000 * 1000).unwrap_or_default();
    Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, micros / 1_000_000, nanos))
}
