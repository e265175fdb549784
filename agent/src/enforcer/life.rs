//! What the enforcer does when nobody speaks: deadlines, the look at the table, marks, waking up, and its end.

use std::future::Future;
use std::time::Duration;

use nightlatch_core::ledger::Record;
use nightlatch_core::time::BootTime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Enforcer, Gate, MARK_INTERVAL};
use crate::alarm::{Alarm, Rang};
use crate::break_glass::watch::FromConsole;
use crate::clock::Clock;
use crate::firewall::Touch;
use crate::server_link::FromServer;
use crate::writer::{Disk, Written};

const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Two clocks that are read one after the other may seem this far apart.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);
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

/// What ends a wait of the loop.
enum Occasion {
    Rang(Rang),
    Touched(Touch),
    Written(Written),
    Opened(FromConsole),
    Heard(FromServer),
}

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    /// Runs until `end`. The table stays as it is then.
    ///
    /// # Errors
    /// Nothing can be written down any more.
    pub async fn run(
        mut self,
        mut from_server: mpsc::Receiver<FromServer>,
        notices: impl Notices,
        mut alarm: impl Alarm,
        end: impl Future<Output = ()>,
    ) -> Result<(), WriterEnded> {
        tokio::pin!(end);
        let mut look_at = self.clock.now();
        let mut was_in_force = false;
        loop {
            notices.alive();
            if !was_in_force && self.gate_due_at.is_none() {
                was_in_force = true;
                notices.in_force();
            }
            let due = self
                .next_moment(self.clock.now())
                .map_or(look_at, |next| next.min(look_at));
            let occasion = tokio::select! {
                biased;
                () = &mut end => break,
                // Before the server's words, so that however many there are the table is looked after.
                rang = alarm.ring(due) => Occasion::Rang(rang),
                Some(touch) = self.touches.recv() => Occasion::Touched(touch),
                written = self.disk.written() => Occasion::Written(written.ok_or(WriterEnded)?),
                Some(word) = self.console.recv() => Occasion::Opened(word),
                Some(word) = from_server.recv() => Occasion::Heard(word),
            };
            self.catch_up();
            match occasion {
                Occasion::Rang(rang) => {
                    let now = self.clock.now();
                    if rang == Rang::ClockSet || look_at <= now {
                        self.look();
                        look_at = now.plus(LOOK_INTERVAL);
                    }
                }
                Occasion::Touched(touch) => self.touched(touch),
                Occasion::Written(written) => self.written(written),
                Occasion::Opened(word) => self.hear_console(word),
                Occasion::Heard(word) => self.hear(word),
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

    pub(super) fn next_moment(&self, now: BootTime) -> Option<BootTime> {
        let moments = [
            self.ledger.next_deadline(now),
            self.gate_due_at,
            self.touch_due_at(),
            self.ledger_lane.due_at(),
            self.receipts_lane.due_at(),
        ];
        moments.into_iter().flatten().min()
    }

    /// Before anything else: while the host slept the kernel's timeouts stood still, so all are written anew.
    pub(super) fn catch_up(&mut self) {
        let reading = self.clock.reading();
        let slept = reading.slept_since(self.awake_since);
        if slept < SHORTEST_SLEEP {
            return;
        }
        self.awake_since = reading;
        tracing::warn!(
            ?slept,
            "the host slept; the kernel is told anew what is left of each opening"
        );
        self.gate.slept(slept);
        self.enforce();
        self.account();
    }

    /// What is due by now.
    pub(super) fn pass(&mut self) {
        let now = self.clock.now();
        if self.touch_due_at().is_some_and(|due| due <= now) {
            self.look_at_table(now);
        }
        if self.gate_due_at.is_some_and(|due| due <= now) || !self.ledger.unreported(now).is_empty() {
            self.enforce();
            self.account();
        }
        self.flush();
    }

    /// Looks whether the table is still ours, and after everything else that can go wrong unseen.
    pub(super) fn look(&mut self) {
        let now = self.clock.now();
        self.look_at_table(now);
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
