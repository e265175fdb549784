//! What the agent costs the machine that it guards.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nightlatch_tests::lab::Stage;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;

const MOST_KIB: u64 = 12 * 1024;

#[test]
fn the_idle_agent_stays_under_12_mib() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let agent = lab.machine(1).agent_process()?;
        let fresh = agent.resident_kib()?;
        ensure!(fresh < MOST_KIB, "{fresh} KiB after its start");
        for number in 1..=20 {
            lab.client().open(
                "web-1",
                &[
                    "--port",
                    "22",
                    "--from",
                    &format!("198.51.100.{number}"),
                    "--for",
                    "1s",
                ],
            )?;
        }
        // Over a keepalive and a question for the time.
        wait::let_pass_until(Instant::now() + Duration::from_secs(3));
        let used = agent.resident_kib()?;
        ensure!(used < MOST_KIB, "{used} KiB after 20 grants, {fresh} KiB before");
        Ok(())
    })
}
