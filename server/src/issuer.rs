//! Access requests: decided, signed, recorded, published; followed until the hosts have confirmed.

mod ending;
mod waiting;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::assignment::Generation;
use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::ceiling::HostCeiling;
use nightlatch_core::grant::{Authority, Lapsed};
use nightlatch_core::id::{GrantId, RequestId};
use nightlatch_core::policy::deny_without_policy;
use nightlatch_core::prefix::Prefix;
use nightlatch_core::request::{Approval, Denial, Span};
use nightlatch_core::rights::Caller;
use nightlatch_core::time::{Timestamp, format_iso8601};
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::access::{Asked, Source, Wish};
use nightlatch_proto::convert::resource::MachineRef;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::clock::Clock;
use crate::fleet::{Fleet, News};
use crate::id;
use crate::refusal::{Denied, Refusal, lapsed};
use crate::store::grants::State;
use crate::store::machines::Machine;
use crate::store::page::Page;
use crate::store::requests::{Fate, Outcome, Request};
use crate::store::{Change, Store, StoreError, assignments, events, grants, machines, requests};

pub use ending::Whose;
pub(crate) use waiting::deny_waiting;
pub use waiting::{WAITS_AT_MOST, not_lapsed_after};

/// Decides on requests and issues what was approved.
pub struct Issuer {
    pub store: Store,
    pub fleet: Arc<Fleet>,
    pub authority: Arc<Authority>,
    pub clock: Arc<dyn Clock>,
    /// Nobody is kept waiting then.
    pub stopping: CancellationToken,
}

/// A request that was accepted, and what its machines will say from now on.
pub struct Accepted {
    request: Request,
    news: News,
}

/// A request, and what became of it so far.
pub struct Standing {
    pub request: Request,
    pub outcomes: Vec<Outcome>,
    /// The moment it stood so.
    pub at: Timestamp,
}

impl Standing {
    /// Whether a host may confirm soon. One that has gone away since may be back in time.
    fn is_moving(&self, fleet: &Fleet) -> bool {
        self.outcomes
            .iter()
            .any(|outcome| match (&outcome.fate, &outcome.grant) {
                (Fate::Signed(_), Some(grant)) => grant.state(self.at) == State::Opening,
                (Fate::Waiting, _) => !self.has_lapsed() && fleet.is_connected(outcome.machine),
                _ => false,
            })
    }

    /// Whether anything but the end may still come.
    pub fn is_open_ended(&self) -> bool {
        self.outcomes
            .iter()
            .any(|outcome| match (&outcome.fate, &outcome.grant) {
                (Fate::Signed(_), Some(grant)) => grant.state(self.at) == State::Opening,
                (Fate::Waiting, _) => !self.has_lapsed(),
                _ => false,
            })
    }

    /// What waits too long for its machine is no longer signed.
    pub fn has_lapsed(&self) -> bool {
        waiting::has_lapsed(&self.request, self.at)
    }
}

impl Issuer {
    /// Decides on a request for all its machines. One denial denies the whole.
    ///
    /// # Errors
    /// Denials, machines that don't exist or are named twice, a store that doesn't answer.
    pub async fn request(&self, caller: &Caller, asked: Asked, now: Timestamp) -> Result<Accepted, Refusal> {
        let Asked {
            machines: named,
            wish,
            wait: _,
        } = asked;
        let request = accept(caller, wish, now);
        let mut change = self.store.change().await?;
        let machines = resolve(&mut change, &named).await?;
        match decide_all(&machines, &request, now) {
            Ok(approved) => {
                self.carry_out(&mut change, caller, &machines, &request, approved, now)
                    .await?;
                change.commit().await?;
                // Listening begins before anyone is told, so that nothing falls between.
                let news = self.fleet.listen(machines.iter().map(|machine| machine.id));
                for machine in &machines {
                    self.fleet.publish(machine.id);
                }
                Ok(Accepted { request, news })
            }
            Err(denied) => {
                record_denials(&mut change, caller, &request, &denied, now).await?;
                change.commit().await?;
                Err(Refusal::Denied(denied))
            }
        }
    }

