//! `disable`: turns it off on this host. What was guarded is then as open as the rest of the host leaves it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::enforcer::{Gate, Table};
use crate::firewall::{Firewall, FirewallError};
use crate::ruleset_text::ports;
use crate::state::{StateDir, StateError, StateLock};

/// Whoever starts these makes the table again.
const UNITS: [&str; 4] = [
    "nightlatch-agent.service",
    "nightlatch-lockdown.service",
    "nightlatch-follow.service",
    "nightlatch-relock.service",
];
/// systemd itself kills what doesn't stop within 90 seconds.
const SYSTEMCTL_PATIENCE: Duration = Duration::from_secs(120);
const SYSTEMCTL_PACE: Duration = Duration::from_millis(20);

/// Why it is not turned off.
#[derive(Debug, thiserror::Error)]
pub enum NotDisabled {
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error("nothing was changed: add --yes to go on without being asked")]
    NotAsked,
    #[error("nothing was changed")]
    NotWanted,
    #[error("the answer can't be read: add --yes to go on without being asked")]
    NoAnswer(#[source] io::Error),
    #[error("systemctl can't be run: stop the agent yourself and add --table-only")]
    NoSystemctl(#[source] io::Error),
    #[error("`systemctl stop {}` failed, and the table stays: mend that, or add --table-only", UNITS.join(" "))]
    UnitsRun,
    #[error(
        "the table is gone, but `systemctl disable {}` failed: the next boot guards this host again, so run that \
         yourself",
        UNITS.join(" ")
    )]
    UnitsStay,
    #[error(
        "the agent is stopped and the guarded ports stay shut: mend the cause and try again, or go back with \
         `systemctl start nightlatch-agent`"
    )]
    StillShut(#[source] Box<Self>),
    #[error("an agent works in {} and would make the table anew: stop it, then try again", .0.display())]
    AgentRuns(PathBuf),
    #[error(transparent)]
    State(StateError),
}

/// Where a table of ours would be.
#[derive(Debug)]
pub enum Place<F> {
    Firewall(F),
    /// No table can be there, as nothing could have made it.
    NoNfTables,
    /// Not even root may look.
    Forbidden,
}

/// # Errors
/// It can't be said whether there is a table, and somebody else could say it or it may be said later.
pub fn place() -> Result<Place<Firewall>, NotDisabled> {
    place_of(Firewall::open(), nix::unistd::geteuid().is_root())
}

fn place_of<F>(opened: Result<F, FirewallError>, is_root: bool) -> Result<Place<F>, NotDisabled> {
    match opened {
        Ok(firewall) => Ok(Place::Firewall(firewall)),
        Err(FirewallError::NoNfTables(_) | FirewallError::KernelTooOld { .. }) => Ok(Place::NoNfTables),
        // Others get the capability by becoming root, but in some containers root lacks it too.
        Err(FirewallError::NeedsNetAdmin) if is_root => Ok(Place::Forbidden),
        Err(error) => Err(error.into()),
    }
}

impl<F: Table> Place<F> {
    /// What is guarded now, for people; `None` if nothing is, or nothing that can be seen.
    ///
    /// # Errors
    /// The table can't be read.
    pub fn guarded(&mut self) -> Result<Option<String>, NotDisabled> {
        match self {
            Self::Firewall(gate) => guarded(gate),
            Self::NoNfTables | Self::Forbidden => Ok(None),
        }
    }

    /// Takes the table away, as far as that can be.
    ///
    /// # Errors
    /// As [`remove_table`].
    pub fn clear(&mut self, state: &StateDir) -> Result<(), NotDisabled> {
        match self {
            Self::Firewall(gate) => remove_table(gate, state),
            Self::NoNfTables | Self::Forbidden => Ok(()),
        }
    }

    /// What has become of the host, where `guarded` was guarded before.
    pub fn told(&self, guarded: Option<&str>) -> String {
        match (self, guarded) {
            (Self::Firewall(_), Some(ports)) => {
                format!("no longer guarded: {ports}; the host's other rules alone decide who gets in")
            }
            (Self::Firewall(_), None) => "nothing was guarded".to_owned(),
            (Self::NoNfTables, _) => "nothing was guarded: this kernel has no firewall to do it with".to_owned(),
            (Self::Forbidden, _) => {
                "whether anything is guarded here is not known, and it stays so if it is: root lacks CAP_NET_ADMIN; \
                 see with more rights: nft list table inet nightlatch"
                    .to_owned()
            }
        }
    }
}

