//! The ruleset: what should hold on the host now, as a plain value.
//!
//! The firewall is made equal to it; nothing reads live rules to decide how to patch them.

use alloc::collections::BTreeSet;
use alloc::string::String;
use core::net::IpAddr;
use core::time::Duration;

use crate::openings::Openings;
use crate::port::PortKey;
use crate::prefix::{Family, Prefix};
use crate::time::BootTime;

/// What an opening lets in: connection attempts from a prefix to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpeningKey {
    pub source: Prefix,
    pub key: PortKey,
}

/// When an opening ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// On CLOCK_BOOTTIME, which no wall clock moves and which counts suspended time.
    At(BootTime),
    /// A trusted source of the host's own file. Greater than any moment, so that a grant never shortens it.
    Never,
}

impl End {
    pub fn is_after(self, now: BootTime) -> bool {
        match self {
            Self::At(end) => end > now,
            Self::Never => true,
        }
    }
}

/// Everything the firewall needs to know. Equal rulesets are equal tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    guarded: BTreeSet<PortKey>,
    unguarded_interfaces: BTreeSet<String>,
    udp_grace: Duration,
    openings: Openings,
}

impl Ruleset {
    /// With nothing guarded there is nothing to enforce, and no table of ours exists.
    pub fn is_empty(&self) -> bool {
        self.guarded.is_empty()
    }

    pub fn guarded(&self) -> &BTreeSet<PortKey> {
        &self.guarded
    }

    /// Names of interfaces whose packets are let through unseen.
    pub fn unguarded_interfaces(&self) -> &BTreeSet<String> {
        &self.unguarded_interfaces
    }

    /// How long a UDP flow may go on after the last packet that a live grant let in.
    pub fn udp_grace(&self) -> Duration {
        self.udp_grace
    }

    pub const fn openings(&self) -> &Openings {
        &self.openings
    }

    /// The prefix lengths in use: one hash set each (nftables.md, section 5).
    pub fn prefix_lengths(&self) -> BTreeSet<(Family, u8)> {
        self.openings
            .keys()
            .map(|opening| (opening.source.family(), opening.source.length()))
            .collect()
    }

    /// Whether a connection attempt gets in. The table must answer each packet just so.
    pub fn allows(&self, source: IpAddr, key: PortKey, now: BootTime) -> bool {
        if !self.guarded.contains(&key) {
            return true;
        }
        self.prefix_lengths().into_iter().any(|(family, length)| {
            Prefix::around(source, length)
                .filter(|prefix| prefix.family() == family)
                .and_then(|prefix| self.openings.get(&OpeningKey { source: prefix, key }))
                .is_some_and(|end| end.is_after(now))
        })
    }

    pub fn new(
        guarded: BTreeSet<PortKey>,
        unguarded_interfaces: BTreeSet<String>,
        udp_grace: Duration,
    ) -> Self {
        Self {
            guarded,
            unguarded_interfaces,
            udp_grace,
            openings: Openings::default(),
        }
    }

    /// Equal keys keep the later end: overlapping openings never cut each other short.
    pub fn open(&mut self, opening: OpeningKey, end: End) {
        let known = self.openings.get(&opening).copied();
        self.openings.set(opening, known.max(Some(end)));
    }

    /// Gives an opening this end, or none.
    pub(crate) fn set(&mut self, opening: OpeningKey, end: Option<End>) {
        self.openings.set(opening, end);
    }
}