    async fn carry_out(
        &self,
        change: &mut Change,
        caller: &Caller,
        machines: &[Machine],
        request: &Request,
        approved: Vec<Approval>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        requests::create(change.connection(), request).await?;
        for ((position, machine), approval) in (0..).zip(machines).zip(approved) {
            let event = audit::by(caller, now, EventKind::AccessRequested, in_words(request));
            let event = described(audit::about(event, machine.id, &machine.name), request);
            events::record(change.connection(), &event, Some(&caller.subject)).await?;
            // Asked within the change: a machine that connects later finds the request in the store.
            let fate = if self.fleet.is_connected(machine.id) {
                let generation = next_generation(change, machine, now).await?;
                let signed = self
                    .sign(change, machine, request, approval, generation, now)
                    .await?;
                Fate::Signed(signed.map_err(|error| deny(position, machine, lapsed(error, now)))?)
            } else {
                let message = format!("{} is away: the grant is signed when it connects", machine.name);
                let event = audit::by(caller, now, EventKind::AccessWaiting, message);
                let mut event = audit::about(event, machine.id, &machine.name);
                event.request = Some(request.id);
                events::record(change.connection(), &event, Some(&caller.subject)).await?;
                Fate::Waiting
            };
            requests::add_outcome(change.connection(), request.id, position, machine.id, &fate).await?;
        }
        Ok(())
    }

    /// Signs what was approved and records the grant with its event.
    async fn sign(
        &self,
        change: &mut Change,
        machine: &Machine,
        request: &Request,
        approval: Approval,
        generation: Generation,
        now: Timestamp,
    ) -> Result<Result<GrantId, Lapsed>, StoreError> {
        let id = GrantId::new(id::fresh(now));
        let issued = match self.authority.issue(approval, id, now) {
            Ok(issued) => issued,
            Err(lapsed) => return Ok(Err(lapsed)),
        };
        grants::create(change.connection(), &issued, generation).await?;
        let message = format!("signed until {}", audit::to_the_second(issued.grant.not_after));
        let event = Event::new(now, EventKind::GrantIssued, audit::SERVER.to_owned(), message);
        let mut event = audit::about(event, machine.id, &machine.name);
        event.grant = Some(id);
        event.request = Some(request.id);
        let event = audit::with(event, "ports", listed(&issued.grant.ports));
        let event = audit::with(event, "sources", listed(&issued.grant.sources));
        let event = audit::with(event, "not_after", issued.grant.not_after);
        events::record(change.connection(), &event, Some(&request.subject)).await?;
        Ok(Ok(id))
    }

    /// How a request stands. Waits until no host may confirm soon, at most `wait`.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn follow(&self, accepted: Accepted, wait: Duration) -> Result<Standing, Refusal> {
        let Accepted { request, mut news } = accepted;
        let deadline = Instant::now() + wait;
        let mut last_look = false;
        loop {
            let outcomes = requests::outcomes(&mut *self.store.read().await?, request.id).await?;
            let at = self.clock.now();
            let standing = Standing {
                request: request.clone(),
                outcomes,
                at,
            };
            if last_look || !standing.is_moving(&self.fleet) {
                return Ok(standing);
            }
            last_look = !self.wait_for(&mut news, deadline).await;
        }
    }

    /// How a request stands now.
    ///
    /// # Errors
    /// No such request, a store that doesn't answer.
    pub async fn standing(&self, id: RequestId) -> Result<Standing, Refusal> {
        let mut connection = self.store.read().await?;
        let request = requests::find(&mut connection, id)
            .await?
            .ok_or(Refusal::UnknownRequest(id))?;
        let outcomes = requests::outcomes(&mut connection, id).await?;
        Ok(Standing {
            request,
            outcomes,
            at: self.clock.now(),
        })
    }

    /// Requests as they stand, newest first.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn standings(
        &self,
        filter: &requests::Filter,
        before: Option<RequestId>,
        size: i64,
    ) -> Result<Page<Standing>, Refusal> {
        let mut connection = self.store.read().await?;
        let Page { entries, next } = requests::list(&mut connection, filter, before, size).await?;
        let mut standings = Vec::with_capacity(entries.len());
        for request in entries {
            let outcomes = requests::outcomes(&mut connection, request.id).await?;
            let at = self.clock.now();
            standings.push(Standing {
                request,
                outcomes,
                at,
            });
        }
        Ok(Page {
            entries: standings,
            next,
        })
    }

    /// Changes of a request's machines, from now on.
    pub fn news_of(&self, standing: &Standing) -> News {
        self.fleet
            .listen(standing.outcomes.iter().map(|outcome| outcome.machine))
    }

    /// Whether there was news before the deadline.
    pub async fn wait_for(&self, news: &mut News, deadline: Instant) -> bool {
        tokio::select! {
            () = news.next() => true,
            () = tokio::time::sleep_until(deadline) => false,
            () = self.stopping.cancelled() => false,
        }
    }
}