/// The ports that are guarded now, for people; `None` if there are none.
///
/// # Errors
/// The table can't be read.
pub fn guarded(gate: &mut impl Gate) -> Result<Option<String>, NotDisabled> {
    let guarded = gate.guarded()?.unwrap_or_default();
    Ok((!guarded.is_empty()).then(|| ports(&guarded)))
}

/// Takes the table away.
///
/// # Errors
/// An agent runs, or the kernel refuses.
pub fn remove_table(gate: &mut impl Table, state: &StateDir) -> Result<(), NotDisabled> {
    let _lock = still(state)?;
    Ok(gate.remove()?)
}

/// No agent works until this is dropped.
fn still(state: &StateDir) -> Result<Option<StateLock>, NotDisabled> {
    match state.lock() {
        Ok(lock) => Ok(Some(lock)),
        Err(StateError::Missing(_)) => Ok(None),
        Err(StateError::InUse(folder)) => Err(NotDisabled::AgentRuns(folder)),
        Err(error @ StateError::Io { .. }) => Err(NotDisabled::State(error)),
    }
}

/// Stops the units. Until they are disabled as well, a boot guards the host again.
///
/// # Errors
/// systemctl refuses; its own words are on standard error.
pub fn stop_units() -> Result<(), NotDisabled> {
    systemctl("stop", || NotDisabled::UnitsRun)
}

/// Keeps the units from being started at boot. To be done last: whatever is interrupted before comes back guarded.
///
/// # Errors
/// systemctl refuses; its own words are on standard error.
pub fn disable_units() -> Result<(), NotDisabled> {
    systemctl("disable", || NotDisabled::UnitsStay)
}

/// Nothing happens on a host that systemd doesn't run.
fn systemctl(verb: &str, failed: fn() -> NotDisabled) -> Result<(), NotDisabled> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    let mut systemctl = Command::new("systemctl");
    systemctl.args(["--quiet", verb]).args(UNITS);
    let mut child = systemctl
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(NotDisabled::NoSystemctl)?;
    let mut waited = Duration::ZERO;
    while waited < SYSTEMCTL_PATIENCE {
        match child.try_wait().map_err(NotDisabled::NoSystemctl)? {
            Some(status) if status.success() => return Ok(()),
            Some(_failed) => return Err(failed()),
            None => std::thread::sleep(SYSTEMCTL_PACE),
        }
        waited = waited.saturating_add(SYSTEMCTL_PACE);
    }
    child.kill().map_err(NotDisabled::NoSystemctl)?;
    child.wait().map_err(NotDisabled::NoSystemctl)?;
    Err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforcer::fake::FakeTable;

    #[test]
    fn the_table_goes_only_when_no_agent_runs() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        let mut table = FakeTable::guarding(&[22, 3389]);
        assert_eq!(guarded(&mut table).unwrap().as_deref(), Some("22/tcp, 3389/tcp"));
        let agent = state.lock().unwrap();
        let refused = remove_table(&mut table, &state);
        assert!(matches!(refused, Err(NotDisabled::AgentRuns(_))));
        assert_eq!(table.ports(), Some(vec![22, 3389]));
        drop(agent);
        remove_table(&mut table, &state).unwrap();
        assert_eq!(table.ports(), None);
        assert_eq!(guarded(&mut table).unwrap(), None);
        remove_table(&mut table, &state).unwrap();
    }

    #[test]
    fn where_no_table_can_be_or_be_seen_it_goes_on_and_says_so() {
        let nowhere = StateDir::new("/nonexistent".into());
        let opened = |error, is_root| place_of::<FakeTable>(Err(error), is_root);
        let absent = || FirewallError::NoNfTables(io::ErrorKind::Unsupported.into());
        for (error, word) in [
            (absent(), "no firewall"),
            (FirewallError::NeedsNetAdmin, "not known"),
        ] {
            let mut place = opened(error, true).unwrap();
            assert_eq!(place.guarded().unwrap(), None);
            place.clear(&nowhere).unwrap();
            assert!(place.told(None).contains(word), "{}", place.told(None));
        }
        assert!(matches!(opened(absent(), false), Ok(Place::NoNfTables)));
        assert!(opened(FirewallError::NeedsNetAdmin, false).is_err());
        assert!(opened(FirewallError::NoAnswer, true).is_err());
    }

    #[test]
    fn a_host_that_lost_its_state_can_be_turned_off() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = StateDir::new(folder.path().join("nonexistent"));
        let mut table = FakeTable::guarding(&[22]);
        remove_table(&mut table, &nowhere).unwrap();
        assert_eq!(table.ports(), None);
    }
}
