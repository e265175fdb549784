//! Access requests: decided, signed, recorded, published; followed until the hosts have confirmed.

mod bounds;
mod deciding;
mod ending;
mod patience;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::assignment::Generation;
use nightlatch_core::audit::{Event, EventKind};
use nightlatch_core::grant::{Authority, Lapsed};
use nightlatch_core::id::{GrantId, RequestId, Subject};
use nightlatch_core::request::Approval;
use nightlatch_core::rights::Caller;
use nightlatch_core::signing;
use nightlatch_core::time::Timestamp;
use nightlatch_proto::convert::access::{Asked, Repeatable};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::deciding::{accept, check_sources, decide_all, deny, described, in_words, listed, resolve};
use crate::audit;
use crate::clock::Clock;
use crate::fleet::{Fleet, News};
use crate::id;
use crate::refusal::{Refusal, lapsed};
use crate::store::grants::State;
use crate::store::machines::Machine;
use crate::store::page::Page;
use crate::store::requests::{Fate, Outcome, Request};
use crate::store::{Change, Store, StoreError, assignments, grants, machines, requests};
use crate::turned_away::{Leave, TurnedAway};

pub use bounds::Bounds;
pub use ending::Whose;
pub use patience::{Patience, waits_until};
pub use waiting::not_lapsed_after;
pub(crate) use waiting::{SIGNED_TOGETHER, Settled, deny_waiting};

/// Decides on requests and issues what was approved.
pub struct Issuer {
    pub store: Store,
    pub fleet: Arc<Fleet>,
    pub authority: Arc<Authority>,
    pub clock: Arc<dyn Clock>,
    pub bounds: Bounds,
    pub patience: Patience,
    /// By who asked: nobody may fill the log, and with it the disk, by asking in vain.
    pub denied: TurnedAway<Subject>,
    /// Nobody is kept waiting then.
    pub stopping: CancellationToken,
}

/// A request that was accepted, and what its machines will say from now on.
pub struct Accepted {
    request: Request,
    news: News,
    /// A grant was signed just now, and no host has had the time to say anything yet.
    awaits_hosts: bool,
}

