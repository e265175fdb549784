//! What the enforcer tells the server: receipts, reports and replies. None of it holds up an enforcement step.

use nightlatch_core::assignment::Generation;
use nightlatch_core::id::GrantId;
use nightlatch_core::ledger::{Change, Closing, Unreported};
use nightlatch_core::receipt::{Done, Happening};
use nightlatch_core::time::Timestamp;

use super::taking::Unanswered;
use super::{BATCH, Enforcer, Fallen, Gate, MOST_REPORTS, WINDOW};
use crate::clock::Clock;
use crate::server_link::{Report, Taken, ToServer};
use crate::writer::Disk;

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    /// The whole names refused grants again; one receipt is enough for each reason.
    pub(super) fn newly_refused(&self, change: &Change) -> Vec<Happening> {
        let Some(at) = self.best_time() else {
            return Vec::new();
        };
        let refused = change.refused().iter();
        let refused = refused.filter(|(id, rejected)| self.ledger.refused_as(*id) != Some(rejected.code()));
        refused
            .map(|(id, rejected)| {
                tracing::warn!(grant = %id, code = rejected.code(), %rejected, "refused");
                Happening {
                    grant: *id,
                    event: Done::Refused,
                    at,
                    reason: rejected.code().to_owned(),
                }
            })
            .collect()
    }

    /// Makes the receipts that are due. None says `opened` before the firewall has done it, and none is made
    /// before the server was heard: until then the wall clock may close too early.
    pub(super) fn account(&mut self) {
        let (Some(at), Some(applied_at), None) = (self.best_time(), self.applied_at, self.gate_due_at) else {
            return;
        };
        let mut unreported = self.ledger.unreported(applied_at);
        // What the server is told must not come back after a crash.
        let durable = self.ledger_lane.durable();
        let closed = self.closed.extract_if(.., |(.., number)| *number <= durable);
        let closed: Vec<_> = closed.map(|(id, reason, _)| (id, reason)).collect();
        let removed: Vec<GrantId> = closed.iter().map(|(id, _)| *id).collect();
        let is_untold = |id: &&GrantId| self.ledger.is_opening_untold(**id);
        let untold: Vec<GrantId> = removed.iter().filter(is_untold).copied().collect();
        let expired = unreported.closed.iter().map(|id| (*id, Closing::Expired.code()));
        // An opening comes before its end.
        let mut happenings: Vec<Happening> = untold.iter().map(|grant| opened(*grant, at)).collect();
        happenings.extend(closed.into_iter().map(|(id, why)| self::closed(id, why, at)));
        happenings.extend(unreported.opened.iter().map(|grant| opened(*grant, at)));
        happenings.extend(expired.map(|(id, why)| self::closed(id, why, at)));
        let owed = std::mem::take(&mut self.owed_refusals);
        unreported.refused.extend(owed.iter().map(|(id, _)| *id));
        happenings.extend(owed.into_iter().map(|(grant, reason)| Happening {
            grant,
            event: Done::Refused,
            at,
            reason,
        }));
        self.add_receipts(happenings);
        unreported.opened.extend(untold);
        unreported.closed.extend(removed);
        self.note(unreported);
        if self.fallen == Fallen::Untold {
            self.fallen = Fallen::Told(self.outbox.last());
        }
        self.settle();
    }

    /// For the ledger's file once the receipts that were made last are on disk.
    pub(super) fn note(&mut self, reported: Unreported) {
        if reported.is_empty() {
            return;
        }
        let mut record = self.ledger.reported(reported);
        if self.reported.len() >= MOST_REPORTS
            && let Some((_, earlier)) = self.reported.pop_back()
        {
            record.add_reports(earlier);
        }
        self.reported.push_back((self.outbox.last(), record));
    }

    pub(super) fn add_receipts(&mut self, happenings: Vec<Happening>) {
        if happenings.is_empty() {
            return;
        }
        let weight = happenings.len();
        match self.outbox.add(happenings) {
            Some(entries) => {
                let must_be_on_disk = self.outbox.last() > self.given;
                self.receipts_lane.add(entries, weight, must_be_on_disk);
            }
            None => self.receipts_lane.lag(),
        }
    }

    pub(super) fn receipts_stored(&mut self, sequence: u64) {
        if let Some(stream) = self.stream.as_mut() {
            while stream.on_the_way.pop_front_if(|last| *last <= sequence).is_some() {}
        }
        if let Some(done) = self.outbox.stored(sequence) {
            self.receipts_lane.add([done], 1, false);
        }
        self.settle();
        self.send_receipts();
    }

    pub(super) fn send_receipts(&mut self) {
        while let Some(stream) = self
            .stream
            .as_mut()
            .filter(|stream| stream.on_the_way.len() < WINDOW)
        {
            let Some((last, envelopes)) = self.outbox.sendable(stream.sent, BATCH) else {
                break;
            };
            stream.sent = last;
            stream.on_the_way.push_back(last);
            self.say(ToServer::Receipts(envelopes));
        }
    }

    /// The records of these are on disk.
    pub(super) fn accept(&mut self, taken: Vec<Unanswered>) {
        for Unanswered { generation, .. } in taken {
            self.reply(generation, Taken::Accepted, "");
            if let Some(stream) = self.stream.as_mut() {
                stream.unsettled = Some(generation);
            }
        }
        self.settle();
    }

    /// Tells the server once it has stored all that there is to say of what was taken: else it would take what
    /// receipts still say was open for never opened.
    pub(super) fn settle(&mut self) {
        let durable = self.ledger_lane.durable();
        let owes =
            self.closed.iter().any(|(.., number)| *number <= durable) || !self.owed_refusals.is_empty();
        while let Some(stream) = self.stream.as_mut() {
            if stream.settling.is_none() && !owes {
                let last = self.outbox.last();
                stream.settling = stream.unsettled.take().map(|generation| (last, generation));
            }
            let stored = self.outbox.stored_upto();
            let Some((_, generation)) = stream.settling.take_if(|(last, _)| *last <= stored) else {
                return;
            };
            // After a theft generations begin anew, and a number of before would be taken for a later one.
            if generation <= self.ledger.generation() {
                self.say(ToServer::Settled(generation));
            }
        }
    }

    /// The host's best knowledge of true time, once the server was heard in this boot.
    pub(super) fn best_time(&self) -> Option<Timestamp> {
        let now = self.clock.now();
        self.time.latest(now).and_then(|_| self.time.earliest(now))
    }

    pub(super) fn report(&mut self, code: &'static str, message: String) {
        // A failure that lasts is said once per connection, not with each try.
        let is_said = self
            .stream
            .as_ref()
            .is_some_and(|stream| stream.said.contains(code));
        if !is_said {
            self.report_event(code, message);
        }
    }

    /// Of what each time is news.
    pub(super) fn report_event(&mut self, code: &'static str, message: String) {
        if self.reports.iter().any(|(known, ..)| *known == code) {
            return;
        }
        if self.reports.len() >= MOST_REPORTS {
            self.reports.pop_front();
        }
        let at = self.time.earliest(self.clock.now());
        self.reports.push_back((code, message, at));
        self.send_reports();
    }

    /// The next failure of the kind is another one.
    pub(super) fn is_over(&mut self, code: &str) {
        if let Some(stream) = self.stream.as_mut() {
            stream.said.remove(code);
        }
    }

    pub(super) fn forget_said_but(&mut self, lasting: &[&str]) {
        if let Some(stream) = self.stream.as_mut() {
            stream.said.retain(|code| lasting.contains(code));
        }
    }

    pub(super) fn send_reports(&mut self) {
        if self.stream.is_none() {
            return;
        }
        let given_up = self.outbox.take_given_up();
        if given_up > 0 {
            let message = format!("{given_up} receipts were given up: the host could not keep more");
            self.reports.push_back(("RECEIPTS_GIVEN_UP", message, None));
        }
        while let Some((code, message, at)) = self.reports.pop_front() {
            let time = at.unwrap_or_else(|| self.clock.wall());
            let report = Report {
                code,
                message: message.clone(),
                time,
            };
            self.say(ToServer::Report(report));
            let Some(stream) = self.stream.as_mut() else {
                self.reports.push_front((code, message, Some(time)));
                return;
            };
            stream.said.insert(code);
        }
    }

    pub(super) fn reply(&mut self, generation: Generation, taken: Taken, message: &str) {
        self.say(ToServer::Reply {
            generation,
            taken,
            message: message.to_owned(),
        });
    }

    /// Never waits: a stream that takes nothing more is given up, and the link makes another.
    pub(super) fn say(&mut self, word: ToServer) {
        let Some(stream) = &self.stream else { return };
        if let Err(error) = stream.to_server.try_send(word) {
            tracing::debug!(%error, "the stream is given up");
            self.stream = None;
        }
    }
}

fn opened(grant: GrantId, at: Timestamp) -> Happening {
    tracing::info!(%grant, "opened");
    Happening {
        grant,
        event: Done::Opened,
        at,
        reason: String::new(),
    }
}

fn closed(grant: GrantId, reason: &str, at: Timestamp) -> Happening {
    tracing::info!(%grant, reason, "closed");
    Happening {
        grant,
        event: Done::Closed,
        at,
        reason: reason.to_owned(),
    }
}
