//! The writer: the one thread that waits for the disk, so that nothing else does.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use nightlatch_core::ledger::Record;
use tokio::sync::mpsc;

use crate::frame_file::NotWritten;
use crate::ledger_file::LedgerFile;
use crate::outbox::{Entry, ReceiptsFile};
use crate::state::StateLock;

/// What one of the files gets next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write<T> {
    /// Behind what is there.
    Append { items: Vec<T>, durably: bool },
    /// In the place of what is there.
    Anew(Vec<T>),
    /// In its place too, if it has grown far beyond this.
    Compact(Vec<T>),
}

/// With it the file has everything up to `upto`: on disk, unless it appends what needn't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job<T> {
    pub write: Write<T>,
    pub upto: u64,
}

/// A file that the writer writes.
pub trait Sink<T> {
    /// Adds items, and returns when they are on disk if `durably`.
    ///
    /// # Errors
    /// They aren't there, and the sink takes nothing until it is rewritten.
    fn append(&mut self, items: &[T], durably: bool) -> Result<(), NotWritten>;

    /// Writes these in the place of all that was there.
    ///
    /// # Errors
    /// What was there is there still, or the sink takes nothing until it is rewritten.
    fn rewrite(&mut self, items: &[T]) -> Result<(), NotWritten>;

    /// Rewrites what has grown far beyond what it says.
    ///
    /// # Errors
    /// As [`Self::rewrite`].
    fn compact(&mut self, items: &[T]) -> Result<(), NotWritten>;

    /// Whether it takes items without being rewritten first.
    fn is_sound(&self) -> bool;

    /// Whether it is worth compacting.
    fn is_long(&self) -> bool;
}

/// What became of a job.
#[derive(Debug)]
pub struct Outcome {
    pub upto: Result<u64, NotWritten>,
    pub is_long: bool,
}

/// What the writer says.
#[derive(Debug)]
pub enum Written {
    Ledger(Outcome),
    Receipts(Outcome),
}

/// Where the enforcer's writing goes. At most one job for each file is under way.
pub trait Disk {
    /// Never waits.
    fn write_ledger(&mut self, job: Job<Record>);

    /// Never waits.
    fn write_receipts(&mut self, job: Job<Entry>);

    /// The next answer, `None` if there will never be one. Nothing is lost if it is dropped while it waits.
    fn written(&mut self) -> impl Future<Output = Option<Written>>;
}

/// Carries a job out.
pub fn carry_out<T>(sink: &mut impl Sink<T>, job: Job<T>) -> Outcome {
    // A compaction that did not help is tried again with the next append and no sooner.
    let is_compaction = matches!(job.write, Write::Compact(_));
    let written = match &job.write {
        Write::Append { items, durably } => sink.append(items, *durably),
        Write::Anew(items) => sink.rewrite(items),
        // One that stays long is no failure as long as it takes more.
        Write::Compact(items) => sink.compact(items).or_else(|error| {
            tracing::warn!(error = %crate::causes::causes(&error), "a file stays long");
            if sink.is_sound() { Ok(()) } else { Err(error) }
        }),
    };
    Outcome {
        upto: written.map(|()| job.upto),
        is_long: sink.is_long() && !is_compaction,
    }
}

enum Order {
    Ledger(Job<Record>),
    Receipts(Job<Entry>),
}

/// One for each file.
const MOST_JOBS: usize = 2;

/// The enforcer's end of the thread. The thread lives until this is dropped and its last job is done; it is not
/// waited for, because the disk may never answer.
#[derive(Debug)]
pub struct Writer {
    orders: SyncSender<Order>,
    answers: mpsc::Receiver<Written>,
    /// Orders that the thread did not take.
    lost: VecDeque<Written>,
}

impl Writer {
    /// `lock` is held as long as the thread may write.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(lock: StateLock, ledger: LedgerFile, receipts: ReceiptsFile) -> io::Result<Self> {
        let (orders, taken) = sync_channel(MOST_JOBS);
        let (said, answers) = mpsc::channel(MOST_JOBS);
        thread::Builder::new().name("writer".to_owned()).spawn(move || {
            serve(&taken, &said, ledger, receipts);
            drop(lock);
        })?;
        Ok(Self {
            orders,
            answers,
            lost: VecDeque::new(),
        })
    }

    fn order(&mut self, order: Order) {
        let Err(error) = self.orders.try_send(order) else {
            return;
        };
        let (std::sync::mpsc::TrySendError::Full(order) | std::sync::mpsc::TrySendError::Disconnected(order)) =
            error;
        let outcome = Outcome {
            upto: Err(NotWritten::NoWriter),
            is_long: false,
        };
        self.lost.push_back(match order {
            Order::Ledger(_) => Written::Ledger(outcome),
            Order::Receipts(_) => Written::Receipts(outcome),
        });
    }
}

impl Disk for Writer {
    fn write_ledger(&mut self, job: Job<Record>) {
        self.order(Order::Ledger(job));
    }

    fn write_receipts(&mut self, job: Job<Entry>) {
        self.order(Order::Receipts(job));
    }

    async fn written(&mut self) -> Option<Written> {
        match self.lost.pop_front() {
            Some(written) => Some(written),
            None => self.answers.recv().await,
        }
    }
}

fn serve(
    orders: &Receiver<Order>,
    answers: &mpsc::Sender<Written>,
    mut ledger: LedgerFile,
    mut receipts: ReceiptsFile,
) {
    while let Ok(order) = orders.recv() {
        let written = match order {
            Order::Ledger(job) => Written::Ledger(carry_out(&mut ledger, job)),
            Order::Receipts(job) => Written::Receipts(carry_out(&mut receipts, job)),
        };
        // Whoever hears nothing more has ended.
        drop(answers.blocking_send(written));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what is added, but has no room for a second file.
    struct Crowded;

    impl Sink<u64> for Crowded {
        fn append(&mut self, _items: &[u64], _durably: bool) -> Result<(), NotWritten> {
            Ok(())
        }

        fn rewrite(&mut self, _items: &[u64]) -> Result<(), NotWritten> {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            let path = "crowded".into();
            Err(NotWritten::Io { path, source })
        }

        fn compact(&mut self, items: &[u64]) -> Result<(), NotWritten> {
            self.rewrite(items)
        }

        fn is_sound(&self) -> bool {
            true
        }

        fn is_long(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_compaction_that_fails_waits_for_the_next_append() {
        let is_long_after = |write| {
            let outcome = carry_out(&mut Crowded, Job { write, upto: 7 });
            assert!(matches!(outcome.upto, Ok(7)));
            outcome.is_long
        };
        let append = || Write::Append {
            items: vec![1],
            durably: true,
        };
        assert!(is_long_after(append()));
        assert!(!is_long_after(Write::Compact(vec![1])));
        assert!(is_long_after(append()));
    }
}
