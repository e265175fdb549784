//! The order of effects, and what holds when disk or firewall fail. Time moves only when a test says so.

use std::cell::RefCell;
use std::io;
use std::path::Path;
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
use crate::outbox::Signer;
use crate::server_link::Report;

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

#[derive(Clone)]
struct FakeSink {
    effects: Effects,
    faults: Rc<RefCell<Faults>>,
    records: Rc<RefCell<Vec<Record>>>,
    sound: bool,
}

impl FakeSink {
    fn check(&mut self) -> Result<(), NotWritten> {
        if self.faults.borrow().disk {
            self.sound = false;
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(NotWritten::Io {
                path: "ledger".into(),
                source,
            });
        }
        Ok(())
    }
}

impl RecordSink for FakeSink {
    fn append(&mut self, records: &[Record], durably: bool) -> Result<(), NotWritten> {
        self.check()?;
        if !self.sound {
            return Err(NotWritten::Unsound("ledger".into()));
        }
        if durably {
            self.effects.borrow_mut().push("disk".to_owned());
        }
        self.records.borrow_mut().extend_from_slice(records);
        Ok(())
    }

    fn rewrite(&mut self, records: &[Record]) -> Result<(), NotWritten> {
        self.check()?;
        self.sound = true;
        *self.records.borrow_mut() = records.to_vec();
        Ok(())
    }

    fn is_sound(&self) -> bool {
        self.sound
    }

    fn compact(&mut self, _snapshot: impl FnOnce() -> Vec<Record>) -> Result<(), NotWritten> {
        Ok(())
    }
}

/// A host with its enforcer, and a server at the other end of the channel.
struct World {
    enforcer: Enforcer<FakeGate, FakeSink, FakeClock>,
    effects: Effects,
    faults: Rc<RefCell<Faults>>,
    table: Rc<RefCell<Ruleset>>,
    records: Rc<RefCell<Vec<Record>>>,
    from_host: mpsc::Receiver<ToServer>,
    clock: FakeClock,
    generation: u64,
    folder: tempfile::TempDir,
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

fn outbox(folder: &Path, boot_id: BootId) -> Outbox {
    let signer = Signer {
        key: receipt_key(),
        machine: MACHINE,
        boot_id,
    };
    Outbox::open(folder.join("receipts"), signer, noon()).0
}

impl World {
    fn new() -> Self {
        let clock = FakeClock::new(noon());
        let effects = Effects::default();
        let faults = Rc::new(RefCell::new(Faults::default()));
        let table = Rc::new(RefCell::new(Ruleset::default()));
        let records = Rc::new(RefCell::new(Vec::new()));
        let folder = tempfile::tempdir().unwrap();
        let (_, nowhere) = mpsc::channel(1);
        let start = Start {
            rules: rules(),
            clock: clock.clone(),
            time: HostClock::new(clock.boot_id, None),
            ledger: Ledger::new(MACHINE, root().public()),
            gate: FakeGate {
                effects: effects.clone(),
                faults: faults.clone(),
                table: table.clone(),
            },
            sink: FakeSink {
                effects: effects.clone(),
                faults: faults.clone(),
                records: records.clone(),
                sound: true,
            },
            outbox: outbox(folder.path(), clock.boot_id),
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
            records,
            from_host: nowhere,
            clock,
            generation: u64::try_from(noon().micros()).unwrap(),
            folder,
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
        self.enforcer.hear(FromServer::Connected(to_server));
    }

    fn tell_time(&mut self) {
        let now = self.clock.now();
        self.enforcer.hear(FromServer::Time {
            time: self.clock.wall(),
            asked_at: now,
            heard_at: now,
        });
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
        self.enforcer.hear(FromServer::Assignment(whole));
    }

    fn lets_in(&self, source: &str) -> bool {
        self.table
            .borrow()
            .allows(source.parse().unwrap(), SSH, self.clock.now())
    }

    fn after(&mut self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.enforcer.pass();
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

#[test]
fn guarded_ports_are_shut_before_the_server_is_asked() {
    let world = World::new();
    assert_eq!(*world.effects.borrow(), ["firewall with 0 openings"]);
    assert!(!world.lets_in(ALICE));
}

#[test]
fn an_opening_waits_for_its_record_and_its_receipt_for_the_opening() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    assert_eq!(*world.effects.borrow(), ["disk", "firewall with 1 openings"]);
    assert!(world.lets_in(ALICE));
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, [opened()]);
    assert!(accepted(&rest));
}

#[test]
fn closing_comes_before_the_disk_and_opening_after_it() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.effects.borrow_mut().clear();
    world.answers();
    world.assign(&[grant(2, "192.0.2.8", 60)]);
    assert_eq!(
        *world.effects.borrow(),
        ["firewall with 0 openings", "disk", "firewall with 1 openings"]
    );
    assert_eq!(world.answers().0, [closed("REMOVED"), opened()]);
}

#[test]
fn without_a_record_nothing_opens_and_closings_hold() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 600)]);
    world.answers();
    world.faults.borrow_mut().disk = true;
    world.assign(&[grant(2, "192.0.2.8", 600)]);
    assert!(!world.lets_in(ALICE) && !world.lets_in("192.0.2.8"));
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, [closed("REMOVED")]);
    assert!(matches!(
        rest.as_slice(),
        [
            ToServer::Report(Report {
                code: "LEDGER_NOT_WRITTEN",
                ..
            }),
            ToServer::Reply {
                taken: Taken::Refused,
                ..
            }
        ]
    ));

    // The whole is asked for again after a while, and what was closed doesn't come back with a restart.
    world.faults.borrow_mut().disk = false;
    world.after(11);
    assert!(matches!(
        world.answers().1.as_slice(),
        [ToServer::Reply {
            taken: Taken::NeedWhole,
            ..
        }]
    ));
    world.assign(&[grant(2, "192.0.2.8", 600)]);
    assert!(world.lets_in("192.0.2.8"));
    assert_eq!(world.answers().0, [opened()]);
    let boot = world.clock.boot();
    let records = world.records.borrow().clone();
    let ledger = Ledger::replay(MACHINE, root().public(), records, rules().ceiling.as_ref(), boot).ledger;
    let held: Vec<u128> = ledger
        .held(boot.now)
        .map(|held| held.grant.id.uuid().as_u128())
        .collect();
    assert_eq!(held, [2]);
}

