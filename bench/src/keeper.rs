//! Nothing of a bench outlives it: not when it is interrupted, and not when it hangs.

use std::process::exit;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Ends this process on SIGINT, on SIGTERM and when it takes longer than it ever should, after `clean_up`.
pub fn keep(longest: Duration, clean_up: impl Fn() + Send + 'static) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        let listen = |kind| signal(kind).context("listening for signals");
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        let (why, code) = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => ("interrupted".to_owned(), 130),
                _ = terminate.recv() => ("terminated".to_owned(), 143),
                () = tokio::time::sleep(longest) => (format!("not done after {longest:?}"), 1),
            }
        });
        complain(&why);
        clean_up();
        exit(code);
    });
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the process ends here")]
fn complain(why: &str) {
    eprintln!("{why}: cleaning up");
}
