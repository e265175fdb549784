//! What root opens on the console: it holds like the host's own file, and the server is told of it.

use tokio::sync::mpsc;

use super::{Enforcer, Gate};
use crate::break_glass::Recorded;
use crate::break_glass::folder::MOST_RECORDS;
use crate::break_glass::watch::FromConsole;
use crate::clock::Clock;
use crate::server_link::ToServer;
use crate::writer::Disk;

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    #[must_use]
    pub fn with_console(mut self, console: mpsc::Receiver<FromConsole>) -> Self {
        self.console = console;
        self
    }

    pub(super) fn hear_console(&mut self, word: FromConsole) {
        match word {
            FromConsole::InForce(held) if held == self.rules.console => {}
            FromConsole::InForce(held) => {
                tracing::warn!(uses = held.len(), "break-glass: what root holds open has changed");
                self.rules.console = held;
                self.enforce();
                self.account();
            }
            FromConsole::Recorded(records) => {
                for record in records {
                    self.recorded_on_console(record);
                }
            }
            FromConsole::Refused(why) => {
                tracing::error!(why, "a record of break-glass opens nothing");
                self.report_event("BREAK_GLASS_REFUSED", why);
            }
        }
        self.flush();
    }

    fn recorded_on_console(&mut self, record: Recorded) {
        let (id, word) = (record.used.id, ToServer::BreakGlass(Box::new(record.clone())));
        if self.recorded.insert(id, record).is_some() {
            return;
        }
        if self.recorded.len() > MOST_RECORDS {
            self.recorded.pop_first();
        }
        self.say(word);
    }

    /// On each connection: the server knows by their ids which of them it has.
    pub(super) fn tell_console(&mut self) {
        let recorded: Vec<Recorded> = self.recorded.values().cloned().collect();
        for record in recorded {
            self.say(ToServer::BreakGlass(Box::new(record)));
        }
    }
}
