//! The agent's loop as it guards a host, without a server and a disk.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nightlatch_agent::alarm::SystemAlarm;
use nightlatch_agent::clock::{Clock, SystemClock};
use nightlatch_agent::enforcer::{Enforcer, Gate, Notices, Sound, Start};
use nightlatch_agent::firewall::{Applied, Drift, Firewall, FirewallError, watch};
use nightlatch_agent::outbox::{Entry, Outbox, Signer};
use nightlatch_agent::server_link::{FromServer, ToServer};
use nightlatch_agent::startup::spans_of;
use nightlatch_agent::writer::{Disk, Job, Written};
use nightlatch_core::clock::HostClock;
use nightlatch_core::host::HostRules;
use nightlatch_core::id::MachineId;
use nightlatch_core::ledger::{Ledger, Record};
use nightlatch_core::port::PortKey;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::BootTime;
use nix::sched::{CloneFlags, setns};
use tokio::sync::{mpsc as queue, oneshot};

use super::{Netns, PATIENCE};

/// The port that the agent guards, and who always gets in.
pub(crate) fn host_rules(keys: &[PortKey], trusted: &[&str]) -> HostRules {
    HostRules {
        guarded: spans_of(keys.iter().copied().collect()),
        trusted_sources: trusted
            .iter()
            .map(|source| source.parse::<Prefix>().unwrap())
            .collect(),
        udp_grace: PATIENCE,
        ..HostRules::default()
    }
}

/// An agent at work in a network namespace, until it is dropped.
pub(crate) struct Agent {
    pub(crate) wanted: Ruleset,
    reports: Arc<Mutex<Vec<String>>>,
    rebuilds: Arc<AtomicUsize>,
    rebuilt: mpsc::Receiver<Instant>,
    stop: Option<oneshot::Sender<()>>,
    work: Option<JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(host: &Netns, rules: HostRules) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, rebuilt) = mpsc::channel();
        let (ready, begun) = mpsc::channel();
        let (reports, rebuilds) = <(Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>)>::default();
        let wanted = rules.ruleset_alone();
        let namespace = host.namespace.try_clone().unwrap();
        let gate = CountedGate {
            firewall: host.run(Firewall::open).unwrap(),
            rebuilds: rebuilds.clone(),
            tell,
        };
        let said = reports.clone();
        let work = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .unwrap()
                .block_on(guard(gate, rules, said, ready, stopped));
        });
        begun.recv_timeout(PATIENCE).unwrap();
        // What happens from now on is told by the kernel.
        let agent = Self {
            wanted,
            reports,
            rebuilds,
            rebuilt,
            stop: Some(stop),
            work: Some(work),
        };
        while agent.rebuilt.try_recv().is_ok() {}
        agent
    }

    /// How often the table was made anew so far.
    pub(crate) fn rebuilds(&self) -> usize {
        self.rebuilds.load(Ordering::SeqCst)
    }

    /// When the table was made anew next.
    pub(crate) fn next_rebuild(&self) -> Instant {
        self.rebuilt
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_timeout| panic!("the table was not made anew"))
    }

    /// What was told to the server since it was asked last.
    pub(crate) fn reports(&self) -> Vec<String> {
        std::mem::take(&mut *self.reports.lock().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.work.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || matches!(ended, Some(Ok(()))),
            "the agent fell over"
        );
    }
}

async fn guard(
    gate: CountedGate,
    rules: HostRules,
    reports: Arc<Mutex<Vec<String>>>,
    ready: mpsc::Sender<()>,
    stopped: oneshot::Receiver<()>,
) {
    let clock = SystemClock::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let machine: MachineId = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".parse().unwrap();
    let key = SigningKey::from_seed(&[1; 32]);
    let signer = Signer {
        key: SigningKey::from_seed(&[3; 32]),
        machine,
        boot_id: clock.boot_id(),
    };
    let (heard, touches) = queue::channel(64);
    let watching = tokio::spawn(watch(gate.firewall.port(), heard));
    let enforcer = Enforcer::start(Start {
        rules,
        clock,
        time: HostClock::new(clock.boot_id(), clock.now(), None),
        ledger: Ledger::new(machine, key.public()),
        gate,
        disk: NoDisk,
        outbox: Outbox::open(folder.path().join("receipts"), signer, None, clock.wall()).0,
        sound: Sound {
            ledger: true,
            receipts: true,
        },
        guarded_meanwhile: Vec::new(),
        fallen: Vec::new(),
        needs_whole: false,
        reports: Vec::new(),
        kernel_version: String::new(),
    });
    let (to_enforcer, from_server) = queue::channel(1);
    let (to_server, mut from_host) = queue::channel(256);
    to_enforcer.send(FromServer::Connected(to_server)).await.unwrap();
    let listening = tokio::spawn(async move {
        while let Some(word) = from_host.recv().await {
            if let ToServer::Report(report) = word {
                reports
                    .lock()
                    .unwrap()
                    .push(format!("{}: {}", report.code, report.message));
            }
        }
    });
    let end = async {
        stopped.await.ok();
    };
    let ran = enforcer
        .watching(touches)
        .run(from_server, Ready(ready), SystemAlarm::new(clock), end)
        .await;
    ran.unwrap();
    watching.abort();
    listening.await.unwrap();
}

struct CountedGate {
    firewall: Firewall,
    rebuilds: Arc<AtomicUsize>,
    tell: mpsc::Sender<Instant>,
}

impl Gate for CountedGate {
    fn apply(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        self.firewall.apply(wanted, now)
    }

    fn drift(&mut self, now: BootTime) -> Result<Option<Drift>, FirewallError> {
        self.firewall.drift_since(now)
    }

    fn rebuild(&mut self, wanted: &Ruleset, now: BootTime) -> Result<Applied, FirewallError> {
        let applied = self.firewall.rebuild(wanted, now);
        self.rebuilds.fetch_add(1, Ordering::SeqCst);
        self.tell.send(Instant::now()).ok();
        applied
    }

    fn slept(&mut self, length: Duration) {
        self.firewall.slept(length);
    }

    fn guarded(&mut self) -> Result<Option<std::collections::BTreeSet<PortKey>>, FirewallError> {
        Gate::guarded(&mut self.firewall)
    }
}

struct NoDisk;

impl Disk for NoDisk {
    fn write_ledger(&mut self, _job: Job<Record>) {}

    fn write_receipts(&mut self, _job: Job<Entry>) {}

    async fn written(&mut self) -> Option<Written> {
        std::future::pending().await
    }
}

struct Ready(mpsc::Sender<()>);

impl Notices for Ready {
    fn alive(&self) {}

    fn in_force(&self) {
        self.0.send(()).ok();
    }
}
