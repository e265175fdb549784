//! Ports and protocols.

use nightlatch_core::port::{InvalidPort, PortPattern, PortRange, PortSpan, Protocol, Protocols};

use super::{InvalidField, message};
use crate::pb;

impl TryFrom<pb::PortRange> for PortRange {
    type Error = InvalidField;

    fn try_from(range: pb::PortRange) -> Result<Self, InvalidField> {
        let pb::PortRange { first, last } = range;
        let port = |field, number| {
            let outside = || InvalidField::new(field, InvalidPort::OutsideRange(number));
            u16::try_from(number)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(outside)
        };
        Self::new(port("first", first)?, port("last", last)?).map_err(|error| InvalidField::new("", error))
    }
}

impl From<PortRange> for pb::PortRange {
    fn from(range: PortRange) -> Self {
        Self {
            first: range.first().into(),
            last: range.last().into(),
        }
    }
}

/// # Errors
/// A number that stands for no protocol, zero included.
pub fn read_protocols(field: &str, number: i32) -> Result<Protocols, InvalidField> {
    match pb::Protocol::try_from(number) {
        Ok(pb::Protocol::Tcp) => Ok(Protocols::Tcp),
        Ok(pb::Protocol::Udp) => Ok(Protocols::Udp),
        Ok(pb::Protocol::Both) => Ok(Protocols::Both),
        Ok(pb::Protocol::Unspecified) => Err(InvalidField::new(field, "is missing: TCP, UDP or BOTH")),
        Err(_) => Err(InvalidField::new(
            field,
            format_args!("{number} is not a protocol"),
        )),
    }
}

pub const fn protocols(protocols: Protocols) -> pb::Protocol {
    match protocols {
        Protocols::Tcp => pb::Protocol::Tcp,
        Protocols::Udp => pb::Protocol::Udp,
        Protocols::Both => pb::Protocol::Both,
    }
}

impl TryFrom<pb::PortSpan> for PortSpan {
    type Error = InvalidField;

    fn try_from(span: pb::PortSpan) -> Result<Self, InvalidField> {
        let pb::PortSpan { protocol, range } = span;
        let protocol = match read_protocols("protocol", protocol)? {
            Protocols::Tcp => Protocol::Tcp,
            Protocols::Udp => Protocol::Udp,
            Protocols::Both => {
                return Err(InvalidField::new(
                    "protocol",
                    "a span has one protocol: TCP or UDP",
                ));
            }
        };
        Ok(Self {
            protocol,
            range: message("range", range)?,
        })
    }
}

impl From<PortSpan> for pb::PortSpan {
    fn from(span: PortSpan) -> Self {
        let PortSpan { protocol, range } = span;
        Self {
            protocol: protocols(protocol.into()).into(),
            range: Some(range.into()),
        }
    }
}

impl TryFrom<pb::PortPattern> for PortPattern {
    type Error = InvalidField;

    fn try_from(pattern: pb::PortPattern) -> Result<Self, InvalidField> {
        let pb::PortPattern { range, protocol } = pattern;
        Ok(Self {
            range: message("range", range)?,
            protocols: protocol
                .map(|number| read_protocols("protocol", number))
                .transpose()?,
        })
    }
}

impl From<PortPattern> for pb::PortPattern {
    fn from(pattern: PortPattern) -> Self {
        let PortPattern {
            range,
            protocols: named,
        } = pattern;
        Self {
            range: Some(range.into()),
            protocol: named.map(|named| protocols(named).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_survive_the_wire() {
        for text in ["22", "22/tcp", "8000-8010/udp", "3389/*"] {
            let pattern: PortPattern = text.parse().unwrap();
            assert_eq!(PortPattern::try_from(pb::PortPattern::from(pattern)), Ok(pattern));
            for span in pattern.spans() {
                assert_eq!(PortSpan::try_from(pb::PortSpan::from(span)), Ok(span));
            }
        }
    }

    #[test]
    fn what_is_no_port_is_refused_by_its_field() {
        let range = |first, last| Some(pb::PortRange { first, last });
        for (range, protocol, field) in [
            (range(0, 22), Some(1), "range.first"),
            (range(22, 65_536), Some(1), "range.last"),
            (range(22, 21), Some(1), "range"),
            (range(1, 257), Some(1), "range"),
            (None, Some(1), "range"),
            (range(22, 22), Some(0), "protocol"),
            (range(22, 22), Some(9), "protocol"),
        ] {
            let error = PortPattern::try_from(pb::PortPattern { range, protocol }).unwrap_err();
            assert_eq!(error.field, field);
        }
        let both = pb::PortSpan {
            protocol: 3,
            range: range(22, 22),
        };
        assert_eq!(PortSpan::try_from(both).unwrap_err().field, "protocol");
    }
}
