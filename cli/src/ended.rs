//! What was ended or withdrawn, and how it is told.

use serde::Serialize;

use crate::failure::{Exit, Failure, SHOWS_GRANTS};
use crate::grants::end_verdict;
use crate::naming::MachineRef;
use crate::output::{self, Output, printable};
use crate::record::{ErrorRecord, GrantRecord, GrantState, OutcomeState, RequestRecord};

pub(crate) enum Ended {
    Grant(Box<GrantRecord>),
    Request(Box<Withdrawal>),
}

/// What the server says of a request after its withdrawal.
pub(crate) struct Withdrawal {
    request: RequestRecord,
    /// The machines that it was to be withdrawn for.
    machines: Vec<String>,
    /// Those where it is withdrawn.
    withdrawn: Vec<String>,
    /// Those where it may still wait.
    left: Vec<String>,
    /// What was signed for them before: it takes an end of its own.
    pub(crate) grants: Vec<String>,
}

impl Withdrawal {
    pub(crate) fn new(request: RequestRecord, machine: Option<&MachineRef>) -> Self {
        let (mut machines, mut withdrawn, mut left, mut grants) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for outcome in &request.outcomes {
            if !machine.is_none_or(|machine| machine.is(&outcome.machine, &outcome.machine_id)) {
                continue;
            }
            machines.push(outcome.machine.clone());
            match outcome.state {
                _ if !outcome.grant.is_empty() => grants.push(outcome.grant.clone()),
                OutcomeState::Ended => withdrawn.push(outcome.machine.clone()),
                OutcomeState::Refused => {}
                _ => left.push(outcome.machine.clone()),
            }
        }
        if machines.is_empty() {
            left.push(machine.map_or_else(|| "its machines".to_string(), ToString::to_string));
        }
        Self {
            request,
            machines,
            withdrawn,
            left,
            grants,
        }
    }

    /// `None` where the grants say it all.
    fn line(&self) -> Option<String> {
        let id = &self.request.id;
        if self.withdrawn.is_empty() {
            let nothing = self.grants.is_empty() && self.left.is_empty();
            return nothing.then(|| {
                let machines = self.machines.join(", ");
                format!("request {id}: nothing to end: for {machines} it neither waits nor has a grant")
            });
        }
        let whole = self.withdrawn.len() == self.request.outcomes.len();
        Some(if whole {
            format!("request {id}: withdrawn")
        } else {
            format!("request {id}: withdrawn for {}", self.withdrawn.join(", "))
        })
    }

    fn failure(&self) -> Option<Failure> {
        (!self.left.is_empty()).then(|| Failure::NotWithdrawn {
            name: self.request.name.clone(),
            machines: self.left.join(", "),
        })
    }

    /// The request as it is after its grants were ended.
    fn after(mut self, ended: &[GrantRecord]) -> RequestRecord {
        for outcome in &mut self.request.outcomes {
            let Some(grant) = ended.iter().find(|grant| grant.name == outcome.grant) else {
                continue;
            };
            outcome.state = match grant.state {
                GrantState::Ended | GrantState::Closing => OutcomeState::Ended,
                GrantState::Refused => OutcomeState::Refused,
                _ => continue,
            };
            outcome.reason.clone_from(&grant.reason);
            outcome.message.clone_from(&grant.message);
        }
        self.request
    }
}

#[derive(Default, Serialize)]
struct Shown {
    grants: Vec<GrantRecord>,
    access_requests: Vec<RequestRecord>,
    /// What could not be ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorRecord>,
    /// The first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorRecord>,
    /// The same for people.
    #[serde(skip)]
    lines: Vec<String>,
}

impl Shown {
    /// What was done, for those who can't be told the result.
    fn stands(&self) -> Option<String> {
        (!self.lines.is_empty()).then(|| self.lines.join(", "))
    }

    fn fail(&mut self, failure: &Failure) -> Exit {
        output::report(failure);
        self.errors.push(failure.record());
        failure.exit()
    }
}

