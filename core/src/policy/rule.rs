//! What a policy says of one port or range.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::InvalidPolicy;
use crate::port::{PortRange, PortSpan, Protocols};
use crate::prefix::Prefix;
use crate::time::format_iso8601;

/// The sources that may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedSources {
    /// `*`
    Any,
    Only(Vec<Prefix>),
}

impl AllowedSources {
    pub(super) fn allow(&self, source: Prefix) -> bool {
        match self {
            Self::Any => true,
            Self::Only(allowed) => allowed.iter().any(|prefix| prefix.covers(source)),
        }
    }
}

impl fmt::Display for AllowedSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Only(allowed) => {
                let texts: Vec<String> = allowed.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(", "))
            }
        }
    }
}

/// What may be asked for on one port or range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRule {
    pub range: PortRange,
    pub protocols: Protocols,
    pub sources: AllowedSources,
    longest: Duration,
}

impl PortRule {
    /// The least that a rule's longest request may be.
    pub const SHORTEST_LIMIT: Duration = Duration::from_secs(5 * 60);
    /// The most that a rule's longest request may be.
    pub const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 3600);
    /// The longest request where the rule doesn't say.
    pub const DEFAULT_LIMIT: Duration = Duration::from_secs(3 * 3600);
    /// The most allowed prefixes of one rule.
    pub const MOST_SOURCES: usize = 256;

    /// `longest` is the longest request, five minutes to 24 hours.
    ///
    /// # Errors
    /// A limit outside these bounds, an empty or too long list of sources.
    pub fn new(
        range: PortRange,
        protocols: Protocols,
        sources: AllowedSources,
        longest: Duration,
    ) -> Result<Self, InvalidPolicy> {
        if !(Self::SHORTEST_LIMIT..=Self::LONGEST_LIMIT).contains(&longest) || longest.subsec_nanos() != 0 {
            return Err(InvalidPolicy::Limit(format_iso8601(longest)));
        }
        match &sources {
            AllowedSources::Only(allowed) if allowed.is_empty() => Err(InvalidPolicy::NoSources),
            AllowedSources::Only(allowed) if allowed.len() > Self::MOST_SOURCES => {
                Err(InvalidPolicy::TooManySources(allowed.len()))
            }
            AllowedSources::Any | AllowedSources::Only(_) => Ok(Self {
                range,
                protocols,
                sources,
                longest,
            }),
        }
    }

    pub const fn longest(&self) -> Duration {
        self.longest
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.range.overlaps(other.range)
            && self
                .protocols
                .each()
                .iter()
                .any(|protocol| other.protocols.contains(*protocol))
    }

    pub(super) fn spans(&self) -> impl Iterator<Item = PortSpan> {
        self.protocols.each().iter().map(|&protocol| PortSpan {
            protocol,
            range: self.range,
        })
    }
}

impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            range,
            protocols,
            sources,
            longest,
        } = self;
        write!(
            f,
            "{range}/{protocols} from {sources} max {}",
            format_iso8601(*longest)
        )
    }
}
