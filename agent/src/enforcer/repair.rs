//! What the enforcer does about changes of the table that aren't its own.

use nightlatch_core::time::BootTime;

use super::fight::Telling;
use super::{Enforcer, Gate};
use crate::causes::causes;
use crate::clock::Clock;
use crate::firewall::{Drift, Touch};
use crate::writer::Disk;

impl<G: Gate, D: Disk, C: Clock> Enforcer<G, D, C> {
    /// Others changed the table, by the kernel's word. All that is heard by now needs one look.
    pub(super) fn touched(&mut self, touch: Touch) {
        let heard = std::iter::from_fn(|| self.touches.try_recv().ok());
        let touch = heard.fold(touch, |mut touch, later| {
            touch.join(later);
            touch
        });
        match self.touched.as_mut() {
            Some(known) => known.join(touch),
            None => self.touched = Some(touch),
        }
    }

    /// When the table is to be looked at for what others did, if they did something.
    pub(super) fn touch_due_at(&self) -> Option<BootTime> {
        self.touched.as_ref().map(|_| self.fight.due_at())
    }

    /// Looks whether the table is still ours, and makes it anew if it isn't.
    pub(super) fn look_at_table(&mut self, now: BootTime) {
        let touch = self.touched.take();
        if touch.is_some() {
            self.fight.looked(now);
        }
        match self.gate.drift(now) {
            Ok(None) => {
                if let Some(touch) = touch.filter(Touch::is_certain) {
                    tracing::info!(%touch, "others changed the table, and it is as it should be");
                }
            }
            // What failed is tried again anyway.
            Ok(Some(_)) if self.gate_due_at.is_some() => {}
            Ok(Some(drift)) => {
                self.rebuild();
                self.tell_repair(drift, touch, now);
            }
            Err(error) => {
                tracing::error!(
                    error = %causes(&error),
                    "the table can't be read; it is made anew"
                );
                self.rebuild();
            }
        }
    }

    fn tell_repair(&mut self, found: Drift, touch: Option<Touch>, now: BootTime) {
        let outcome = if self.gate_due_at.is_none() {
            "the table was made anew"
        } else {
            "the table can't be made anew yet"
        };
        let by = touch.map_or_else(|| "who did it is not known".to_owned(), |touch| touch.to_string());
        match self.fight.repaired(now) {
            Telling::Repair => {
                tracing::error!(%found, by, "the table was changed by others or lags behind: {outcome}");
                self.report_event("TABLE_REPAIRED", format!("{found}: {by}; {outcome}"));
            }
            Telling::Alarm(repairs) => {
                tracing::error!(%found, by, repairs, "somebody keeps changing the table: {outcome}");
                let message = format!(
                    "somebody keeps changing the table, {repairs} times by now; {found}: {by}; {outcome}"
                );
                self.report_event("TABLE_FOUGHT_OVER", message);
            }
            Telling::Nothing => tracing::debug!(%found, by, "{outcome}, again"),
        }
    }
}
