//! `lockdown`: guarded ports shut, still valid grants open; once, at boot, before the network is there.

use nightlatch_core::port::PortSpan;
use nightlatch_core::ruleset::Ruleset;

use crate::clock::{Clock, NoClock, SystemClock};
use crate::config::AgentConfig;
use crate::firewall::{Firewall, FirewallError};
use crate::identity::{Enrollment, NoIdentity};
use crate::startup;
use crate::state::{StateDir, StateError};

/// What `lockdown` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockedDown {
    /// The table holds this many guarded ports and openings.
    Applied { guarded: usize, openings: usize },
    /// Neither file nor policy guards anything, so there is no table.
    NothingGuarded,
    /// The agent runs and holds the ruleset already.
    AgentRuns,
}

/// Why the table may not be what it should.
#[derive(Debug, thiserror::Error)]
pub enum NotLockedDown {
    #[error(transparent)]
    Clock(#[from] NoClock),
    #[error(transparent)]
    State(StateError),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error("the agent runs, but there is no table though {0} ports are guarded: look at its log")]
    AgentFails(usize),
    #[error("the ports of the host's own file are shut; what the policy guards is not known")]
    PolicyUnknown(#[source] NoIdentity),
}

/// # Errors
/// The table could not be made, or was made without knowing the policy.
pub fn lockdown(config: &AgentConfig, state: &StateDir) -> Result<LockedDown, NotLockedDown> {
    let clock = SystemClock::new()?;
    let mut firewall = Firewall::open()?;
    let _lock = match state.lock() {
        Ok(lock) => Some(lock),
        Err(StateError::Missing(_)) => None,
        Err(StateError::InUse(_)) => return look_after_agent(config, &mut firewall),
        Err(error @ StateError::Io { .. }) => {
            apply(&mut firewall, &host_alone(config, Vec::new()), &clock)?;
            return Err(NotLockedDown::State(error));
        }
    };
    let enrollment = match Enrollment::read(state) {
        Ok(enrollment) => enrollment,
        Err(NoIdentity::NotEnrolled(_)) => {
            return apply(&mut firewall, &host_alone(config, Vec::new()), &clock);
        }
        Err(error) => {
            let guarded = startup::guarded_by_table(&mut firewall)?;
            apply(&mut firewall, &host_alone(config, guarded), &clock)?;
            return Err(NotLockedDown::PolicyUnknown(error));
        }
    };
    let recalled = startup::recall(state, &enrollment, &config.rules, clock.boot());
    let mut rules = config.rules.clone();
    if recalled.is_bare {
        rules.guarded.extend(startup::guarded_by_table(&mut firewall)?);
    }
    apply(
        &mut firewall,
        &recalled.ledger.ruleset(&rules, clock.now()),
        &clock,
    )
}

fn host_alone(config: &AgentConfig, guarded: Vec<PortSpan>) -> Ruleset {
    let mut rules = config.rules.clone();
    rules.guarded.extend(guarded);
    rules.ruleset_alone()
}

fn apply(
    firewall: &mut Firewall,
    wanted: &Ruleset,
    clock: &SystemClock,
) -> Result<LockedDown, NotLockedDown> {
    firewall.rebuild(wanted, clock.now())?;
    Ok(if wanted.is_empty() {
        LockedDown::NothingGuarded
    } else {
        LockedDown::Applied {
            guarded: wanted.guarded().len(),
            openings: wanted.openings().len(),
        }
    })
}

fn look_after_agent(config: &AgentConfig, firewall: &mut Firewall) -> Result<LockedDown, NotLockedDown> {
    let guarded = config.rules.guarded.len();
    if guarded > 0 && firewall.read()?.is_none() {
        return Err(NotLockedDown::AgentFails(guarded));
    }
    Ok(LockedDown::AgentRuns)
}
