//! The order of effects, and what holds when disk or firewall fail. Time moves only when a test says so.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use nightlatch_core::assignment::Assigned;
use nightlatch_core::ceiling::{Ceiling, HostCeiling};
use nightlatch_core::grant::{Authority, IssuedGrant};
use nightlatch_core::id::{MachineId, RequestId};
use nightlatch_core::keys::KeyList;
use nightlatch_core::policy::{AllowedSources, MachinePolicy, Policy, PortRule};
use nightlatch_core::port::{PortKey, PortPattern, Protocol, Protocols};
use nightlatch_core::receipt::{Done, Receipt};
use nightlatch_core::request::{AccessRequest, Span};
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::BootId;
use uuid::Uuid;

use super::*;
use crate::clock::fake::FakeClock;
use crate::frame_file::NotWritten;
use crate::outbox::Signer;
use crate::server_link::{Report, Taken};
use crate::writer::{Job, Outcome, Write, Written};

const MACHINE: MachineId = MachineId::new(Uuid::from_u128(0x019a_a0b2_6a51_7c3e_9d6a_0f6d_1f6f_2b11));
const SSH: PortKey = PortKey {
    protocol: Protocol::Tcp,
    port: 22,
};
const ALICE: &str = "192.0.2.7";

fn noon() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn root() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn authority() -> Authority {
    Authority::new(SigningKey::from_seed(&[2; 32]))
}

fn receipt_key() -> SigningKey {
    SigningKey::from_seed(&[3; 32])
}

fn policy() -> Policy {
    let rule = PortRule::new(
        "22".parse().unwrap(),
        Protocols::Tcp,
        AllowedSources::Any,
        PortRule::DEFAULT_LIMIT,
    );
    Policy::new(vec![rule.unwrap()]).unwrap()
}

fn grant(id: u128, source: &str, seconds: u64) -> IssuedGrant {
    let wish = AccessRequest {
        id: RequestId::new(Uuid::from_u128(7)),
        machine: MACHINE,
        subject: "alice".parse().unwrap(),
        ports: vec!["22/tcp".parse().unwrap()],
        sources: vec![source.parse().unwrap()],
        span: Span::For(Duration::from_secs(seconds)),
        justification: "mend the disk".to_owned().try_into().unwrap(),
    };
    let approval = policy().decide(wish, HostCeiling::Unheard, noon()).unwrap();
    authority()
        .issue(approval, GrantId::new(Uuid::from_u128(id)), noon())
        .unwrap()
}

/// What was done, in its order.
type Effects = Rc<RefCell<Vec<String>>>;

#[derive(Default)]
struct Faults {
    gate: bool,
    disk: bool,
    hangs: bool,
    gone: bool,
}

struct FakeGate {
    effects: Effects,
    faults: Rc<RefCell<Faults>>,
    table: Rc<RefCell<Ruleset>>,
}

impl Gate for FakeGate {
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        if *self.table.borrow() == *wanted {
            return Ok(Applied::Unchanged);
        }
        self.rebuild(wanted, now)
    }

    fn is_in_place(&mut self, _now: BootTime) -> Result<bool, FirewallError> {
        Ok(!self.table.borrow().is_empty())
    }

    fn rebuild(&mut self, wanted: &Ruleset, _now: BootTime) -> Result<Applied, FirewallError> {
        if self.faults.borrow().gate {
            return Err(FirewallError::NoAnswer);
        }
        self.effects
            .borrow_mut()
            .push(format!("firewall with {} openings", wanted.openings().len()));
        *self.table.borrow_mut() = wanted.clone();
        Ok(Applied::Rebuilt)
    }

    fn guarded(&mut self) -> Result<Option<BTreeSet<PortKey>>, FirewallError> {
        Ok(Some(self.table.borrow().guarded().clone()))
    }
}

/// Does its jobs when a test lets it.
#[derive(Clone)]
struct FakeDisk {
    effects: Effects,
    faults: Rc<RefCell<Faults>>,
    records: Rc<RefCell<Vec<Record>>>,
    entries: Rc<RefCell<Vec<Entry>>>,
    ledger_job: Rc<RefCell<Option<Job<Record>>>>,
    receipts_job: Rc<RefCell<Option<Job<Entry>>>>,
}

