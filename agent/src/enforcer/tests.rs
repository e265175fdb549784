//! The order of effects, and what holds when disk or firewall fail. Time moves only when a test says so.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use nightlatch_core::grant::IssuedGrant;
use nightlatch_core::port::{PortKey, Protocol};
use nightlatch_core::receipt::{Done, Receipt};
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::BootId;

use super::*;
use crate::alarm::{Alarm, Rang};
use crate::clock::fake::FakeClock;
use crate::firewall::Drift;
use crate::frame_file::NotWritten;
use crate::outbox::Signer;
use crate::server_link::{Report, Taken};
use crate::startup;
use crate::world::{self, ALICE, MACHINE, at, root, spans, ssh_policy};
use crate::writer::{Job, Outcome, Write, Written};

const SSH: PortKey = PortKey {
    protocol: Protocol::Tcp,
    port: 22,
};

fn receipt_key() -> SigningKey {
    SigningKey::from_seed(&[3; 32])
}

fn grant(id: u128, source: &str, seconds: u64) -> IssuedGrant {
    world::grant(id, &["22/tcp"], &[source], 0, seconds)
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

    fn drift(&mut self, _now: BootTime) -> Result<Option<Drift>, FirewallError> {
        Ok(self.table.borrow().is_empty().then_some(Drift::NoTable))
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

    fn slept(&mut self, length: Duration) {
        self.effects
            .borrow_mut()
            .push(format!("slept {} s", length.as_secs()));
        *self.table.borrow_mut() = Ruleset::default();
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
        guarded: spans(&["22/tcp"]),
        udp_grace: Duration::from_secs(3600),
        ceiling: startup::tests::rules().ceiling,
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
    Outbox::open(folder.path().join("receipts"), signer, None, at(0)).0
}

impl World {
    fn new() -> Self {
        let ledger = Ledger::new(MACHINE, root().public());
        Self::with(ledger, FakeClock::new(at(0)))
    }

    /// After a crash which left of the receipts nothing, and of the ledger what was on disk.
    fn crashed(self) -> Self {
        let records = self.records.take();
        let boot = self.clock.boot();
        let ceiling = rules().ceiling;
        let replayed = Ledger::replay(MACHINE, root().public(), records.clone(), ceiling.as_ref(), boot);
        let again = Self {
            generation: self.generation,
            ..Self::with(replayed.ledger, self.clock)
        };
        again.records.borrow_mut().splice(..0, records);
        again
    }

    fn with(ledger: Ledger, clock: FakeClock) -> Self {
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
            ledger,
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
            generation: u64::try_from(at(0).micros()).unwrap(),
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

    /// Receipts as (event, reason), and the rest. See [`Self::settled`].
    fn answers(&mut self) -> (Vec<(Done, String)>, Vec<ToServer>) {
        let (mut receipts, mut rest) = (Vec::new(), Vec::new());
        for word in self.said() {
            match word {
                ToServer::Receipts(envelopes) => receipts.extend(envelopes.iter().map(|envelope| {
                    let receipt = Receipt::verify(envelope, &receipt_key().public()).unwrap();
                    (receipt.event, receipt.reason)
                })),
                ToServer::Settled(_) => {}
                other => rest.push(other),
            }
        }
        (receipts, rest)
    }

    /// Of what was said, the generations that are settled.
    fn settled(&mut self) -> Vec<u64> {
        let said = self.said().into_iter();
        said.filter_map(|word| match word {
            ToServer::Settled(Generation(generation)) => Some(generation),
            _ => None,
        })
        .collect()
    }

    fn whole(&mut self, grants: &[IssuedGrant]) -> Assignment {
        self.generation += 1;
        world::whole(self.generation, grants, &ssh_policy())
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
mod settling;
