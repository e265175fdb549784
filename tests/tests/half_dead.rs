//! A peer that is gone without a word: no packet comes any more, and none says so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::netns::Netns;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;

/// Far beyond any keepalive of ours, far below what TCP itself waits for.
const PATIENCE: Duration = Duration::from_secs(150);

#[test]
fn a_link_that_went_silent_is_noticed_on_both_sides_and_made_anew() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (server, host) = (lab.control().netns(), lab.machine(1).netns());
        silence(lab, 7444)?;
        // Nothing is said meanwhile, so that only who asks an idle peer for a sign of life can notice.
        wait::until_true("the server still believes in its host", PATIENCE, || {
            Ok(connections(&server, "sport = :7444")? == 0)
        })?;
        let machines = lab.client().machines()?;
        ensure!(machines[0]["state"] == "away", "{machines:?}");
        wait::until_true("the agent still believes in its server", PATIENCE, || {
            Ok(connections(&host, "dport = :7444")? == 0)
        })?;
        end_silence(lab)?;
        lab.machine(1).wait_connected()?;
        lab.client().open("web-1", &["--port", "22", "--for", "1m"])?;
        Ok(())
    })
}

#[test]
#[ignore = "waits for a minute and a half: make test-long"]
fn a_person_who_went_silent_is_let_go() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        lab.machine(1).end_agent(nix::sys::signal::Signal::SIGKILL)?;
        let mut waiting = lab.client().nightlatch(&[
            "request", "web-1", "--port", "22", "--for", "1h", "--reason", "x", "--wait",
        ]);
        let mut waiting = waiting.spawn().context("starting nightlatch")?;
        let server = lab.control().netns();
        let checked = wait::until_true("nothing is asked for", PATIENCE, || {
            let events = lab.client().events()?;
            Ok(events.iter().any(|event| event["kind"] == "access.requested"))
        })
        .and_then(|()| {
            // Whoever looked at the events has gone; who waits is still there.
            wait::until_true("nobody waits", PATIENCE, || {
                Ok(connections(&server, "sport = :7443")? == 1)
            })
        })
        .and_then(|()| silence(lab, 7443))
        .and_then(|()| {
            wait::until_true("the server still believes in the person", PATIENCE, || {
                Ok(connections(&server, "sport = :7443")? == 0)
            })
        });
        waiting.kill().context("ending nightlatch")?;
        waiting.wait().context("waiting for nightlatch")?;
        checked
    })
}

/// Lets no packet to or from a port of the server through.
fn silence(lab: &Lab, port: u16) -> Result<()> {
    nft(
        lab,
        &format!(
            "table inet silence {{
               chain to {{ type filter hook prerouting priority -500; tcp dport {port} drop; }}
               chain from {{ type filter hook postrouting priority 500; tcp sport {port} drop; }}
             }}"
        ),
    )
}

fn end_silence(lab: &Lab) -> Result<()> {
    nft(lab, "delete table inet silence")
}

fn nft(lab: &Lab, text: &str) -> Result<()> {
    let mut nft = lab.control().netns().exec("nft");
    wait::run(nft.arg(text), PATIENCE)?
        .expect_success("nft")
        .map(drop)
}

fn connections(netns: &Netns, which: &str) -> Result<usize> {
    let mut ss = netns.exec("ss");
    ss.args(["-tnHO", "state", "established", which]);
    let listed = wait::run(&mut ss, PATIENCE)?.expect_success("ss")?;
    Ok(listed.lines().count())
}
