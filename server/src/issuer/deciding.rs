//! What is asked for, of which machines, and what the policies say to it.

use std::collections::BTreeSet;

use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::ceiling::HostCeiling;
use nightlatch_core::id::RequestId;
use nightlatch_core::policy::{check_given, deny_without_policy};
use nightlatch_core::prefix::Prefix;
use nightlatch_core::request::{Approval, Denial, Span};
use nightlatch_core::rights::Caller;
use nightlatch_core::time::{Timestamp, format_iso8601};
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::access::{Source, Wish};
use nightlatch_proto::convert::resource::MachineRef;

use super::Issuer;
use crate::refusal::{Denied, Refusal};
use crate::store::machines::Machine;
use crate::store::requests::Request;
use crate::store::{Change, machines};
use crate::turned_away::Leave;
use crate::{audit, id};

pub(super) fn accept(caller: &Caller, wish: Wish, now: Timestamp) -> Request {
    let Wish {
        ports,
        sources,
        span,
        justification,
    } = wish;
    let source = |source| match source {
        Source::Caller => Prefix::from(caller.address),
        Source::Prefix(prefix) => prefix,
    };
    Request {
        id: RequestId::new(id::fresh(now)),
        subject: caller.subject.clone(),
        created_at: now,
        ports,
        sources: sources.into_iter().map(source).collect(),
        span,
        justification,
    }
}

pub(super) async fn resolve(change: &mut Change, named: &[MachineRef]) -> Result<Vec<Machine>, Refusal> {
    let mut machines = Vec::with_capacity(named.len());
    let mut ids = BTreeSet::new();
    for (position, which) in named.iter().enumerate() {
        let field = format!("machines[{position}]");
        let machine = machines::find(change.connection(), which)
            .await?
            .filter(|machine| !machine.is_retired);
        let Some(machine) = machine else {
            return Err(Refusal::UnknownMachine {
                field,
                machine: which.clone(),
            });
        };
        if !ids.insert(machine.id) {
            let reason = format_args!("the machine {} is named twice", machine.name);
            return Err(InvalidField::new(field, reason).into());
        }
        machines.push(machine);
    }
    Ok(machines)
}

/// Whether all that was given as sources can be one.
pub(super) fn check_sources(wish: &Wish) -> Result<(), Denial> {
    let given = wish.sources.iter().enumerate();
    check_given(given.filter_map(|(position, source)| match source {
        Source::Caller => None,
        Source::Prefix(prefix) => Some((position, *prefix)),
    }))
}

pub(super) fn decide_all(
    machines: &[Machine],
    request: &Request,
    sources: &Result<(), Denial>,
    now: Timestamp,
) -> Result<Vec<Approval>, Vec<Denied>> {
    let mut approved = Vec::with_capacity(machines.len());
    let mut denied = Vec::new();
    for (position, machine) in machines.iter().enumerate() {
        let sources = sources.clone();
        match sources.and_then(|()| decide(machine, machine.ceiling(), request, now)) {
            Ok(approval) => approved.push(approval),
            Err(denial) => {
                denied.push(Denied {
                    position,
                    machine: machine.id,
                    name: machine.name.clone(),
                    denial,
                });
            }
        }
    }
    if denied.is_empty() {
        Ok(approved)
    } else {
        Err(denied)
    }
}

pub(super) fn decide(
    machine: &Machine,
    ceiling: HostCeiling<'_>,
    request: &Request,
    now: Timestamp,
) -> Result<Approval, Denial> {
    match &machine.policy {
        None => Err(deny_without_policy(machine.name.clone())),
        Some(policy) => policy.decide(request.on(machine.id), ceiling, now),
    }
}

pub(super) fn deny(position: u64, machine: &Machine, denial: Denial) -> Refusal {
    let position = usize::try_from(position).unwrap_or_default();
    Refusal::Denied(vec![Denied {
        position,
        machine: machine.id,
        name: machine.name.clone(),
        denial,
    }])
}

impl Issuer {
    /// Writes denials down, within bounds, and gives what to hold until they are on disk.
    pub(super) fn record_denials(
        &self,
        change: &mut Change,
        caller: &Caller,
        request: &Request,
        denied: &[Denied],
        now: Timestamp,
    ) -> Vec<Leave<'_>> {
        let mut leaves = Vec::new();
        for refused in denied {
            let Some(leave) = self.denied.note(caller.subject.clone(), now) else {
                continue;
            };
            let message = shortened(refused.denial.to_string());
            let event = audit::by(caller, now, EventKind::AccessDenied, message);
            let event = audit::about(event, refused.machine, &refused.name);
            let mut event = leave.told_in(described(event, request));
            event.reason = Some(refused.denial.reason.code().to_owned());
            // The request isn't kept: nobody could look it up.
            event.request = None;
            for value in event.details.values_mut() {
                *value = shortened(std::mem::take(value));
            }
            let event = audit::with(event, "field", refused.field());
            change.record(&event, Some(&caller.subject));
            leaves.push(leave);
        }
        leaves
    }
}

/// About as long as an answer has it.
fn shortened(mut text: String) -> String {
    const MOST_CHARACTERS: usize = 500;
    if let Some((end, _)) = text.char_indices().nth(MOST_CHARACTERS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// `22/tcp from 192.0.2.2/32 for PT1H: disk full`
pub(super) fn in_words(request: &Request) -> String {
    let span = match request.span {
        Span::For(length) => format!("for {}", format_iso8601(length)),
        Span::Until(end) => format!("until {}", audit::to_the_second(end)),
    };
    let (ports, sources) = (listed(&request.ports), listed(&request.sources));
    let justification = request.justification.as_str();
    format!("{ports} from {sources} {span}: {justification}")
}

pub(super) fn described(mut event: Event, request: &Request) -> Event {
    event.request = Some(request.id);
    let event = audit::with(event, "ports", listed(&request.ports));
    let event = audit::with(event, "sources", listed(&request.sources));
    let event = audit::with(event, "justification", request.justification.as_str());
    match request.span {
        Span::For(length) => audit::with(event, "duration", format_iso8601(length)),
        Span::Until(end) => audit::with(event, "end_time", end),
    }
}

pub(super) fn listed<T: ToString>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
