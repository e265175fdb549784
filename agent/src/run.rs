//! `run`: the daemon.

use std::future::Future;
use std::time::Duration;

use nightlatch_core::host::HostRules;
use nightlatch_core::signing::SigningKey;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::alarm::{Alarm, SystemAlarm};
use crate::break_glass::watch::watch_records;
use crate::break_glass::{Consoled, Folders};
use crate::causes::causes;
use crate::clock::{Clock, NoClock, SystemClock};
use crate::config::AgentConfig;
use crate::enforcer::{Enforcer, Gate, Notices, Sound, Start, Table, WriterEnded};
use crate::firewall::{Firewall, FirewallError, watch};
use crate::identity::{Enrollment, Identity, NoIdentity};
use crate::meanwhile;
use crate::outbox::{Outbox, Signer};
use crate::server_link::{FromServer, ServerLink};
use crate::server_tls::{self, KnownTime, Pin};
use crate::startup::{self, Recalled};
use crate::state::{StateDir, StateError, StateLock};
use crate::writer::{Disk, Sink, Writer};

const QUEUE: usize = 64;

/// Why the daemon did not start, or go on. The table opens nothing more than before.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Identity(#[from] NoIdentity),
    #[error(transparent)]
    Clock(#[from] NoClock),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error("the machine's certificate and key can't be used")]
    Tls(#[source] rustls::Error),
    #[error("signals can't be listened for")]
    Signals(#[source] std::io::Error),
    #[error("no thread can be started to read the state directory")]
    Reader(#[source] std::io::Error),
    #[error("no thread can be started to look for what root opens on the console")]
    Watch(#[source] std::io::Error),
    #[error("no thread can be started to write the ledger")]
    Writer(#[source] std::io::Error),
    #[error("the link to the server broke down: start the agent again")]
    LinkEnded,
    #[error(transparent)]
    WriterEnded(#[from] WriterEnded),
}

/// Runs until SIGTERM or SIGINT, and leaves the table as it is.
///
/// # Errors
/// Whatever keeps it from starting.
pub async fn run(mut config: AgentConfig, state: &StateDir, folders: Folders) -> Result<(), NotStarted> {
    let clock = SystemClock::new()?;
    let mut firewall = Firewall::open()?;
    let limits = config.rules.break_glass;
    let mut consoled = Consoled::new(&mut firewall, &folders, limits, &clock);
    let (lock, identity) = begin(&config.rules, state, &mut consoled, &clock)?;
    let Identity {
        enrollment,
        ca,
        client,
        receipt_key,
    } = identity;
    let mut terminate = signal(SignalKind::terminate()).map_err(NotStarted::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NotStarted::Signals)?;

    let console = watch_records(folders.clone(), limits, clock).map_err(NotStarted::Watch)?;
    config.rules.console = folders.in_force(&limits, clock.boot());
    let mut start = recall(
        config.rules,
        state,
        lock,
        &enrollment,
        receipt_key,
        clock,
        firewall,
    )?;
    // The disk may have taken its time.
    start.rules.console = folders.in_force(&limits, clock.boot());
    let known = KnownTime::default();
    known.raise(enrollment.enrolled_at);
    if let Some(earliest) = start.time.earliest(clock.now()) {
        known.raise(earliest);
    }
    let pin = Pin::Installation {
        ca,
        installation: enrollment.installation_id,
        known: known.clone(),
    };
    let tls = server_tls::client_config(pin, Some(client)).map_err(NotStarted::Tls)?;
    let (heard, touches) = mpsc::channel(QUEUE);
    // Ends with the daemon: nobody listens then.
    let _watch = tokio::spawn(watch(start.gate.port(), heard));
    let enforcer = Enforcer::start(start).watching(touches).with_console(console);
    let (to_enforcer, from_server) = mpsc::channel(QUEUE);
    let link = ServerLink {
        addresses: enrollment.agent_addresses,
        config: tls,
        clock,
        known,
        enforcer: to_enforcer,
    };
    let link = tokio::spawn(link.run());
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let alarm = SystemAlarm::new(clock);
    let held = hold(enforcer, from_server, Watchdog::new(), alarm, link, stop).await;
    notify(&[NotifyState::Stopping]);
    tracing::info!("ends; the table stays and the kernel ends the openings");
    held
}

/// Guards what the host's own file lists before anything of the ledger is read, however slow the disk is. A host that
/// can't run an agent keeps its table.
fn begin(
    rules: &HostRules,
    state: &StateDir,
    gate: &mut impl Table,
    clock: &impl Clock,
) -> Result<(StateLock, Identity), NotStarted> {
    let mut guard = || {
        if let Err(error) = meanwhile::guard_the_files(rules, gate, clock) {
            tracing::error!(error = %causes(&error), "what the host's own file lists may not be guarded yet");
        }
    };
    let folder = state.clone();
    let lock = meanwhile::asked(move || folder.lock_at_once(), &mut guard).map_err(NotStarted::Reader)?;
    let lock = match lock {
        // An agent works here and looks after its table, or a look of `status` is about to end.
        Err(StateError::InUse(_)) => state.lock(),
        settled => settled,
    }?;
    let folder = state.clone();
    let identity =
        meanwhile::asked(move || Identity::read(&folder), &mut guard).map_err(NotStarted::Reader)??;
    guard();
    Ok((lock, identity))
}

/// Until `stop`, or until the link is gone, which would leave the host deaf for good.
async fn hold<G: Gate, D: Disk, C: Clock>(
    enforcer: Enforcer<G, D, C>,
    from_server: mpsc::Receiver<FromServer>,
    notices: impl Notices,
    alarm: impl Alarm,
    mut link: JoinHandle<()>,
    stop: impl Future<Output = ()>,
) -> Result<(), NotStarted> {
    let mut has_link = true;
    let end = async {
        tokio::select! {
            () = stop => {}
            _ = &mut link => has_link = false,
        }
    };
    let ran = enforcer.run(from_server, notices, alarm, end).await;
    link.abort();
    ran?;
    if has_link {
        Ok(())
    } else {
        Err(NotStarted::LinkEnded)
    }
}

fn recall<G: Gate, C: Clock>(
    rules: HostRules,
    state: &StateDir,
    lock: StateLock,
    enrollment: &Enrollment,
    key: SigningKey,
    clock: C,
    mut gate: G,
) -> Result<Start<G, Writer, C>, NotStarted> {
    let Recalled {
        ledger,
        time,
        sink,
        fallen,
        is_bare,
        mut reports,
    } = startup::recall(state, enrollment, &rules, clock.boot());
    // A table made without them would unguard the policy's ports: better leave the one that is there.
    let guarded_meanwhile = if is_bare {
        startup::guarded_by_table(&mut gate)?
    } else {
        Vec::new()
    };
    let signer = Signer {
        key,
        machine: enrollment.machine_id,
        boot_id: clock.boot_id(),
    };
    let (outbox, receipts, damage) = Outbox::open(state.receipts(), signer, ledger.numbers(), clock.wall());
    if let Some(damage) = damage {
        tracing::error!(
            why = damage.why,
            "receipts that the server had not stored may be lost"
        );
        reports.push((
            "RECEIPTS_DAMAGED",
            format!("receipts may be lost: {}", damage.why),
        ));
    }
    let kernel_version = nix::sys::utsname::uname()
        .map(|system| system.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let sound = Sound {
        ledger: sink.is_sound(),
        receipts: receipts.is_sound(),
    };
    Ok(Start {
        rules,
        clock,
        time,
        ledger,
        gate,
        disk: Writer::start(lock, sink, receipts).map_err(NotStarted::Writer)?,
        outbox,
        sound,
        guarded_meanwhile,
        fallen,
        needs_whole: is_bare,
        reports,
        kernel_version,
    })
}

/// systemd restarts a daemon whose loop stands still (sd_notify(3)).
struct Watchdog {
    is_wanted: bool,
}

impl Watchdog {
    fn new() -> Self {
        let timeout = sd_notify::watchdog_enabled().filter(|timeout| *timeout > Duration::ZERO);
        Self {
            is_wanted: timeout.is_some(),
        }
    }
}

impl Notices for Watchdog {
    fn in_force(&self) {
        notify(&[NotifyState::Ready]);
        tracing::info!("the ruleset is in force");
    }

    fn alive(&self) {
        if self.is_wanted {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::fake::FakeClock;
    use crate::enforcer::fake::FakeTable;
    use crate::identity::ENROLLMENT;
    use crate::startup::tests::{enrollment, guarding};

    #[test]
    fn without_a_ledger_and_with_an_unreadable_table_the_agent_does_not_start() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        let clock = FakeClock::new("2026-11-22T12:00:00Z".parse().unwrap());
        let recall = |is_unreadable| {
            let table = FakeTable {
                is_unreadable,
                ..FakeTable::guarding(&[22])
            };
            let key = SigningKey::from_seed(&[3; 32]);
            recall(
                HostRules::default(),
                &state,
                state.lock().unwrap(),
                &enrollment(),
                key,
                clock.clone(),
                table,
            )
        };
        assert!(matches!(recall(true).err(), Some(NotStarted::Firewall(_))));
        assert_eq!(recall(false).unwrap().guarded_meanwhile.len(), 1);
    }

    #[test]
    fn what_the_file_lists_is_shut_before_a_slow_disk_has_answered() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        let enrolment = state.file(ENROLLMENT);
        nix::unistd::mkfifo(&enrolment, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (watcher, guarded_first) = std::sync::mpsc::channel();
        let disk = std::thread::spawn(move || {
            let is_guarded = guarded_first.recv_timeout(Duration::from_secs(10)).is_ok();
            std::fs::write(enrolment, "none").unwrap();
            is_guarded
        });
        let mut table = FakeTable {
            watcher: Some(watcher),
            ..FakeTable::guarding(&[22])
        };
        let clock = FakeClock::new("2026-11-22T12:00:00Z".parse().unwrap());
        let begun = begin(&guarding("3389/tcp"), &state, &mut table, &clock);
        assert!(matches!(begun.err(), Some(NotStarted::Identity(_))));
        assert!(disk.join().unwrap(), "the disk had to answer first");
        assert_eq!(table.ports(), Some(vec![22, 3389]));
    }

    #[test]
    fn where_no_agent_can_run_the_table_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        let mut table = FakeTable::guarding(&[22]);
        let clock = FakeClock::new("2026-11-22T12:00:00Z".parse().unwrap());
        let begun = begin(&guarding("3389/tcp"), &state, &mut table, &clock);
        assert!(matches!(begun.err(), Some(NotStarted::Identity(_))));
        let _agent = state.lock().unwrap();
        let begun = begin(&guarding("3389/tcp"), &state, &mut table, &clock);
        assert!(matches!(begun.err(), Some(NotStarted::State(_))));
        assert_eq!(table.ports(), Some(vec![22]));
    }

    struct Nobody;

    impl Notices for Nobody {
        fn alive(&self) {}
        fn in_force(&self) {}
    }

    #[tokio::test]
    async fn an_agent_whose_link_is_gone_ends_with_an_error_and_else_only_when_told() {
        let held = async |link: JoinHandle<()>, is_told: bool| {
            let folder = tempfile::tempdir().unwrap();
            let state = StateDir::new(folder.path().to_owned());
            let clock = FakeClock::new("2026-11-22T12:00:00Z".parse().unwrap());
            let start = recall(
                HostRules::default(),
                &state,
                state.lock().unwrap(),
                &enrollment(),
                SigningKey::from_seed(&[3; 32]),
                clock.clone(),
                FakeTable::guarding(&[22]),
            );
            let stop = async {
                if !is_told {
                    std::future::pending().await
                }
            };
            // The other end stays open: a link that is gone must not have to be missed by its silence.
            let (_to_enforcer, from_server) = mpsc::channel(1);
            let enforcer = Enforcer::start(start.unwrap());
            let held = hold(enforcer, from_server, Nobody, clock, link, stop);
            tokio::time::timeout(Duration::from_secs(30), held).await
        };
        for link in [
            tokio::spawn(async {}),
            tokio::spawn(async { panic!("the link fell over") }),
        ] {
            assert!(matches!(held(link, false).await, Ok(Err(NotStarted::LinkEnded))));
        }
        let link = tokio::spawn(std::future::pending());
        assert!(matches!(held(link, true).await, Ok(Ok(()))));
    }
}
