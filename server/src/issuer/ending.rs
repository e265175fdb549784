//! Ending grants before their time: a revoke is an assignment that lacks the grant.

use std::time::Duration;

use nightlatch_core::audit::EventKind;
use nightlatch_core::id::GrantId;
use nightlatch_core::rights::{Caller, Permission};
use nightlatch_core::time::Timestamp;
use tokio::time::Instant;

use super::{Issuer, next_generation};
use crate::audit;
use crate::refusal::Refusal;
use crate::store::grants::{self, Ended, Listed, State};
use crate::store::machines;

/// Whose grants may be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Own,
    Anyones,
}

impl Issuer {
    /// Takes a grant out of its machine's assignment. Ended already, it stays as it is.
    ///
    /// # Errors
    /// No such grant, someone else's, a store that doesn't answer.
    pub async fn end(
        &self,
        caller: &Caller,
        id: GrantId,
        whose: Whose,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut change = self.store.change().await?;
        let grant = grants::find(change.connection(), id)
            .await?
            .ok_or(Refusal::UnknownGrant(id))?;
        let is_own = grant.subject == caller.subject;
        if whose == Whose::Own && !is_own {
            return Err(Refusal::NotYours {
                needed: Permission::RevokeGrants,
            });
        }
        match grant.state(now) {
            State::Opening | State::Open => {}
            State::Closing => {
                change.commit().await?;
                // Whoever repeats it wants the host to hear of it.
                self.fleet.publish(grant.machine);
                return Ok(());
            }
            State::Refused | State::Ended => return Ok(change.commit().await?),
        }
        let machine = machines::by_id(change.connection(), grant.machine).await?;
        let generation = next_generation(&mut change, &machine, now).await?;
        let reason = if is_own { "DONE" } else { "REVOKED" };
        let ended = Ended {
            at: now,
            by: audit::person(caller),
            reason: reason.to_owned(),
        };
        grants::end(change.connection(), id, &ended, generation).await?;
        let until = audit::to_the_second(grant.not_after);
        let message = format!("ended early by {}, until {until} otherwise", caller.subject);
        let event = audit::by(caller, now, EventKind::GrantRevoked, message);
        let mut event = audit::about(event, machine.id, &machine.name);
        event.grant = Some(id);
        event.request = Some(grant.request);
        event.reason = Some(reason.to_owned());
        change.record(&event, Some(&grant.subject));
        change.commit().await?;
        self.fleet.tell_of(&[grant.request]);
        self.fleet.publish(machine.id);
        Ok(())
    }

    /// Waits until the host has confirmed the end, at most `wait`, and gives the grant as it is then.
    ///
    /// # Errors
    /// No such grant, a store that doesn't answer.
    pub async fn follow_end(&self, id: GrantId, wait: Duration) -> Result<(Listed, Timestamp), Refusal> {
        let deadline = Instant::now() + wait;
        let mut news = None;
        loop {
            let listed = self.grant(id).await?;
            let now = self.clock.now();
            let machine = listed.grant.machine;
            if listed.grant.state(now) != State::Closing || !self.fleet.is_connected(machine) {
                return Ok((listed, now));
            }
            let Some(news) = &mut news else {
                news = Some(self.fleet.listen(listed.grant.request, [machine]));
                continue;
            };
            if !self.wait_for(news, deadline).await {
                return Ok((self.grant(id).await?, self.clock.now()));
            }
        }
    }

    /// A grant with all that is shown of it.
    ///
    /// # Errors
    /// No such grant, a store that doesn't answer.
    pub async fn grant(&self, id: GrantId) -> Result<Listed, Refusal> {
        let mut connection = self.store.read().await?;
        grants::show(&mut connection, id)
            .await?
            .ok_or(Refusal::UnknownGrant(id))
    }
}
