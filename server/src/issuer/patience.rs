//! Giving up what waits for its machine the moment that it can't succeed any more, whoever connects then.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nightlatch_core::id::RequestId;
use nightlatch_core::request::Span;
use nightlatch_core::time::Timestamp;
use tokio::sync::Notify;
use tracing::warn;

use super::Issuer;
use super::waiting::{WAITS_AT_MOST, given_up, settle};
use crate::causes::in_one_line;
use crate::store::requests::{Fate, Outcome, Request};
use crate::store::{Change, StoreError, requests};

/// The wall clock may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// After a store that didn't answer.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Requests that one change gives up, and that one look at the store finds.
const MOST_TOGETHER: usize = 64;

/// Until when a request can wait for its machines.
pub fn waits_until(request: &Request) -> Timestamp {
    let a_day = request.created_at.checked_add(WAITS_AT_MOST);
    let a_day = a_day.unwrap_or(request.created_at);
    match request.span {
        Span::Until(end) => end.min(a_day),
        Span::For(_) => a_day,
    }
}

/// Which requests wait until when, soonest first. Those that were settled otherwise stay until then: each is far
/// smaller than what the store keeps of it.
#[derive(Default)]
pub struct Patience {
    waiting: Mutex<BTreeSet<(Timestamp, RequestId)>>,
    sooner: Notify,
}

impl Patience {
    pub(super) fn note(&self, request: &Request) {
        let entry = (waits_until(request), request.id);
        let mut waiting = self.waiting();
        waiting.insert(entry);
        if waiting.first() == Some(&entry) {
            self.sooner.notify_one();
        }
    }

    /// Takes some of those that have waited long enough.
    fn take_past(&self, now: Timestamp) -> Vec<(Timestamp, RequestId)> {
        let mut waiting = self.waiting();
        let past = waiting.iter().take_while(|(until, _)| *until <= now);
        let past: Vec<_> = past.take(MOST_TOGETHER).copied().collect();
        for entry in &past {
            waiting.remove(entry);
        }
        past
    }

    fn put_back(&self, entries: Vec<(Timestamp, RequestId)>) {
        self.waiting().extend(entries);
    }

    fn next(&self) -> Option<Timestamp> {
        self.waiting().first().map(|(until, _)| *until)
    }

