//! Openings besides what the table has, added by whoever knows nothing else of it.

use std::collections::BTreeSet;
use std::time::Duration;

use nightlatch_core::port::Protocol;
use nightlatch_core::ruleset::{End, OpeningKey};
use nightlatch_core::time::BootTime;

use nix::errno::Errno;

use super::set::{Key, Lifetime, SetName, key_of, set_of};
use super::table::{self, Chain, ChainName};
use super::{Firewall, FirewallError, Known, netlink, reading};

/// What an element is given before it is taken out and written with its end, as in a change of openings.
const PLACEHOLDER: Lifetime = Lifetime::For(Duration::from_secs(60));

/// How often the table is read again that others change meanwhile.
const ATTEMPTS: usize = 5;

impl Firewall {
    /// Opens these until `end`, in one transaction that takes nothing away: no guard, no opening, no rule. What is
    /// open for longer stays so. Says whether all are open: without a table, or after the end, none is.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn let_in(
        &mut self,
        openings: &[OpeningKey],
        end: BootTime,
        now: impl Fn() -> BootTime,
    ) -> Result<bool, FirewallError> {
        self.known = Known::Nothing;
        self.found = None;
        for _ in 0..ATTEMPTS {
            match self.let_in_once(openings, end, &now) {
                Err(FirewallError::Refused { source, .. })
                    if netlink::is(&source, Errno::ERESTART) || netlink::is(&source, Errno::ENOENT) => {}
                settled => return settled,
            }
        }
        self.let_in_once(openings, end, &now)
    }

    fn let_in_once(
        &mut self,
        openings: &[OpeningKey],
        end: BootTime,
        now: &impl Fn() -> BootTime,
    ) -> Result<bool, FirewallError> {
        let generation = self.netlink.settled_generation()?;
        let read_at = now();
        let Some(standing) = reading::state(&mut self.netlink)? else {
            return Ok(false);
        };
        let remaining = end.since(read_at);
        let is_shorter = |opening: &&OpeningKey| match standing.openings.get(opening) {
            Some(Some(left)) => *left < remaining,
            Some(None) => false,
            None => true,
        };
        let openings: Vec<&OpeningKey> = openings.iter().filter(is_shorter).collect();
        let lengths = reading::prefix_lengths(&mut self.netlink)?;
        let has_udp = standing.guarded.iter().any(|key| key.protocol == Protocol::Udp);
        let sets: BTreeSet<SetName> = openings.iter().map(|opening| set_of(opening)).collect();
        // Taken after the reading, which may be slow: a lifetime counts from when it is written.
        let Some(lifetime) = Lifetime::until(End::At(end), now()) else {
            return Ok(false);
        };
        if openings.is_empty() {
            return Ok(true);
        }
        let mut batch = self.netlink.batch();
        if let Some(generation) = generation {
            batch.only_in(generation);
        }
        for set in &sets {
            if let SetName::Open(family, length) = *set
                && !lengths.contains(&(family, length))
            {
                batch.create_set(&table::Set {
                    name: *set,
                    fixed: Vec::new(),
                });
                batch.put_first(&Chain {
                    name: ChainName::Gate,
                    rules: vec![table::lets_in(family, length, has_udp)],
                });
            }
        }
        for set in sets {
            let of_set = openings.iter().filter(|opening| set_of(opening) == set);
            let keys: Vec<Key> = of_set.map(|opening| key_of(opening)).collect();
            batch.put(set, keys.iter().map(|key| (key.clone(), PLACEHOLDER)));
            batch.take(set, keys.clone());
            batch.put(set, keys.into_iter().map(|key| (key, lifetime)));
        }
        self.netlink.transact(batch)?;
        Ok(true)
    }
}