impl FakeDisk {
    fn carry_out<T: Clone>(&self, file: &RefCell<Vec<T>>, job: Job<T>, name: &str) -> Outcome {
        if self.faults.borrow().disk {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            let path = name.into();
            return Outcome {
                upto: Err(NotWritten::Io { path, source }),
                is_long: false,
            };
        }
        let mut is_forced = true;
        match job.write {
            Write::Append { items, durably } => {
                file.borrow_mut().extend(items);
                is_forced = durably;
            }
            Write::Anew(items) | Write::Compact(items) => *file.borrow_mut() = items,
        }
        if is_forced && name == "ledger" {
            self.effects.borrow_mut().push("disk".to_owned());
        }
        Outcome {
            upto: Ok(job.upto),
            is_long: false,
        }
    }

    fn step(&self) -> Option<Written> {
        if self.faults.borrow().hangs {
            return None;
        }
        if let Some(job) = self.ledger_job.borrow_mut().take() {
            return Some(Written::Ledger(self.carry_out(&self.records, job, "ledger")));
        }
        let job = self.receipts_job.borrow_mut().take()?;
        Some(Written::Receipts(self.carry_out(&self.entries, job, "receipts")))
    }
}

impl Disk for FakeDisk {
    fn write_ledger(&mut self, job: Job<Record>) {
        assert!(self.ledger_job.borrow_mut().replace(job).is_none());
    }

    fn write_receipts(&mut self, job: Job<Entry>) {
        assert!(self.receipts_job.borrow_mut().replace(job).is_none());
    }

    async fn written(&mut self) -> Option<Written> {
        match self.step() {
            _ if self.faults.borrow().gone => None,
            Some(written) => Some(written),
            None => std::future::pending().await,
        }
    }
}

/// A host with its enforcer, and a server at the other end of the channel.
struct World {
    enforcer: Enforcer<FakeGate, FakeDisk, FakeClock>,
    disk: FakeDisk,
    effects: Effects,
    faults: Rc<RefCell<Faults>>,
    table: Rc<RefCell<Ruleset>>,
    records: Rc<RefCell<Vec<Record>>>,
    from_host: mpsc::Receiver<ToServer>,
    clock: FakeClock,
    generation: u64,
}

fn rules() -> HostRules {
    HostRules {
        guarded: "22/tcp".parse::<PortPattern>().unwrap().spans().collect(),
        udp_grace: Duration::from_secs(3600),
        ceiling: Some(Ceiling {
            ports: vec!["22".parse().unwrap()],
            longest: Duration::from_secs(24 * 3600),
            max_ahead: Duration::from_secs(3600),
            widest_ipv4: 24,
            widest_ipv6: 64,
        }),
        ..HostRules::default()
    }
}

fn outbox(boot_id: BootId) -> Outbox {
    let signer = Signer {
        key: receipt_key(),
        machine: MACHINE,
        boot_id,
    };
    let folder = tempfile::tempdir().unwrap();
    Outbox::open(folder.path().join("receipts"), signer, None, noon()).0
}

impl World {
    fn new() -> Self {
        let clock = FakeClock::new(noon());
        let effects = Effects::default();
        let faults = Rc::new(RefCell::new(Faults::default()));
        let table = Rc::new(RefCell::new(Ruleset::default()));
        let disk = FakeDisk {
            effects: effects.clone(),
            faults: faults.clone(),
            records: Rc::default(),
            entries: Rc::default(),
            ledger_job: Rc::default(),
            receipts_job: Rc::default(),
        };
        let (_, nowhere) = mpsc::channel(1);
        let start = Start {
            rules: rules(),
            clock: clock.clone(),
            time: HostClock::new(clock.boot_id, BootTime::default(), None),
            ledger: Ledger::new(MACHINE, root().public()),
            gate: FakeGate {
                effects: effects.clone(),
                faults: faults.clone(),
                table: table.clone(),
            },
            disk: disk.clone(),
            outbox: outbox(clock.boot_id),
            sound: Sound {
                ledger: true,
                receipts: true,
            },
            guarded_meanwhile: Vec::new(),
            fallen: Vec::new(),
            needs_whole: false,
            reports: Vec::new(),
            kernel_version: "6.1.0".to_owned(),
        };
        Self {
            enforcer: Enforcer::start(start),
            effects,
            faults,
            table,
            records: disk.records.clone(),
            disk,
            from_host: nowhere,
            clock,
            generation: u64::try_from(noon().micros()).unwrap(),
        }
    }

