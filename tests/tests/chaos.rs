//! Agents and server killed at random moments, under a stream of requests and revokes: what was acknowledged is
//! on record, what ended is shut, and in the end all agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nightlatch_tests::chance::Chance;
use nightlatch_tests::client::{Answer, SILENCE};
use nightlatch_tests::doors::GLANCE;
use nightlatch_tests::extent;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::machine::Machine;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait::{self, Outcome};
use nix::sys::signal::Signal;
use serde_json::Value;

const MACHINES: u16 = 2;
const WORKERS: u16 = 3;
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn whatever_is_killed_whenever_what_was_said_holds() -> Result<()> {
    let (seed, length) = match std::env::var("NIGHTLATCH_SEED") {
        Ok(seed) => (seed.parse().context("NIGHTLATCH_SEED is not a number")?, 600),
        Err(_) if extent::is_long() => (u64::from(std::process::id()) << 20, 600),
        Err(_) => (1, 15),
    };
    let length = Duration::from_secs(length);
    in_a_lab(MACHINES, Stage::Guarded, |lab| {
        let story = Story::default();
        run(lab, &story, seed, length).with_context(|| format!("NIGHTLATCH_SEED={seed}"))?;
        let wishes = story.wishes();
        let acknowledged = wishes.iter().filter(|wish| wish.was_open).count();
        let revoked = wishes.iter().filter(|wish| wish.was_revoked).count();
        let kills = story.kills.lock().unwrap_or_else(PoisonError::into_inner);
        let told = format!(
            "NIGHTLATCH_SEED={seed}: {kills} kills, {} requests, {acknowledged} open, {revoked} revoked",
            wishes.len()
        );
        tell(&told);
        check_agreement(lab, &wishes).context(told)
    })
}

#[expect(clippy::print_stderr, reason = "a seed is needed to see it again")]
fn tell(text: &str) {
    eprintln!("{text}");
}

/// What was asked for, and what was said about it.
#[derive(Clone, Debug)]
struct Wish {
    machine: u16,
    /// Nobody else asks from it.
    source: IpAddr,
    /// Unknown if the server was gone before it could say.
    grant: Option<String>,
    was_open: bool,
    was_revoked: bool,
}

#[derive(Default)]
struct Story {
    wishes: Mutex<Vec<Wish>>,
    kills: Mutex<u32>,
}

impl Story {
    fn wishes(&self) -> Vec<Wish> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, wish: Wish) {
        self.wishes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(wish);
    }
}

