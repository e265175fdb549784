//! The host's firewall: makes the kernel's table `inet nightlatch` equal to a ruleset, and looks at it.
//!
//! The kernel ends each opening by itself. A change is one netlink transaction, which holds whole or not at
//! all; after an error, or when nothing is known, the whole table is made anew in one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use netlink_packet_core::DecodeError;
use nightlatch_core::prefix::Family;
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::BootTime;
use nix::errno::Errno;

mod batch;
mod bytecode;
mod changes;
mod drift;
mod letting_in;
mod looks;
mod mark;
mod netlink;
mod reading;
mod rendering;
mod set;
mod standing;
mod table;
mod tampering;
mod touch;
mod watch;

pub use drift::Drift;
pub use mark::Maker;
pub(crate) use mark::Mark;
pub use reading::TableState;
pub use rendering::rendering;
pub use standing::Standing;
pub use touch::{Process, Touch};
pub use watch::watch;

use crate::causes::causes;
use batch::Batch;
use changes::Changes;
use netlink::Netlink;
use set::{Key, Lifetime, SetName, key_of, set_of};
use table::Table;

/// The oldest kernel that refuses most IPv6 first fragments without their ports by itself; the table drops the rest.
const OLDEST_KERNEL: (u32, u32) = (5, 11);

/// What writing one element takes at most, so that the last one of a large batch doesn't end late either.
const PER_ELEMENT: Duration = Duration::from_micros(5);

/// What passes between reading a remembered flow and writing it again, so that rebuilds never prolong one.
const REBUILD: Duration = Duration::from_millis(10);

/// The only writer of our table in one network namespace.
pub struct Firewall {
    netlink: Netlink,
    known: Known,
    found: Option<looks::Found>,
    mark: Mark,
    /// How much longer than they should the flows that packets wrote would last.
    slept: Duration,
}

/// What was done last, and holds as long as nobody else touches the table.
enum Known {
    /// Nothing was done yet, or it isn't sure that it was.
    Nothing,
    NoTable,
    Table {
        ruleset: Ruleset,
        /// Those that have a set, in use or not.
        lengths: BTreeSet<(Family, u8)>,
        /// By how much an opening ends earlier than wanted at most, see [`moment_of_writing`].
        early: Duration,
    },
}

/// A table beside the ruleset that it should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    pub found: TableState,
    /// What is not as the ruleset has it, if anything; elements aside.
    pub foreign_part: Option<&'static str>,
}

/// What [`Firewall::apply`] did to the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing was sent; what ended meanwhile has ended by itself.
    Unchanged,
    /// Openings written or given another end, and openings taken out.
    Difference { added: usize, removed: usize },
    /// The whole table was made anew.
    Rebuilt,
    /// There was a table, and nothing is guarded any more.
    Removed,
}

