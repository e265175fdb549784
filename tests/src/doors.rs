//! One machine's port 22, asked for from a few sources: which of them get in.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::client::Answer;
use crate::lab::Lab;
use crate::wait::{self, Outcome};

const PATIENCE: Duration = Duration::from_secs(40);
/// Long enough for an answer, short enough to be done often.
pub const GLANCE: Duration = Duration::from_millis(150);

/// Sources 198.51.100.1 to .4, each with a door of its own into the first machine.
pub struct Doors<'l> {
    lab: &'l Lab,
    to: SocketAddr,
}

impl<'l> Doors<'l> {
    const COUNT: u8 = 4;

    pub fn new(lab: &'l Lab) -> Result<Self> {
        for number in 1..=Self::COUNT {
            lab.client()
                .add_address(&format!("{}/24", Self::source(number)))?;
        }
        Ok(Self {
            lab,
            to: SocketAddr::from((lab.machine(1).addresses().ipv4, 22)),
        })
    }

    pub fn source(number: u8) -> String {
        format!("198.51.100.{number}")
    }

    /// Asks for one for an hour, which must open; gives the grant.
    pub fn open(&self, number: u8) -> Result<String> {
        self.open_for(number, "1h")
    }

    pub fn open_for(&self, number: u8, length: &str) -> Result<String> {
        let source = Self::source(number);
        self.lab
            .client()
            .open("web-1", &["--port", "22", "--from", &source, "--for", length])
    }

    /// Asks for one for an hour, whatever becomes of it.
    pub fn ask(&self, number: u8, timeout: &str) -> Result<Outcome> {
        let source = Self::source(number);
        self.lab.client().run(&[
            "request",
            "web-1",
            "--port",
            "22",
            "--from",
            &source,
            "--for",
            "1h",
            "--reason",
            "test",
            "--timeout",
            timeout,
        ])
    }

    /// These are open and the others are shut.
    pub fn check(&self, expected: &[u8]) -> Result<()> {
        let open = self.open_now()?;
        ensure!(open == expected, "open are {open:?}, should be {expected:?}");
        Ok(())
    }

    /// As [`Self::check`], in due time, and so it stays.
    pub fn wait(&self, expected: &[u8]) -> Result<()> {
        let mut last = Vec::new();
        let agreed = wait::until_true("no agreement", PATIENCE, || {
            last = self.open_now()?;
            Ok(last == expected)
        });
        if agreed.is_err() {
            bail!("open are {last:?}, should become {expected:?}");
        }
        self.check(expected)
    }

    pub fn open_now(&self) -> Result<Vec<u8>> {
        let mut open = Vec::new();
        for number in 1..=Self::COUNT {
            let source = Self::source(number).parse()?;
            let answer = self.lab.client().knock(Some(source), self.to, GLANCE)?;
            if matches!(answer, Answer::Connected(_)) {
                open.push(number);
            }
        }
        Ok(open)
    }
}
