//! The measurements themselves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nightlatch_core::time::Timestamp;
use nightlatch_tests::client::Answer;
use nightlatch_tests::lab::Lab;
use nix::sys::signal::Signal;

/// What a run of the bench found. Times in milliseconds.
pub(crate) struct Measured {
    /// From the start of `nightlatch request` to the first established connection.
    pub(crate) first_connect: Vec<f64>,
    /// `nft add element` spawned by hand and a connection, in the same lab: the yardstick.
    pub(crate) by_hand: Vec<f64>,
    /// The first refused attempt minus the end of the grant.
    pub(crate) end_agent_alive: Vec<f64>,
    pub(crate) end_agent_dead: Vec<f64>,
    pub(crate) agent_resident_kib: u64,
    pub(crate) server_resident_kib: u64,
}

const SSH: u16 = 22;

pub(crate) fn everything(lab: &Lab, runs: u16, ends: u16) -> Result<Measured> {
    let idle = lab.machine(1).agent_process()?.resident_kib()?;
    for last in 1..=250 {
        lab.client().add_address(&format!("198.51.100.{last}/24"))?;
    }
    let mut sources = (1..=250).map(|last| Ipv4Addr::new(198, 51, 100, last));
    let mut source = || sources.next().context("no addresses left");

    eprintln!("request → first connect, {runs} times");
    let first_connect = (0..runs)
        .map(|_| first_connect(lab, source()?))
        .collect::<Result<Vec<_>>>()?;
    eprintln!("nft add element by hand, {runs} times");
    let by_hand = by_hand(lab, runs)?;
    eprintln!("end of a 3 s grant, agent alive, {ends} times");
    let end_agent_alive = (0..ends)
        .map(|_| end(lab, source()?, false))
        .collect::<Result<Vec<_>>>()?;
    let server_resident_kib = lab.control().process()?.resident_kib()?;
    eprintln!(
        "end of a 3 s grant, agent killed a second before, {} times",
        ends.min(10)
    );
    let end_agent_dead = (0..ends.min(10))
        .map(|_| end(lab, source()?, true))
        .collect::<Result<Vec<_>>>()?;
    Ok(Measured {
        first_connect,
        by_hand,
        end_agent_alive,
        end_agent_dead,
        agent_resident_kib: idle,
        server_resident_kib,
    })
}

fn door(lab: &Lab) -> SocketAddr {
    SocketAddr::from((lab.machine(1).addresses().ipv4, SSH))
}

/// Every run has an address of its own, so that the port is shut for it before.
fn first_connect(lab: &Lab, source: Ipv4Addr) -> Result<f64> {
    let client = lab.client();
    let from = source.to_string();
    ensure!(
        !client.reaches_from(Some(IpAddr::V4(source)), door(lab))?,
        "open before it was asked for"
    );
    let mut request = client.nightlatch(&[
        "request", "web-1", "--port", "22", "--from", &from, "--for", "10m", "--reason", "bench",
    ]);
    let started = Instant::now();
    let outcome = request.output().context("running nightlatch")?;
    ensure!(
        outcome.status.success(),
        "request failed: {}",
        String::from_utf8_lossy(&outcome.stderr)
    );
    match client.knock(Some(IpAddr::V4(source)), door(lab), Duration::from_secs(1))? {
        Answer::Connected(_) => Ok(started.elapsed().as_secs_f64() * 1000.0),
        other => bail!("not open after the request returned: {other:?}"),
    }
}

/// A table of the plainest kind with a set and a drop, on a port of its own, opened by a spawned nft.
fn by_hand(lab: &Lab, runs: u16) -> Result<Vec<f64>> {
    let machine = lab.machine(1);
    let setup = "table inet byhand { set open { type ipv4_addr; flags timeout; }; \
                 chain pre { type filter hook prerouting priority -290; tcp dport 2222 ip saddr != @open drop; }; }";
    machine.run("nft", &[setup])?.expect_success("nft")?;
    let listener = machine
        .netns()
        .inside(|| std::net::TcpListener::bind(("0.0.0.0", 2222)).context("listening"))?;
    let door = SocketAddr::from((machine.addresses().ipv4, 2222));
    let client = lab.client();
    let mut measured = Vec::new();
    for last in 1..=runs.min(250) {
        let source = IpAddr::V4(Ipv4Addr::new(198, 51, 100, u8::try_from(last)?));
        let add = format!("add element inet byhand open {{ {source} timeout 600s }}");
        let mut nft = machine.exec("nft");
        nft.arg(add);
        let started = Instant::now();
        ensure!(nft.status().context("running nft")?.success(), "nft failed");
        match client.knock(Some(source), door, Duration::from_secs(1))? {
            Answer::Connected(_) => measured.push(started.elapsed().as_secs_f64() * 1000.0),
            other => bail!("not open after nft returned: {other:?}"),
        }
    }
    drop(listener);
    machine
        .run("nft", &["delete table inet byhand"])?
        .expect_success("nft")?;
    Ok(measured)
}

/// One attempt after another round the end; each waits 1 ms for its answer, so the figure is as fine as that.
fn end(lab: &Lab, source: Ipv4Addr, kill_agent: bool) -> Result<f64> {
    let client = lab.client();
    let grant = client.open(
        "web-1",
        &["--port", "22", "--from", &source.to_string(), "--for", "3s"],
    )?;
    let shown = client.json(&["grant", "show", &grant])?;
    let end: Timestamp = find(&shown, "end_time")
        .context("no end_time in grant show")?
        .parse()?;
    if kill_agent {
        let agent = lab.machine(1).agent_process()?;
        agent.end(Signal::SIGKILL)?;
    }
    let lead = Duration::from_millis(40);
    let now = wall()?;
    std::thread::sleep(end.since(now).saturating_sub(lead));
    let mut last_open = None;
    loop {
        let tried_at = wall()?;
        match client.knock(Some(IpAddr::V4(source)), door(lab), Duration::from_millis(1))? {
            Answer::Connected(_) => last_open = Some(tried_at),
            Answer::Silent | Answer::Refused => {
                ensure!(last_open.is_some(), "shut more than {lead:?} before its end");
                // A lost race of 1 ms is no end: the next attempt must fail as well.
                if matches!(
                    client.knock(Some(IpAddr::V4(source)), door(lab), Duration::from_millis(1))?,
                    Answer::Connected(_)
                ) {
                    continue;
                }
                if kill_agent {
                    lab.machine(1).start_agent()?;
                    lab.machine(1).wait_connected()?;
                }
                return Ok((tried_at.micros() - end.micros()) as f64 / 1000.0);
            }
        }
    }
}

fn find<'v>(value: &'v serde_json::Value, member: &str) -> Option<&'v str> {
    match value {
        serde_json::Value::Object(members) => members
            .get(member)
            .and_then(serde_json::Value::as_str)
            .or_else(|| members.values().find_map(|value| find(value, member))),
        serde_json::Value::Array(items) => items.iter().find_map(|item| find(item, member)),
        _ => None,
    }
}

fn wall() -> Result<Timestamp> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the end of a grant is a moment of the wall clock here"
    )]
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("reading the clock")?;
    Timestamp::from_micros(i64::try_from(since.as_micros())?).context("a clock out of range")
}
