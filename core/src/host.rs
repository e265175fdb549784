//! The host's own file, as far as it rules access: a floor (what is guarded) and a ceiling.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::break_glass::{Limits, VerifiedBreakGlass};
use crate::ceiling::Ceiling;
use crate::ledger::base_ruleset;
use crate::port::PortSpan;
use crate::prefix::Prefix;
use crate::ruleset::Ruleset;

/// What the owner of a host has settled in its own file and on its console. No server changes any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRules {
    /// Guarded whatever the server says.
    pub guarded: Vec<PortSpan>,
    /// Let in to every guarded port, always.
    pub trusted_sources: Vec<Prefix>,
    pub unguarded_interfaces: BTreeSet<String>,
    /// How long a UDP flow may go on after the last packet that a live grant let in.
    pub udp_grace: Duration,
    /// `None`: no grant is taken.
    pub ceiling: Option<Ceiling>,
    pub break_glass: Limits,
    /// What root has opened on the console; each ends by itself.
    pub console: Vec<VerifiedBreakGlass>,
}

impl HostRules {
    /// What holds on a host that has joined nothing: its own file alone.
    pub fn ruleset_alone(&self) -> Ruleset {
        base_ruleset(self, self.guarded.iter().flat_map(|span| span.keys()).collect())
    }
}
