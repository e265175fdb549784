//! From the request to the first connection.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_bench::PATIENCE;
use nightlatch_bench::caller::Wish;
use nightlatch_bench::figures::Figures;

use crate::world::World;

/// Milliseconds; one sample of each kind in each round, so that all have the same conditions.
#[derive(Default)]
pub(crate) struct Asks {
    /// From the start of `nightlatch request` to the established connection.
    pub(crate) command: Figures,
    /// From the call of a stub that is kept, over a connection that is kept.
    pub(crate) warm: Figures,
    /// From the start of `nft add element`, on the machine itself.
    pub(crate) by_hand: Figures,
    /// From the start of `nightlatch --version`: what any start of the program takes.
    pub(crate) start: Figures,
}

const ADD_BY_HAND: &str = "table inet byhand { set open { type ipv4_addr; flags timeout; }; \
    chain pre { type filter hook prerouting priority -290; tcp dport 9300 ip saddr != @open drop; }; }";

pub(crate) fn all_kinds(world: &mut World<'_>, rounds: usize) -> Result<Asks> {
    let machine = world.guarded_machine();
    machine.run("nft", &[ADD_BY_HAND])?.expect_success("nft")?;
    let mut asks = Asks::default();
    for _ in 0..rounds {
        let source = world.fresh_source();
        asks.by_hand.add(by_hand(world, source)?);
        asks.start.add(start(world)?);
        let source = world.fresh_source();
        asks.command.add(command(world, source)?);
        asks.warm.add(warm(world)?);
    }
    machine
        .run("nft", &["delete table inet byhand"])?
        .expect_success("nft")?;
    Ok(asks)
}

/// The warm client alone, time after time.
pub(crate) fn many_warm(world: &mut World<'_>, times: usize) -> Result<Figures> {
    (0..times).map(|_| warm(world)).collect()
}

fn warm(world: &mut World<'_>) -> Result<f64> {
    let (source, door) = (world.fresh_source(), world.guarded());
    world.expect_shut(source, door)?;
    let wish = Wish {
        machine: world.guarded_machine().name(),
        port: door.port(),
        source,
        length: Duration::from_secs(600),
        wait: PATIENCE,
    };
    let started = Instant::now();
    world.caller.open(&wish)?;
    passed(started, world.connect(source, door)?)
}

fn command(world: &World<'_>, source: Ipv4Addr) -> Result<f64> {
    let door = world.guarded();
    world.expect_shut(source, door)?;
    // Started directly, not through `ip netns exec`: this thread is in the client's namespace.
    let mut request = Command::new(world.lab.binary("nightlatch"));
    request
        .args(["request", &world.guarded_machine().name(), "--for", "10m"])
        .args(["--port", &door.port().to_string(), "--from", &source.to_string()])
        .args(["--reason", "bench"])
        .envs(world.lab.client().environment())
        .stdin(Stdio::null());
    let started = Instant::now();
    let outcome = request.output().context("running nightlatch")?;
    ensure!(
        outcome.status.success(),
        "nightlatch request: {}",
        String::from_utf8_lossy(&outcome.stderr)
    );
    passed(started, world.connect(source, door)?)
}

fn start(world: &World<'_>) -> Result<f64> {
    let mut version = Command::new(world.lab.binary("nightlatch"));
    version.arg("--version").stdin(Stdio::null());
    let started = Instant::now();
    let outcome = version.output().context("running nightlatch")?;
    ensure!(outcome.status.success(), "nightlatch --version failed");
    passed(started, Instant::now())
}

fn by_hand(world: &World<'_>, source: Ipv4Addr) -> Result<f64> {
    let door = world.by_hand();
    world.expect_shut(source, door)?;
    let started = world.guarded_machine().netns().inside(|| {
        let started = Instant::now();
        let added = Command::new("nft")
            .arg(format!(
                "add element inet byhand open {{ {source} timeout 600s }}"
            ))
            .status()
            .context("running nft")?;
        ensure!(added.success(), "nft add element failed");
        Ok(started)
    })?;
    passed(started, world.connect(source, door)?)
}

fn passed(from: Instant, to: Instant) -> Result<f64> {
    let passed = to.checked_duration_since(from).context("time ran backwards")?;
    Ok(passed.as_secs_f64() * 1000.0)
}