    /// Connected, and the server's time heard.
    fn connected() -> Self {
        let mut world = Self::new();
        world.connect();
        world.tell_time();
        assert!(matches!(world.said().as_slice(), [ToServer::Hello(_)]));
        world.effects.borrow_mut().clear();
        world
    }

    fn connect(&mut self) {
        let (to_server, from_host) = mpsc::channel(256);
        self.from_host = from_host;
        self.hear(FromServer::Connected(to_server));
    }

    fn tell_time(&mut self) {
        let now = self.clock.now();
        self.hear(FromServer::Time {
            time: self.clock.wall(),
            asked_at: now,
            heard_at: now,
        });
    }

    /// Everything that is on its way to the disk gets there, if that lets it.
    fn let_write(&mut self) {
        while let Some(written) = self.disk.step() {
            self.enforcer.written(written);
        }
    }

    fn hear(&mut self, word: FromServer) {
        self.enforcer.hear(word);
        self.let_write();
    }

    fn look(&mut self) {
        self.enforcer.look();
        self.enforcer.pass();
        self.let_write();
    }

    fn said(&mut self) -> Vec<ToServer> {
        std::iter::from_fn(|| self.from_host.try_recv().ok()).collect()
    }

    /// Receipts as (event, reason), and the rest.
    fn answers(&mut self) -> (Vec<(Done, String)>, Vec<ToServer>) {
        let (mut receipts, mut rest) = (Vec::new(), Vec::new());
        for word in self.said() {
            match word {
                ToServer::Receipts(envelopes) => receipts.extend(envelopes.iter().map(|envelope| {
                    let receipt = Receipt::verify(envelope, &receipt_key().public()).unwrap();
                    (receipt.event, receipt.reason)
                })),
                other => rest.push(other),
            }
        }
        (receipts, rest)
    }

    fn whole(&mut self, grants: &[IssuedGrant]) -> Assignment {
        self.generation += 1;
        let number = ListNumber { epoch: 1, number: 1 };
        let installation = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b00".parse().unwrap();
        let keys = KeyList::new(installation, number, vec![authority().key().public()], noon());
        let ids: Vec<GrantId> = grants.iter().map(|grant| grant.grant.id).collect();
        let policy = MachinePolicy::new(MACHINE, 1, 1, Some(&policy()), noon());
        Assignment {
            generation: Generation(self.generation),
            base: None,
            keys: Some(keys.seal(&root())),
            policy: Some(policy.seal(authority().key())),
            added: grants
                .iter()
                .map(|grant| Assigned {
                    id: grant.grant.id,
                    envelope: grant.envelope.clone(),
                })
                .collect(),
            removed: Vec::new(),
            digest: Digest::of(&ids),
        }
    }

    fn assign(&mut self, grants: &[IssuedGrant]) {
        let whole = self.whole(grants);
        self.hear(FromServer::Assignment(whole));
    }

    fn lets_in(&self, source: &str) -> bool {
        self.table
            .borrow()
            .allows(source.parse().unwrap(), SSH, self.clock.now())
    }

    fn after(&mut self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.enforcer.pass();
        self.let_write();
    }
}

fn accepted(rest: &[ToServer]) -> bool {
    matches!(
        rest,
        [ToServer::Reply {
            taken: Taken::Accepted,
            ..
        }]
    )
}

fn opened() -> (Done, String) {
    (Done::Opened, String::new())
}

fn closed(reason: &str) -> (Done, String) {
    (Done::Closed, reason.to_owned())
}

fn codes(world: &mut World) -> Vec<&'static str> {
    let said = world.said();
    let codes = said.iter().filter_map(|word| match word {
        ToServer::Report(report) => Some(report.code),
        _ => None,
    });
    codes.collect()
}

#[derive(Clone, Default)]
struct Told(Rc<RefCell<u32>>);

impl Notices for Told {
    fn alive(&self) {}

    fn in_force(&self) {
        *self.0.borrow_mut() += 1;
    }
}

mod disk;
mod life;
mod order;
