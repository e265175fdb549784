//! The ruleset of now: made whole, or brought up to date by what has changed since it was last asked for.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{Ledger, entries};
use crate::break_glass::VerifiedBreakGlass;
use crate::host::HostRules;
use crate::port::{PortKey, PortSpan};
use crate::prefix::Prefix;
use crate::ruleset::{End, OpeningKey, Ruleset};
use crate::time::BootTime;

#[derive(Clone, Debug)]
pub(super) struct InForce {
    ruleset: Ruleset,
    trusted_sources: Vec<Prefix>,
    console: Vec<VerifiedBreakGlass>,
    at: BootTime,
}

impl InForce {
    /// The end that the host itself gives it, whatever grants say.
    fn end_by_host(&self, opening: OpeningKey) -> Option<End> {
        if !self.ruleset.guarded().contains(&opening.key) {
            return None;
        }
        if self.trusted_sources.contains(&opening.source) {
            return Some(End::Never);
        }
        let console = self.console.iter().flat_map(VerifiedBreakGlass::openings);
        console
            .filter(|(key, _)| *key == opening)
            .map(|(_, end)| end)
            .max()
    }
}

impl Ledger {
    /// What should hold now: the host's own file, the policy's ports, and the grants that are open.
    pub fn ruleset(&self, host: &HostRules, now: BootTime) -> Ruleset {
        let mut ruleset = base_ruleset(host, self.guarded(host));
        for (_, accepted) in self.accepted().filter(|(_, accepted)| accepted.is_open(now)) {
            for opening in entries::openings(accepted.grant.grant()) {
                ruleset.open(opening, End::At(accepted.end()));
            }
        }
        ruleset
    }

    pub(super) fn guarded(&self, host: &HostRules) -> BTreeSet<PortKey> {
        let spans = host.guarded.iter().chain(self.policy_ports());
        spans.flat_map(|span| span.keys()).collect()
    }

    pub(super) fn policy_ports(&self) -> impl Iterator<Item = &PortSpan> {
        let policy = self.policy.iter().flat_map(|policy| &policy.policy().guarded);
        policy.chain(&self.also_guarded)
    }

    /// The same as [`Self::ruleset`], at the cost of what has changed since the last time.
    pub fn in_force(&mut self, host: &HostRules, now: BootTime) -> Ruleset {
        let guarded = self.guarded(host);
        let known = self.in_force.take();
        let known = known.filter(|known| known.at <= now && has_same_frame(known, host, &guarded));
        let in_force = match known {
            Some(mut known) => {
                for key in self.entries.take_touched(known.at, now) {
                    let end = known.end_by_host(key).max(self.entries.end_of(key, now));
                    known.ruleset.set(key, end);
                }
                known.at = now;
                known
            }
            None => {
                self.entries.forget_touched();
                InForce {
                    ruleset: self.ruleset(host, now),
                    trusted_sources: host.trusted_sources.clone(),
                    console: host.console.clone(),
                    at: now,
                }
            }
        };
        self.in_force.insert(in_force).ruleset.clone()
    }
}

/// Whether only what grants open can differ.
fn has_same_frame(known: &InForce, host: &HostRules, guarded: &BTreeSet<PortKey>) -> bool {
    known.ruleset.guarded() == guarded
        && *known.ruleset.unguarded_interfaces() == host.unguarded_interfaces
        && known.ruleset.udp_grace() == host.udp_grace
        && known.trusted_sources == host.trusted_sources
        && known.console == host.console
}

pub(crate) fn base_ruleset(host: &HostRules, guarded: BTreeSet<PortKey>) -> Ruleset {
    let mut ruleset = Ruleset::new(guarded.clone(), host.unguarded_interfaces.clone(), host.udp_grace);
    for source in &host.trusted_sources {
        for key in &guarded {
            ruleset.open(
                OpeningKey {
                    source: *source,
                    key: *key,
                },
                End::Never,
            );
        }
    }
    let console = host.console.iter().flat_map(VerifiedBreakGlass::openings);
    for (opening, end) in console.filter(|(opening, _)| guarded.contains(&opening.key)) {
        ruleset.open(opening, end);
    }
    ruleset
}
