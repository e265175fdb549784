//! Labs of a test's own.

use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result};

use crate::lab::{Lab, Stage, Wish, tail};
use crate::plan::{LabName, binaries_beside};

/// A lab that goes when this is dropped.
pub struct ScratchLab(Lab);

impl ScratchLab {
    /// Brings it up, with the binaries beside the program that runs.
    pub fn up(machines: u16, stage: Stage) -> Result<Self> {
        let own = std::env::current_exe().context("finding the test's own path")?;
        let binaries = binaries_beside(&own).context("the binaries are not built: run `make build`")?;
        Self::named(&unused_name(), machines, stage, &binaries)
    }

    pub fn named(name: &LabName, machines: u16, stage: Stage, binaries: &Path) -> Result<Self> {
        let wish = Wish {
            name: name.clone(),
            machines,
            binaries: binaries.to_path_buf(),
            stage,
        };
        let lab = Lab::up(wish, |_| {});
        if lab.is_err() {
            // Its error already holds what there is to know.
            Lab::down(name).ok();
        }
        lab.map(Self)
    }
}

impl Deref for ScratchLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for ScratchLab {
    #[expect(
        clippy::print_stderr,
        reason = "the logs of a failed test go as soon as the lab does"
    )]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", logs(&self.0));
        }
        if let Err(error) = Lab::down(self.0.name()) {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a test in a lab of its own; a failure carries the ends of the daemons' logs.
pub fn in_a_lab(machines: u16, stage: Stage, test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = ScratchLab::up(machines, stage)?;
    test(&lab).with_context(|| logs(&lab))
}

fn logs(lab: &Lab) -> String {
    let agents = lab
        .machines()
        .map(|machine| (machine.name(), machine.agent_log()));
    let all = [("server".to_owned(), lab.control().log())]
        .into_iter()
        .chain(agents);
    all.map(|(name, log)| format!("log of {name}:\n{}", tail(&log)))
        .collect()
}

/// Begins with the pid, so that what a killed test left behind can be told from what is in use.
fn unused_name() -> LabName {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    LabName::of_test(std::process::id(), number)
}

/// Removes the labs of tests that no longer run.
pub fn sweep() -> Result<Vec<LabName>> {
    let mut swept = Vec::new();
    for name in LabName::all() {
        if let Some(pid) = name.test_pid()
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            Lab::down(&name)?;
            swept.push(name);
        }
    }
    Ok(swept)
}
