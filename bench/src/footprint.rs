//! What a process takes of its machine.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nightlatch_tests::process::Process;

/// Processor time that a process has used so far, all its threads that still live (schedstat, proc(5)).
pub fn processor_time(process: Process) -> Result<Duration> {
    let tasks = format!("/proc/{}/task", process.pid());
    let mut nanoseconds = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let path = task.context("reading a task")?.path();
        // A thread may end in between.
        nanoseconds += running(&path).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn running(task: &Path) -> Option<u64> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

pub fn resident_mib(process: Process) -> Result<f64> {
    Ok(process.resident_kib()? as f64 / 1024.0)
}

/// A process and its share of what it shares with others (smaps_rollup, proc(5)): fair to a fork of a daemon.
pub fn proportional_mib(process: Process) -> Result<f64> {
    let path = format!("/proc/{}/smaps_rollup", process.pid());
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no Pss in {path}"))? / 1024.0)
}

/// Resident MiB, and percent of one processor.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    pub mib: f64,
    pub percent: f64,
}

/// What each process takes while nothing is asked of it.
pub fn idle<const N: usize>(processes: [Process; N], window: Duration) -> Result<[Footprint; N]> {
    let begin = Instant::now();
    let before = processes.map(processor_time);
    thread::sleep(window);
    let passed = begin.elapsed();
    let mut found = [Footprint {
        mib: 0.0,
        percent: 0.0,
    }; N];
    for ((slot, process), before) in found.iter_mut().zip(processes).zip(before) {
        let busy = processor_time(process)?.saturating_sub(before?);
        *slot = Footprint {
            mib: resident_mib(process)?,
            percent: 100.0 * busy.as_secs_f64() / passed.as_secs_f64(),
        };
    }
    Ok(found)
}

/// What daemons take together while nothing is asked of them; whatever they have forked counts with its own share.
pub fn idle_together(daemons: &[Process], window: Duration) -> Result<Footprint> {
    let times = || {
        daemons
            .iter()
            .map(|daemon| processor_time(*daemon))
            .sum::<Result<Duration>>()
    };
    let (begin, before) = (Instant::now(), times()?);
    thread::sleep(window);
    let busy = times()?.saturating_sub(before);
    let percent = 100.0 * busy.as_secs_f64() / begin.elapsed().as_secs_f64();
    let mib = together_mib(daemons)?;
    Ok(Footprint { mib, percent })
}

/// MiB of daemons and of whatever they have forked.
pub fn together_mib(daemons: &[Process]) -> Result<f64> {
    let mut sum = 0.0;
    for daemon in daemons {
        sum += resident_mib(*daemon)?;
        // One may end in between.
        let forked = daemon.descendants().into_iter();
        sum += forked
            .filter_map(|child| proportional_mib(child).ok())
            .sum::<f64>();
    }
    Ok(sum)
}
