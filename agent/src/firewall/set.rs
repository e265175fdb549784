//! The sets of our table: what they hold, and for how long.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use nightlatch_core::port::{PortKey, Protocol};
use nightlatch_core::prefix::Family;
use nightlatch_core::ruleset::{End, OpeningKey};
use nightlatch_core::time::BootTime;

/// A jiffy of the slowest kernels. Some kernels round a shorter timeout to zero, which means "for ever".
pub(crate) const SHORTEST: Duration = Duration::from_millis(10);
/// Far below what overflows in any kernel, far above any grant; longer ends just come earlier.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long the host's own UDP request may wait for its answer.
const OWN_REQUEST: Duration = Duration::from_secs(120);
/// How long after its last packet a served UDP client is still known as one, on top of the grace.
const SERVED: Duration = Duration::from_secs(3_600);
/// Bounds what a flood of spoofed UDP packets can cost. The kernel reserves 16 bytes for each at once.
const MOST_FLOWS: u32 = 16_384;
/// While this many are known, further ones aren't let in.
const MOST_CLIENTS: u32 = 65_536;

/// How long an element stays, as the kernel counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    For(Duration),
    Never,
}

impl Lifetime {
    /// `None` if the end has come: a timeout of zero would keep the element for ever.
    pub(crate) fn until(end: End, now: BootTime) -> Option<Self> {
        match end {
            End::Never => Some(Self::Never),
            End::At(end) => Self::lasting(end.since(now)),
        }
    }

    /// Rounded down to what netlink carries, so that the kernel doesn't outlive the grant.
    pub(crate) fn lasting(remaining: Duration) -> Option<Self> {
        let millis = u64::try_from(remaining.min(LONGEST).as_millis()).ok()?;
        (remaining >= SHORTEST).then(|| Self::For(Duration::from_millis(millis)))
    }
}

/// A set of our table, known by what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetName {
    Guarded,
    UnguardedInterfaces,
    /// Openings of one prefix length: a plain hash set, so that overlapping prefixes don't collide.
    Open(Family, u8),
    /// UDP flows that a live grant let in.
    Flows(Family),
    /// UDP flows that the host began from a guarded port.
    Own(Family),
    /// UDP clients that a grant let in, remembered so that answers to them never count as begun by the host.
    Served(Family),
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |family: &Family| match family {
            Family::Ipv4 => 4,
            Family::Ipv6 => 6,
        };
        match self {
            Self::Guarded => f.write_str("guarded"),
            Self::UnguardedInterfaces => f.write_str("unguarded_interfaces"),
            Self::Open(family, length) => write!(f, "open{}_{length}", digit(family)),
            Self::Flows(family) => write!(f, "flows{}", digit(family)),
            Self::Own(family) => write!(f, "own{}", digit(family)),
            Self::Served(family) => write!(f, "served{}", digit(family)),
        }
    }
}