#[test]
fn a_failing_firewall_is_tried_again_and_nothing_counts_as_open_meanwhile() {
    let mut world = World::connected();
    world.faults.borrow_mut().gate = true;
    world.assign(&[grant(1, ALICE, 60)]);
    let (receipts, rest) = world.answers();
    assert_eq!(receipts, []);
    assert!(matches!(
        rest.as_slice(),
        [
            ToServer::Report(Report {
                code: "FIREWALL_FAILED",
                ..
            }),
            ToServer::Reply { .. }
        ]
    ));
    world.after(1);
    assert_eq!(world.answers(), (vec![], vec![]));
    world.faults.borrow_mut().gate = false;
    world.after(1);
    assert!(world.lets_in(ALICE));
    assert_eq!(world.answers().0, [opened()]);
}

#[test]
fn a_grant_ends_on_time_with_the_server_gone_and_the_receipt_follows() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.answers();
    world.enforcer.hear(FromServer::Disconnected);
    world.after(59);
    assert!(world.lets_in(ALICE));
    world.after(1);
    assert!(!world.lets_in(ALICE));
    world.connect();
    assert_eq!(world.answers().0, [opened(), closed("EXPIRED")]);
}

#[test]
fn no_grant_is_taken_before_the_server_told_the_time_on_this_stream() {
    let mut world = World::new();
    world.connect();
    world.said();
    world.assign(&[grant(1, ALICE, 60)]);
    assert!(world.said().is_empty() && !world.lets_in(ALICE));
    world.tell_time();
    assert!(world.lets_in(ALICE));
}

#[test]
fn an_older_assignment_and_one_that_does_not_fit_are_refused() {
    let mut world = World::connected();
    let first = world.whole(&[grant(1, ALICE, 60)]);
    world.assign(&[]);
    world.answers();
    world.enforcer.hear(FromServer::Assignment(first.clone()));
    assert!(matches!(
        world.answers().1.as_slice(),
        [ToServer::Reply {
            taken: Taken::Refused,
            ..
        }]
    ));
    world.generation += 1;
    let delta = Assignment {
        generation: Generation(world.generation),
        base: Some(world.enforcer.ledger.generation()),
        digest: Digest::of([]),
        ..first
    };
    world.enforcer.hear(FromServer::Assignment(delta));
    assert!(matches!(
        world.answers().1.as_slice(),
        [ToServer::Reply {
            taken: Taken::NeedWhole,
            ..
        }]
    ));
    assert!(!world.lets_in(ALICE));
}

