//! The daemon's log: a line never holds up the loop, also if nobody takes what is written.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What may wait, in bytes: a line for each of the most grants that a host takes.
const MOST_WAITING: usize = 4 << 20;
/// What the log has for what still waits when the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Takes lines, which a thread of its own writes.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    dropped: u64,
}

/// Gives what waits a moment to be written when it is dropped.
#[must_use]
pub struct LastWords(Log);

impl Log {
    /// # Errors
    /// The host has no thread left.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<(Self, LastWords)> {
        let log = Self(Arc::default());
        let shared = Arc::clone(&log.0);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.serve(out))?;
        Ok((log.clone(), LastWords(log)))
    }
}

impl Write for Log {
    /// Takes the whole line or drops it, and never waits.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.waiting.len().saturating_add(line.len()) > MOST_WAITING {
            state.dropped = state.dropped.saturating_add(1);
        } else {
            state.waiting.extend_from_slice(line);
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut out: impl Write) {
        loop {
            let has_none = |state: &mut State| state.waiting.is_empty() && state.dropped == 0;
            let waited = self.changed.wait_while(self.lock(), has_none);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            let (lines, dropped) = (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.dropped),
            );
            state.is_writing = true;
            drop(state);
            // There is nowhere to say that it can't be written.
            drop(out.write_all(&lines));
            if dropped > 0 {
                drop(writeln!(
                    out,
                    "{dropped} lines of the log were dropped here: nobody took them"
                ));
            }
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        let Self(Log(shared)) = self;
        let is_behind = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        drop(
            shared
                .changed
                .wait_timeout_while(shared.lock(), LAST_WORDS, is_behind),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Hangs until it is told to go on.
    struct Hanging {
        go_on: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Hanging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.go_on.iter().next();
            drop(self.written.send(bytes.to_vec()));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_takes_hold_up_nobody_and_are_counted_later() {
        let (let_go, go_on) = channel();
        let (written, taken) = channel();
        let (mut log, last_words) = Log::start(Hanging { go_on, written }).unwrap();
        let line = [b'x'; 1024];
        // As much as may wait is in the writer's hands already, as much waits, and some is too much.
        for _ in 0..9 * 1024 {
            log.write_all(&line).unwrap();
        }
        assert!(log.0.lock().waiting.len() <= MOST_WAITING);
        drop(last_words);
        drop(let_go);
        let patience = Duration::from_secs(30);
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains("were dropped here") {
            all.extend(taken.recv_timeout(patience).unwrap());
        }
        assert!(all.len() > MOST_WAITING, "what had room was kept");
    }

    #[test]
    fn what_was_said_last_is_written_before_the_end() {
        let (let_go, go_on) = channel();
        let (written, taken) = channel();
        let (mut log, last_words) = Log::start(Hanging { go_on, written }).unwrap();
        log.write_all(b"the end\n").unwrap();
        let_go.send(()).unwrap();
        drop(last_words);
        assert_eq!(taken.try_recv().unwrap(), b"the end\n");
    }
}
