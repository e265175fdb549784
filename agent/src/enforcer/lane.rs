//! A file as the loop sees it: at most one job is under way, and what comes meanwhile goes together with the next.

use std::time::Duration;

use nightlatch_core::time::BootTime;

use crate::writer::{Job, Outcome, Write};

/// What may wait for one job, by weight. Beyond it the file is written anew from memory.
const MOST_WAITING: usize = 1024;
/// How long after a failure the disk is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How long what needn't be on disk at once may stay in the kernel's memory.
const SYNC_PAUSE: Duration = Duration::from_millis(50);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Lane<T> {
    waiting: Vec<T>,
    weight: usize,
    durably: bool,
    busy_since: Option<BootTime>,
    /// It must be written anew from memory, which has everything.
    is_behind: bool,
    is_long: bool,
    not_before: Option<BootTime>,
    /// Whether the job under way forces everything to the disk.
    forces: bool,
    /// When the file is forced to the disk, if nothing does it before.
    sync_at: Option<BootTime>,
    /// Up to here the file has everything: it outlives the process.
    written: u64,
    /// Up to here it is on disk: it outlives the power as well.
    durable: u64,
}

impl<T> Lane<T> {
    /// A file that holds everything up to `durable`, or one that must be written anew.
    pub(super) const fn new(durable: u64, is_sound: bool) -> Self {
        Self {
            waiting: Vec::new(),
            weight: 0,
            durably: false,
            busy_since: None,
            is_behind: !is_sound,
            is_long: false,
            not_before: None,
            forces: false,
            sync_at: None,
            written: if is_sound { durable } else { 0 },
            durable: if is_sound { durable } else { 0 },
        }
    }

    pub(super) const fn durable(&self) -> u64 {
        self.durable
    }

    pub(super) const fn busy_since(&self) -> Option<BootTime> {
        self.busy_since
    }

    /// When there is something to do next without being asked.
    pub(super) fn due_at(&self) -> Option<BootTime> {
        let sync_at = self.sync_at.filter(|_| self.busy_since.is_none());
        self.not_before.into_iter().chain(sync_at).min()
    }

    /// What was to wait in the kernel's memory goes to the disk now.
    pub(super) fn hurry(&mut self, now: BootTime) {
        self.sync_at = self.sync_at.map(|_| now);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.busy_since.is_none() && self.waiting.is_empty() && !self.is_behind && self.sync_at.is_none()
    }

    /// Memory has it already.
    pub(super) fn add(&mut self, items: impl IntoIterator<Item = T>, weight: usize, durably: bool) {
        if self.is_behind {
            return;
        }
        if !self.waiting.is_empty() && self.weight.saturating_add(weight) > MOST_WAITING {
            return self.lag();
        }
        self.waiting.extend(items);
        self.weight = self.weight.saturating_add(weight);
        self.durably |= durably;
    }

    /// The next job writes the file anew.
    pub(super) fn lag(&mut self) {
        self.forget_waiting();
        self.is_behind = true;
    }

    fn forget_waiting(&mut self) {
        self.waiting = Vec::new();
        self.weight = 0;
        self.durably = false;
    }

    /// What the writer should do now. `upto` is the last number that was given, `all` what memory has.
    pub(super) fn next(&mut self, now: BootTime, upto: u64, all: impl FnOnce() -> Vec<T>) -> Option<Job<T>> {
        if self.busy_since.is_some() {
            return None;
        }
        let must_sync = self.sync_at.is_some_and(|moment| moment <= now);
        let write = if self.is_behind {
            if self.not_before.is_some_and(|moment| now < moment) {
                return None;
            }
            self.is_behind = false;
            Write::Anew(all())
        } else if !self.waiting.is_empty() || must_sync {
            let (items, durably) = (std::mem::take(&mut self.waiting), self.durably || must_sync);
            self.forget_waiting();
            Write::Append { items, durably }
        } else if self.is_long {
            Write::Compact(all())
        } else {
            return None;
        };
        self.forces = matches!(write, Write::Anew(_) | Write::Append { durably: true, .. });
        self.busy_since = Some(now);
        self.not_before = None;
        Some(Job { write, upto })
    }

