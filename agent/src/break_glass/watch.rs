//! What root has recorded reaches the running agent: looked for twice a second, away from the loop that enforces.

use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::Duration;

use nightlatch_core::break_glass::{Limits, NotOpened, VerifiedBreakGlass};
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
    /// For the server: what was opened, whether it still is or not.
    Recorded(Vec<Recorded>),
    /// A record that opens nothing, and why.
    Refused(String),
}

/// # Errors
/// There is no thread to look with.
pub fn watch_records(
    folders: Folders,
    limits: Limits,
    clock: impl Clock + Send + 'static,
) -> io::Result<mpsc::Receiver<FromConsole>> {
    let (to_enforcer, from_console) = mpsc::channel(QUEUE);
    let Folders { live, lasting, .. } = folders;
    let later = to_enforcer.clone();
    thread::Builder::new().spawn(move || {
        let mut watch = Watch {
            live,
            limits,
            known: None,
            told: BTreeSet::new(),
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
    /// `None` before the first look.
    known: Option<Vec<VerifiedBreakGlass>>,
    told: BTreeSet<BreakGlassId>,
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
        let is_first = self.known.is_none();
        let mut opened: BTreeSet<BreakGlassId> = held.iter().map(|held| held.of().id).collect();
        self.hold(held)?;
        for (name, why) in &found.refused {
            self.refuse(format!("{name}: {}", causes(why)))?;
        }
        for (record, why) in why_not {
            // What ended before this agent looked was opened without it; later nothing ends that didn't hold.
            if !matches!(why, NotOpened::Ended) {
                self.refuse(format!("{}: {why}", record.used.id))?;
            } else if is_first {
                opened.insert(record.used.id);
            }
        }
        let is_new = |record: &&Recorded| {
            let id = record.used.id;
            opened.contains(&id) && !self.told.contains(&id)
        };
        let new: Vec<Recorded> = found.records.iter().filter(is_new).cloned().collect();
        let is_there = |id: &BreakGlassId| found.records.iter().any(|record| record.used.id == *id);
        self.told.retain(is_there);
        self.told.extend(new.iter().map(|record| record.used.id));
        if new.is_empty() {
            return Some(());
        }
        self.tell(FromConsole::Recorded(new))
    }

    fn hold(&mut self, held: Vec<VerifiedBreakGlass>) -> Option<()> {
        if self.known.as_ref() == Some(&held) {
            return Some(());
        }
        self.known = Some(held.clone());
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
