//! What the enforcer has written, and what follows once it is on disk.

use std::time::Duration;

use nightlatch_core::ledger::Record;

use super::{Enforcer, Fallen, Gate};
use crate::causes::causes;
use crate::clock::Clock;
use crate::frame_file::NotWritten;
use crate::ledger_file::snapshot;
use crate::writer::{Disk, Outcome, Written};

/// A disk that takes longer than this is reported.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    /// For the ledger's file, when its turn comes. Memory has it already.
    pub(super) fn record(&mut self, record: Record, weight: usize, durably: bool) {
        self.ledger_lane.add([record], weight, durably);
    }

    /// Gives the writer what it has time for.
    pub(super) fn flush(&mut self) {
        let now = self.clock.now();
        let (ledger, time, reported) = (&self.ledger, &self.time, &self.reported);
        let all = || {
            let mut records = snapshot(ledger, time, now);
            // Memory knows that these receipts were made, and no disk may have them.
            let unkept = reported.iter().map(|(_, record)| record);
            records
                .iter_mut()
                .for_each(|record| record.leave_out(unkept.clone()));
            records
        };
        if let Some(job) = self.ledger_lane.next(now, ledger.number(), all) {
            self.disk.write_ledger(job);
        }
        let all = || self.outbox.entries();
        if let Some(job) = self.receipts_lane.next(now, self.outbox.last(), all) {
            self.disk.write_receipts(job);
        }
    }

    pub(super) fn is_writing(&self) -> bool {
        !self.ledger_lane.is_idle() || !self.receipts_lane.is_idle()
    }

    /// Takes one word of the writer.
    pub(super) fn written(&mut self, written: Written) {
        let now = self.clock.now();
        match written {
            Written::Ledger(outcome) => {
                let before = self.ledger_lane.durable();
                self.ledger_lane.answered(&outcome, now);
                match outcome.upto {
                    Ok(upto) => self.recorded(upto, before < upto),
                    Err(error) => self.not_recorded(&error),
                }
            }
            Written::Receipts(outcome) => {
                self.receipts_lane.answered(&outcome, now);
                self.receipts_written(outcome);
            }
        }
        self.flush();
    }

    fn recorded(&mut self, upto: u64, is_news: bool) {
        self.is_over("LEDGER_NOT_WRITTEN");
        if !is_news {
            return;
        }
        self.ledger.recorded(upto);
        while let Some((_, given)) = self.giving.pop_front_if(|(number, _)| *number <= upto) {
            self.given = given;
        }
        let mut answers = Vec::new();
        while let Some(taken) = self.unanswered.pop_front_if(|taken| taken.number <= upto) {
            if taken.is_whole {
                self.needs_whole = false;
                if !taken.lacks_policy {
                    self.guarded_meanwhile.clear();
                }
            }
            answers.push(taken);
        }
        self.enforce();
        self.account();
        self.accept(answers);
    }

    fn not_recorded(&mut self, error: &NotWritten) {
        tracing::error!(error = %causes(error), "nothing opens: it can't be written down");
        // No answer yet: a refused server would begin anew with the whole, over and over.
        self.report("LEDGER_NOT_WRITTEN", causes(error).to_string());
    }

    fn receipts_written(&mut self, outcome: Outcome) {
        match outcome.upto {
            Ok(upto) => {
                self.is_over("RECEIPTS_NOT_WRITTEN");
                self.outbox.written(upto);
            }
            Err(error) => {
                tracing::warn!(error = %causes(&error), "receipts wait for the disk");
                self.report("RECEIPTS_NOT_WRITTEN", causes(&error).to_string());
                return;
            }
        }
        let durable = self.receipts_lane.durable();
        while let Some((_, record)) = self.reported.pop_front_if(|(last, _)| *last <= durable) {
            self.ledger.receipts_kept(&record);
            self.record(record, 1, false);
        }
        if matches!(self.fallen, Fallen::Told(last) if last <= durable) {
            self.fallen = Fallen::None;
            self.ledger_lane.lag();
        }
        self.send_receipts();
    }

    /// Says so if the disk doesn't answer. What must close has closed all the same.
    pub(super) fn watch_disk(&mut self) {
        let now = self.clock.now();
        let lanes = [self.ledger_lane.busy_since(), self.receipts_lane.busy_since()];
        let longest = lanes.into_iter().flatten().map(|since| now.since(since)).max();
        let Some(longest) = longest.filter(|longest| *longest >= DISK_PATIENCE) else {
            self.disk_hangs = false;
            return self.is_over("DISK_HANGS");
        };
        let message = format!(
            "the disk has not answered for {} seconds, so nothing opens",
            longest.as_secs()
        );
        // Once: the log may wait for the same disk.
        if !std::mem::replace(&mut self.disk_hangs, true) {
            tracing::error!("{message}");
        }
        self.report("DISK_HANGS", message);
    }
}