    /// Holds no lock that a panic could leave half-done: each use is one step.
    fn waiting(&self) -> MutexGuard<'_, BTreeSet<(Timestamp, RequestId)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer {
    /// Gives up what waits, each at its time, until the server stops.
    pub async fn give_up_in_time(&self) {
        let mut is_recalled = false;
        while !self.stopping.is_cancelled() {
            let pause = match self.give_up_past(&mut is_recalled).await {
                Ok(()) => {
                    let next = self.patience.next();
                    next.map_or(LOOK_AGAIN, |next| next.since(self.clock.now()).min(LOOK_AGAIN))
                }
                Err(error) => {
                    warn!(error = %in_one_line(&error), "what has waited too long can't be given up yet");
                    TRY_AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.patience.sooner.notified() => {}
                () = self.stopping.cancelled() => {}
            }
        }
    }

    async fn give_up_past(&self, is_recalled: &mut bool) -> Result<(), StoreError> {
        if !*is_recalled {
            self.recall().await?;
            *is_recalled = true;
        }
        loop {
            let now = self.clock.now();
            let past = self.patience.take_past(now);
            if past.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.give_up(&past, now).await {
                self.patience.put_back(past);
                return Err(error);
            }
        }
    }

    /// Learns what has waited since before the server was started.
    async fn recall(&self) -> Result<(), StoreError> {
        let mut last = String::new();
        loop {
            let mut connection = self.store.read().await?;
            let found = requests::waiting(&mut connection, &last, MOST_TOGETHER).await?;
            drop(connection);
            let Some((newest, _)) = found.last() else {
                return Ok(());
            };
            last.clone_from(newest);
            for (id, request) in found {
                match request {
                    Ok(request) => self.patience.note(&request),
                    Err(error) => pass_over(&id, error)?,
                }
            }
        }
    }

    async fn give_up(&self, past: &[(Timestamp, RequestId)], now: Timestamp) -> Result<(), StoreError> {
        let mut connection = self.store.read().await?;
        let mut waiting = Vec::new();
        for (_, id) in past {
            match requests::outcomes(&mut connection, *id).await {
                Ok(outcomes) if outcomes.iter().any(is_waiting) => waiting.push(*id),
                Ok(_settled) => {}
                Err(error) => pass_over(&id.to_string(), error)?,
            }
        }
        drop(connection);
        if waiting.is_empty() {
            return Ok(());
        }
        let mut change = self.store.change().await?;
        for id in &waiting {
            if let Err(error) = settle_past(&mut change, *id, now).await {
                pass_over(&id.to_string(), error)?;
            }
        }
        change.commit().await?;
        self.fleet.tell_of(&waiting);
        Ok(())
    }
}

fn is_waiting(outcome: &Outcome) -> bool {
    outcome.fate == Fate::Waiting
}

/// All is read before anything is written, so that what can't be read leaves nothing half-done.
async fn settle_past(change: &mut Change, id: RequestId, now: Timestamp) -> Result<(), StoreError> {
    let Some(request) = requests::find(change.connection(), id).await? else {
        return Ok(());
    };
    let Some(fate) = given_up(&request, now) else {
        return Ok(());
    };
    let outcomes = requests::outcomes(change.connection(), id).await?;
    for Outcome {
        machine,
        machine_name,
        ..
    } in outcomes.iter().filter(|outcome| is_waiting(outcome))
    {
        settle(change, (*machine, machine_name), &request, &fate, now).await?;
    }
    Ok(())
}

/// What can't be read now can't be read later, and must not keep the rest.
fn pass_over(id: &str, error: StoreError) -> Result<(), StoreError> {
    if error.is_damage() {
        warn!(request = %id, error = %in_one_line(&error), "a request can't be read, so it is never given up");
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u128, created_at: &str, span: Span) -> Request {
        Request {
            id: RequestId::new(uuid::Uuid::from_u128(number)),
            subject: "alice".parse().unwrap(),
            created_at: created_at.parse().unwrap(),
            ports: Vec::new(),
            sources: Vec::new(),
            span,
            justification: "disk full".to_owned().try_into().unwrap(),
        }
    }

    #[test]
    fn a_request_waits_until_its_end_and_no_longer_than_a_day() {
        let noon = "2026-11-22T12:00:00Z";
        let until = |end: &str| waits_until(&request(1, noon, Span::Until(end.parse().unwrap()))).to_string();
        let tomorrow = "2026-11-23T12:00:00Z".parse::<Timestamp>().unwrap();
        let one = "2026-11-22T13:00:00Z".parse::<Timestamp>().unwrap();
        assert_eq!(until("2026-11-22T13:00:00Z"), one.to_string());
        assert_eq!(until("2026-11-24T13:00:00Z"), tomorrow.to_string());
        let hour = Span::For(Duration::from_secs(3600));
        assert_eq!(waits_until(&request(1, noon, hour)), tomorrow);
    }

    #[test]
    fn what_is_past_is_taken_soonest_first_and_once() {
        let patience = Patience::default();
        let noon = "2026-11-22T12:00:00Z";
        for (number, end) in [(1, "2026-11-22T12:30:00Z"), (2, "2026-11-22T12:10:00Z")] {
            patience.note(&request(number, noon, Span::Until(end.parse().unwrap())));
        }
        let at = |text: &str| patience.take_past(text.parse().unwrap());
        assert!(at("2026-11-22T12:09:59Z").is_empty());
        let first = at("2026-11-22T12:10:00Z");
        assert_eq!(first.len(), 1);
        assert!(at("2026-11-22T12:10:00Z").is_empty());
        patience.put_back(first);
        assert_eq!(at("2026-11-22T13:00:00Z").len(), 2);
        assert_eq!(patience.next(), None);
    }
}
