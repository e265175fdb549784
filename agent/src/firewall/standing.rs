//! The table that stands, for those who change it without knowing all that should hold.

use std::collections::BTreeSet;
use std::time::Duration;

use nightlatch_core::port::PortKey;
use nightlatch_core::ruleset::{OpeningKey, Ruleset};
use nightlatch_core::time::BootTime;
use nix::errno::Errno;

use super::{Firewall, FirewallError, netlink, reading};

/// What passes between taking the time and reading an element, so that writing it again never prolongs it.
const CARRYING: Duration = Duration::from_millis(10);

/// What the kernel's table said at one moment, whoever wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// `None` if there is no table.
    pub guarded: Option<BTreeSet<PortKey>>,
    /// What it lets in for a time, and until when at the latest.
    pub open: Vec<(OpeningKey, BootTime)>,
    /// `None` if the kernel doesn't tell.
    pub(crate) generation: Option<u32>,
}

impl Firewall {
    /// `now` was taken before.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn standing(&mut self, now: BootTime) -> Result<Standing, FirewallError> {
        let generation = self.netlink.generation()?;
        let Some(table) = reading::state(&mut self.netlink)? else {
            return Ok(Standing {
                generation,
                ..Standing::default()
            });
        };
        let open = table.openings.into_iter().filter_map(|(opening, remaining)| {
            let remaining = remaining?.checked_sub(CARRYING)?;
            Some((opening, now.plus(remaining)))
        });
        Ok(Standing {
            guarded: Some(table.guarded),
            open: open.collect(),
            generation,
        })
    }

    /// Makes the table anew in the place of the one that was read, or says that somebody has changed something since.
    ///
    /// # Errors
    /// As [`Firewall::apply`].
    pub fn rebuild_over(
        &mut self,
        standing: &Standing,
        wanted: &Ruleset,
        now: BootTime,
    ) -> Result<bool, FirewallError> {
        let made = self.make(wanted, now, |batch| {
            if let Some(generation) = standing.generation {
                batch.only_in(generation);
            }
            batch.delete_table();
            batch.create_table();
        });
        match made {
            Ok(()) => Ok(true),
            Err(FirewallError::Refused { source, .. }) if netlink::is(&source, Errno::ERESTART) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::port::Protocol;
    use nightlatch_core::ruleset::End;
    use nix::sched::{CloneFlags, unshare};

    const SSH: PortKey = PortKey {
        protocol: Protocol::Tcp,
        port: 22,
    };

    fn opening(source: &str) -> OpeningKey {
        OpeningKey {
            source: source.parse().unwrap(),
            key: SSH,
        }
    }

    fn ruleset(openings: &[(&str, End)]) -> Ruleset {
        let mut ruleset = Ruleset::new(BTreeSet::from([SSH]), BTreeSet::new(), Duration::ZERO);
        for (source, end) in openings {
            ruleset.open(opening(source), *end);
        }
        ruleset
    }

    fn alone(work: impl FnOnce(Firewall) + Send + 'static) {
        let alone = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work(Firewall::open().unwrap());
        });
        alone.join().unwrap();
    }

    #[test]
    fn what_stands_is_read_with_ends_that_are_no_later_than_its_own() {
        alone(|mut firewall| {
            let now = BootTime::new(Duration::from_secs(100));
            let end = now.plus(Duration::from_secs(60));
            assert_eq!(firewall.standing(now).unwrap().guarded, None);
            let wanted = ruleset(&[("192.0.2.7", End::At(end)), ("192.0.2.8", End::Never)]);
            firewall.apply(&wanted, now).unwrap();
            let standing = firewall.standing(now).unwrap();
            assert_eq!(standing.guarded, Some(BTreeSet::from([SSH])));
            let [(found, until)] = standing.open.as_slice() else {
                panic!("{standing:?}");
            };
            assert_eq!(*found, opening("192.0.2.7"));
            assert!(
                *until < end && end.since(*until) < Duration::from_secs(30),
                "{until:?}"
            );
        });
    }

    #[test]
    fn a_table_that_somebody_has_changed_since_it_was_read_is_not_replaced() {
        alone(|mut firewall| {
            let now = BootTime::new(Duration::from_secs(100));
            let end = End::At(now.plus(Duration::from_secs(60)));
            firewall.apply(&ruleset(&[("192.0.2.7", end)]), now).unwrap();
            let before = firewall.standing(now).unwrap();
            Firewall::open().unwrap().rebuild(&ruleset(&[]), now).unwrap();
            let wanted = ruleset(&[("192.0.2.7", end)]);
            assert!(!firewall.rebuild_over(&before, &wanted, now).unwrap());
            assert!(firewall.read().unwrap().unwrap().openings.is_empty());
            let before = firewall.standing(now).unwrap();
            assert!(firewall.rebuild_over(&before, &wanted, now).unwrap());
            assert!(firewall.is_in_place(now).unwrap());
        });
    }
}
