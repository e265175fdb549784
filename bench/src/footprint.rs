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

/// What processes take while nothing is asked of them: resident MiB, and percent of one processor.
pub fn idle<const N: usize>(processes: [Process; N], window: Duration) -> Result<[(f64, f64); N]> {
    let used = |process| processor_time(process);
    let begin = Instant::now();
    let before = processes.map(used);
    thread::sleep(window);
    let passed = begin.elapsed();
    let mut found = [(0.0, 0.0); N];
    for ((slot, process), before) in found.iter_mut().zip(processes).zip(before) {
        let busy = used(process)?.saturating_sub(before?);
        *slot = (
            resident_mib(process)?,
            100.0 * busy.as_secs_f64() / passed.as_secs_f64(),
        );
    }
    Ok(found)
}
