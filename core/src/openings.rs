//! The openings of a ruleset, kept in parts that copies share: what differs between two is found without
//! looking at what doesn't.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::ruleset::{End, OpeningKey};

/// Far fewer openings than parts share one, so a change copies little; so few parts are compared in no time.
const PARTS: usize = 256;

type Part = BTreeMap<OpeningKey, End>;

/// A value like any map. A copy costs next to nothing, and comparing it what was changed since.
#[derive(Clone, Debug)]
pub struct Openings {
    parts: Vec<Arc<Part>>,
    count: usize,
}

impl Default for Openings {
    fn default() -> Self {
        let empty = Arc::new(Part::new());
        Self {
            parts: (0..PARTS).map(|_| Arc::clone(&empty)).collect(),
            count: 0,
        }
    }
}

impl Openings {
    pub const fn len(&self) -> usize {
        self.count
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn get(&self, key: &OpeningKey) -> Option<&End> {
        self.parts.get(place(key))?.get(key)
    }

    pub fn contains_key(&self, key: &OpeningKey) -> bool {
        self.get(key).is_some()
    }

    /// In an order that is always the same, and no other promise.
    pub fn iter(&self) -> impl Iterator<Item = (&OpeningKey, &End)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    pub fn keys(&self) -> impl Iterator<Item = &OpeningKey> {
        self.iter().map(|(key, _)| key)
    }

    /// By prefix, for people.
    pub fn sorted(&self) -> BTreeMap<&OpeningKey, &End> {
        self.iter().collect()
    }

    /// Gives an opening this end, or takes it out.
    pub(crate) fn set(&mut self, key: OpeningKey, end: Option<End>) {
        if self.get(&key).copied() == end {
            return;
        }
        let Some(part) = self.parts.get_mut(place(&key)) else {
            return;
        };
        let part = Arc::make_mut(part);
        let before = part.len();
        match end {
            Some(end) => part.insert(key, end),
            None => part.remove(&key),
        };
        self.count = self.count.saturating_add(part.len()).saturating_sub(before);
    }

    /// Where the other differs: the key, its end here and its end there.
    pub fn differences<'o>(
        &'o self,
        other: &'o Self,
    ) -> impl Iterator<Item = (OpeningKey, Option<End>, Option<End>)> + 'o {
        let parts = self.parts.iter().zip(&other.parts);
        parts
            .filter(|(here, there)| !Arc::ptr_eq(here, there))
            .flat_map(|(here, there)| {
                let lost = here
                    .iter()
                    .filter(|(key, _)| !there.contains_key(key))
                    .map(|(key, end)| (*key, Some(*end), None));
                let changed = there
                    .iter()
                    .map(|(key, end)| (*key, here.get(key).copied(), Some(*end)))
                    .filter(|(_, before, after)| before != after);
                lost.chain(changed)
            })
    }
}

impl PartialEq for Openings {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.differences(other).next().is_none()
    }
}

impl Eq for Openings {}

impl FromIterator<(OpeningKey, End)> for Openings {
    fn from_iter<I: IntoIterator<Item = (OpeningKey, End)>>(openings: I) -> Self {
        let mut all = Self::default();
        for (key, end) in openings {
            all.set(key, Some(end));
        }
        all
    }
}

/// Addresses that follow each other fall into different parts.
fn place(key: &OpeningKey) -> usize {
    let folded = |octets: &[u8]| octets.iter().fold(0, |sum: u8, octet| sum.rotate_left(3) ^ octet);
    let address = match key.source.address() {
        IpAddr::V4(address) => folded(&address.octets()),
        IpAddr::V6(address) => folded(&address.octets()),
    };
    usize::from(address ^ folded(&key.key.port.to_be_bytes()) ^ key.source.length())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::BootTime;
    use alloc::format;
    use core::time::Duration;

    fn key(host: u8) -> OpeningKey {
        OpeningKey {
            source: format!("192.0.2.{host}").parse().unwrap(),
            key: crate::port::PortKey {
                protocol: crate::port::Protocol::Tcp,
                port: 22,
            },
        }
    }

    fn at(second: u64) -> End {
        End::At(BootTime::new(Duration::from_secs(second)))
    }

    #[test]
    fn a_copy_differs_by_what_was_changed_since() {
        let before: Openings = (0..=255).map(|host| (key(host), at(1))).collect();
        let mut after = before.clone();
        after.set(key(1), None);
        after.set(key(2), Some(at(2)));
        after.set(key(3), Some(at(1)));
        assert_eq!((before.len(), after.len()), (256, 255));
        let mut found: Vec<_> = before.differences(&after).collect();
        found.sort();
        let wanted = [(key(1), Some(at(1)), None), (key(2), Some(at(1)), Some(at(2)))];
        assert_eq!(found, wanted);
        after.set(key(1), Some(at(1)));
        assert_ne!(before, after);
        after.set(key(2), Some(at(1)));
        assert_eq!(before, after, "equal without being copies");
    }

    #[test]
    fn neighbours_fall_into_different_parts() {
        let places: alloc::collections::BTreeSet<_> = (0..=255).map(|host| place(&key(host))).collect();
        assert_eq!(places.len(), PARTS);
    }
}
