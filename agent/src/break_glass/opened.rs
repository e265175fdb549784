//! What was opened, as it is told and kept.

use std::path::Path;
use std::time::Duration;

use nightlatch_core::break_glass::BreakGlass;
use nightlatch_core::signing::PublicKey;

use super::{Folders, Recorded, Unit, keys, within};
use crate::causes::causes;
use crate::firewall::FirewallError;
use crate::ruleset_text::ports;

/// What the disk has for the lasting record, once the port is open.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);
/// Lasting records.
const MOST_KEPT: usize = 256;
/// What was done.
pub struct Opened {
    pub(super) used: BreakGlass,
    pub(super) envelope: Vec<u8>,
    pub(super) key: PublicKey,
    pub(super) by: By,
    pub(super) unheard: Vec<&'static str>,
    /// Records of earlier uses, for the lasting folder.
    pub(super) ended: Vec<Recorded>,
}

/// Who changed the table.
#[derive(Debug)]
pub(super) enum By {
    Agent,
    Command(Unit),
    /// Whether it is open could not be read.
    Unknown(Unit, FirewallError),
}

/// What whoever had the agent stopped for nothing is told.
pub(super) const fn hint(unit: Unit) -> &'static str {
    match unit {
        Unit::Missing => "",
        Unit::Stopping => {
            "; the agent was told to stop and may take a while: start it again with systemctl start nightlatch-agent"
        }
        Unit::Stopped => "; the agent is stopped: start it again with systemctl start nightlatch-agent",
    }
}

impl Opened {
    /// For people, one statement a line.
    pub fn told(&self) -> String {
        let Self {
            used, by, unheard, ..
        } = self;
        let ports = ports(&keys(used));
        let end = used.time.checked_add(used.length()).unwrap_or(used.time);
        let mut lines = match by {
            By::Agent | By::Command(_) => vec![format!(
                "{ports} is open to {} until {end:.0} by this host's clock; record {}",
                used.source, used.id
            )],
            By::Unknown(_, why) => vec![format!(
                "{ports} may be open to {} until {end:.0} by this host's clock, and the table can't be read: {}; record {}",
                used.source,
                causes(why),
                used.id
            )],
        };
        lines.extend(match by {
            By::Agent => None,
            By::Command(Unit::Missing) | By::Unknown(Unit::Missing, _) => {
                Some("no agent acted on it in time; the kernel ends it all the same")
            }
            By::Command(Unit::Stopping) | By::Unknown(Unit::Stopping, _) => Some(
                "the agent did not act on it in time and was told to stop, which may take a while; it keeps this open \
                 when it is started again: systemctl start nightlatch-agent",
            ),
            By::Command(Unit::Stopped) | By::Unknown(Unit::Stopped, _) => Some(
                "the agent did not act on it in time and is stopped; it keeps this open when it is started again: \
                 systemctl start nightlatch-agent",
            ),
        }.map(str::to_owned));
        if !unheard.is_empty() {
            lines.push(format!("this could not be told: {}", unheard.join(", ")));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Whether the table says so.
    pub const fn is_certain(&self) -> bool {
        matches!(self.by, By::Agent | By::Command(_))
    }

    /// Writes the record that outlives this boot, for the server to be told later.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn keep(&self, root: &Path) -> Result<(), String> {
        let Folders { live, lasting, .. } = Folders::under(root);
        let place = lasting.path().display().to_string();
        let (used, envelope) = (self.used.clone(), self.envelope.clone());
        let (key, ended) = (self.key.clone(), self.ended.clone());
        let kept = within(RECORD_PATIENCE, move || {
            lasting.prepare()?;
            lasting.put(&used, &envelope, &key)?;
            live.forget_kept(&ended, &lasting);
            lasting.forget_oldest(MOST_KEPT)
        });
        let why = match kept {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => causes(&error).to_string(),
            None => "the disk does not answer".to_owned(),
        };
        Err(format!(
            "the record is kept until the next boot only, as {place} can't be written: {why}"
        ))
    }
}
