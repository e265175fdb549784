//! What root has recorded reaches the running agent: looked for twice a second, away from the loop that enforces.

use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::Duration;

use nightlatch_core::break_glass::{Limits, VerifiedBreakGlass};
use nightlatch_core::id::BreakGlassId;
use tokio::sync::mpsc;

use super::folder::{Folder, Folders, Recorded};
use crate::causes::causes;
use crate::clock::Clock;

const PAUSE: Duration = Duration::from_millis(500);
const QUEUE: usize = 16;

/// What the console tells the enforcer.
#[derive(Debug)]
pub enum FromConsole {
    /// All that root has opened and still holds.
    InForce(Vec<VerifiedBreakGlass>),
    /// For the server, whether they hold or not.
    Recorded(Vec<Recorded>),
    /// A record that opens nothing, and why.
    Refused(String),
}

/// `known` is what the enforcer starts with.
///
/// # Errors
/// There is no thread to look with.
pub fn watch_records(
    folders: Folders,
    limits: Limits,
    known: Vec<VerifiedBreakGlass>,
    clock: impl Clock + Send + 'static,
) -> io::Result<mpsc::Receiver<FromConsole>> {
    let (to_enforcer, from_console) = mpsc::channel(QUEUE);
    let Folders { live, lasting, .. } = folders;
    let later = to_enforcer.clone();
    thread::Builder::new().spawn(move || {
        let mut watch = Watch {
            live,
            limits,
            known,
            recorded: BTreeSet::new(),
            refused: BTreeSet::new(),
            clock,
            to_enforcer,
        };
        while watch.look().is_some() {
            thread::sleep(PAUSE);
        }
    })?;
    // Its disk may never answer.
    thread::Builder::new().spawn(move || match lasting.read() {
        Ok(found) if found.records.is_empty() => {}
        // Whoever doesn't listen any more has ended.
        Ok(found) => drop(later.blocking_send(FromConsole::Recorded(found.records))),
        Err(error) => {
            tracing::warn!(error = %causes(&error), "what break-glass opened in earlier boots is not told");
        }
    })?;
    Ok(from_console)
}

struct Watch<C> {
    live: Folder,
    limits: Limits,
    known: Vec<VerifiedBreakGlass>,
    recorded: BTreeSet<BreakGlassId>,
    refused: BTreeSet<String>,
    clock: C,
    to_enforcer: mpsc::Sender<FromConsole>,
}

impl<C: Clock> Watch<C> {
    /// `None` once nobody listens any more.
    fn look(&mut self) -> Option<()> {
        let found = match self.live.read() {
            Ok(found) => found,
            Err(error) => {
                self.refuse(causes(&error).to_string())?;
                return self.hold(Vec::new());
            }
        };
        let (held, why_not) = found.in_force(&self.limits, self.clock.boot());
        self.hold(held)?;
        for (name, why) in &found.refused {
            self.refuse(format!("{name}: {}", causes(why)))?;
        }
        for (used, why) in why_not {
            self.refuse(format!("{}: {why}", used.id))?;
        }
        let is_new = |record: &Recorded| !self.recorded.contains(&record.used.id);
        let new: Vec<Recorded> = found
            .records
            .iter()
            .filter(|record| is_new(record))
            .cloned()
            .collect();
        self.recorded = found.records.iter().map(|record| record.used.id).collect();
        if new.is_empty() {
            return Some(());
        }
        self.tell(FromConsole::Recorded(new))
    }

    fn hold(&mut self, held: Vec<VerifiedBreakGlass>) -> Option<()> {
        if held == self.known {
            return Some(());
        }
        self.known.clone_from(&held);
        self.tell(FromConsole::InForce(held))
    }

    /// Each is said once.
    fn refuse(&mut self, why: String) -> Option<()> {
        if self.refused.len() >= super::folder::MOST_RECORDS || !self.refused.insert(why.clone()) {
            return Some(());
        }
        self.tell(FromConsole::Refused(why))
    }

    fn tell(&self, word: FromConsole) -> Option<()> {
        self.to_enforcer.blocking_send(word).ok()
    }
}
