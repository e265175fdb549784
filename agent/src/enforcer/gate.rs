//! The firewall as its users need it.

use std::collections::BTreeSet;
use std::time::Duration;

use nightlatch_core::port::PortKey;
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::BootTime;

use crate::firewall::{Applied, Beside, Drift, Firewall, FirewallError, Standing};

/// The firewall as the enforcer needs it.
pub trait Gate {
    /// # Errors
    /// The table is not what it should be; the next call makes it anew.
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError>;

    /// In what the table isn't what was applied last.
    ///
    /// # Errors
    /// It can't be said.
    fn drift(&mut self, now: BootTime) -> Result<Option<Drift>, FirewallError>;

    /// # Errors
    /// As [`Self::apply`].
    fn rebuild(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError>;

    /// The host slept for so long, which the kernel's timeouts didn't count: the next [`Self::apply`] writes all anew.
    fn slept(&mut self, length: Duration);

    /// The ports that the kernel's table guards, whoever made it; `None` if there is no table.
    ///
    /// # Errors
    /// The table can't be read.
    fn guarded(&mut self) -> Result<Option<BTreeSet<PortKey>>, FirewallError>;
}

impl Gate for Firewall {
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        Self::apply(self, wanted, now)
    }

    fn drift(&mut self, now: BootTime) -> Result<Option<Drift>, FirewallError> {
        self.drift_since(now)
    }

    fn rebuild(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        Self::rebuild(self, wanted, now)
    }

    fn slept(&mut self, length: Duration) {
        Self::slept(self, length);
    }

    fn guarded(&mut self) -> Result<Option<BTreeSet<PortKey>>, FirewallError> {
        Ok(self.read()?.map(|table| table.guarded))
    }
}

/// The firewall as those need it who work beside the daemon.
pub trait Table: Gate {
    /// Makes the table if there is none, and says whether it did.
    ///
    /// # Errors
    /// As [`Gate::apply`].
    fn create(&mut self, wanted: &Ruleset, now: BootTime) -> Result<bool, FirewallError>;

    /// `now` was taken before.
    ///
    /// # Errors
    /// The table can't be read.
    fn standing(&mut self, now: BootTime) -> Result<Standing, FirewallError>;

    /// What stands beside what `wanted` would be made with; `None` if there is no table.
    ///
    /// # Errors
    /// The table can't be read.
    fn beside(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Option<Beside>, FirewallError>;

    /// As [`Gate::rebuild`], or says that somebody has changed something since the table was read.
    ///
    /// # Errors
    /// As [`Gate::apply`].
    fn rebuild_over(
        &mut self,
        standing: &Standing,
        wanted: &Ruleset,
        now: BootTime,
    ) -> Result<bool, FirewallError>;

    /// # Errors
    /// As [`Gate::apply`].
    fn remove(&mut self) -> Result<(), FirewallError>;
}

impl Table for Firewall {
    fn create(&mut self, wanted: &Ruleset, now: BootTime) -> Result<bool, FirewallError> {
        Self::create(self, wanted, now)
    }

    fn standing(&mut self, now: BootTime) -> Result<Standing, FirewallError> {
        Self::standing(self, now)
    }

    fn beside(&mut self, wanted: &Ruleset, _now: BootTime) -> Result<Option<Beside>, FirewallError> {
        self.read_beside(wanted)
    }

    fn rebuild_over(
        &mut self,
        standing: &Standing,
        wanted: &Ruleset,
        now: BootTime,
    ) -> Result<bool, FirewallError> {
        Self::rebuild_over(self, standing, wanted, now)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        Self::remove(self)
    }
}
