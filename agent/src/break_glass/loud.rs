//! Nobody breaks the glass unheard: the journal and every terminal are told.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;

use super::{Ended, await_end};

/// What `wall` has.
const PATIENCE: Duration = Duration::from_secs(2);
/// What telling the terminals one by one has besides.
const ONE_BY_ONE: Duration = Duration::from_secs(1);

/// An announcement under way.
pub(super) struct Announced {
    /// Whether a terminal was told.
    terminals: mpsc::Receiver<bool>,
    /// What could not be told.
    unheard: Vec<&'static str>,
}

/// Waits for nobody, not even for the disk that `wall` is read from.
pub(super) fn announce(root: &Path, text: &str) -> Announced {
    let mut unheard = Vec::new();
    if !tell_journal(root, text) {
        unheard.push("the journal");
    }
    let (says, terminals) = mpsc::sync_channel(1);
    let (root, text) = (root.to_owned(), text.to_owned());
    let tell = move || {
        let is_told = tell_by_wall(&text) || tell_terminals(&root, &text) > 0;
        // Nobody listens any more once the time is up.
        says.send(is_told).ok();
    };
    // A host without a thread left tells nobody, which is said.
    drop(thread::Builder::new().spawn(tell));
    Announced { terminals, unheard }
}

impl Announced {
    pub(super) fn finish(mut self) -> Vec<&'static str> {
        let patience = PATIENCE.saturating_add(ONE_BY_ONE);
        if self.terminals.recv_timeout(patience) != Ok(true) {
            self.unheard.push("the terminals");
        }
        self.unheard
    }
}

/// As syslog(3) does: the kernel's log of who may what (authpriv), with priority critical.
fn tell_journal(root: &Path, text: &str) -> bool {
    const AUTHPRIV_CRITICAL: u8 = 10 << 3 | 2;
    let message = format!(
        "<{AUTHPRIV_CRITICAL}>nightlatch-agent[{}]: {text}",
        std::process::id()
    );
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(message.as_bytes(), root.join("dev/log"))
    });
    sent.is_ok()
}

fn tell_by_wall(text: &str) -> bool {
    let wall = Command::new("wall")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut wall) = wall else { return false };
    // It fits into the pipe; a wall that doesn't read keeps nobody waiting.
    let written = wall
        .stdin
        .take()
        .map(|mut input| input.write_all(text.as_bytes()));
    await_end(wall, PATIENCE) == Ended::Well && matches!(written, Some(Ok(())))
}

/// For hosts whose `wall` is missing or fails: the console, and each terminal that someone may sit at.
fn tell_terminals(root: &Path, text: &str) -> usize {
    let dev = root.join("dev");
    let places = terminals(&dev.join("pts"), "").chain(terminals(&dev, "tty"));
    let told = places.chain([dev.join("console")]).filter(|place| {
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let open = || {
            OpenOptions::new()
                .write(true)
                .custom_flags(flags.bits())
                .open(place)
        };
        open().and_then(|mut file| write!(file, "\r\n{text}\r\n")).is_ok()
    });
    told.count()
}

/// Of virtual ones those below ten: opening another one would make it.
fn terminals(folder: &Path, prefix: &'static str) -> impl Iterator<Item = PathBuf> + use<> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_one = move |name: &str| {
        let number = name.strip_prefix(prefix).unwrap_or_default();
        let is_short = prefix.is_empty() || number.len() == 1;
        is_short && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    found
        .filter(move |place| is_one(&place.file_name().to_string_lossy()))
        .map(|place| place.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wall_the_console_and_each_terminal_are_told() {
        let root = tempfile::tempdir().unwrap();
        let dev = root.path().join("dev");
        fs::create_dir_all(dev.join("pts")).unwrap();
        for place in ["pts/0", "pts/12", "pts/ptmx", "tty1", "tty23", "console", "null"] {
            fs::write(dev.join(place), "").unwrap();
        }
        assert_eq!(tell_terminals(root.path(), "opened"), 4);
        let is_told = |place: &&str| fs::read_to_string(dev.join(place)).unwrap().contains("opened");
        let told: Vec<_> = ["pts/0", "pts/12", "pts/ptmx", "tty1", "tty23", "console", "null"]
            .into_iter()
            .filter(|place| is_told(place))
            .collect();
        assert_eq!(told, ["pts/0", "pts/12", "tty1", "console"]);
    }
}
