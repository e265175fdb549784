//! The one connection that writes. Changes that wait for each other share a flush.
//!
//! Each change is a savepoint. Where another one waits, a finished change leaves the transaction open for it,
//! and is done when that is on disk; where flushing fails, it fails for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::timeout;

use super::connection::{Connection, sql};
use super::{PATIENCE, StoreError};

/// Changes that share a flush.
const MOST_TOGETHER: usize = 64;
/// Whoever was to flush for the others may have gone away.
const FLUSH_WITHIN: Duration = Duration::from_millis(20);

const BEGIN: &str = "BEGIN IMMEDIATE; SAVEPOINT change";
const BEGIN_ANOTHER: &str = "SAVEPOINT change";
const UNDO: &str = "ROLLBACK TO change; RELEASE change";
const FINISH: &str = "RELEASE change";
const FINISH_AND_FLUSH: &str = "RELEASE change; COMMIT";

/// Gives the connection to one change at a time.
#[derive(Clone)]
pub(super) struct Line {
    connection: Arc<Mutex<Writer>>,
    waiting: Arc<AtomicUsize>,
}

/// The connection, and what was done on it and is not yet on disk.
struct Writer {
    /// `None`: closed.
    connection: Option<Connection>,
    /// Whoever waits for what is done in the open transaction. Between turns there is one if anybody does.
    together: Vec<oneshot::Sender<Result<(), String>>>,
}

/// A change's turn.
pub(super) struct Turn {
    line: Line,
    /// `None`: finished.
    writer: Option<OwnedMutexGuard<Writer>>,
}

struct Waiting<'l>(&'l AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Line {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection: Arc::new(Mutex::new(Writer {
                connection: Some(connection),
                together: Vec::new(),
            })),
            waiting: Arc::default(),
        }
    }

    /// Waits for its turn and begins a change.
    pub(super) async fn turn(&self) -> Result<Turn, StoreError> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting(&self.waiting);
        let writer = timeout(PATIENCE, self.connection.clone().lock_owned()).await;
        let mut writer = writer.map_err(|_elapsed| StoreError::Busy(PATIENCE))?;
        drop(waiting);
        let begin = if writer.together.is_empty() {
            BEGIN
        } else {
            BEGIN_ANOTHER
        };
        writer.connection()?.begin(begin);
        Ok(Turn {
            line: self.clone(),
            writer: Some(writer),
        })
    }

    /// Waits until nothing is under way and closes the connection.
    pub(super) async fn close(&self) {
        let mut writer = self.connection.lock().await;
        if !writer.together.is_empty() {
            writer.flush().await;
        }
        if let Some(connection) = writer.connection.take() {
            // What is on disk is whole, whatever closing says.
            connection.close().await.unwrap_or_default();
        }
    }
}

impl Writer {
    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        self.connection.as_mut().ok_or(StoreError::Closed)
    }

    async fn execute(&mut self, text: &'static str) -> Result<(), StoreError> {
        sql(text).rows(self.connection()?).await?;
        Ok(())
    }

    /// Puts all that was done on disk, or nothing of it.
    async fn flush(&mut self) {
        match self.execute("COMMIT").await {
            Ok(()) => self.tell(&Ok(())),
            Err(error) => self.lose(&error).await,
        }
    }

    /// Tells those who wait what became of what they have done.
    fn tell(&mut self, outcome: &Result<(), String>) {
        for waiting in self.together.drain(..) {
            // Nobody need wait any longer.
            drop(waiting.send(outcome.clone()));
        }
    }

    async fn lose(&mut self, why: &StoreError) {
        // The transaction may be gone already.
        self.execute("ROLLBACK").await.unwrap_or_default();
        self.tell(&Err(why.to_string()));
    }

    /// Undoes the change that has the turn. What others did before it stays.
    async fn undo(&mut self) {
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        connection.forget();
        if !connection.has_begun() {
            return;
        }
        if let Err(error) = self.execute(UNDO).await {
            // The transaction was rolled back as a whole, so the others' work is lost, too.
            self.lose(&error).await;
        } else if self.together.is_empty() {
            self.execute("ROLLBACK").await.unwrap_or_default();
        }
    }
}

impl Turn {
    #[expect(
        clippy::expect_used,
        reason = "a turn begins with a connection, which only its end takes"
    )]
    pub(super) fn connection(&mut self) -> &mut Connection {
        let connection = self.writer.as_mut().and_then(|writer| writer.connection.as_mut());
        connection.expect("a turn that has not ended has a connection")
    }

    /// Returns when the change is on disk.
    pub(super) async fn finish(mut self) -> Result<(), StoreError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(StoreError::Closed);
        };
        let line = self.line.clone();
        // Carried through even if whoever changed something goes away.
        let finished = tokio::spawn(async move {
            let others_wait = line.waiting.load(Ordering::SeqCst) > 0;
            let is_last = !others_wait || writer.together.len() >= MOST_TOGETHER;
            let end = if is_last { FINISH_AND_FLUSH } else { FINISH };
            if let Err(error) = writer.connection()?.end(end).await {
                writer.undo().await;
                return Err(error);
            }
            if is_last {
                writer.tell(&Ok(()));
                return Ok(());
            }
            let (sender, receiver) = oneshot::channel();
            writer.together.push(sender);
            drop(writer);
            line.flushed(receiver).await
        });
        finished
            .await
            .map_err(|error| StoreError::NotWritten(error.to_string()))?
    }
}

impl Line {
    /// Waits until another change has put this one on disk, or does it itself.
    async fn flushed(&self, mut receiver: oneshot::Receiver<Result<(), String>>) -> Result<(), StoreError> {
        loop {
            if let Ok(told) = timeout(FLUSH_WITHIN, &mut receiver).await {
                let lost = |_closed| StoreError::NotWritten("the store was closed".to_owned());
                return told.map_err(lost)?.map_err(StoreError::NotWritten);
            }
            let mut writer = self.connection.lock().await;
            if !writer.together.is_empty() {
                writer.flush().await;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move { writer.undo().await });
            }
            // Without a runtime nobody uses the connection again; closing it undoes the change.
            Err(_) => drop(writer.connection.take()),
        }
    }
}
