//! Says on a terminal what is waited for; silent elsewhere.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::printable;

/// Gone when dropped, without a trace on the screen.
#[derive(Debug)]
pub(crate) struct Spinner(ProgressBar);

impl Spinner {
    pub(crate) fn start(text: String) -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        let spinner = Self(bar);
        spinner.say(&text);
        spinner.0.enable_steady_tick(Duration::from_millis(120));
        spinner
    }

    pub(crate) fn say(&self, text: &str) {
        self.0.set_message(printable(text));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
