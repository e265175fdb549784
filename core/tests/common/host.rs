//! A host, driven as the agent drives it.

use std::time::Duration;

use nightlatch_core::assignment::{Assignment, Digest, Generation};
use nightlatch_core::clock::HostClock;
use nightlatch_core::grant::IssuedGrant;
use nightlatch_core::host::HostRules;
use nightlatch_core::id::GrantId;
use nightlatch_core::ledger::{AssignmentRefused, Boot, Change, Ledger, Record, Replayed};
use nightlatch_core::policy::Policy;
use nightlatch_core::time::{BootId, Timestamp};
use uuid::Uuid;

use super::{ALICE, MACHINE, assigned, at, boot, ceiling, keys_envelope, policy_envelope, root, spans};

pub const FIRST_BOOT: BootId = BootId(Uuid::from_u128(1));
pub const SECOND_BOOT: BootId = BootId(Uuid::from_u128(2));

pub fn host() -> HostRules {
    HostRules {
        guarded: spans(&["22/tcp", "3389"]),
        udp_grace: Duration::from_secs(3600),
        ceiling: Some(ceiling()),
        ..HostRules::default()
    }
}

/// A host: its ledger, clock and file, driven as the agent drives them.
pub struct Host {
    pub ledger: Ledger,
    pub clock: HostClock,
    pub rules: HostRules,
    pub file: Vec<Record>,
    generation: u64,
}

impl Host {
    /// Joined, and heard the server at second 0 without any delay.
    pub fn new() -> Self {
        let mut clock = HostClock::new(FIRST_BOOT, boot(0), None);
        clock.hear(at(0), boot(0), boot(0), at(0)).unwrap();
        let ledger = Ledger::new(MACHINE, root().public());
        Self {
            ledger,
            clock,
            rules: host(),
            file: Vec::new(),
            generation: at(0).micros().unsigned_abs(),
        }
    }

    /// With these grants since second 0.
    pub fn with<'g>(grants: impl IntoIterator<Item = &'g IssuedGrant>) -> Self {
        let mut host = Self::new();
        let grants: Vec<IssuedGrant> = grants.into_iter().cloned().collect();
        let whole = host.whole(&grants);
        host.take(&whole, 0).unwrap();
        host
    }

    /// Its own file lists no port.
    pub fn guarding_nothing() -> Self {
        let rules = HostRules {
            ceiling: Some(ceiling()),
            ..HostRules::default()
        };
        Self { rules, ..Self::new() }
    }

    /// A change from what the host has.
    pub fn delta(&mut self, added: &[IssuedGrant], removed: &[GrantId], live: &[GrantId]) -> Assignment {
        self.generation += 1;
        Assignment {
            generation: Generation(self.generation),
            base: Some(self.ledger.generation()).filter(|base| base.0 > 0),
            keys: Some(keys_envelope()),
            policy: None,
            added: added.iter().map(assigned).collect(),
            removed: removed.to_vec(),
            digest: Digest::of(live),
        }
    }

    pub fn whole(&mut self, grants: &[IssuedGrant]) -> Assignment {
        let live: Vec<GrantId> = grants.iter().map(|grant| grant.grant.id).collect();
        Assignment {
            base: None,
            ..self.delta(grants, &[], &live)
        }
    }

    pub fn consider(&self, assignment: &Assignment, second: u64) -> Result<Change, AssignmentRefused> {
        self.ledger
            .consider(assignment, self.rules.ceiling.as_ref(), &self.clock, boot(second))
    }

    /// As the agent does it: what goes goes first, and what comes once it is on disk.
    pub fn take(&mut self, assignment: &Assignment, second: u64) -> Result<Change, AssignmentRefused> {
        let gone = self.ledger.removals(assignment);
        if !gone.is_empty() {
            let record = self.ledger.remove_all(gone, boot(second));
            self.file.push(record);
        }
        let change = self.consider(assignment, second)?;
        self.ledger.close(&change);
        self.file.push(change.record());
        self.ledger.commit(change.clone());
        self.ledger.recorded(self.ledger.number());
        Ok(change)
    }

    /// The whole, without grants and with this policy.
    pub fn take_policy(&mut self, number: u64, policy: Option<&Policy>) -> Change {
        let mut whole = self.whole(&[]);
        whole.policy = Some(policy_envelope(number, policy));
        self.take(&whole, 0).unwrap()
    }

    /// Receipts are made for what is due.
    pub fn report_at(&mut self, second: u64) {
        let due = self.ledger.unreported(boot(second));
        self.file.push(self.ledger.reported(due));
    }

    pub fn mark_at(&mut self, second: u64) {
        self.file
            .extend(self.clock.mark(boot(second)).map(Record::Marked));
    }

    /// Reads its file in the second boot, `after` seconds into it.
    pub fn reboot(&mut self, after: u64, wall: Timestamp) {
        let here = Boot {
            id: SECOND_BOOT,
            now: boot(after),
            wall,
        };
        let replayed = replay(self.file.clone(), here);
        self.file.extend(replayed.carried);
        self.ledger = replayed.ledger;
        self.ledger.recorded(self.ledger.number());
        self.clock = HostClock::new(SECOND_BOOT, boot(after), replayed.mark);
    }

    /// Whether Alice can reach SSH.
    pub fn is_open_at(&self, second: u64) -> bool {
        self.allows(ALICE, "22/tcp", second)
    }

    pub fn allows(&self, source: &str, port: &str, second: u64) -> bool {
        let key = spans(&[port])[0].keys().next().unwrap();
        self.ledger
            .ruleset(&self.rules, boot(second))
            .allows(source.parse().unwrap(), key, boot(second))
    }
}

pub fn first_boot(second: u64) -> Boot {
    Boot {
        id: FIRST_BOOT,
        now: boot(second),
        wall: at(second),
    }
}

pub fn replay(records: Vec<Record>, here: Boot) -> Replayed {
    Ledger::replay(MACHINE, root().public(), records, Some(&ceiling()), here)
}

pub fn left_out(change: &Change) -> Vec<&'static str> {
    change.left_out().iter().map(|left| left.code()).collect()
}

pub fn refused(change: &Change) -> Vec<&'static str> {
    change.refused().iter().map(|(_, why)| why.code()).collect()
}
