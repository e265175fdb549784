//! Ports: a protocol and a number, alone or as a short range.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A transport protocol that can be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The number in the IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The protocols of a rule: one of them, or `*` for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocols {
    Tcp,
    Udp,
    Both,
}

impl Protocols {
    pub const fn contains(self, protocol: Protocol) -> bool {
        matches!(
            (self, protocol),
            (Self::Both, _) | (Self::Tcp, Protocol::Tcp) | (Self::Udp, Protocol::Udp)
        )
    }

    pub const fn each(self) -> &'static [Protocol] {
        match self {
            Self::Tcp => &[Protocol::Tcp],
            Self::Udp => &[Protocol::Udp],
            Self::Both => &[Protocol::Tcp, Protocol::Udp],
        }
    }
}

impl From<Protocol> for Protocols {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Both => "*",
        })
    }
}

/// Why a text is no port, range or protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPort {
    #[error("`{0}` is not a port: write a number from 1 to 65535 or a range such as 8000-8010")]
    NotANumber(String),
    #[error("port {0} is outside 1 to 65535")]
    OutsideRange(u32),
    #[error("the range {first}-{last} runs backwards: write the lower port first")]
    Backwards { first: u16, last: u16 },
    #[error(
        "the range {first}-{last} holds more than {} ports: split it",
        PortRange::LONGEST
    )]
    TooLong { first: u16, last: u16 },
    #[error("`{0}` is not a protocol: write tcp, udp or *")]
    UnknownProtocol(String),
    #[error("`{0}` names no protocol: write it as {0}/tcp, {0}/udp or {0}/*")]
    ProtocolMissing(String),
}

impl FromStr for Protocols {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        if text.eq_ignore_ascii_case("tcp") {
            Ok(Self::Tcp)
        } else if text.eq_ignore_ascii_case("udp") {
            Ok(Self::Udp)
        } else if text == "*" {
            Ok(Self::Both)
        } else {
            Err(InvalidPort::UnknownProtocol(text.to_string()))
        }
    }
}

/// One to 256 neighbouring ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Ranges are expanded into set elements, so their length is bounded.
    pub const LONGEST: u16 = 256;

    /// # Errors
    /// Port 0, a backward range, or more than [`Self::LONGEST`] ports.
    pub fn new(first: u16, last: u16) -> Result<Self, InvalidPort> {
        if first == 0 || last == 0 {
            return Err(InvalidPort::OutsideRange(0));
        }
        match last.checked_sub(first) {
            None => Err(InvalidPort::Backwards { first, last }),
            Some(more) if more >= Self::LONGEST => Err(InvalidPort::TooLong { first, last }),
            Some(_) => Ok(Self { first, last }),
        }
    }

    pub const fn first(self) -> u16 {
        self.first
    }

    pub const fn last(self) -> u16 {
        self.last
    }

    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    pub fn each(self) -> impl Iterator<Item = u16> + Clone {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

fn parse_port(text: &str) -> Result<u16, InvalidPort> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u32>().ok().filter(|_| digits);
    let number = number.ok_or_else(|| InvalidPort::NotANumber(text.to_string()))?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidPort::OutsideRange(number)),
    }
}

impl FromStr for PortRange {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        match text.split_once('-') {
            None => parse_port(text).and_then(|port| Self::new(port, port)),
            Some((first, last)) => Self::new(parse_port(first)?, parse_port(last)?),
        }
    }
}

/// A range of ports of one protocol, as a grant carries it: `{"protocol":"tcp","first":22,"last":22}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "RawPortSpan", try_from = "RawPortSpan")]
pub struct PortSpan {
    pub protocol: Protocol,
    pub range: PortRange,
}

impl PortSpan {
    pub const fn contains(self, key: PortKey) -> bool {
        matches!(
            (self.protocol, key.protocol),
            (Protocol::Tcp, Protocol::Tcp) | (Protocol::Udp, Protocol::Udp)
        ) && self.range.contains(key.port)
    }

    pub fn keys(self) -> impl Iterator<Item = PortKey> + Clone {
        self.range.each().map(move |port| PortKey {
            protocol: self.protocol,
            port,
        })
    }
}

impl fmt::Display for PortSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.range, self.protocol)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPortSpan {
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl From<PortSpan> for RawPortSpan {
    fn from(span: PortSpan) -> Self {
        Self {
            protocol: span.protocol,
            first: span.range.first,
            last: span.range.last,
        }
    }
}

impl TryFrom<RawPortSpan> for PortSpan {
    type Error = InvalidPort;

    fn try_from(raw: RawPortSpan) -> Result<Self, InvalidPort> {
        Ok(Self {
            protocol: raw.protocol,
            range: PortRange::new(raw.first, raw.last)?,
        })
    }
}

/// Ports of one or both protocols, as people write them: `22/tcp`, `8000-8010/udp`, `3389/*`, `22`.
///
/// A missing protocol is kept as such; what it means is up to the place it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortPattern {
    pub range: PortRange,
    pub protocols: Option<Protocols>,
}

impl PortPattern {
    /// The spans it stands for, a missing protocol meaning both.
    pub fn spans(self) -> impl Iterator<Item = PortSpan> {
        let protocols = self.protocols.unwrap_or(Protocols::Both);
        protocols.each().iter().map(move |&protocol| PortSpan {
            protocol,
            range: self.range,
        })
    }
}

impl FromStr for PortPattern {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        match text.split_once('/') {
            None => Ok(Self {
                range: text.parse()?,
                protocols: None,
            }),
            Some((range, protocols)) => Ok(Self {
                range: range.parse()?,
                protocols: Some(protocols.parse()?),
            }),
        }
    }
}

impl fmt::Display for PortPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocols {
            None => write!(f, "{}", self.range),
            Some(protocols) => write!(f, "{}/{protocols}", self.range),
        }
    }
}

/// One port of one protocol: what a packet is addressed to, and what a host guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    pub protocol: Protocol,
    pub port: u16,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_people_write_them() {
        for text in ["22", "22/tcp", "8000-8010/udp", "3389/*"] {
            assert_eq!(text.parse::<PortPattern>().unwrap().to_string(), text);
        }
        assert_eq!("22/TCP".parse::<PortPattern>().unwrap().to_string(), "22/tcp");
    }

    #[test]
    fn what_is_no_port_is_refused_with_the_limit() {
        for (text, says) in [
            ("", "not a port"),
            ("0", "outside 1 to 65535"),
            ("65536", "outside 1 to 65535"),
            ("+22", "not a port"),
            ("22-", "not a port"),
            ("ssh", "not a port"),
            ("20-10", "runs backwards"),
            ("1-257", "more than 256"),
            ("22/sctp", "not a protocol"),
            ("99999999999", "not a port"),
        ] {
            let error = text.parse::<PortPattern>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!("1-256".parse::<PortRange>().unwrap().each().count(), 256);
    }
}
