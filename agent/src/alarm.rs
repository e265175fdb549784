//! What wakes the daemon: a timer on CLOCK_BOOTTIME, which counts suspended time, and every setting of the wall clock.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nightlatch_core::time::BootTime;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::read;
use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;
use tokio::time::sleep;

use crate::clock::{Clock, SystemClock};

/// Why the alarm rang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rang {
    Due,
    /// The wall clock was set, or the host resumes from a suspend.
    ClockSet,
}

/// What the daemon's loop waits for when nobody speaks.
pub trait Alarm {
    /// Rings at `due`, or earlier if the wall clock is set. Nothing is lost if it isn't waited for to the end.
    fn ring(&mut self, due: BootTime) -> impl Future<Output = Rang>;
}

/// Timers of this host. What can't be had is done without: then a suspend is found some seconds after the resume.
pub struct SystemAlarm {
    clock: SystemClock,
    boot: Option<Timer>,
    wall: Option<Timer>,
}

impl SystemAlarm {
    /// Within a runtime.
    pub fn new(clock: SystemClock) -> Self {
        let had = |timer: io::Result<Timer>| {
            timer
                .inspect_err(|error| tracing::warn!(%error, "no timer to wake by; a suspend is found late"))
                .ok()
        };
        Self {
            clock,
            boot: had(Timer::new(ClockId::CLOCK_BOOTTIME)),
            wall: had(Timer::new(ClockId::CLOCK_REALTIME).and_then(|timer| timer.watch().map(|()| timer))),
        }
    }
}

impl Alarm for SystemAlarm {
    async fn ring(&mut self, due: BootTime) -> Rang {
        let now = self.clock.now();
        if due <= now {
            consume_budget().await;
            return Rang::Due;
        }
        tokio::select! {
            biased;
            () = clock_set(self.wall.as_ref()) => Rang::ClockSet,
            () = until(self.boot.as_ref(), self.clock, due, due.since(now)) => Rang::Due,
        }
    }
}

/// By the timer or, should that be missing or wrong, by one that doesn't count suspended time.
async fn until(timer: Option<&Timer>, clock: SystemClock, due: BootTime, remaining: Duration) {
    let by_timer = async {
        if let Some(timer) = timer
            && timer.arm(due).is_ok()
            && timer.expired().await.is_ok()
            && due <= clock.now()
        {
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = by_timer => {}
        () = sleep(remaining) => {}
    }
}

async fn clock_set(timer: Option<&Timer>) {
    if let Some(timer) = timer
        && is_canceled(timer.expired().await)
        && timer.watch().is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn is_canceled(expired: io::Result<()>) -> bool {
    expired.is_err_and(|error| error.raw_os_error().map(Errno::from_raw) == Some(Errno::ECANCELED))
}

struct Timer {
    timer: TimerFd,
    /// The same, as the runtime wants it.
    readable: AsyncFd<OwnedFd>,
}

impl Timer {
    /// No grant and no clock reaches the year 2255; the kernel's own count ends in 2262.
    const NEVER: i64 = 9_000_000_000;

    #[expect(
        deprecated,
        reason = "what replaces it is unsafe, for files that may close early; an OwnedFd doesn't"
    )]
    fn new(clock: ClockId) -> io::Result<Self> {
        let timer = TimerFd::new(clock, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let readable = AsyncFd::new(nix::unistd::dup(&timer)?)?;
        Ok(Self { timer, readable })
    }

    fn arm(&self, due: BootTime) -> nix::Result<()> {
        let due = TimeSpec::from_duration(due.since_boot());
        self.timer
            .set(Expiration::OneShot(due), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
    }

    /// Rings only when the wall clock is set (timerfd_create(2)).
    fn watch(&self) -> io::Result<()> {
        let never = Expiration::OneShot(TimeSpec::new(Self::NEVER, 0));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.timer.set(never, flags) {
            // It was set between the last ring and now, and is watched all the same.
            Ok(()) | Err(Errno::ECANCELED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn expired(&self) -> io::Result<()> {
        loop {
            let mut ready = self.readable.readable().await?;
            let read = |_: &AsyncFd<OwnedFd>| Ok(read(&self.timer, &mut [0; 8])?);
            // Otherwise it was armed anew meanwhile.
            if let Ok(read) = ready.try_io(read) {
                return read.map(|_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn it_rings_on_time_whatever_it_was_set_to_before() {
        let clock = SystemClock::new().unwrap();
        let mut alarm = SystemAlarm::new(clock);
        assert!(alarm.boot.is_some() && alarm.wall.is_some());
        let begun = clock.now();
        assert_eq!(alarm.ring(begun).await, Rang::Due);
        for millis in [30, 60, 90] {
            let far = begun.plus(Duration::from_secs(3600));
            let given_up = timeout(Duration::from_millis(1), alarm.ring(far)).await;
            assert!(given_up.is_err());
            let due = begun.plus(Duration::from_millis(millis));
            assert_eq!(timeout(PATIENCE, alarm.ring(due)).await, Ok(Rang::Due));
            assert!(clock.now() >= due);
        }
    }

    #[tokio::test]
    async fn without_timers_it_rings_all_the_same() {
        let clock = SystemClock::new().unwrap();
        let mut alarm = SystemAlarm {
            clock,
            boot: None,
            wall: None,
        };
        let due = clock.now().plus(Duration::from_millis(20));
        assert_eq!(timeout(PATIENCE, alarm.ring(due)).await, Ok(Rang::Due));
        assert!(clock.now() >= due);
    }
}
