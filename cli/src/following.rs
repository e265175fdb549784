//! Following a request until nothing more can come of it, or until we stop waiting.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::record::{OutcomeRecord, OutcomeState, RequestRecord};
use crate::spinner::Spinner;
use crate::when;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long to wait for the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    Until(Instant),
    /// As long as something can still come.
    Endless,
}

/// Keeps `latest` up to date. Interruptions of the connection are bridged: the request stands meanwhile.
///
/// # Errors
/// The server's refusal. A connection that stays away is no error, the request was taken.
pub(crate) async fn follow(
    client: &Client,
    latest: &mut RequestRecord,
    patience: Patience,
    spinner: &Spinner,
) -> Result<(), Failure> {
    let mut pause = FIRST_PAUSE;
    while !is_settled(&latest.outcomes) {
        let heard = watch(client, latest, &mut pause, spinner);
        let heard = match patience {
            Patience::Until(end) => match timeout_at(end, heard).await {
                Ok(heard) => heard,
                Err(_) => return Ok(()),
            },
            Patience::Endless => heard.await,
        };
        match heard {
            Ok(()) => {}
            Err(Failure::Refused(refusal)) if !refusal.may_pass() => return Err(refusal.into()),
            Err(_) => spinner.say("the server is out of reach; the request stands; trying again"),
        }
        if is_settled(&latest.outcomes) {
            break;
        }
        match patience {
            Patience::Until(end) if Instant::now() + pause >= end => return Ok(()),
            Patience::Until(_) | Patience::Endless => sleep(pause).await,
        }
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// One stream, until it ends or everything is settled.
async fn watch(
    client: &Client,
    latest: &mut RequestRecord,
    pause: &mut Duration,
    spinner: &Spinner,
) -> Result<(), Failure> {
    let mut stream = client.watch(latest.name.clone()).await?;
    while let Some(request) = stream.next().await? {
        *pause = FIRST_PAUSE;
        *latest = request;
        if is_settled(&latest.outcomes) {
            break;
        }
        spinner.say(&awaited(&latest.outcomes));
    }
    Ok(())
}

pub(crate) fn is_settled(outcomes: &[OutcomeRecord]) -> bool {
    !outcomes.iter().any(|outcome| outcome.state.is_pending())
}

/// What is waited for, in words.
pub(crate) fn awaited(outcomes: &[OutcomeRecord]) -> String {
    let pending = outcomes.iter().filter(|outcome| outcome.state.is_pending());
    let names: Vec<String> = pending
        .map(|outcome| match outcome.offline_since {
            Some(since) => format!("{} (away since {})", outcome.machine, when::local(since)),
            None => outcome.machine.clone(),
        })
        .collect();
    format!("approved; waiting for {} to open", names.join(", "))
}

/// Open everywhere, or not yet, or somewhere never.
pub(crate) fn verdict(outcomes: &[OutcomeRecord]) -> Exit {
    let all = |holds: fn(OutcomeState) -> bool| outcomes.iter().all(|outcome| holds(outcome.state));
    if outcomes.is_empty() || !all(|state| state == OutcomeState::Open || state.is_pending()) {
        Exit::Failed
    } else if all(|state| state == OutcomeState::Open) {
        Exit::Done
    } else {
        Exit::NotYet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(states: &[OutcomeState]) -> Vec<OutcomeRecord> {
        states
            .iter()
            .map(|state| OutcomeRecord::example("web-1", *state))
            .collect()
    }

    #[test]
    fn only_open_everywhere_counts_as_open() {
        use OutcomeState::{Ended, Open, Opening, Refused, Unknown, Waiting};
        for (states, exit) in [
            (&[Open, Open][..], Exit::Done),
            (&[Open, Waiting], Exit::NotYet),
            (&[Opening], Exit::NotYet),
            (&[Open, Refused], Exit::Failed),
            (&[Waiting, Refused], Exit::Failed),
            (&[Ended], Exit::Failed),
            (&[Unknown], Exit::Failed),
            (&[], Exit::Failed),
        ] {
            assert_eq!(verdict(&outcomes(states)), exit, "{states:?}");
        }
    }

    #[test]
    fn what_can_still_come_is_waited_for() {
        use OutcomeState::{Ended, Open, Opening, Refused, Waiting};
        assert!(is_settled(&outcomes(&[Open, Refused, Ended])));
        assert!(!is_settled(&outcomes(&[Open, Waiting])));
        assert!(!is_settled(&outcomes(&[Opening])));
    }

    #[test]
    fn the_machines_that_are_waited_for_are_named() {
        let mut waited = outcomes(&[OutcomeState::Waiting, OutcomeState::Open]);
        waited[1].machine = "web-2".to_string();
        assert_eq!(awaited(&waited), "approved; waiting for web-1 to open");
    }
}
