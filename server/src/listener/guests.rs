//! Who is connected: how many may be, and who has to go first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Streams that one connection may have open without anybody being known to call.
const MOST_STREAMS: usize = 4;

/// How many connections a listener holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    pub all: usize,
    pub per_address: usize,
    /// Of one certificate; the oldest goes.
    pub per_certificate: usize,
}

/// The connections of a listener.
pub struct Guests {
    places: Places,
    crowd: Mutex<Crowd>,
}

/// Where a connection comes from: an IPv4 address, or an IPv6 network, of which one host has all addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

#[derive(Default)]
struct Crowd {
    arrived: u64,
    count: usize,
    sources: BTreeMap<Source, Group>,
    /// Those of whom nobody knows who they are, oldest first.
    strangers: BTreeMap<u64, Source>,
    certificates: BTreeMap<[u8; 32], BTreeMap<u64, CancellationToken>>,
}

#[derive(Default)]
struct Group {
    count: usize,
    strangers: BTreeMap<u64, CancellationToken>,
}

impl Crowd {
    /// Sends away the oldest of a source that nobody knows, or the oldest of all.
    fn dismiss(&mut self, of: Option<Source>) -> bool {
        let source = of.or_else(|| self.strangers.first_key_value().map(|(_, source)| *source));
        let group = source.and_then(|source| self.sources.get_mut(&source));
        let Some((number, cut)) = group.and_then(|group| group.strangers.pop_first()) else {
            return false;
        };
        self.strangers.remove(&number);
        cut.cancel();
        true
    }

    fn no_longer_strange(&mut self, source: Source, number: u64) {
        self.strangers.remove(&number);
        if let Some(group) = self.sources.get_mut(&source) {
            group.strangers.remove(&number);
        }
    }
}

impl Guests {
    pub fn new(places: Places) -> Arc<Self> {
        Arc::new(Self {
            places,
            crowd: Mutex::default(),
        })
    }

    /// Takes a place. Where there is none, the oldest connection goes of which nobody knows whose it is.
    /// `None`: all are known.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Guest>> {
        let source = Source::from(address);
        let mut crowd = self.crowd();
        let theirs = crowd.sources.get(&source).map_or(0, |group| group.count);
        if theirs >= self.places.per_address && !crowd.dismiss(Some(source)) {
            return None;
        }
        if crowd.count >= self.places.all && !crowd.dismiss(None) {
            return None;
        }
        crowd.arrived += 1;
        crowd.count += 1;
        let (number, cut) = (crowd.arrived, CancellationToken::new());
        crowd.strangers.insert(number, source);
        let group = crowd.sources.entry(source).or_default();
        group.count += 1;
        group.strangers.insert(number, cut.clone());
        Some(Arc::new(Guest {
            guests: self.clone(),
            source,
            number,
            certificate: Mutex::default(),
            is_known: AtomicBool::new(false),
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            cut,
        }))
    }

    /// Makes room where the system has none left.
    pub fn dismiss_one(&self) {
        self.crowd().dismiss(None);
    }

    /// Sends away all of whom nobody knows who they are.
    pub fn dismiss_strangers(&self) {
        let mut crowd = self.crowd();
        while crowd.dismiss(None) {}
    }

    pub fn count(&self) -> usize {
        self.crowd().count
    }

    /// Holds no lock that a panic could leave half-done: counts are changed together.
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place. It is free again when this is dropped.
pub struct Guest {
    guests: Arc<Guests>,
    source: Source,
    number: u64,
    certificate: Mutex<Option<[u8; 32]>>,
    is_known: AtomicBool,
    /// For streams that anyone may open.
    pub streams: Arc<Semaphore>,
    /// The connection has to go.
    pub cut: CancellationToken,
}

impl Guest {
    /// A call has shown who this is.
    pub fn is_recognised(&self) {
        if !self.is_known.swap(true, Ordering::Relaxed) {
            self.guests.crowd().no_longer_strange(self.source, self.number);
        }
    }