    /// Takes the writer's answer.
    pub(super) fn answered(&mut self, outcome: &Outcome, now: BootTime) {
        self.busy_since = None;
        self.is_long = outcome.is_long;
        let Ok(upto) = &outcome.upto else {
            self.lag();
            self.not_before = Some(now.plus(RETRY_PAUSE));
            // What follows is written anew, and that forces everything.
            self.sync_at = None;
            return;
        };
        self.written = self.written.max(*upto);
        self.not_before = None;
        if self.forces {
            self.durable = self.durable.max(*upto);
            self.sync_at = None;
        } else if self.durable < self.written && self.sync_at.is_none() {
            self.sync_at = Some(now.plus(SYNC_PAUSE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame_file::NotWritten;

    fn second(second: u64) -> BootTime {
        BootTime::new(Duration::from_secs(second))
    }

    #[test]
    fn what_may_wait_is_forced_to_the_disk_soon_and_once() {
        let mut lane = Lane::new(0, true);
        lane.add([1], 1, false);
        lane.next(second(0), 1, Vec::new).unwrap();
        assert_eq!(lane.due_at(), None);
        lane.answered(&outcome(Ok(1)), second(0));
        assert_eq!((lane.written, lane.durable()), (1, 0));
        let due = lane.due_at().unwrap();
        assert_eq!(lane.next(second(0), 1, Vec::new), None);
        assert!(!lane.is_idle());
        assert_eq!(lane.next(due, 1, Vec::new), Some(append(&[], 1)));
        lane.answered(&outcome(Ok(1)), due);
        assert_eq!(lane.durable(), 1);
        assert!(lane.is_idle() && lane.due_at().is_none());
    }

    fn outcome(upto: Result<u64, NotWritten>) -> Outcome {
        Outcome { upto, is_long: false }
    }

    fn append(items: &[u64], upto: u64) -> Job<u64> {
        let (items, durably) = (items.to_vec(), true);
        let write = Write::Append { items, durably };
        Job { write, upto }
    }

    #[test]
    fn what_comes_while_the_disk_is_busy_goes_together() {
        let mut lane = Lane::new(0, true);
        lane.add([1], 1, true);
        assert_eq!(lane.next(second(0), 1, Vec::new), Some(append(&[1], 1)));
        lane.add([2], 1, false);
        lane.add([3], 1, true);
        assert_eq!(lane.next(second(0), 3, Vec::new), None);
        lane.answered(&outcome(Ok(1)), second(1));
        assert_eq!(lane.durable(), 1);
        assert_eq!(lane.next(second(1), 3, Vec::new), Some(append(&[2, 3], 3)));
        lane.answered(&outcome(Ok(3)), second(1));
        assert!(lane.is_idle() && lane.next(second(1), 3, Vec::new).is_none());
    }

    #[test]
    fn what_is_too_much_is_written_anew_once_the_disk_is_back() {
        let mut lane = Lane::new(0, true);
        lane.add([0], 1, true);
        lane.next(second(0), 1, Vec::new).unwrap();
        for item in 1..5000 {
            lane.add([item], 1, true);
            assert!(lane.waiting.len() <= MOST_WAITING);
        }
        lane.answered(&outcome(Ok(1)), second(9));
        let job = lane.next(second(9), 5000, || vec![7]).unwrap();
        assert_eq!((job.write, job.upto), (Write::Anew(vec![7]), 5000));
    }

    #[test]
    fn a_long_file_is_compacted_once_and_again_after_the_next_append() {
        let mut lane = Lane::new(0, true);
        let long = |is_long| Outcome { upto: Ok(1), is_long };
        for _ in 0..2 {
            lane.add([1], 1, true);
            lane.next(second(0), 1, Vec::new).unwrap();
            lane.answered(&long(true), second(0));
            let job = lane.next(second(0), 1, || vec![1]).unwrap();
            assert_eq!(job.write, Write::Compact(vec![1]));
            lane.answered(&long(false), second(0));
            assert_eq!(lane.next(second(0), 1, Vec::new), None);
        }
    }

    #[test]
    fn a_file_that_must_be_written_anew_has_nothing_for_sure() {
        let mut lane = Lane::<u64>::new(7, false);
        assert_eq!(lane.durable(), 0);
        lane.next(second(0), 7, Vec::new).unwrap();
        lane.answered(&outcome(Ok(7)), second(0));
        assert_eq!(lane.durable(), 7);
    }

    #[test]
    fn a_failure_is_tried_again_later_from_memory() {
        let mut lane = Lane::new(0, true);
        // Something else waits to be forced to the disk.
        lane.add([0], 1, false);
        lane.next(second(0), 0, Vec::new).unwrap();
        lane.answered(&outcome(Ok(1)), second(0));
        lane.add([1], 1, true);
        lane.next(second(0), 1, Vec::new).unwrap();
        lane.answered(&outcome(Err(NotWritten::NoWriter)), second(0));
        lane.add([2], 1, true);
        assert_eq!(lane.next(second(4), 2, || vec![1, 2]), None);
        assert_eq!(lane.due_at(), Some(second(5)));
        let job = lane.next(second(5), 2, || vec![1, 2]).unwrap();
        assert_eq!((job.write, job.upto), (Write::Anew(vec![1, 2]), 2));
        lane.answered(&outcome(Ok(2)), second(6));
        assert!(lane.is_idle() && lane.durable() == 2);
    }
}
