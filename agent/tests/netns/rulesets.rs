//! Rulesets that read like sentences.

use std::time::Duration;

use nightlatch_core::port::{PortKey, Protocol};
use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::{End, OpeningKey, Ruleset};

use super::now;

pub(crate) fn within(length: Duration) -> End {
    End::At(now().plus(length))
}

pub(crate) fn seconds(length: u64) -> End {
    within(Duration::from_secs(length))
}

pub(crate) fn tcp(port: u16) -> PortKey {
    PortKey {
        protocol: Protocol::Tcp,
        port,
    }
}

pub(crate) fn udp(port: u16) -> PortKey {
    PortKey {
        protocol: Protocol::Udp,
        port,
    }
}

pub(crate) fn opening(source: &str, key: PortKey) -> OpeningKey {
    OpeningKey {
        source: source.parse::<Prefix>().unwrap(),
        key,
    }
}

/// A ruleset that guards these ports, with a grace of two minutes for UDP and nothing open.
pub(crate) fn guarding(keys: &[PortKey]) -> Ruleset {
    guarding_with(keys, &[], Duration::from_secs(120))
}

pub(crate) fn guarding_with(keys: &[PortKey], unguarded: &[&str], udp_grace: Duration) -> Ruleset {
    let unguarded = unguarded.iter().map(|name| (*name).into()).collect();
    Ruleset::new(keys.iter().copied().collect(), unguarded, udp_grace)
}

/// Reads like a sentence: `guarding(&[tcp(22)]).letting_in(FRIEND, tcp(22), seconds(60))`.
pub(crate) trait LettingIn {
    fn letting_in(self, source: &str, key: PortKey, end: End) -> Self;
}

impl LettingIn for Ruleset {
    fn letting_in(mut self, source: &str, key: PortKey, end: End) -> Self {
        self.open(opening(source, key), end);
        self
    }
}
