//! The table for those who work long on what they read at their start: what root opens meanwhile stays open.

use std::collections::BTreeSet;
use std::time::Duration;

use nightlatch_core::break_glass::{Limits, VerifiedBreakGlass};
use nightlatch_core::port::PortKey;
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::BootTime;

use super::Folders;
use crate::clock::Clock;
use crate::enforcer::{Gate, Table};
use crate::firewall::{Applied, Beside, Drift, FirewallError, Standing};

/// Reads the live folder, which needs no disk, directly before each change.
pub struct Consoled<'a, G, C> {
    gate: &'a mut G,
    folders: &'a Folders,
    limits: Limits,
    clock: &'a C,
}

impl<'a, G, C: Clock> Consoled<'a, G, C> {
    pub const fn new(gate: &'a mut G, folders: &'a Folders, limits: Limits, clock: &'a C) -> Self {
        Self {
            gate,
            folders,
            limits,
            clock,
        }
    }

    fn with_console(&self, wanted: &Ruleset) -> Ruleset {
        let mut wanted = wanted.clone();
        let held = self.folders.in_force(&self.limits, self.clock.boot());
        for (opening, end) in held.iter().flat_map(VerifiedBreakGlass::openings) {
            if wanted.guarded().contains(&opening.key) {
                wanted.open(opening, end);
            }
        }
        wanted
    }
}

impl<G: Gate, C: Clock> Gate for Consoled<'_, G, C> {
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        let wanted = self.with_console(wanted);
        self.gate.apply(&wanted, now)
    }

    fn drift(&mut self, now: BootTime) -> Result<Option<Drift>, FirewallError> {
        self.gate.drift(now)
    }

    fn rebuild(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        let wanted = self.with_console(wanted);
        self.gate.rebuild(&wanted, now)
    }

    fn slept(&mut self, length: Duration) {
        self.gate.slept(length);
    }

    fn guarded(&mut self) -> Result<Option<BTreeSet<PortKey>>, FirewallError> {
        self.gate.guarded()
    }
}

impl<G: Table, C: Clock> Table for Consoled<'_, G, C> {
    fn create(&mut self, wanted: &Ruleset, now: BootTime) -> Result<bool, FirewallError> {
        let wanted = self.with_console(wanted);
        self.gate.create(&wanted, now)
    }

    fn standing(&mut self, now: BootTime) -> Result<Standing, FirewallError> {
        self.gate.standing(now)
    }

    fn beside(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Option<Beside>, FirewallError> {
        let wanted = self.with_console(wanted);
        self.gate.beside(&wanted, now)
    }

    fn rebuild_over(
        &mut self,
        standing: &Standing,
        wanted: &Ruleset,
        now: BootTime,
    ) -> Result<bool, FirewallError> {
        let wanted = self.with_console(wanted);
        self.gate.rebuild_over(standing, &wanted, now)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        self.gate.remove()
    }
}
