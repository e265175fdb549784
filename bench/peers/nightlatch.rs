//! Nightlatch, examined like the others: its command line, a lab, the real agent.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nightlatch_tests::lab::{Lab, Stage, Wish};

use crate::peer::{At, Peer};
use crate::place::{self, Place, quiet};

pub(crate) struct Nightlatch {
    binaries: PathBuf,
    lab: Option<Lab>,
}

const PORT: u16 = 9000;

impl Nightlatch {
    pub(crate) const fn new(binaries: PathBuf) -> Self {
        Self { binaries, lab: None }
    }

    fn lab(&self) -> Result<&Lab> {
        self.lab.as_ref().context("no lab is up")
    }
}

impl Peer for Nightlatch {
    fn name(&self) -> &'static str {
        "Nightlatch"
    }

    fn start(&mut self, _grant: Duration) -> Result<Place> {
        place::remove_all();
        let wish = Wish {
            name: place::lab_name(),
            machines: 1,
            binaries: self.binaries.clone(),
            stage: Stage::Enrolled,
        };
        let lab = self.lab.insert(Lab::up(wish, |_| {})?);
        let door = SocketAddrV4::new(lab.machine(1).addresses().ipv4, PORT);
        let mut place = Place::in_lab(lab, door)?;
        lab.guard(lab.machine(1), &[&format!("{PORT}/tcp")])?;
        place.daemons.push(lab.machine(1).agent_process()?);
        Ok(place)
    }

    fn client(&self, _place: &Place, source: Ipv4Addr, grant: Duration) -> Result<(At, Command)> {
        let lab = self.lab()?;
        let mut request = quiet(lab.binary("nightlatch"));
        request
            .args(["request", &lab.machine(1).name(), "--from", &source.to_string()])
            .args(["--port", &PORT.to_string(), "--reason", "bench"])
            .args(["--for", &format!("{}s", grant.as_secs())])
            .envs(lab.client().environment());
        Ok((At::User, request))
    }

    fn ask_many(
        &self,
        place: &Place,
        sources: &[Ipv4Addr],
        grant: Duration,
        deadline: Instant,
    ) -> Result<()> {
        // One command after another, as for the others; `make bench` tells what a program can do.
        for source in sources.iter().take_while(|_| Instant::now() < deadline) {
            let (_, mut request) = self.client(place, *source, grant)?;
            place
                .user
                .inside(|| request.status().context("running nightlatch"))?;
        }
        Ok(())
    }
}