impl SetName {
    /// The opposite of `Display`; `None` for a set that we never make.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let set = match name {
            "guarded" => Self::Guarded,
            "unguarded_interfaces" => Self::UnguardedInterfaces,
            "flows4" => Self::Flows(Family::Ipv4),
            "flows6" => Self::Flows(Family::Ipv6),
            "own4" => Self::Own(Family::Ipv4),
            "own6" => Self::Own(Family::Ipv6),
            "served4" => Self::Served(Family::Ipv4),
            "served6" => Self::Served(Family::Ipv6),
            open => {
                let (family, length) = open.strip_prefix("open")?.split_once('_')?;
                let family = if family == "4" { Family::Ipv4 } else { Family::Ipv6 };
                Self::Open(
                    family,
                    length.parse().ok().filter(|length| *length <= family.bits())?,
                )
            }
        };
        (set.to_string() == name).then_some(set)
    }

    /// What its elements are made of.
    pub(crate) fn key(self) -> Vec<KeyPart> {
        let address = |family| match family {
            Family::Ipv4 => KeyPart::Ipv4,
            Family::Ipv6 => KeyPart::Ipv6,
        };
        match self {
            Self::Guarded => vec![KeyPart::Protocol, KeyPart::Port],
            Self::UnguardedInterfaces => vec![KeyPart::Interface],
            Self::Open(family, _) => vec![address(family), KeyPart::Protocol, KeyPart::Port],
            Self::Flows(family) | Self::Own(family) => vec![address(family), KeyPart::Port, KeyPart::Port],
            Self::Served(family) => vec![address(family), KeyPart::Port],
        }
    }

    pub(crate) const fn kind(self) -> SetKind {
        match self {
            Self::Guarded | Self::UnguardedInterfaces => SetKind::Plain,
            Self::Open(..) => SetKind::Timed,
            Self::Flows(_) | Self::Own(_) => SetKind::Learning { most: MOST_FLOWS },
            Self::Served(_) => SetKind::Learning { most: MOST_CLIENTS },
        }
    }

    /// How long it remembers what packets wrote into it.
    pub(crate) fn memory(self, udp_grace: Duration) -> Duration {
        match self {
            Self::Flows(_) => udp_grace.min(LONGEST),
            Self::Own(_) => OWN_REQUEST,
            Self::Served(_) => udp_grace.min(LONGEST).saturating_add(SERVED),
            Self::Guarded | Self::UnguardedInterfaces | Self::Open(..) => Duration::ZERO,
        }
    }

    /// What remains of a memory when the table is made anew: never more than the set would give it now.
    pub(crate) fn carried_over(self, remaining: Duration, udp_grace: Duration) -> Option<Lifetime> {
        Lifetime::lasting(remaining.min(self.memory(udp_grace)))
    }

    /// Whether packets write it, so that a rebuild has to carry it over.
    pub(crate) const fn is_learning(self) -> bool {
        matches!(self.kind(), SetKind::Learning { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetKind {
    Plain,
    /// Elements may have a timeout each; one without stays.
    Timed,
    /// Packets add elements, at most so many.
    Learning {
        most: u32,
    },
}

/// A field of a set's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyPart {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Interface,
}

impl KeyPart {
    /// In the kernel each field begins at a multiple of four bytes.
    pub(crate) const fn padded_length(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Protocol | Self::Port => 4,
            Self::Ipv6 | Self::Interface => 16,
        }
    }
}

/// A field of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    Interface(String),
}

/// The key of an element.
pub(crate) type Key = Vec<Value>;

/// Where an opening is written.
pub(crate) fn set_of(opening: &OpeningKey) -> SetName {
    SetName::Open(opening.source.family(), opening.source.length())
}

/// What is written there.
pub(crate) fn key_of(opening: &OpeningKey) -> Key {
    let OpeningKey {
        source,
        key: PortKey { protocol, port },
    } = *opening;
    vec![
        Value::Address(source.address()),
        Value::Protocol(protocol),
        Value::Port(port),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_has_come_is_never_written() {
        let now = BootTime::new(Duration::from_secs(100));
        let until = |millis| Lifetime::until(End::At(BootTime::new(Duration::from_millis(millis))), now);
        assert_eq!(until(0), None);
        assert_eq!(until(100_000), None);
        assert_eq!(until(100_009), None);
        assert_eq!(until(100_010), Some(Lifetime::For(Duration::from_millis(10))));
        assert_eq!(
            Lifetime::lasting(Duration::from_micros(10_999)),
            Some(Lifetime::For(Duration::from_millis(10)))
        );
        assert_eq!(
            Lifetime::until(End::At(BootTime::new(Duration::MAX)), now),
            Some(Lifetime::For(LONGEST))
        );
        assert_eq!(Lifetime::until(End::Never, now), Some(Lifetime::Never));
    }

    #[test]
    fn every_set_is_known_by_its_name() {
        let families = [Family::Ipv4, Family::Ipv6];
        let open = families
            .into_iter()
            .flat_map(|family| (0..=family.bits()).map(move |length| SetName::Open(family, length)));
        let rest = families.into_iter().flat_map(|family| {
            [
                SetName::Flows(family),
                SetName::Own(family),
                SetName::Served(family),
            ]
        });
        for set in open
            .chain(rest)
            .chain([SetName::Guarded, SetName::UnguardedInterfaces])
        {
            assert_eq!(SetName::parse(&set.to_string()), Some(set));
        }
        for name in [
            "",
            "open",
            "open4_",
            "open4_33",
            "open4_032",
            "open6_129",
            "open5_1",
            "flows",
            "Guarded",
        ] {
            assert_eq!(SetName::parse(name), None, "{name}");
        }
    }
}
