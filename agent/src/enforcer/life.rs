//! What the enforcer does when nobody speaks: deadlines, the look at the table, marks, and its end.

use std::future::Future;
use std::time::Duration;

use nightlatch_core::ledger::Record;
use nightlatch_core::time::BootTime;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{Enforcer, Gate, MARK_INTERVAL};
use crate::causes::causes;
use crate::clock::Clock;
use crate::server_link::FromServer;
use crate::writer::Disk;

const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Timers don't count suspended time, so none sleeps longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// What the disk has for what is still to be written when the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Whom the loop tells that it lives.
pub trait Notices {
    /// Called each time around: while nothing happens, each 5 s.
    fn alive(&self);

    /// Called once, when the table is what it should be for the first time.
    fn in_force(&self);
}

/// The thread that writes the files is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing is written any more: start the agent again")]
pub struct WriterEnded;

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    /// Runs until `end`. The table stays as it is then.
    ///
    /// # Errors
    /// Nothing can be written down any more.
    pub async fn run(
        mut self,
        mut from_server: mpsc::Receiver<FromServer>,
        notices: impl Notices,
        end: impl Future<Output = ()>,
    ) -> Result<(), WriterEnded> {
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
                () = &mut end => break,
                // Before the server's words, so that however many there are the table is looked after.
                _ = looks.tick() => self.look(),
                () = sleep(pause) => {}
                written = self.disk.written() => self.written(written.ok_or(WriterEnded)?),
                Some(word) = from_server.recv() => self.hear(word),
            }
            self.pass();
        }
        drop(timeout(LAST_WORDS, self.finish()).await);
        Ok(())
    }

    async fn finish(&mut self) {
        self.hurry();
        while self.is_writing() {
            let Some(written) = self.disk.written().await else {
                return;
            };
            self.written(written);
            self.hurry();
        }
    }

    /// Nothing waits in the kernel's memory for later.
    fn hurry(&mut self) {
        let now = self.clock.now();
        self.ledger_lane.hurry(now);
        self.receipts_lane.hurry(now);
        self.flush();
    }

    fn until_next(&self, now: BootTime) -> Duration {
        let moments = [
            self.ledger.next_deadline(now),
            self.gate_due_at,
            self.ledger_lane.due_at(),
            self.receipts_lane.due_at(),
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
        self.flush();
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
        self.account();
        self.watch_disk();
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

    /// While a grant lives, so that after a reboot it has no more than what remained, and once after its end.
    fn mark(&mut self, now: BootTime) {
        let before = std::mem::replace(&mut self.marked_at, now);
        if self.ledger.held(before).next().is_some()
            && let Some(mark) = self.time.mark(now)
        {
            self.record(Record::Marked(mark), 1, true);
        }
    }
}
