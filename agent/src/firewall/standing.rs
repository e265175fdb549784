//! The table that stands, for those who change it without knowing all that should hold.

use std::collections::BTreeSet;
use std::time::Duration;

use nightlatch_core::port::PortKey;
use nightlatch_core::ruleset::{OpeningKey, Ruleset};
use nightlatch_core::time::BootTime;
use nix::errno::Errno;

use super::{Firewall, FirewallError, Maker, netlink, reading};

/// What passes between taking the time and reading an element, so that writing it again never prolongs it.
const CARRYING: Duration = Duration::from_millis(10);

/// What the kernel's table said at one moment, whoever wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// `None` if there is no table.
    pub guarded: Option<BTreeSet<PortKey>>,
    /// What it lets in for a time, and until when at the latest.
    pub open: Vec<(OpeningKey, BootTime)>,
    pub maker: Maker,
    /// `None` if the kernel doesn't tell.
    pub(crate) generation: Option<u32>,
}

impl Firewall {
    /// `now` was taken before.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn standing(&mut self, now: BootTime) -> Result<Standing, FirewallError> {
        let generation = self.netlink.settled_generation()?;
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
            maker: match table.mark {
                Some(mark) if mark == self.mark => Maker::This,
                Some(_) => Maker::Other,
                None => Maker::Stranger,
            },
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
        let made = self.make(wanted, now, |batch, mark| {
            if let Some(generation) = standing.generation {
                batch.only_in(generation);
            }
            batch.delete_table();
            batch.create_table(mark);
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

    #[test]
    fn a_table_that_was_loaded_from_a_saved_listing_is_a_strangers() {
        alone(|mut firewall| {
            let now = BootTime::new(Duration::from_secs(100));
            let end = End::At(now.plus(Duration::from_secs(3600)));
            firewall.apply(&ruleset(&[("192.0.2.7", end)]), now).unwrap();
            assert_eq!(firewall.standing(now).unwrap().maker, Maker::This);
            let mut other = Firewall::open().unwrap();
            let seen = other.standing(now).unwrap();
            assert_eq!((seen.maker, seen.open.len()), (Maker::Other, 1));
            for options in ["", "-j "] {
                let saves = format!(
                    "saved=$(nft {options}list ruleset) && nft flush ruleset && echo \"$saved\" | nft {options}-f -"
                );
                // The shell begins in the namespace of the thread that starts it.
                let saved = std::process::Command::new("sh").args(["-c", &saves]).status();
                assert!(saved.unwrap().success());
                let loaded = firewall.standing(now).unwrap();
                assert_eq!((loaded.maker, loaded.open.len()), (Maker::Stranger, 1));
                assert!(
                    firewall
                        .rebuild_over(&loaded, &ruleset(&[("192.0.2.7", end)]), now)
                        .unwrap()
                );
                assert_eq!(firewall.standing(now).unwrap().maker, Maker::This);
            }
            firewall.create(&ruleset(&[]), now).unwrap();
            firewall.remove().unwrap();
            assert!(other.create(&ruleset(&[]), now).unwrap());
            assert_eq!(firewall.standing(now).unwrap().maker, Maker::Other);
        });
    }

    #[test]
    fn what_is_read_is_never_older_than_its_generation() {
        alone(|mut firewall| {
            let now = BootTime::new(Duration::from_secs(100));
            let first = firewall.standing(now).unwrap().generation.unwrap();
            assert_eq!(firewall.standing(now).unwrap().generation, Some(first));
            let writer = std::thread::spawn(move || {
                let mut other = Firewall::open().unwrap();
                // The port says which generation this is.
                for port in 1..=500 {
                    let key = PortKey { port, ..SSH };
                    let wanted = Ruleset::new(BTreeSet::from([key]), BTreeSet::new(), Duration::ZERO);
                    other.rebuild(&wanted, now).unwrap();
                }
            });
            while !writer.is_finished() {
                let Ok(standing) = firewall.standing(now) else {
                    continue;
                };
                let ports = standing.guarded.unwrap_or_default();
                let Some(newest) = ports.last() else { continue };
                let said = standing.generation.unwrap() - first;
                assert!(said <= newest.port.into(), "{said}: {ports:?}");
            }
            writer.join().unwrap();
        });
    }
}
