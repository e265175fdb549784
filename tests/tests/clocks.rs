//! Wrong wall clocks lengthen no grant and lock nobody out; what begins later begins on time.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::client::{Answer, SILENCE};
use nightlatch_tests::database::Database;
use nightlatch_tests::forge::{Forge, moment};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use serde_json::json;

const LENGTH: Duration = Duration::from_secs(5);

#[test]
fn a_wall_clock_that_jumps_lengthens_no_grant_and_locks_nobody_out() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let off = lab.dir().join("off");
        let jump = |seconds: &str| fs::write(&off, seconds).context("writing how far the clock is off");
        jump("+0")?;
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        start_agent(lab, &off)?;
        for seconds in ["+3600", "-7200", "+0"] {
            check(lab, || jump(seconds)).with_context(|| format!("a jump to {seconds} s"))?;
        }
        // The same when the agent meets the wrong clock at its start.
        for seconds in ["+3600", "-7200"] {
            let restart = || {
                lab.machine(1).end_agent(Signal::SIGKILL)?;
                jump(seconds)?;
                start_agent(lab, &off)
            };
            check(lab, restart).with_context(|| format!("a restart {seconds} s off"))?;
        }
        Ok(())
    })
}

fn start_agent(lab: &Lab, off: &Path) -> Result<()> {
    let agent = lab.machine(1).start_agent_by_false_clock(off)?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", agent.pid())).context("reading its mappings")?;
    ensure!(
        maps.contains("libfaketime"),
        "the agent asks the kernel for the time"
    );
    lab.machine(1).wait_connected()
}

/// What is open when the clock jumps stays open to its end and no longer, and the next request opens.
fn check(lab: &Lab, jump: impl FnOnce() -> Result<()>) -> Result<()> {
    let client = lab.client();
    let to = SocketAddr::from((lab.machine(1).addresses().ipv4, 22));
    let asked = Instant::now();
    client.open("web-1", &["--port", "22", "--for", "5s"])?;
    let opened = Instant::now();
    let mut session = client.session("web-1")?;
    jump()?;
    thread::sleep(Duration::from_millis(300));
    let is_open = client.reaches(to)?;
    ensure!(is_open || asked.elapsed() >= LENGTH, "shut before its time");
    wait::let_pass_until(opened + LENGTH);
    ensure!(!client.reaches(to)?, "open after its end");

    let grant = client.open("web-1", &["--port", "22", "--for", "1h"])?;
    ensure!(client.reaches(to)?, "locked out by a wrong clock");
    client
        .run(&["revoke", &grant])?
        .expect_success("nightlatch revoke")?;
    ensure!(!client.reaches(to)?, "open after the revoke");
    session
        .check_alive()
        .context("the session that the grant had let in")
}

#[test]
fn a_grant_that_begins_later_opens_and_ends_on_time_with_the_server_dead() -> Result<()> {
    const AHEAD: Duration = Duration::from_secs(20);
    in_a_lab(1, Stage::Guarded, |lab| {
        let client = lab.client();
        let from = IpAddr::from([198, 51, 100, 66]);
        client.add_address("198.51.100.66/24")?;
        let like = client.open("web-1", &["--port", "22", "--for", "1h"])?;
        let forge = Forge::of(lab, "web-1")?;
        let mut grant = forge.payload()?;
        let begins = Instant::now() + AHEAD;
        grant["not_before"] = json!(moment(AHEAD)?.to_string());
        grant["not_after"] = json!(moment(AHEAD + LENGTH)?.to_string());
        let id = grant["id"].as_str().context("a grant without an id")?;
        lab.control().end(Signal::SIGTERM)?;
        let mut database = Database::open(lab.control())?;
        forge.plant(&mut database, &like, id, forge.seal(&grant))?;
        database.close()?;
        lab.control().start()?;
        wait::until_true("the host has not taken it", AHEAD, || {
            let status = lab.machine(1).run_agent(&["status", "--output", "json"])?;
            Ok(status.stdout.contains(id))
        })?;
        lab.control().end(Signal::SIGKILL)?;

        let to = SocketAddr::from((lab.machine(1).addresses().ipv4, 22));
        let is_open = |patience| -> Result<bool> {
            let answer = client.knock(Some(from), to, patience)?;
            Ok(matches!(answer, Answer::Connected(_)))
        };
        wait::let_pass_until(begins - SILENCE - Duration::from_millis(500));
        ensure!(!is_open(SILENCE)?, "open before its time");
        ensure!(
            Instant::now() < begins,
            "this machine is too busy to see it begin"
        );
        wait::let_pass_until(begins + Duration::from_millis(300));
        ensure!(is_open(SILENCE)?, "shut when it should have begun");
        wait::let_pass_until(begins + LENGTH);
        ensure!(!is_open(SILENCE)?, "open after its end");
        Ok(())
    })
}