/// A grant that was signed and recorded.
struct Signed {
    grant: GrantId,
    /// The length of its envelope.
    bytes: u64,
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
                (Fate::Waiting, _) => self.given_up().is_none() && fleet.is_connected(outcome.machine),
                _ => false,
            })
    }

    /// Whether anything but the end may still come.
    pub fn is_open_ended(&self) -> bool {
        self.outcomes
            .iter()
            .any(|outcome| match (&outcome.fate, &outcome.grant) {
                (Fate::Signed(_), Some(grant)) => grant.state(self.at) == State::Opening,
                (Fate::Waiting, _) => self.given_up().is_none(),
                _ => false,
            })
    }

    /// What becomes of all that waits still and can't succeed any more.
    pub fn given_up(&self) -> Option<Fate> {
        waiting::given_up(&self.request, self.at)
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
            repeatable,
        } = asked;
        let sources = check_sources(&wish);
        let request = accept(caller, wish, now);
        let mut change = self.store.change().await?;
        if let Some(repeatable) = &repeatable
            && let Some(earlier) = self.earlier(&mut change, &request, repeatable).await?
        {
            change.commit().await?;
            return Ok(earlier);
        }
        let machines = resolve(&mut change, &named).await?;
        let decided = match decide_all(&machines, &request, &sources, now) {
            Ok(approved) => {
                let full = self.without_room(&mut change, &machines, &request, now).await?;
                if full.is_empty() { Ok(approved) } else { Err(full) }
            }
            Err(denied) => Err(denied),
        };
        match decided {
            Ok(approved) => {
                requests::create(change.connection(), &request, repeatable.as_ref()).await?;
                let signed = self
                    .carry_out(&mut change, caller, &machines, &request, approved, now)
                    .await?;
                // Before anyone can know of it, so that nothing falls between.
                let news = self
                    .fleet
                    .listen(request.id, machines.iter().map(|machine| machine.id));
                change.commit().await?;
                if signed < machines.len() {
                    self.patience.note(&request);
                }
                for machine in &machines {
                    self.fleet.publish(machine.id);
                }
                Ok(Accepted {
                    request,
                    news,
                    awaits_hosts: signed > 0,
                })
            }
            Err(denied) => {
                let leaves = self.record_denials(&mut change, caller, &request, &denied, now);
                change.commit().await?;
                leaves.into_iter().for_each(Leave::written);
                Err(Refusal::Denied(denied))
            }
        }
    }

    /// What a call did that is repeated now.
    async fn earlier(
        &self,
        change: &mut Change,
        asked: &Request,
        repeatable: &Repeatable,
    ) -> Result<Option<Accepted>, Refusal> {
        let earlier = requests::find_repeated(change.connection(), &asked.subject, repeatable.id).await?;
        let Some((request, body)) = earlier else {
            return Ok(None);
        };
        if body != signing::hex(&repeatable.body) {
            return Err(Refusal::RequestIdReused);
        }
        // `me` is another address now, for which the earlier grants open nothing.
        if request.sources != asked.sources {
            return Err(Refusal::AskedFromElsewhere {
                request: request.id,
                sources: listed(&request.sources),
            });
        }
        let outcomes = requests::outcomes(change.connection(), request.id).await?;
        let machines = outcomes.iter().map(|outcome| outcome.machine);
        let news = self.fleet.listen(request.id, machines);
        Ok(Some(Accepted {
            request,
            news,
            awaits_hosts: false,
        }))
    }

    /// Gives for how many machines a grant was signed; the others are away.
    async fn carry_out(
        &self,
        change: &mut Change,
        caller: &Caller,
        machines: &[Machine],
        request: &Request,
        approved: Vec<Approval>,
        now: Timestamp,
    ) -> Result<usize, Refusal> {
        let mut signed_for = 0;
        for ((position, machine), approval) in (0..).zip(machines).zip(approved) {
            let event = audit::by(caller, now, EventKind::AccessRequested, in_words(request));
            let event = described(audit::about(event, machine.id, &machine.name), request);
            change.record(&event, Some(&caller.subject));
            // Asked within the change: a machine that connects later finds the request in the store.
            let fate = if self.fleet.is_connected(machine.id) {
                let generation = next_generation(change, machine, now).await?;
                let signed = self
                    .sign(change, machine, request, approval, generation, now)
                    .await?;
                let signed = signed.map_err(|error| deny(position, machine, lapsed(error, now)))?;
                signed_for += 1;
                Fate::Signed(signed.grant)
            } else {
                let message = format!("{} is away: the grant is signed when it connects", machine.name);
                let event = audit::by(caller, now, EventKind::AccessWaiting, message);
                let mut event = audit::about(event, machine.id, &machine.name);
                event.request = Some(request.id);
                change.record(&event, Some(&caller.subject));
                Fate::Waiting
            };
            requests::add_outcome(change.connection(), request, position, machine.id, &fate).await?;
        }
        Ok(signed_for)
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
    ) -> Result<Result<Signed, Lapsed>, StoreError> {
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
        change.record(&event, Some(&request.subject));
        let bytes = u64::try_from(issued.envelope.as_bytes().len()).unwrap_or(u64::MAX);
        Ok(Ok(Signed { grant: id, bytes }))
    }

    /// How a request stands. Waits until no host may confirm soon, at most `wait`.
    ///
    /// # Errors
    /// A store that doesn't answer.
    pub async fn follow(&self, accepted: Accepted, wait: Duration) -> Result<Standing, Refusal> {
        let Accepted {
            request,
            mut news,
            awaits_hosts,
        } = accepted;
        let deadline = Instant::now() + wait;
        let mut last_look = wait.is_zero();
        if awaits_hosts && !last_look {
            last_look = !self.wait_for(&mut news, deadline).await;
        }
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
            let outcomes = requests::readable_outcomes(&mut connection, request.id).await?;
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
        let machines = standing.outcomes.iter().map(|outcome| outcome.machine);
        self.fleet.listen(standing.request.id, machines)
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
