//! What the enforcer does when nobody speaks: deadlines, the look at the table, marks, what the disk refused.

use std::future::Future;
use std::time::Duration;

use nightlatch_core::ledger::Record;
use nightlatch_core::time::BootTime;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Enforcer, Gate, MARK_INTERVAL};
use crate::causes::causes;
use crate::clock::Clock;
use crate::ledger_file::{RecordSink, snapshot};
use crate::server_link::{FromServer, Taken};

const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Timers don't count suspended time, so none sleeps longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Whom the loop tells that it lives.
pub trait Notices {
    /// Called each time around, at least once a minute.
    fn alive(&self);

    /// Called once, when the table is what it should be for the first time.
    fn in_force(&self);
}

impl<G: Gate, S: RecordSink, C: Clock> Enforcer<G, S, C> {
    /// Runs until `end`. The table stays as it is then.
    pub async fn run(
        mut self,
        mut from_server: mpsc::Receiver<FromServer>,
        notices: impl Notices,
        end: impl Future<Output = ()>,
    ) {
        tokio::pin!(end);
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_in_force = false;
        loop {
            notices.alive();
            if !was_in_force && self.gate_due_at.is_none() {
                was_in_force = true;
                notices.in_force();
            }
            let pause = self.until_next(self.clock.now());
            tokio::select! {
                biased;
                () = &mut end => return,
                // Before the server's words, so that however many there are the table is looked after.
                _ = looks.tick() => self.look(),
                () = sleep(pause) => {}
                Some(word) = from_server.recv() => self.hear(word),
            }
            self.pass();
        }
    }

    fn until_next(&self, now: BootTime) -> Duration {
        let moments = [
            self.ledger.next_deadline(now),
            self.gate_due_at,
            self.ask_whole_at,
        ];
        let next = moments.into_iter().flatten().min();
        next.map_or(LONGEST_SLEEP, |next| next.since(now).min(LONGEST_SLEEP))
    }

    /// What is due by now.
    pub(super) fn pass(&mut self) {
        let now = self.clock.now();
        if self.gate_due_at.is_some_and(|due| due <= now) || !self.ledger.unreported(now).is_empty() {
            self.enforce();
            self.account();
        }
        if self.ask_whole_at.is_some_and(|due| due <= now) {
            self.ask_whole_at = self.stream.is_some().then(|| now.plus(super::WHOLE_PAUSE));
            self.reply(
                self.ledger.generation(),
                Taken::NeedWhole,
                "the host's disk may take a record again",
            );
        }
    }

    /// Looks whether the table is still ours, and after everything else that can go wrong unseen.
    pub(super) fn look(&mut self) {
        let now = self.clock.now();
        match self.gate.is_in_place(now) {
            Ok(true) => {}
            // What failed is tried again anyway.
            Ok(false) if self.gate_due_at.is_some() => {}
            Ok(false) => {
                tracing::error!("the table was changed by others or lags behind; it is made anew");
                self.report_event(
                    "TABLE_REPAIRED",
                    "the table was changed or removed by others and made anew".to_owned(),
                );
                self.rebuild();
            }
            Err(error) => {
                tracing::error!(
                    error = %causes(&error),
                    "the table can't be read; it is made anew"
                );
                self.rebuild();
            }
        }
        self.mend();
        self.account();
        if now.since(self.marked_at) >= MARK_INTERVAL {
            self.mark(now);
        }
    }

    pub(super) fn rebuild(&mut self) {
        let now = self.clock.now();
        let wanted = self.wanted(now);
        let applied = self.gate.rebuild(&wanted, now);
        self.applied(applied, now);
    }

    /// Writes anew what the disk refused or what was damaged.
    pub(super) fn mend(&mut self) {
        if !self.sink.is_sound() {
            let records = snapshot(&self.ledger, &self.time, self.clock.now());
            match self.sink.rewrite(&records) {
                Ok(()) => tracing::info!("the ledger's file was written anew"),
                Err(error) => {
                    tracing::error!(
                        error = %causes(&error),
                        "the ledger's file can't be written"
                    );
                }
            }
        }
        if let Err(error) = self.outbox.retry() {
            tracing::warn!(
                error = %causes(&error),
                "receipts wait for the disk"
            );
        }
    }

    /// While a grant lives, so that after a reboot it has no more than what remained.
    fn mark(&mut self, now: BootTime) {
        self.marked_at = now;
        if self.ledger.held(now).next().is_some()
            && let Some(mark) = self.time.mark(now)
        {
            self.write_or_log(&Record::Marked(mark), true);
        }
    }
}
