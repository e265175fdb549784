//! A kernel's table in memory, for tests of what comes before the daemon's loop.

use std::collections::VecDeque;
use std::sync::mpsc;

use nightlatch_core::port::PortKey;
use nightlatch_core::ruleset::End;

use super::*;
use crate::firewall::{Beside, Drift, Maker, Mark, Standing, TableState};

#[derive(Default)]
pub(crate) struct FakeTable {
    pub(crate) ruleset: Option<Ruleset>,
    pub(crate) is_unreadable: bool,
    /// Whom it tells that it was made anew.
    pub(crate) watcher: Option<mpsc::Sender<()>>,
    /// All that it was.
    pub(crate) past: Vec<Ruleset>,
    pub(crate) maker: Maker,
    pub(crate) foreign_part: Option<&'static str>,
    /// Each keeps the table from being made over what was read, by a table of another of ours or something else.
    pub(crate) interruptions: VecDeque<Option<Ruleset>>,
}

impl FakeTable {
    pub(crate) fn guarding(ports: &[u16]) -> Self {
        let guarded = ports.iter().map(|port| PortKey {
            protocol: nightlatch_core::port::Protocol::Tcp,
            port: *port,
        });
        Self {
            ruleset: Some(Ruleset::new(guarded.collect(), BTreeSet::new(), Duration::ZERO)),
            maker: Maker::Other,
            ..Self::default()
        }
    }

    pub(crate) fn ports(&self) -> Option<Vec<u16>> {
        let ruleset = self.ruleset.as_ref()?;
        Some(ruleset.guarded().iter().map(|key| key.port).collect())
    }
}

impl Gate for FakeTable {
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        self.rebuild(wanted, now)
    }

    fn drift(&mut self, _now: BootTime) -> Result<Option<Drift>, FirewallError> {
        Ok(None)
    }

    fn rebuild(&mut self, wanted: &Ruleset, _now: BootTime) -> Result<Applied, FirewallError> {
        self.ruleset = (!wanted.is_empty()).then(|| wanted.clone());
        self.past.push(wanted.clone());
        self.maker = Maker::This;
        self.foreign_part = None;
        if let Some(watcher) = &self.watcher {
            watcher.send(()).ok();
        }
        Ok(Applied::Rebuilt)
    }

    fn slept(&mut self, _length: Duration) {}

    fn guarded(&mut self) -> Result<Option<BTreeSet<PortKey>>, FirewallError> {
        if self.is_unreadable {
            return Err(FirewallError::NoAnswer);
        }
        Ok(self.ruleset.as_ref().map(|ruleset| ruleset.guarded().clone()))
    }
}

impl Table for FakeTable {
    fn create(&mut self, wanted: &Ruleset, now: BootTime) -> Result<bool, FirewallError> {
        let is_missing = self.ruleset.is_none() && !wanted.is_empty();
        if is_missing {
            self.rebuild(wanted, now)?;
        }
        Ok(is_missing)
    }

    fn standing(&mut self, _now: BootTime) -> Result<Standing, FirewallError> {
        let openings = self.ruleset.iter().flat_map(|ruleset| ruleset.openings().iter());
        let open = openings.filter_map(|(opening, end)| match end {
            End::At(end) => Some((*opening, *end)),
            End::Never => None,
        });
        Ok(Standing {
            open: open.collect(),
            guarded: self.guarded()?,
            maker: self.maker,
            generation: None,
        })
    }

    fn beside(&mut self, _wanted: &Ruleset, now: BootTime) -> Result<Option<Beside>, FirewallError> {
        let found = self.ruleset.as_ref().map(|ruleset| TableState {
            guarded: ruleset.guarded().clone(),
            unguarded_interfaces: ruleset.unguarded_interfaces().clone(),
            openings: ruleset
                .openings()
                .iter()
                .map(|(opening, end)| match end {
                    End::At(end) => (*opening, Some(end.since(now))),
                    End::Never => (*opening, None),
                })
                .collect(),
            denied: 0,
            mark: (self.maker != Maker::Stranger).then(Mark::new),
        });
        let foreign_part = self.foreign_part;
        Ok(found.map(|found| Beside { found, foreign_part }))
    }

    fn rebuild_over(
        &mut self,
        _standing: &Standing,
        wanted: &Ruleset,
        now: BootTime,
    ) -> Result<bool, FirewallError> {
        if let Some(interruption) = self.interruptions.pop_front() {
            if let Some(made) = interruption {
                self.rebuild(&made, now)?;
                self.maker = Maker::Other;
            }
            return Ok(false);
        }
        self.rebuild(wanted, now).map(|_| true)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        self.ruleset = None;
        Ok(())
    }
}
