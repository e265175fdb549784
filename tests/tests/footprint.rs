//! What the agent costs the machine that it guards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::lab::Stage;
use nightlatch_tests::machine::Machine;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;

const MOST_KIB: u64 = 12 * 1024;
const GRANTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_idle_agent_stays_under_12_mib() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let machine = lab.machine(1);
        let agent = machine.agent_process()?;
        let fresh = agent.resident_kib()?;
        ensure!(fresh < MOST_KIB, "{fresh} KiB after its start");
        for number in 1..=GRANTS {
            let from = format!("198.51.100.{number}");
            lab.client()
                .open("web-1", &["--port", "22", "--from", &from, "--for", "1s"])?;
        }
        wait::until_true("the grants are not on record as closed", PATIENCE, || {
            let events = lab.client().events()?;
            let closed = events.iter().filter(|event| event["kind"] == "grant.closed");
            Ok(closed.count() == GRANTS)
        })?;
        // With nothing left to do it still speaks twice: a keepalive and a question for the time, both answered.
        let done = Spoken::by(machine)?;
        wait::until_true("it does not speak while it is idle", PATIENCE, || {
            let now = Spoken::by(machine)?;
            Ok(now.sent >= done.sent + 2 && now.received >= done.received + 2)
        })?;
        let used = agent.resident_kib()?;
        ensure!(
            used < MOST_KIB,
            "{used} KiB after {GRANTS} grants, {fresh} KiB before"
        );
        Ok(())
    })
}

/// Segments with data on the agent's connection, as ss(8) counts them.
struct Spoken {
    sent: u64,
    received: u64,
}

impl Spoken {
    fn by(machine: Machine<'_>) -> Result<Self> {
        let listed = machine
            .run("ss", &["-tinHO", "state", "established", "dport = :7444"])?
            .expect_success("ss")?;
        let count = |name: &str| {
            let mut words = listed.split_whitespace();
            let count = words.find_map(|word| word.strip_prefix(name)?.strip_prefix(':')?.parse().ok());
            count.with_context(|| format!("no {name} in `{listed}`"))
        };
        Ok(Self {
            sent: count("data_segs_out")?,
            received: count("data_segs_in")?,
        })
    }
}