/// Why the firewall isn't what it should be. After any of them the next `apply` rebuilds the table.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("the firewall needs the capability CAP_NET_ADMIN: run as root or grant it")]
    NeedsNetAdmin,
    #[error("Linux {found} is too old: {}.{} or newer is needed", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    KernelTooOld { found: String },
    #[error("this kernel offers no nf_tables")]
    NoNfTables(#[source] io::Error),
    #[error("the netlink socket failed")]
    Socket(#[source] io::Error),
    /// Whether the last transaction took effect isn't known.
    #[error("the kernel gave no answer")]
    NoAnswer,
    /// Nothing was changed.
    #[error("the kernel refused {what}")]
    Refused {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the ruleset changed each time {what} was read")]
    NeverStill { what: &'static str },
    #[error("an answer of the kernel can't be read")]
    Garbled(#[source] DecodeError),
}

impl FirewallError {
    fn is_absence(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if netlink::is(source, Errno::ENOENT))
    }
}

impl Firewall {
    /// Opens the netlink socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No CAP_NET_ADMIN, no nf_tables, or a kernel before 5.11.
    pub fn open() -> Result<Self, FirewallError> {
        check_kernel()?;
        Ok(Self {
            netlink: Netlink::open()?,
            known: Known::Nothing,
            found: None,
            mark: Mark::new(),
            slept: Duration::ZERO,
        })
    }

    /// The number of its socket, by which the kernel tells its changes from those of others.
    pub const fn port(&self) -> u32 {
        self.netlink.port()
    }

    /// Makes the table equal to `wanted` in one transaction. An empty ruleset removes it.
    ///
    /// Openings that ended by themselves cost nothing. The kernel's timeouts don't count suspended time: after
    /// a resume, call [`Self::slept`] first.
    ///
    /// # Errors
    /// The kernel's refusal, after which nothing has changed; or a lost answer.
    pub fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        match std::mem::replace(&mut self.known, Known::Nothing) {
            Known::NoTable if wanted.is_empty() => {
                self.known = Known::NoTable;
                Ok(Applied::Unchanged)
            }
            Known::Table {
                ruleset,
                lengths,
                early,
            } if has_same_frame(&ruleset, wanted) => self.change(&ruleset, lengths, early, wanted, now),
            Known::Nothing | Known::NoTable | Known::Table { .. } => self.rebuild(wanted, now),
        }
    }

    /// The host was suspended for so long: the next [`Self::apply`] makes the table anew, with what is left by now.
    pub fn slept(&mut self, length: Duration) {
        self.slept = self.slept.saturating_add(length);
        self.known = Known::Nothing;
        self.found = None;
    }

    /// Makes the whole table anew in one transaction: no guarded port is open and no opening shut meanwhile.
    ///
    /// Remembered UDP flows end some ten milliseconds earlier by it, never later. One that is let in for the
    /// first time between reading them and the transaction is forgotten.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn rebuild(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        if wanted.is_empty() {
            return self.clear();
        }
        self.make(wanted, now, |batch, mark| {
            batch.delete_table();
            batch.create_table(mark);
        })?;
        Ok(Applied::Rebuilt)
    }

    /// Makes the table if there is none, and says whether it did. One that another process makes meanwhile stands.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn create(&mut self, wanted: &Ruleset, now: BootTime) -> Result<bool, FirewallError> {
        if wanted.is_empty() || reading::exists(&mut self.netlink)? {
            return Ok(false);
        }
        match self.make(wanted, now, Batch::create_new_table) {
            Ok(()) => Ok(true),
            Err(FirewallError::Refused { source, .. }) if netlink::is(&source, Errno::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn make(
        &mut self,
        wanted: &Ruleset,
        now: BootTime,
        begin: impl FnOnce(&mut Batch, Mark),
    ) -> Result<(), FirewallError> {
        self.known = Known::Nothing;
        self.found = None;
        let table = Table::of(wanted);
        let counted = self.counted();
        let remembered = self.remembered(&table);
        let mut batch = self.netlink.batch();
        begin(&mut batch, self.mark);
        batch.create_counter(counted.packets, counted.bytes);
        for set in &table.sets {
            batch.create_set(set);
        }
        for chain in &table.chains {
            batch.create_chain(chain);
        }
        for chain in &table.chains {
            batch.fill_chain(chain);
        }
        let written_at = moment_of_writing(now, wanted.openings().len());
        put_openings(&mut batch, wanted, written_at);
        put_remembered(&mut batch, remembered, wanted, self.slept, now);
        self.netlink.transact(batch)?;
        self.slept = Duration::ZERO;
        self.known = Known::Table {
            ruleset: wanted.clone(),
            lengths: wanted.prefix_lengths(),
            early: written_at.since(now),
        };
        Ok(())
    }

    /// Takes the table away, and with it every guard. Nothing happens if there is none.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn remove(&mut self) -> Result<(), FirewallError> {
        self.clear().map(|_| ())
    }

    fn counted(&mut self) -> reading::Counted {
        // Guarding comes first: what can't be read is forgotten.
        reading::counted(&mut self.netlink).unwrap_or_else(|error| {
            tracing::warn!(error = %causes(&error), "the counter begins anew");
            reading::Counted::default()
        })
    }

    fn remembered(&mut self, table: &Table) -> Vec<(SetName, Vec<reading::Found>)> {
        let mut remembered = Vec::new();
        let sets = table.sets.iter().map(|set| set.name);
        for set in sets.filter(|set| set.is_learning()) {
            match reading::elements(&mut self.netlink, set) {
                Ok(found) => remembered.push((set, found)),
                Err(error) => tracing::warn!(error = %causes(&error), "remembered flows are forgotten"),
            }
        }
        remembered
    }

    fn clear(&mut self) -> Result<Applied, FirewallError> {
        self.known = Known::Nothing;
        self.found = None;
        let is_there = reading::exists(&mut self.netlink)?;
        if is_there {
            let mut batch = self.netlink.batch();
            batch.delete_table();
            self.netlink.transact(batch)?;
        }
        self.known = Known::NoTable;
        Ok(if is_there {
            Applied::Removed
        } else {
            Applied::Unchanged
        })
    }

    fn change(
        &mut self,
        applied: &Ruleset,
        lengths: BTreeSet<(Family, u8)>,
        early: Duration,
        wanted: &Ruleset,
        now: BootTime,
    ) -> Result<Applied, FirewallError> {
        let changes = Changes::between(applied.openings(), wanted.openings(), now);
        if changes.is_empty() {
            self.known = Known::Table {
                ruleset: wanted.clone(),
                lengths,
                early,
            };
            return Ok(Applied::Unchanged);
        }
        let mut batch = self.netlink.batch();
        let lengths = changes.write(&mut batch, wanted, lengths);
        let found = self.found.take();
        self.netlink.transact(batch)?;
        if let Some(found) = found {
            let generation = self.netlink.generation().ok().flatten();
            self.found = generation.and_then(|generation| found.changed_by_us(generation));
        }
        self.known = Known::Table {
            ruleset: wanted.clone(),
            lengths,
            early: early.max(changes.early),
        };
        Ok(Applied::Difference {
            added: changes.open.len(),
            removed: changes.close.len(),
        })
    }
}

fn put_openings(batch: &mut Batch, wanted: &Ruleset, written_at: BootTime) {
    let mut openings: BTreeMap<SetName, Vec<(Key, Lifetime)>> = BTreeMap::new();
    for (opening, end) in wanted.openings().iter() {
        if let Some(lifetime) = Lifetime::until(*end, written_at) {
            openings
                .entry(set_of(opening))
                .or_default()
                .push((key_of(opening), lifetime));
        }
    }
    for (set, elements) in openings {
        batch.put(set, elements);
    }
}

fn put_remembered(
    batch: &mut Batch,
    remembered: Vec<(SetName, Vec<reading::Found>)>,
    wanted: &Ruleset,
    slept: Duration,
    now: BootTime,
) {
    let count = remembered
        .iter()
        .fold(wanted.openings().len(), |count, (_, found)| {
            count.saturating_add(found.len())
        });
    let lost = moment_of_writing(now.plus(REBUILD), count).since(now);
    for (set, found) in remembered {
        // Whom the host serves must not be forgotten too early: answers to it would count as the host's own requests.
        let slept = if matches!(set, SetName::Flows(_)) {
            slept
        } else {
            Duration::ZERO
        };
        let lost = lost.saturating_add(slept);
        let elements = found.into_iter().filter_map(|(key, remaining)| {
            // What never ends was not written by us.
            let remaining = remaining?.saturating_sub(lost);
            Some((key, set.carried_over(remaining, wanted.udp_grace())?))
        });
        batch.put(set, elements);
    }
}

/// Whether only openings differ; all else is rare enough for a rebuild.
fn has_same_frame(one: &Ruleset, other: &Ruleset) -> bool {
    one.guarded() == other.guarded()
        && one.unguarded_interfaces() == other.unguarded_interfaces()
        && one.udp_grace() == other.udp_grace()
}

/// By how much openings may end earlier than wanted when so many were written at once.
pub fn ends_early_by(openings: usize) -> Duration {
    PER_ELEMENT.saturating_mul(u32::try_from(openings).unwrap_or(u32::MAX))
}

fn moment_of_writing(now: BootTime, elements: usize) -> BootTime {
    now.plus(ends_early_by(elements))
}

fn check_kernel() -> Result<(), FirewallError> {
    let system = nix::sys::utsname::uname().map_err(|errno| FirewallError::Socket(errno.into()))?;
    let release = system.release().to_string_lossy();
    if is_new_enough(&release) {
        Ok(())
    } else {
        Err(FirewallError::KernelTooOld {
            found: release.into_owned(),
        })
    }
}

fn is_new_enough(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST_KERNEL,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
