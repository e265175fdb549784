//! Nothing that Nightlatch does to its rules cuts a connection that is open.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::lab::{Lab, POLICY, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::session::{Session, Stream};
use nix::sys::signal::Signal;

#[test]
fn turning_it_on_cuts_neither_idle_nor_active_sessions_that_nothing_tracked() -> Result<()> {
    in_a_lab(1, Stage::Enrolled, |lab| {
        let tracked = lab
            .machine(1)
            .run("conntrack", &["-C"])?
            .expect_success("conntrack -C")?;
        ensure!(
            tracked.trim() == "0",
            "connections are tracked before anything was turned on: {tracked}"
        );
        let mut sessions = Sessions::open(lab)?;
        lab.guard(lab.machine(1), &[POLICY])?;
        sessions.check("the policy was set")?;

        forget_connections(lab)?;
        sessions.check("connection tracking was flushed")?;

        lab.machine(1).end_agent(Signal::SIGTERM)?;
        sessions.check("the agent was stopped")?;
        lab.machine(1).start_agent()?;
        sessions.check("the agent was started")?;

        lab.machine(1).end_agent(Signal::SIGKILL)?;
        lab.machine(1).start_agent()?;
        sessions.check("the agent was killed and started")?;

        rebuild_table(lab)?;
        sessions.check("the table was rebuilt")?;
        forget_connections(lab)?;
        sessions.check("connection tracking was flushed again")
    })
}

#[test]
fn sessions_live_on_when_the_host_is_locked_down() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let mut sessions = Sessions::open(lab)?;
        lab.machine(1).end_agent(Signal::SIGKILL)?;
        lab.machine(1)
            .run_agent(&["lockdown"])?
            .expect_success("nightlatch-agent lockdown")?;
        sessions.check_alive("lockdown")?;
        rebuild_by(lab, &["lockdown"])?;
        sessions.check_alive("a lockdown that built the table")?;
        lab.machine(1).start_agent()?;
        sessions.check_alive("the agent was started")
    })
}

#[test]
fn sessions_live_on_when_the_policy_changes_and_goes() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let mut sessions = Sessions::open(lab)?;
        lab.guard(lab.machine(1), &["22/tcp,max=PT1H", "9000-9010/*"])?;
        sessions.check_alive("the policy was changed")?;
        lab.client()
            .run(&["policy", "delete", "web-1"])?
            .expect_success("nightlatch policy delete")?;
        sessions.check_alive("the policy was deleted")?;
        lab.guard(lab.machine(1), &[POLICY])?;
        sessions.check("the policy was set again")
    })
}

#[test]
fn a_revoked_grant_leaves_its_sessions_alone() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let grant = lab.client().open("web-1", &["--port", "22", "--for", "10m"])?;
        let mut session = lab.client().session("web-1")?;
        lab.client()
            .run(&["revoke", &grant])?
            .expect_success("nightlatch revoke")?;
        let to = SocketAddr::from((lab.machine(1).addresses().ipv4, 22));
        ensure!(!lab.client().reaches(to)?, "open after the revoke was confirmed");
        session
            .check_alive()
            .context("the session that the grant had let in")
    })
}

/// One that says nothing until asked and one that never stops, over both families.
struct Sessions<'l> {
    lab: &'l Lab,
    idle: Vec<Session>,
    active: Vec<Stream>,
}

impl<'l> Sessions<'l> {
    /// Through a door that is open, or is opened for this.
    fn open(lab: &'l Lab) -> Result<Self> {
        let addresses = lab.machine(1).addresses();
        let both = [addresses.ipv4.to_string(), addresses.ipv6.to_string()];
        let guarded = lab
            .machine(1)
            .run("nft", &["list", "table", "inet", "nightlatch"])?
            .succeeded();
        let grant = match guarded {
            false => None,
            true => Some(lab.client().open(
                "web-1",
                &[
                    "--port",
                    "22",
                    "--from",
                    "192.0.2.2",
                    "--from",
                    "2001:db8::2",
                    "--for",
                    "10m",
                ],
            )?),
        };
        let idle = both
            .iter()
            .map(|to| lab.client().session(to))
            .collect::<Result<_>>()?;
        let active = both
            .iter()
            .map(|to| lab.client().session(to)?.stream())
            .collect::<Result<_>>()?;
        if let Some(grant) = grant {
            lab.client()
                .run(&["revoke", &grant])?
                .expect_success("nightlatch revoke")?;
        }
        Ok(Self { lab, idle, active })
    }

    /// All sessions live, and no new one can be made.
    fn check(&mut self, after: &str) -> Result<()> {
        self.check_alive(after)?;
        let addresses = self.lab.machine(1).addresses();
        for to in [
            SocketAddr::from((addresses.ipv4, 22)),
            SocketAddr::from((addresses.ipv6, 22)),
        ] {
            ensure!(!self.lab.client().reaches(to)?, "{to} is open after {after}");
        }
        self.check_alive(after)
    }

    fn check_alive(&mut self, after: &str) -> Result<()> {
        for session in &mut self.idle {
            session
                .check_alive()
                .with_context(|| format!("an idle session after {after}"))?;
        }
        for stream in &mut self.active {
            stream
                .check_flowing()
                .with_context(|| format!("an active session after {after}"))?;
        }
        Ok(())
    }
}

fn forget_connections(lab: &Lab) -> Result<()> {
    // It counts what it deleted on stderr, and fails where nothing was tracked.
    lab.machine(1).run("conntrack", &["-F"]).map(drop)
}

fn rebuild_table(lab: &Lab) -> Result<()> {
    lab.machine(1).end_agent(Signal::SIGKILL)?;
    lab.machine(1)
        .run("nft", &["delete", "table", "inet", "nightlatch"])?
        .expect_success("nft delete table")?;
    lab.machine(1).start_agent().map(drop)
}

fn rebuild_by(lab: &Lab, arguments: &[&str]) -> Result<()> {
    lab.machine(1)
        .run("nft", &["delete", "table", "inet", "nightlatch"])?
        .expect_success("nft delete table")?;
    lab.machine(1)
        .run_agent(arguments)?
        .expect_success("nightlatch-agent")?;
    Ok(())
}
