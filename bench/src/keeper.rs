//! Nothing of a bench outlives it: not when it is interrupted, and not when it hangs.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

static ENDING: AtomicBool = AtomicBool::new(false);

/// Ends this process on SIGINT, SIGTERM, SIGHUP and when it takes longer than it ever should, after `clean_up`.
pub fn keep(longest: Duration, clean_up: impl Fn() + Send + 'static) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let [mut interrupt, mut terminate, mut hang_up] = {
        let _entered = runtime.enter();
        let listen = |kind| signal(kind).context("listening for signals");
        [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]
    };
    thread::spawn(move || {
        let (why, code) = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => ("interrupted".to_owned(), 130),
                _ = terminate.recv() => ("terminated".to_owned(), 143),
                _ = hang_up.recv() => ("hung up on".to_owned(), 129),
                () = tokio::time::sleep(longest) => (format!("not done after {longest:?}"), 1),
            }
        });
        ENDING.store(true, Ordering::SeqCst);
        complain(&why);
        clean_up();
        // Whatever was just being made when the first round came by.
        thread::sleep(Duration::from_millis(500));
        clean_up();
        exit(code);
    });
    Ok(())
}

/// Waits for ever if this process is being ended: its clean-up is not to be overtaken by anything new, nor cut short.
pub fn hold() {
    while ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Refuses to make anything new while this process is being ended.
pub fn go_on() -> Result<()> {
    ensure!(!ENDING.load(Ordering::SeqCst), "this process is being ended");
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the process ends here")]
fn complain(why: &str) {
    eprintln!("{why}: cleaning up");
}