#[test]
fn a_refused_grant_has_one_receipt_with_its_reason_and_blocks_no_other() {
    let mut world = World::connected();
    let grants = [grant(1, "10.0.0.0/8", 60), grant(2, ALICE, 60)];
    world.assign(&grants);
    let refused = (Done::Refused, "CEILING_SOURCE".to_owned());
    assert_eq!(world.answers().0, [refused, opened()]);
    world.assign(&grants);
    assert_eq!(world.answers().0, []);
}

#[test]
fn a_table_that_others_removed_is_made_anew_and_reported() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.answers();
    *world.table.borrow_mut() = Ruleset::default();
    world.enforcer.look();
    assert!(world.lets_in(ALICE));
    assert!(matches!(
        world.said().as_slice(),
        [ToServer::Report(Report {
            code: "TABLE_REPAIRED",
            ..
        })]
    ));
}

#[test]
fn a_mark_is_written_each_minute_while_a_grant_lives() {
    let mut world = World::connected();
    let marks = |world: &World| {
        world
            .records
            .borrow()
            .iter()
            .filter(|record| matches!(record, Record::Marked(_)))
            .count()
    };
    world.after(61);
    world.enforcer.look();
    assert_eq!(marks(&world), 0);
    world.assign(&[grant(1, ALICE, 600)]);
    for _ in 0..24 {
        world.after(5);
        world.enforcer.look();
    }
    assert_eq!(marks(&world), 2);
}

#[test]
fn receipts_wait_for_the_server_and_are_sent_again_on_a_new_stream() {
    let mut world = World::connected();
    let many: Vec<IssuedGrant> = (1..=300).map(|id| grant(id, ALICE, 60)).collect();
    world.assign(&many);
    assert_eq!(world.answers().0.len(), BATCH * WINDOW);
    world.enforcer.hear(FromServer::ReceiptsStored(64));
    assert_eq!(world.answers().0.len(), 300 - BATCH * WINDOW);
    world.connect();
    world.enforcer.hear(FromServer::ReceiptsStored(300));
    world.connect();
    world.answers();
    assert_eq!(outbox(world.folder.path(), world.clock.boot_id).waiting(), 0);
}

#[test]
fn a_host_that_lost_its_grants_asks_for_the_whole_and_guards_meanwhile() {
    let mut world = World::new();
    world.enforcer.needs_whole = true;
    world.enforcer.guarded_meanwhile = "8443/tcp".parse::<PortPattern>().unwrap().spans().collect();
    world.enforcer.enforce();
    let lost = PortKey {
        protocol: Protocol::Tcp,
        port: 8443,
    };
    assert!(world.table.borrow().guarded().contains(&lost));
    world.connect();
    let hello = world.said();
    let [ToServer::Hello(state)] = hello.as_slice() else {
        panic!("{hello:?}")
    };
    assert_eq!(state.generation, Generation(0));
    world.tell_time();
    world.assign(&[grant(1, ALICE, 60)]);
    assert!(world.lets_in(ALICE));
    assert!(!world.table.borrow().guarded().contains(&lost));
}

