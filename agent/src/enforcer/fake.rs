//! A kernel's table in memory, for tests of what comes before the daemon's loop.

use super::*;

#[derive(Default)]
pub(crate) struct FakeTable {
    pub(crate) ruleset: Option<Ruleset>,
    pub(crate) is_unreadable: bool,
}

impl FakeTable {
    pub(crate) fn guarding(ports: &[u16]) -> Self {
        let guarded = ports.iter().map(|port| PortKey {
            protocol: nightlatch_core::port::Protocol::Tcp,
            port: *port,
        });
        Self {
            ruleset: Some(Ruleset::new(guarded.collect(), BTreeSet::new(), Duration::ZERO)),
            is_unreadable: false,
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

    fn is_in_place(&mut self, _now: BootTime) -> Result<bool, FirewallError> {
        Ok(true)
    }

    fn rebuild(&mut self, wanted: &Ruleset, _now: BootTime) -> Result<Applied, FirewallError> {
        self.ruleset = (!wanted.is_empty()).then(|| wanted.clone());
        Ok(Applied::Rebuilt)
    }

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

    fn remove(&mut self) -> Result<(), FirewallError> {
        self.ruleset = None;
        Ok(())
    }
}
