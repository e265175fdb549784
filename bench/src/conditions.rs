//! What a run was made on, as its report says: figures of a machine that had other work are worth less.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::moment;

/// Since the beginning of a run.
pub struct Conditions {
    begin: Instant,
    processors: Time,
}

impl Conditions {
    /// # Errors
    /// If the kernel doesn't say what the processors did.
    pub fn begin() -> Result<Self> {
        Ok(Self {
            begin: Instant::now(),
            processors: Time::now()?,
        })
    }

    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// For the head of a report, without its full stop.
    ///
    /// # Errors
    /// If the kernel doesn't say what is asked of it.
    pub fn text(&self, command: &str) -> Result<String> {
        let date = moment::now()?.to_string();
        let date = date.split('T').next().unwrap_or_default();
        let kernel = nix::sys::utsname::uname().context("asking for the kernel")?;
        let processors = std::thread::available_parallelism().context("counting processors")?;
        let load = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
        let load = load.split(' ').next().unwrap_or_default();
        let stolen = Time::now()?.stolen_since(&self.processors);
        Ok(format!(
            "Measured on {date} by `{command}` in {:.0} s: Linux {}, {processors} processors, load {load} at the end, \
             {:.1} % of the processors' time taken by others on the same host",
            self.elapsed().as_secs_f64(),
            kernel.release().to_string_lossy(),
            100.0 * stolen,
        ))
    }
}

/// Of all processors since the start of the machine, in ticks.
struct Time {
    all: u64,
    stolen: u64,
}

impl Time {
    fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::of(&stat).context("/proc/stat does not begin with the time of the processors")
    }

    /// proc(5): user, nice, system, idle, iowait, irq, softirq, steal; what follows is in user and nice already.
    fn of(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).flat_map(str::parse).collect();
        Some(Self {
            all: ticks.iter().sum(),
            stolen: *ticks.get(7)?,
        })
    }

    /// As a share of all.
    fn stolen_since(&self, earlier: &Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        self.stolen.saturating_sub(earlier.stolen) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_took_is_a_share_of_all_time() {
        let earlier = Time::of("cpu  10 10 10 10 0 0 0 5 7 7\ncpu0 1").unwrap();
        let later = Time::of("cpu  20 20 20 40 5 5 0 35 9 9\ncpu0 1").unwrap();
        assert_eq!(later.stolen_since(&earlier), 0.3);
        assert!(Time::of("cpu  1 2 3").is_none());
    }
}
