//! From one ruleset's openings to another's, in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nightlatch_core::openings::Openings;
use nightlatch_core::prefix::Family;
use nightlatch_core::ruleset::{End, OpeningKey, Ruleset};
use nightlatch_core::time::BootTime;

use super::batch::Batch;
use super::moment_of_writing;
use super::set::{Key, Lifetime, SetName, key_of, set_of};
use super::table::{self, Table};

/// What an element is given before it is taken out, see [`Changes`].
const PLACEHOLDER: Lifetime = Lifetime::For(Duration::from_secs(60));

/// The openings to write and to take out.
///
/// Each is first put with a placeholder's end and then taken out, in the same transaction. So it makes no
/// difference whether it was there, has just ended, or (up to Linux 6.11) would keep its old end.
pub(super) struct Changes {
    pub(super) open: Vec<(OpeningKey, Lifetime)>,
    pub(super) close: Vec<OpeningKey>,
    pub(super) early: Duration,
}

impl Changes {
    pub(super) fn between(applied: &Openings, wanted: &Openings, now: BootTime) -> Self {
        let mut touched: Vec<(OpeningKey, Option<End>)> = Vec::new();
        for (opening, before, after) in applied.differences(wanted) {
            // One that has ended is gone by itself.
            let was_there = before.is_some_and(|before| before.is_after(now));
            if was_there || after.is_some_and(|after| after.is_after(now)) {
                touched.push((opening, after));
            }
        }
        let written_at = moment_of_writing(now, touched.len());
        let mut changes = Self {
            open: Vec::new(),
            close: Vec::new(),
            early: written_at.since(now),
        };
        for (opening, end) in touched {
            match end.and_then(|end| Lifetime::until(end, written_at)) {
                Some(lifetime) => changes.open.push((opening, lifetime)),
                None => changes.close.push(opening),
            }
        }
        changes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.close.is_empty()
    }

    /// Returns the prefix lengths that have a set afterwards.
    pub(super) fn write(
        &self,
        batch: &mut Batch,
        wanted: &Ruleset,
        mut lengths: BTreeSet<(Family, u8)>,
    ) -> BTreeSet<(Family, u8)> {
        let mut touched: BTreeMap<SetName, Vec<Key>> = BTreeMap::new();
        let mut open: BTreeMap<SetName, Vec<(Key, Lifetime)>> = BTreeMap::new();
        for (opening, lifetime) in &self.open {
            touched.entry(set_of(opening)).or_default().push(key_of(opening));
            open.entry(set_of(opening))
                .or_default()
                .push((key_of(opening), *lifetime));
        }
        // One that came and went within a moment has no set to be taken out of.
        let has_set = |opening: &&OpeningKey| lengths.contains(&length_of(opening));
        for opening in self.close.iter().filter(has_set) {
            touched.entry(set_of(opening)).or_default().push(key_of(opening));
        }

        if self.open.iter().any(|(opening, _)| !has_set(&opening)) {
            let in_use = wanted.prefix_lengths();
            let table = Table::of(wanted);
            let missing = in_use
                .difference(&lengths)
                .map(|&(family, length)| SetName::Open(family, length));
            for set in missing {
                batch.create_set(&table::Set {
                    name: set,
                    fixed: Vec::new(),
                });
            }
            for chain in table
                .chains
                .iter()
                .filter(|chain| chain.name == table::ChainName::Gate)
            {
                batch.flush_chain(chain);
                batch.fill_chain(chain);
            }
            for &(family, length) in lengths.difference(&in_use) {
                let set = SetName::Open(family, length);
                touched.remove(&set);
                batch.delete_set(set);
            }
            lengths = in_use;
        }
        for (set, keys) in touched {
            batch.put(set, keys.iter().map(|key| (key.clone(), PLACEHOLDER)));
            batch.take(set, keys);
        }
        for (set, elements) in open {
            batch.put(set, elements);
        }
        lengths
    }
}

fn length_of(opening: &OpeningKey) -> (Family, u8) {
    (opening.source.family(), opening.source.length())
}
