//! Break-glass: what root opens on the host itself, for when nothing else of ours works (docs/adr/0010-break-glass.md).
//!
//! It comes from the host's own disk, never from the network, and only shortly and narrowly as the host's own file says.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::grant::Version1;
use crate::id::BreakGlassId;
use crate::port::{PortKey, PortPattern, PortRange, PortSpan};
use crate::prefix::{Family, Prefix};
use crate::request::Justification;
use crate::ruleset::{End, OpeningKey};
use crate::signing::{self, EnvelopeRejected, LONGEST_ENVELOPE, PublicKey, SigningKey};
use crate::time::{BootId, BootTime, Timestamp, format_iso8601};

/// The payload type in a use's DSSE envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.nightlatch.break-glass.v1+json";
/// The most uses that may be open at a time.
pub const MOST_OPEN: usize = 16;
/// The most ports of one use: the longest record of so many that don't neighbour one another is still read.
pub const MOST_PORTS: usize = 128;
/// Whoever reads it later is to learn something from it.
pub const SHORTEST_REASON: usize = 8;

/// The host's own bounds, `[break_glass]` in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub is_enabled: bool,
    pub longest: Duration,
    /// The shortest prefix length, in bits, that an IPv4 source may have.
    pub widest_ipv4: u8,
    /// The same for IPv6.
    pub widest_ipv6: u8,
}

impl Default for Limits {
    /// One IPv4 address; or one IPv6 network, within which clients change their addresses by themselves (RFC 8981).
    fn default() -> Self {
        Self {
            is_enabled: true,
            longest: Duration::from_secs(3600),
            widest_ipv4: 32,
            widest_ipv6: 64,
        }
    }
}

/// Why a use opens nothing. `Display` names the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    #[error("the host's own file turns break-glass off: `enabled = false` in its section [break_glass]")]
    TurnedOff,
    #[error(
        "{} is longer than the host's own file allows: ask for at most {} (`longest` in its section [break_glass])",
        format_iso8601(*asked), format_iso8601(*longest)
    )]
    TooLong { asked: Duration, longest: Duration },
    #[error("nothing would be open for no time: ask for at least PT1S")]
    TooShort,
    #[error(
        "the source {source_} is wider than the host's own file allows: name one of /{widest} at least \
         (`{}` in its section [break_glass])",
        if *widest <= 32 && source_.family() == Family::Ipv4 { "widest_ipv4" } else { "widest_ipv6" }
    )]
    TooWide { source_: Prefix, widest: u8 },
    #[error("the source {0} is none that anybody connects from: name the address of whoever needs to get in")]
    NobodyThere(Prefix),
    #[error("it has no port, or more than {MOST_PORTS}")]
    Ports,
    #[error(
        "the reason has fewer than {SHORTEST_REASON} characters: say what has happened, for those who read it later"
    )]
    ReasonTooShort,
    #[error("it is of another boot of this host")]
    OtherBoot,
    #[error("it begins in the future")]
    Ahead,
    #[error("it has ended")]
    Ended,
    #[error("its record is not to be trusted: {0}")]
    Rejected(#[from] EnvelopeRejected),
}

/// Who did it, as far as the kernel and sudo know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opener {
    pub uid: u32,
    /// As whom they logged in, whoever they have become since (audit's loginuid).
    pub login_uid: Option<u32>,
    pub sudo_user: Option<String>,
    pub terminal: Option<String>,
}

/// One use: what its record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakGlass {
    version: Version1,
    pub id: BreakGlassId,
    pub boot_id: BootId,
    pub source: Prefix,
    pub ports: Vec<PortSpan>,
    pub start: BootTime,
    pub end: BootTime,
    /// What the wall clock said at the start; it may have been wrong.
    pub time: Timestamp,
    pub reason: Justification,
    pub opener: Opener,
}

/// What is asked for on the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// A port without a protocol means those that are guarded.
    pub ports: Vec<PortPattern>,
    pub source: Prefix,
    pub length: Duration,
    pub reason: Justification,
}

/// A use that holds now. Only [`BreakGlass::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedBreakGlass(BreakGlass);

/// Which boot a record must be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfBoot {
    Id(BootId),
    /// It lies where nothing outlives a boot, so that its id says no more.
    Certain,
}

impl Limits {
    /// # Errors
    /// The first limit that doesn't hold.
    pub fn check(&self, source: Prefix, length: Duration) -> Result<(), NotOpened> {
        if !self.is_enabled {
            return Err(NotOpened::TurnedOff);
        }
        if source.no_sender().is_some() {
            return Err(NotOpened::NobodyThere(source));
        }
        let widest = match source.family() {
            Family::Ipv4 => self.widest_ipv4,
            Family::Ipv6 => self.widest_ipv6,
        };
        if source.length() < widest {
            return Err(NotOpened::TooWide {
                source_: source,
                widest,
            });
        }
        if length < Duration::from_secs(1) {
            return Err(NotOpened::TooShort);
        }
        if length > self.longest {
            return Err(NotOpened::TooLong {
                asked: length,
                longest: self.longest,
            });
        }
        Ok(())
    }
}

