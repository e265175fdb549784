//! Nightlatch, examined like the others: a lab, the real server and agent. It is asked by its command line, and in a
//! row of its own by a program that keeps its connection.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nightlatch_bench::caller::{Caller, Wish};
use nightlatch_bench::{PATIENCE, keeper};
use nightlatch_tests::lab::{Lab, Stage, Wish as LabWish};

use crate::peer::{Peer, Request};
use crate::place::{self, Place, quiet};

/// Asked by `nightlatch request`.
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
        keeper::go_on()?;
        let wish = LabWish {
            name: place::lab_name(),
            machines: 2,
            binaries: self.binaries.clone(),
            stage: Stage::Enrolled,
        };
        let lab = self.lab.insert(Lab::up(wish, |_| {})?);
        let mut place = Place::in_lab(lab, PORT)?;
        lab.guard(lab.machine(1), &[&format!("{PORT}/tcp")])?;
        place.daemons.push(lab.machine(1).agent_process()?);
        Ok(place)
    }

    fn request(&self, _place: &Place, source: Ipv4Addr, grant: Duration) -> Result<Request<'_>> {
        let lab = self.lab()?;
        let mut request = quiet(lab.binary("nightlatch"));
        request
            .args(["request", &lab.machine(1).name(), "--from", &source.to_string()])
            .args(["--port", &PORT.to_string(), "--reason", "bench"])
            .args(["--for", &format!("{}s", grant.as_secs())])
            .envs(lab.client().environment());
        Ok(Request::Command(request))
    }
}

/// Asked over a gRPC connection that is kept.
pub(crate) struct Warm {
    nightlatch: Nightlatch,
    caller: Mutex<Option<Caller>>,
}

impl Warm {
    pub(crate) const fn new(binaries: PathBuf) -> Self {
        Self {
            nightlatch: Nightlatch::new(binaries),
            caller: Mutex::new(None),
        }
    }

    fn with_caller<T>(&self, work: impl FnOnce(&mut Caller) -> Result<T>) -> Result<T> {
        let mut caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        work(caller.as_mut().context("no connection is kept")?)
    }
}

impl Peer for Warm {
    fn name(&self) -> &'static str {
        "Nightlatch, warm gRPC client"
    }

    fn is_another_way(&self) -> bool {
        true
    }

    fn start(&mut self, grant: Duration) -> Result<Place> {
        let place = self.nightlatch.start(grant)?;
        let lab = self.nightlatch.lab()?;
        let caller = place.user.inside(|| Caller::connect(lab))?;
        self.caller = Mutex::new(Some(caller));
        Ok(place)
    }

    fn request(&self, _place: &Place, source: Ipv4Addr, grant: Duration) -> Result<Request<'_>> {
        let wish = Wish {
            machine: self.nightlatch.lab()?.machine(1).name(),
            port: PORT,
            source,
            length: grant,
            wait: PATIENCE,
        };
        Ok(Request::Call(Box::new(move || {
            self.with_caller(|caller| caller.open(&wish).map(drop))
        })))
    }

    fn ask_many(&self, place: &Place, sources: &[Ipv4Addr], grant: Duration, _: Instant) -> Result<Duration> {
        let machine = self.nightlatch.lab()?.machine(1).name();
        let (count, sources) = (sources.len(), sources.to_vec());
        let wish = move |number: usize| Wish {
            machine: machine.clone(),
            port: PORT,
            source: sources.get(number).copied().unwrap_or(Ipv4Addr::UNSPECIFIED),
            length: grant,
            wait: PATIENCE,
        };
        place
            .user
            .inside(|| self.with_caller(|caller| caller.ask_many(count, wish)))?;
        Ok(Duration::ZERO)
    }
}
