//! A full disk: nothing is acknowledged, nothing opens, what is open ends on time, and it goes on by itself once
//! there is room again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::doors::Doors;
use nightlatch_tests::lab::Stage;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(40);
const SHORT: Duration = Duration::from_secs(4);

#[test]
fn of_a_host_nothing_opens_and_all_goes_on_when_there_is_room_again() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        let disk = lab.machine(1).start_agent_on_small_disk(512)?;
        lab.machine(1).wait_connected()?;
        let doors = Doors::new(lab)?;
        let ending = doors.open_for(1, "4s").map(|_| Instant::now())?;
        let revoked = doors.open(2)?;
        doors.check(&[1, 2]).context("before the disk is full")?;

        disk.fill()?;
        // What fits into the last blocks of its files is taken; that ends soon.
        let mut taken = 0;
        while doors.ask(4, "2s")?.succeeded() {
            taken += 1;
            ensure!(taken < 50, "the disk is not full");
        }
        let rest: &[u8] = if taken > 0 { &[4] } else { &[] };
        let outcome = doors.ask(3, "2s")?;
        ensure!(outcome.code == Some(3), "acknowledged as open: {outcome}");
        // Closing waits for no disk.
        let outcome = lab.client().run(&["revoke", &revoked, "--timeout", "3s"])?;
        ensure!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
        wait::let_pass_until(ending + SHORT);
        doors.wait(rest).context("with a full disk")?;
        ensure!(lab.machine(1).agent_process()?.is_alive(), "the agent fell over");

        disk.empty()?;
        // What was asked for meanwhile still runs, and what was revoked doesn't come back.
        doors.wait(&[3, 4]).context("with room again")?;
        doors.open(1)?;
        doors.check(&[1, 3, 4])?;
        wait::until_true("the revoke is not on record as done", PATIENCE, || {
            Ok(lab
                .client()
                .grants()?
                .iter()
                .any(|grant| grant["id"] == revoked.as_str() && grant["state"] == "ended"))
        })
    })
}

#[test]
fn of_the_server_nothing_is_acknowledged_and_all_goes_on_when_there_is_room_again() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.control().end(Signal::SIGTERM)?;
        let disk = lab.control().start_on_small_disk(8 * 1024)?;
        lab.machine(1).wait_connected()?;
        let doors = Doors::new(lab)?;
        let ending = doors.open_for(1, "4s").map(|_| Instant::now())?;
        let kept = doors.open(2)?;
        doors.check(&[1, 2]).context("before the disk is full")?;

        disk.fill()?;
        for number in [3, 4] {
            let outcome = doors.ask(number, "2s")?;
            ensure!(
                outcome.code == Some(1) && outcome.stderr.contains("try again"),
                "a request that can't be recorded: {outcome}"
            );
        }
        let outcome = lab.client().run(&["revoke", &kept, "--timeout", "2s"])?;
        ensure!(
            outcome.code == Some(1),
            "a revoke that can't be recorded: {outcome}"
        );
        wait::let_pass_until(ending + SHORT);
        doors.wait(&[2]).context("with a full disk")?;
        ensure!(lab.control().process()?.is_alive(), "the server fell over");

        disk.empty()?;
        wait::until_true("requests are still refused", PATIENCE, || {
            Ok(doors.ask(4, "5s")?.succeeded())
        })?;
        doors.check(&[2, 4]).context("with room again")?;
        lab.client()
            .run(&["revoke", &kept])?
            .expect_success("nightlatch revoke")?;
        doors.check(&[4])
    })
}
