//! The only reader of the host's clocks.

use std::time::Duration;

use nightlatch_core::ledger::Boot;
use nightlatch_core::time::{BootId, BootTime, Timestamp};
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the daemon asks for the time.
pub trait Clock {
    fn boot_id(&self) -> BootId;
    fn now(&self) -> BootTime;
    fn reading(&self) -> Reading;
    /// What the wall clock says; it may be wrong.
    fn wall(&self) -> Timestamp;

    fn boot(&self) -> Boot {
        Boot {
            id: self.boot_id(),
            now: self.now(),
            wall: self.wall(),
        }
    }
}

/// Two clocks at one moment: one counts the time that the host is suspended, the other, as the kernel's timers, doesn't.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub boot: BootTime,
    /// CLOCK_MONOTONIC.
    pub awake: Duration,
}

impl Reading {
    /// How long the host slept between the two.
    pub const fn slept_since(self, earlier: Self) -> Duration {
        let awake = self.awake.saturating_sub(earlier.awake);
        self.boot.since(earlier.boot).saturating_sub(awake)
    }
}

/// Why this host has no usable clock.
#[derive(Debug, thiserror::Error)]
pub enum NoClock {
    #[error("cannot read {BOOT_ID}: mount /proc")]
    BootId(#[source] std::io::Error),
    #[error("{BOOT_ID} holds no id")]
    NotAnId(#[source] uuid::Error),
    #[error("the kernel has no CLOCK_BOOTTIME")]
    BootTime(#[source] nix::Error),
}

/// Within this two clocks count as read at one moment.
const ONE_MOMENT: Duration = Duration::from_millis(1);

/// The clocks of this host.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    boot_id: BootId,
}

impl SystemClock {
    /// # Errors
    /// A host without a boot id or CLOCK_BOOTTIME.
    pub fn new() -> Result<Self, NoClock> {
        let text = std::fs::read_to_string(BOOT_ID).map_err(NoClock::BootId)?;
        let boot_id = BootId(Uuid::try_parse(text.trim()).map_err(NoClock::NotAnId)?);
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(NoClock::BootTime)?;
        Ok(Self { boot_id })
    }
}

impl Clock for SystemClock {
    fn boot_id(&self) -> BootId {
        self.boot_id
    }

    fn now(&self) -> BootTime {
        // It answered when this clock was made, and clock_gettime(2) has no other way to fail. The furthest
        // moment would end every opening, which is the safe side.
        BootTime::new(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from))
    }

    fn reading(&self) -> Reading {
        let read = || {
            let boot = self.now();
            let awake =
                clock_gettime(ClockId::CLOCK_MONOTONIC).map_or_else(|_| boot.since_boot(), Duration::from);
            (Reading { boot, awake }, self.now().since(boot))
        };
        // A busy machine may let time pass in between; that must not pass for sleep.
        let mut readings = std::iter::repeat_with(read).take(5);
        let quick = readings.find(|(_, took)| *took < ONE_MOMENT);
        quick.map_or_else(|| read().0, |(reading, _)| reading)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the agent's one reader of the wall clock"
    )]
    fn wall(&self) -> Timestamp {
        chrono::Utc::now().into()
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;
    use tokio::task::coop::consume_budget;
    use tokio::time::{Instant, sleep};

    use crate::alarm::{Alarm, Rang};

    /// Stands still until a test moves it on, or flows with tokio's clock.
    #[derive(Clone, Debug)]
    pub(crate) struct FakeClock {
        pub(crate) boot_id: BootId,
        wall_at_start: Timestamp,
        passed: Rc<Cell<Duration>>,
        slept: Rc<Cell<Duration>>,
        flows_since: Rc<Cell<Option<Instant>>>,
    }

    impl FakeClock {
        pub(crate) fn new(wall_at_start: Timestamp) -> Self {
            let boot_id = BootId(Uuid::from_u128(1));
            Self {
                boot_id,
                wall_at_start,
                passed: Rc::default(),
                slept: Rc::default(),
                flows_since: Rc::default(),
            }
        }

        pub(crate) fn advance(&self, length: Duration) {
            self.passed.set(self.passed.get() + length);
        }

        /// The kernel's timers stand still meanwhile.
        pub(crate) fn sleep(&self, length: Duration) {
            self.advance(length);
            self.slept.set(self.slept.get() + length);
        }

        pub(crate) fn flow(&self) {
            self.flows_since.set(Some(Instant::now()));
        }

        fn passed(&self) -> Duration {
            let flowed = self.flows_since.get().map(|since| since.elapsed());
            self.passed.get() + flowed.unwrap_or_default()
        }
    }

    impl Clock for FakeClock {
        fn boot_id(&self) -> BootId {
            self.boot_id
        }

        fn now(&self) -> BootTime {
            BootTime::new(Duration::from_secs(1000) + self.passed())
        }

        fn reading(&self) -> Reading {
            let boot = self.now();
            let awake = boot.since_boot() - self.slept.get();
            Reading { boot, awake }
        }

        fn wall(&self) -> Timestamp {
            self.wall_at_start.checked_add(self.passed()).unwrap()
        }
    }

    /// Rings in tokio's time.
    impl Alarm for FakeClock {
        async fn ring(&mut self, due: BootTime) -> Rang {
            let remaining = due.since(self.now());
            if remaining.is_zero() {
                consume_budget().await;
            } else {
                sleep(remaining).await;
            }
            Rang::Due
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_this_host_goes_forward() {
        let clock = SystemClock::new().unwrap();
        let before = clock.now();
        assert!(before < BootTime::new(Duration::MAX));
        assert!(clock.now() >= before);
        assert!(clock.wall() > "2026-01-01T00:00:00Z".parse().unwrap());
    }

    #[test]
    fn only_sleep_counts_as_sleep() {
        let reading = |boot, awake| Reading {
            boot: BootTime::new(Duration::from_secs(boot)),
            awake: Duration::from_secs(awake),
        };
        // The two differ from the start where the host slept before, or in a time namespace.
        for (earlier, later, slept) in [
            (reading(100, 50), reading(110, 60), 0),
            (reading(100, 50), reading(7300, 60), 7190),
            (reading(100, 9000), reading(7300, 9010), 7190),
            (reading(100, 50), reading(100, 50), 0),
        ] {
            assert_eq!(later.slept_since(earlier), Duration::from_secs(slept));
        }
        let clock = SystemClock::new().unwrap();
        let before = clock.reading();
        std::thread::sleep(Duration::from_millis(50));
        assert!(clock.reading().slept_since(before) < Duration::from_millis(40));
    }
}