fn run(lab: &Lab, story: &Story, seed: u64, length: Duration) -> Result<()> {
    let over = AtomicBool::new(false);
    let until = Instant::now() + length;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (over, mut chance) = (&over, Chance::of(seed + 1 + u64::from(worker)));
                scope.spawn(move || {
                    let mut count = 0;
                    while !over.load(Ordering::Relaxed) {
                        count += 1;
                        let result = ask(lab, story, worker, count, &mut chance);
                        if result.is_err() {
                            over.store(true, Ordering::Relaxed);
                            return result;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let killed = kill_until(lab, story, until, &over, &mut Chance::of(seed));
        over.store(true, Ordering::Relaxed);
        let worked = workers
            .into_iter()
            .try_for_each(|worker| worker.join().ok().context("a worker fell over")?);
        worked.and(killed)
    })
}

/// Ends agents, server or all without a word, and starts them again a little later.
fn kill_until(
    lab: &Lab,
    story: &Story,
    until: Instant,
    over: &AtomicBool,
    chance: &mut Chance,
) -> Result<()> {
    while Instant::now() < until && !over.load(Ordering::Relaxed) {
        // Long enough at times for a host to be back.
        let pause = chance.below(3).pow(3) * 500 + chance.below(1500);
        wait::let_pass_until(Instant::now() + Duration::from_millis(pause));
        let which = chance.below(8);
        let server = which >= 5;
        let agents: Vec<Machine<'_>> = match which {
            0 | 1 => vec![lab.machine(1)],
            2 | 3 => vec![lab.machine(2)],
            4 | 5 => lab.machines().collect(),
            _ => Vec::new(),
        };
        if server {
            lab.control().end(Signal::SIGKILL)?;
        }
        agents
            .iter()
            .try_for_each(|machine| machine.end_agent(Signal::SIGKILL))?;
        *story.kills.lock().unwrap_or_else(PoisonError::into_inner) +=
            u32::from(server) + u32::try_from(agents.len())?;
        wait::let_pass_until(Instant::now() + Duration::from_millis(chance.below(800)));
        if server {
            lab.control().start()?;
        }
        agents
            .iter()
            .try_for_each(|machine| machine.start_agent().map(drop))?;
    }
    Ok(())
}

/// Asks for one access, and holds against the kernel what is said of it.
fn ask(lab: &Lab, story: &Story, worker: u16, count: u16, chance: &mut Chance) -> Result<()> {
    let source = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0x100 + worker, count));
    lab.client().add_address(&format!("{source}/64"))?;
    let number = 1 + u16::try_from(chance.below(u64::from(MACHINES)))?;
    let machine = lab.machine(number);
    let length = Duration::from_secs(1 + chance.below(5));
    let is_long = chance.below(3) == 0;
    let asked_for = if is_long {
        "1h".to_owned()
    } else {
        format!("{}s", length.as_secs())
    };
    let (name, from) = (machine.name(), source.to_string());
    let outcome = lab.client().run(&[
        "request",
        &name,
        "--port",
        "22",
        "--from",
        &from,
        "--for",
        &asked_for,
        "--reason",
        "chaos",
        "--timeout",
        "3s",
        "--output",
        "json",
    ])?;
    let opened = Instant::now();
    check_manners(&outcome)?;
    let mut wish = Wish {
        machine: number,
        source,
        grant: grant_of(&outcome),
        was_open: outcome.succeeded(),
        was_revoked: false,
    };
    let to = SocketAddr::from((machine.addresses().ipv6, 22));
    let is_open = |patience| -> Result<bool> {
        let answer = lab.client().knock(Some(source), to, patience)?;
        Ok(matches!(answer, Answer::Connected(_)))
    };
    if wish.was_open {
        ensure!(
            is_open(SILENCE)? || (!is_long && opened.elapsed() >= length.saturating_sub(SILENCE)),
            "acknowledged and shut: {wish:?}, asked for {asked_for}"
        );
    }
    if is_long && let Some(grant) = wish.grant.clone().filter(|_| chance.below(2) == 0) {
        let outcome = lab.client().run(&["revoke", &grant, "--timeout", "3s"])?;
        check_manners(&outcome)?;
        wish.was_revoked = outcome.succeeded();
        ensure!(
            !wish.was_revoked || !is_open(GLANCE)?,
            "acknowledged as revoked, and open: {wish:?}"
        );
    } else if !is_long && wish.was_open {
        wait::let_pass_until(opened + length);
        ensure!(!is_open(GLANCE)?, "open after its end: {wish:?}");
    }
    story.add(wish);
    Ok(())
}

/// One clear error or none, whatever is going on.
fn check_manners(outcome: &Outcome) -> Result<()> {
    let errors = outcome.stderr.lines().filter(|line| line.starts_with("error:"));
    ensure!(
        matches!(outcome.code, Some(0 | 1 | 3))
            && errors.count() <= 1
            && !outcome.stderr.contains("panicked"),
        "{outcome}"
    );
    Ok(())
}

fn grant_of(outcome: &Outcome) -> Option<String> {
    let answer: Value = serde_json::from_str(&outcome.stdout).ok()?;
    let grant = answer["access_request"]["outcomes"][0]["grant"].as_str()?;
    grant.strip_prefix("grants/").map(str::to_owned)
}

