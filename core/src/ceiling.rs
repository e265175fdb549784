//! The host's ceiling: what no grant may exceed, whoever signed it.

use alloc::vec::Vec;
use core::time::Duration;

use crate::port::{PortKey, PortPattern, PortSpan};
use crate::prefix::{Family, Prefix};
use crate::ruleset::OpeningKey;
use crate::time::format_iso8601;

/// The host's own limits. A host without them takes no grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    pub ports: Vec<PortPattern>,
    /// The longest grant.
    pub longest: Duration,
    /// How far ahead a grant may start.
    pub max_ahead: Duration,
    /// The shortest prefix length, in bits, that an IPv4 source may have.
    pub widest_ipv4: u8,
    /// The same for IPv6.
    pub widest_ipv6: u8,
}

/// What a server knows of a host's ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCeiling<'c> {
    /// The host hasn't been heard yet; it will judge for itself.
    Unheard,
    /// The host's file has none.
    Missing,
    Known(&'c Ceiling),
}

/// What a grant or a request exceeds. `Display` names the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CeilingExceeded {
    #[error("the host's ceiling does not list port {0}")]
    Port(PortKey),
    #[error("{} is longer than the host's ceiling of {}", format_iso8601(*asked), format_iso8601(*longest))]
    TooLong { asked: Duration, longest: Duration },
    #[error("the source {source_} is wider than the host's ceiling of /{widest}")]
    TooWide { source_: Prefix, widest: u8 },
}

impl CeilingExceeded {
    /// The stable code that events, answers and logs carry.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Port(_) => "CEILING_PORT",
            Self::TooLong { .. } => "CEILING_DURATION",
            Self::TooWide { .. } => "CEILING_SOURCE",
        }
    }
}

impl Ceiling {
    /// # Errors
    /// A port of the span that the ceiling doesn't list.
    pub fn check_ports(&self, span: PortSpan) -> Result<(), CeilingExceeded> {
        match span.keys().find(|key| !self.lists(*key)) {
            None => Ok(()),
            Some(key) => Err(CeilingExceeded::Port(key)),
        }
    }

    fn lists(&self, key: PortKey) -> bool {
        self.ports
            .iter()
            .any(|pattern| pattern.spans().any(|span| span.contains(key)))
    }

    /// # Errors
    /// A prefix shorter than its family's widest.
    pub fn check_source(&self, source: Prefix) -> Result<(), CeilingExceeded> {
        let widest = match source.family() {
            Family::Ipv4 => self.widest_ipv4,
            Family::Ipv6 => self.widest_ipv6,
        };
        if source.length() < widest {
            Err(CeilingExceeded::TooWide {
                source_: source,
                widest,
            })
        } else {
            Ok(())
        }
    }

    /// Whether a grant could have such an opening.
    pub fn admits(&self, opening: &OpeningKey) -> bool {
        self.lists(opening.key) && self.check_source(opening.source).is_ok()
    }

    /// # Errors
    /// A length beyond the longest.
    pub fn check_length(&self, asked: Duration) -> Result<(), CeilingExceeded> {
        if asked > self.longest {
            Err(CeilingExceeded::TooLong {
                asked,
                longest: self.longest,
            })
        } else {
            Ok(())
        }
    }
}