/// # Errors
/// The result can't be written.
pub(crate) fn show(results: Vec<Result<Ended, Failure>>, output: &Output) -> Result<Exit, Failure> {
    let mut exits = Vec::new();
    let mut shown = Shown::default();
    let mut withdrawals = Vec::new();
    let nothing = results.is_empty();
    for result in results {
        match result {
            Ok(Ended::Grant(grant)) => {
                exits.push(end_verdict(grant.state));
                shown.lines.push(grant_line(&grant));
                shown.grants.push(*grant);
            }
            Ok(Ended::Request(withdrawal)) => withdrawals.push(*withdrawal),
            Err(failure) => exits.push(shown.fail(&failure)),
        }
    }
    for withdrawal in withdrawals {
        exits.extend(withdrawal.failure().map(|failure| shown.fail(&failure)));
        shown.lines.extend(withdrawal.line());
        let request = withdrawal.after(&shown.grants);
        shown.access_requests.push(request);
    }
    shown.error = shown.errors.first().cloned();
    write(&shown, nothing, output)
        .map_err(|failure| failure.or_untold(|| Some((shown.stands()?, SHOWS_GRANTS.to_string()))))?;
    Ok(worst(&exits))
}

fn write(shown: &Shown, nothing: bool, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(shown);
    }
    if nothing {
        output.line("nothing to end: you have neither live grants nor waiting requests there")?;
    }
    for line in &shown.lines {
        output.line(&printable(line))?;
    }
    Ok(())
}

fn grant_line(grant: &GrantRecord) -> String {
    let GrantRecord {
        machine,
        id,
        state,
        message,
        ..
    } = grant;
    match state {
        GrantState::Ended => format!("{machine}: ended ({id})"),
        GrantState::Refused => format!("{machine}: was never open ({id})"),
        _ => format!("{machine}: {message} ({id})"),
    }
}

fn worst(exits: &[Exit]) -> Exit {
    [Exit::Failed, Exit::NotYet]
        .into_iter()
        .find(|exit| exits.contains(exit))
        .unwrap_or(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::OutcomeRecord;

    #[test]
    fn one_failure_outweighs_what_is_pending_and_that_what_is_done() {
        assert_eq!(worst(&[]), Exit::Done);
        assert_eq!(worst(&[Exit::Done, Exit::NotYet]), Exit::NotYet);
        assert_eq!(worst(&[Exit::NotYet, Exit::Failed, Exit::Done]), Exit::Failed);
    }

    fn request(outcomes: Vec<OutcomeRecord>) -> RequestRecord {
        RequestRecord {
            name: "accessRequests/7".to_string(),
            id: "7".to_string(),
            subject: String::new(),
            ports: Vec::new(),
            sources: Vec::new(),
            duration: None,
            end_time: None,
            justification: String::new(),
            create_time: None,
            outcomes,
        }
    }

    #[test]
    fn an_answer_that_does_not_say_that_it_is_withdrawn_is_a_failure() {
        let waits = || OutcomeRecord::example("web-1", OutcomeState::Waiting);
        let odd = OutcomeRecord::example("web-1", OutcomeState::Unknown);
        let other: MachineRef = "web-2".parse().unwrap();
        for (outcomes, machine) in [
            (vec![waits()], None),
            (vec![odd], None),
            (Vec::new(), None),
            (vec![waits()], Some(&other)),
        ] {
            let withdrawal = Withdrawal::new(request(outcomes), machine);
            assert_eq!(withdrawal.line(), None);
            assert_eq!(
                withdrawal.failure().map(|failure| failure.exit()),
                Some(Exit::Failed)
            );
        }
        let refused = OutcomeRecord::example("web-1", OutcomeState::Refused);
        let withdrawal = Withdrawal::new(request(vec![refused]), None);
        assert!(withdrawal.failure().is_none());
        assert!(withdrawal.line().unwrap().contains("nothing to end"));
    }
}
