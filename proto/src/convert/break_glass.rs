//! What a host tells of break-glass.

use core::time::Duration;

use nightlatch_core::break_glass::MOST_PORTS;
use nightlatch_core::id::BreakGlassId;
use nightlatch_core::port::PortSpan;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::request::Justification;
use nightlatch_core::time::Timestamp;

use super::time::{duration, read_duration, read_timestamp, timestamp};
use super::{InvalidField, list, text};
use crate::pb;

/// A use that a host has a record of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakGlassReport {
    pub id: BreakGlassId,
    pub ports: Vec<PortSpan>,
    pub source: Prefix,
    /// By the host's wall clock.
    pub time: Timestamp,
    pub length: Duration,
    pub reason: Justification,
    /// In words.
    pub opener: String,
    /// SHA-256 of the signed record.
    pub record: [u8; 32],
}

impl From<BreakGlassReport> for pb::BreakGlass {
    fn from(report: BreakGlassReport) -> Self {
        let BreakGlassReport {
            id,
            ports,
            source,
            time,
            length,
            reason,
            opener,
            record,
        } = report;
        Self {
            id: id.to_string(),
            ports: ports.into_iter().map(Into::into).collect(),
            source: source.to_string(),
            time: Some(timestamp(time)),
            length: Some(duration(length)),
            reason: reason.into(),
            opener,
            record_sha256: record.to_vec(),
        }
    }
}

impl TryFrom<pb::BreakGlass> for BreakGlassReport {
    type Error = InvalidField;

    fn try_from(report: pb::BreakGlass) -> Result<Self, InvalidField> {
        let pb::BreakGlass {
            id,
            ports,
            source,
            time,
            length,
            reason,
            opener,
            record_sha256,
        } = report;
        let record = <[u8; 32]>::try_from(record_sha256.as_slice());
        Ok(Self {
            id: id.parse().map_err(|error| InvalidField::new("id", error))?,
            ports: list("ports", ports, MOST_PORTS, TryInto::try_into)?,
            source: source
                .parse()
                .map_err(|error| InvalidField::new("source", error))?,
            time: read_timestamp("time", time)?,
            length: read_duration("length", length)?,
            reason: Justification::try_from(reason).map_err(|error| InvalidField::new("reason", error))?,
            opener: text("opener", opener, 256)?,
            record: record.map_err(|error| InvalidField::new("record_sha256", error))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::port::PortPattern;

    #[test]
    fn a_report_survives_the_wire_and_a_bad_one_is_refused_by_its_field() {
        let report = BreakGlassReport {
            id: "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".parse().unwrap(),
            ports: "22/tcp".parse::<PortPattern>().unwrap().spans().collect(),
            source: "192.0.2.7".parse().unwrap(),
            time: "2026-11-22T09:30:00Z".parse().unwrap(),
            length: Duration::from_secs(900),
            reason: Justification::try_from("the server burns".to_owned()).unwrap(),
            opener: "uid 0".to_owned(),
            record: [7; 32],
        };
        let sent = pb::BreakGlass::from(report.clone());
        assert_eq!(BreakGlassReport::try_from(sent.clone()), Ok(report));
        let refused = |change: fn(&mut pb::BreakGlass)| {
            let mut sent = sent.clone();
            change(&mut sent);
            BreakGlassReport::try_from(sent).unwrap_err().field
        };
        assert_eq!(refused(|sent| sent.id.clear()), "id");
        assert_eq!(refused(|sent| sent.source.push('x')), "source");
        assert_eq!(refused(|sent| sent.reason.clear()), "reason");
        assert_eq!(refused(|sent| sent.record_sha256.truncate(31)), "record_sha256");
    }
}