impl Asked {
    /// # Errors
    /// What the host's own file doesn't allow, whatever is guarded.
    pub fn check(&self, limits: &Limits) -> Result<(), NotOpened> {
        limits.check(self.source, self.length)?;
        if self.reason.as_str().chars().count() < SHORTEST_REASON {
            return Err(NotOpened::ReasonTooShort);
        }
        Ok(())
    }

    /// Those of the ports that are guarded, and those patterns that name none.
    pub fn guarded_ports(&self, guarded: &BTreeSet<PortKey>) -> (BTreeSet<PortKey>, Vec<PortPattern>) {
        let mut ports = BTreeSet::new();
        let mut unguarded = Vec::new();
        for pattern in &self.ports {
            let keys = pattern.spans().flat_map(PortSpan::keys);
            let found: BTreeSet<PortKey> = keys.filter(|key| guarded.contains(key)).collect();
            if found.is_empty() {
                unguarded.push(*pattern);
            }
            ports.extend(found);
        }
        (ports, unguarded)
    }
}

impl BreakGlass {
    /// # Errors
    /// More than the host's own file allows, or not the right number of ports.
    pub fn new(
        id: BreakGlassId,
        asked: &Asked,
        ports: &BTreeSet<PortKey>,
        limits: &Limits,
        (boot_id, start, time): (BootId, BootTime, Timestamp),
        opener: Opener,
    ) -> Result<Self, NotOpened> {
        asked.check(limits)?;
        if !(1..=MOST_PORTS).contains(&ports.len()) {
            return Err(NotOpened::Ports);
        }
        Ok(Self {
            version: Version1,
            id,
            boot_id,
            source: asked.source,
            ports: joined(ports),
            start,
            end: start.plus(asked.length),
            time,
            reason: asked.reason.clone(),
            opener,
        })
    }

    /// Signs it and gives the envelope's bytes.
    pub fn seal(&self, key: &SigningKey) -> Vec<u8> {
        // Strings and numbers only: writing them can't fail.
        key.seal(PAYLOAD_TYPE, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// What a record says, whether or not it holds now.
    ///
    /// # Errors
    /// Anything but a use that one of the keys signed.
    pub fn read(envelope: &[u8], keys: &[PublicKey]) -> Result<Self, EnvelopeRejected> {
        signing::open_json(envelope, PAYLOAD_TYPE, LONGEST_ENVELOPE, |id| {
            keys.iter().find(|key| key.id() == *id)
        })
    }

    /// # Errors
    /// The first reason why it opens nothing now.
    pub fn verify(
        envelope: &[u8],
        keys: &[PublicKey],
        limits: &Limits,
        boot: OfBoot,
        now: BootTime,
    ) -> Result<VerifiedBreakGlass, NotOpened> {
        let found = Self::read(envelope, keys)?;
        if matches!(boot, OfBoot::Id(id) if id != found.boot_id) {
            return Err(NotOpened::OtherBoot);
        }
        limits.check(found.source, found.length())?;
        let ports = found.ports.iter().map(|span| span.keys().count()).sum();
        if !(1..=MOST_PORTS).contains(&ports) {
            return Err(NotOpened::Ports);
        }
        if found.start > now {
            return Err(NotOpened::Ahead);
        }
        if found.end <= now {
            return Err(NotOpened::Ended);
        }
        Ok(VerifiedBreakGlass(found))
    }

    pub const fn length(&self) -> Duration {
        self.end.since(self.start)
    }

    pub fn keys(&self) -> impl Iterator<Item = PortKey> {
        self.ports.iter().flat_map(|span| span.keys())
    }
}

/// Neighbours in one span each.
fn joined(keys: &BTreeSet<PortKey>) -> Vec<PortSpan> {
    let mut spans: Vec<PortSpan> = Vec::new();
    for PortKey { protocol, port } in keys.iter().copied() {
        let before = spans.last_mut().filter(|span| span.protocol == protocol);
        let longer = before.and_then(|span| {
            let is_next = span.range.last().checked_add(1) == Some(port);
            let range = PortRange::new(span.range.first(), port)
                .ok()
                .filter(|_| is_next)?;
            Some((span, range))
        });
        if let Some((span, range)) = longer {
            span.range = range;
        } else if let Ok(range) = PortRange::new(port, port) {
            spans.push(PortSpan { protocol, range });
        }
    }
    spans
}

impl VerifiedBreakGlass {
    pub const fn of(&self) -> &BreakGlass {
        &self.0
    }

    pub fn openings(&self) -> impl Iterator<Item = (OpeningKey, End)> {
        let Self(BreakGlass { source, end, .. }) = self;
        self.0.keys().map(|key| {
            let source = *source;
            (OpeningKey { source, key }, End::At(*end))
        })
    }
}

#[cfg(test)]
mod tests;