/// With all alive again: record, ledgers and kernels tell the same.
fn check_agreement(lab: &Lab, wishes: &[Wish]) -> Result<()> {
    lab.machines().try_for_each(Machine::wait_connected)?;
    let mut grants = BTreeMap::new();
    wait::until_true("grants are neither open nor ended", PATIENCE, || {
        let listed = lab.client().grants()?;
        let settled = |grant: &Value| matches!(grant["state"].as_str(), Some("open" | "ended" | "refused"));
        let all = listed.iter().all(settled);
        let by_id = |grant: Value| Some((grant["id"].as_str()?.to_owned(), grant));
        grants = listed.into_iter().filter_map(by_id).collect();
        Ok(all)
    })?;
    let state = |id: &String| grants.get(id).map(|grant| grant["state"].clone());
    for wish in wishes {
        let Some(id) = &wish.grant else {
            ensure!(!wish.was_open, "acknowledged without a grant: {wish:?}");
            continue;
        };
        let found = state(id).with_context(|| format!("acknowledged and not on record: {wish:?}"))?;
        let reason = &grants[id]["reason"];
        // A host that was away for as long as a short grant lasts is right to refuse it.
        ensure!(
            found != "refused" || (reason == "EXPIRED" && !wish.was_open),
            "a sound grant was refused, {reason}: {wish:?}"
        );
        ensure!(
            !wish.was_revoked || found == "ended",
            "revoked, and {found}: {wish:?}"
        );
    }
    let events = lab.client().events()?;
    let opened: BTreeSet<&str> = events
        .iter()
        .filter(|event| event["kind"] == "grant.opened")
        .filter_map(|event| event["grant"].as_str()?.strip_prefix("grants/"))
        .collect();
    for wish in wishes.iter().filter(|wish| wish.was_open) {
        let id = wish.grant.as_deref().unwrap_or_default();
        ensure!(
            opened.contains(id),
            "acknowledged, without a receipt on record: {wish:?}"
        );
    }
    for machine in lab.machines() {
        check_machine(lab, machine, &grants, wishes).with_context(|| machine.name())?;
    }
    let logs = lab.machines().map(|machine| machine.agent_log());
    for log in logs.chain([lab.control().log()]) {
        let text = std::fs::read_to_string(&log)?;
        ensure!(!text.contains("panicked"), "{} tells of a panic", log.display());
    }
    Ok(())
}

fn check_machine(
    lab: &Lab,
    machine: Machine<'_>,
    grants: &BTreeMap<String, Value>,
    wishes: &[Wish],
) -> Result<()> {
    let name = machine.name();
    let open = grants
        .iter()
        .filter(|(_, grant)| grant["machine"] == name.as_str() && grant["state"] == "open");
    let recorded: BTreeSet<&str> = open.clone().map(|(id, _)| id.as_str()).collect();
    let sources: BTreeSet<String> = open
        .filter_map(|(_, grant)| Some(grant["sources"][0].as_str()?.to_owned()))
        .collect();

    let outcome = machine.run_agent(&["status", "--output", "json"])?;
    let status: Value = serde_json::from_str(&outcome.expect_success("nightlatch-agent status")?)?;
    let held = status["grants"].as_array().context("no grants in the status")?;
    let held: BTreeSet<&str> = held.iter().filter_map(|grant| grant["id"].as_str()).collect();
    ensure!(
        held == recorded,
        "the ledger has {held:?}, the server has {recorded:?}"
    );
    let to = SocketAddr::from((machine.addresses().ipv6, 22));
    for wish in wishes.iter().filter(|wish| wish.machine == machine.number()) {
        let expected = sources
            .iter()
            .any(|source| source.strip_suffix("/128").unwrap_or(source) == wish.source.to_string());
        let patience = if expected { SILENCE } else { GLANCE };
        let open = match lab.client().knock(Some(wish.source), to, patience)? {
            Answer::Connected(_) => true,
            Answer::Silent => false,
            Answer::Refused => bail!("sshd is gone"),
        };
        ensure!(open == expected, "{} is open: {open}: {wish:?}", wish.source);
    }
    Ok(())
}