fn accept(caller: &Caller, wish: Wish, now: Timestamp) -> Request {
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

async fn resolve(change: &mut Change, named: &[MachineRef]) -> Result<Vec<Machine>, Refusal> {
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

fn decide_all(machines: &[Machine], request: &Request, now: Timestamp) -> Result<Vec<Approval>, Vec<Denied>> {
    let mut approved = Vec::with_capacity(machines.len());
    let mut denied = Vec::new();
    for (position, machine) in machines.iter().enumerate() {
        match decide(machine, machine.ceiling(), request, now) {
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

fn decide(
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

fn deny(position: u64, machine: &Machine, denial: Denial) -> Refusal {
    let position = usize::try_from(position).unwrap_or_default();
    Refusal::Denied(vec![Denied {
        position,
        machine: machine.id,
        name: machine.name.clone(),
        denial,
    }])
}

async fn record_denials(
    change: &mut Change,
    caller: &Caller,
    request: &Request,
    denied: &[Denied],
    now: Timestamp,
) -> Result<(), StoreError> {
    for refused in denied {
        let event = audit::by(caller, now, EventKind::AccessDenied, refused.denial.to_string());
        let mut event = described(audit::about(event, refused.machine, &refused.name), request);
        event.reason = Some(refused.denial.reason.code().to_owned());
        // The request isn't kept: nobody could look it up.
        event.request = None;
        let event = audit::with(event, "field", refused.field());
        events::record(change.connection(), &event, Some(&caller.subject)).await?;
    }
    Ok(())
}

/// Begins the next generation of a machine's assignment; what is past leaves with it.
pub(crate) async fn next_generation(
    change: &mut Change,
    machine: &Machine,
    now: Timestamp,
) -> Result<Generation, StoreError> {
    let generation = machine.next_generation(now);
    assignments::drop_past(change.connection(), machine.id, generation, now).await?;
    machines::set_generation(change.connection(), machine.id, generation).await?;
    Ok(generation)
}

/// `22/tcp from 192.0.2.2/32 for PT1H: disk full`
fn in_words(request: &Request) -> String {
    let span = match request.span {
        Span::For(length) => format!("for {}", format_iso8601(length)),
        Span::Until(end) => format!("until {}", audit::to_the_second(end)),
    };
    let (ports, sources) = (listed(&request.ports), listed(&request.sources));
    let justification = request.justification.as_str();
    format!("{ports} from {sources} {span}: {justification}")
}

fn described(mut event: Event, request: &Request) -> Event {
    event.request = Some(request.id);
    let event = audit::with(event, "ports", listed(&request.ports));
    let event = audit::with(event, "sources", listed(&request.sources));
    let event = audit::with(event, "justification", request.justification.as_str());
    match request.span {
        Span::For(length) => audit::with(event, "duration", format_iso8601(length)),
        Span::Until(end) => audit::with(event, "end_time", end),
    }
}

fn listed<T: ToString>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