#[tokio::test]
async fn the_loop_ends_openings_precisely_and_stops_when_told() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 1)]);
    let (_to_enforcer, from_server) = mpsc::channel(4);
    let World {
        enforcer,
        effects,
        clock,
        folder,
        ..
    } = world;
    effects.borrow_mut().clear();
    clock.flow();
    struct Silent;
    impl Notices for Silent {
        fn alive(&self) {}

        fn in_force(&self) {}
    }
    let begun = tokio::time::Instant::now();
    let end = async {
        while effects.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    enforcer.run(from_server, Silent, end).await;
    let took = begun.elapsed();
    drop(folder);
    // The upper bound leaves room for a busy machine; the kernel is what ends openings.
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(3),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_busy_stream_holds_up_no_repair() {
    let World { enforcer, table, .. } = World::connected();
    *table.borrow_mut() = Ruleset::default();
    let (to_enforcer, from_server) = mpsc::channel(64);
    let begun = tokio::time::Instant::now();
    let end = std::future::poll_fn(|context| {
        while to_enforcer.try_send(FromServer::ReceiptsStored(0)).is_ok() {}
        context.waker().wake_by_ref();
        if begun.elapsed() < Duration::from_secs(2) && table.borrow().is_empty() {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    });
    enforcer.run(from_server, Told::default(), end).await;
    assert!(!table.borrow().is_empty());
}

#[derive(Clone, Default)]
struct Told(Rc<RefCell<u32>>);

impl Notices for Told {
    fn alive(&self) {}

    fn in_force(&self) {
        *self.0.borrow_mut() += 1;
    }
}

#[tokio::test]
async fn the_ruleset_is_called_in_force_only_once_it_is() {
    let mut world = World::new();
    world.faults.borrow_mut().gate = true;
    world.enforcer.rebuild();
    let World {
        enforcer,
        faults,
        clock,
        ..
    } = world;
    clock.flow();
    let (_to_enforcer, from_server) = mpsc::channel(1);
    let told = Told::default();
    let end = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(*told.0.borrow(), 0);
        faults.borrow_mut().gate = false;
        while *told.0.borrow() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let run = enforcer.run(from_server, told.clone(), end);
    tokio::time::timeout(Duration::from_secs(10), run).await.unwrap();
    assert_eq!(*told.0.borrow(), 1);
}

#[test]
fn ports_stay_guarded_after_a_loss_until_a_policy_is_taken() {
    let mut world = World::new();
    world.enforcer.needs_whole = true;
    world.enforcer.guarded_meanwhile = "8443/tcp".parse::<PortPattern>().unwrap().spans().collect();
    world.connect();
    world.tell_time();
    let lost = PortKey {
        protocol: Protocol::Tcp,
        port: 8443,
    };
    let mut whole = world.whole(&[]);
    whole.policy = Some(b"{}".to_vec());
    world.enforcer.hear(FromServer::Assignment(whole));
    assert!(world.table.borrow().guarded().contains(&lost));
    world.assign(&[]);
    assert!(!world.table.borrow().guarded().contains(&lost));
}

fn codes(world: &mut World) -> Vec<&'static str> {
    let said = world.said();
    let codes = said.iter().filter_map(|word| match word {
        ToServer::Report(report) => Some(report.code),
        _ => None,
    });
    codes.collect()
}

#[test]
fn what_begins_after_the_last_change_of_the_firewall_is_not_called_opened() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.answers();
    world.enforcer.applied_at = Some(BootTime::new(Duration::ZERO));
    let ids = [GrantId::new(Uuid::from_u128(1))];
    let boot = world.clock.boot();
    let records: Vec<Record> = world
        .records
        .borrow()
        .iter()
        .filter(|record| !matches!(record, Record::Reported { .. }))
        .cloned()
        .collect();
    world.enforcer.ledger =
        Ledger::replay(MACHINE, root().public(), records, rules().ceiling.as_ref(), boot).ledger;
    assert_eq!(world.enforcer.ledger.unreported(boot.now).opened, ids);
    world.enforcer.account();
    assert_eq!(world.answers().0, []);
    world.enforcer.pass();
    assert_eq!(world.answers().0, [opened()]);
}

#[test]
fn a_report_that_the_stream_did_not_take_is_told_on_the_next() {
    let mut world = World::connected();
    let (to_server, from_host) = mpsc::channel(1);
    drop(from_host);
    world.enforcer.stream.as_mut().unwrap().to_server = to_server;
    world.enforcer.report("TIME_JUMP", String::new());
    assert!(world.enforcer.stream.is_none());
    world.connect();
    assert_eq!(codes(&mut world), ["TIME_JUMP"]);
}

#[test]
fn a_failure_that_lasts_is_told_once_per_connection_and_each_repair_by_itself() {
    let mut world = World::connected();
    world.faults.borrow_mut().disk = true;
    for id in 1..4 {
        world.assign(&[grant(id, ALICE, 60)]);
    }
    assert_eq!(codes(&mut world), ["LEDGER_NOT_WRITTEN"]);
    world.faults.borrow_mut().disk = false;
    world.assign(&[grant(4, ALICE, 60)]);
    world.faults.borrow_mut().disk = true;
    world.assign(&[grant(5, ALICE, 60)]);
    assert_eq!(codes(&mut world), ["LEDGER_NOT_WRITTEN"]);
    for _ in 0..2 {
        *world.table.borrow_mut() = Ruleset::default();
        world.enforcer.look();
        assert_eq!(codes(&mut world), ["TABLE_REPAIRED"]);
    }
}