    pub fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    /// Counts the connection among those of its certificate, or of the first token that it came with. Too many: the
    /// oldest goes.
    pub fn shows(&self, certificate: [u8; 32]) {
        let mut shown = self.certificate.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.is_some() {
            return;
        }
        *shown = Some(certificate);
        drop(shown);
        let mut crowd = self.guests.crowd();
        let theirs = crowd.certificates.entry(certificate).or_default();
        theirs.insert(self.number, self.cut.clone());
        if theirs.len() > self.guests.places.per_certificate
            && let Some((_, oldest)) = theirs.pop_first()
        {
            oldest.cancel();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let certificate = *self.certificate.lock().unwrap_or_else(PoisonError::into_inner);
        let mut crowd = self.guests.crowd();
        crowd.no_longer_strange(self.source, self.number);
        crowd.count -= 1;
        if let Some(group) = crowd.sources.get_mut(&self.source) {
            group.count -= 1;
            if group.count == 0 {
                crowd.sources.remove(&self.source);
            }
        }
        if let Some(certificate) = certificate
            && let Some(theirs) = crowd.certificates.get_mut(&certificate)
        {
            theirs.remove(&self.number);
            if theirs.is_empty() {
                crowd.certificates.remove(&certificate);
            }
        }
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(all: usize, per_address: usize) -> Arc<Guests> {
        Guests::new(Places {
            all,
            per_address,
            per_certificate: 2,
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn when_it_is_full_the_oldest_stranger_goes_and_the_known_stay() {
        let guests = guests(2, 2);
        let known = guests.enter(address("192.0.2.1")).unwrap();
        known.is_recognised();
        let stranger = guests.enter(address("192.0.2.2")).unwrap();
        let newer = guests.enter(address("192.0.2.3")).unwrap();
        assert!(stranger.cut.is_cancelled() && !known.cut.is_cancelled());
        newer.is_recognised();
        drop(stranger);
        assert!(guests.enter(address("192.0.2.4")).is_none());
        drop(known);
        assert!(guests.enter(address("192.0.2.4")).is_some());
    }

    #[test]
    fn one_address_takes_no_more_than_its_share_and_pushes_out_only_its_own() {
        let guests = guests(9, 2);
        let other = guests.enter(address("192.0.2.9")).unwrap();
        let held: Vec<_> = (0..3)
            .map(|_| guests.enter(address("192.0.2.1")).unwrap())
            .collect();
        assert!(held[0].cut.is_cancelled() && !other.cut.is_cancelled());
        // One IPv6 host has a whole network.
        let first = guests.enter(address("2001:db8::1")).unwrap();
        let _second = guests.enter(address("2001:db8::2")).unwrap();
        let _third = guests.enter(address("2001:db8::3")).unwrap();
        assert!(first.cut.is_cancelled());
        assert!(!held[2].cut.is_cancelled());
        drop((held, first));
        assert_eq!(guests.count(), 3);
    }

    #[test]
    fn of_one_certificate_the_newest_connections_stay() {
        let guests = guests(9, 9);
        let held: Vec<_> = (0..3)
            .map(|_| guests.enter(address("192.0.2.1")).unwrap())
            .collect();
        for guest in &held {
            guest.is_recognised();
            guest.shows([1; 32]);
        }
        let cut: Vec<bool> = held.iter().map(|guest| guest.cut.is_cancelled()).collect();
        assert_eq!(cut, [true, false, false]);
        // Only what is shown first counts.
        held[2].shows([2; 32]);
        drop(held);
        assert!(guests.crowd().certificates.is_empty() && guests.crowd().sources.is_empty());
    }

    #[test]
    fn all_strangers_can_be_sent_away_at_once() {
        let guests = guests(9, 9);
        let held: Vec<_> = (0..3)
            .map(|_| guests.enter(address("192.0.2.1")).unwrap())
            .collect();
        held[1].is_recognised();
        guests.dismiss_strangers();
        let cut: Vec<bool> = held.iter().map(|guest| guest.cut.is_cancelled()).collect();
        assert_eq!(cut, [true, false, true]);
    }
}
