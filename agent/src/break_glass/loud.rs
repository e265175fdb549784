//! Nobody breaks the glass unheard: the journal and every terminal are told.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;

use super::await_end;

/// What `wall` has.
const PATIENCE: Duration = Duration::from_secs(2);

/// An announcement under way.
pub(super) struct Announced {
    wall: Option<Child>,
    /// What could not be told.
    pub(super) unheard: Vec<&'static str>,
}

/// Waits for nobody.
pub(super) fn announce(root: &Path, text: &str) -> Announced {
    let mut unheard = Vec::new();
    if !tell_journal(root, text) {
        unheard.push("the journal");
    }
    let wall = start_wall(text);
    if wall.is_none() && tell_terminals(root, text) == 0 {
        unheard.push("the terminals");
    }
    Announced { wall, unheard }
}

impl Announced {
    pub(super) fn finish(self) -> Vec<&'static str> {
        if let Some(wall) = self.wall {
            await_end(wall, PATIENCE);
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

fn start_wall(text: &str) -> Option<Child> {
    let mut wall = Command::new("wall")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // It fits into the pipe; a wall that doesn't read keeps nobody waiting.
    let written = wall
        .stdin
        .take()
        .map(|mut input| input.write_all(text.as_bytes()));
    matches!(written, Some(Ok(()))).then_some(wall)
}

/// For hosts without `wall`: each terminal that someone sits at.
fn tell_terminals(root: &Path, text: &str) -> usize {
    let terminals = fs::read_dir(root.join("dev/pts")).into_iter().flatten().flatten();
    let told = terminals.filter(|terminal| {
        let is_one = terminal
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit());
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let open = || {
            OpenOptions::new()
                .write(true)
                .custom_flags(flags.bits())
                .open(terminal.path())
        };
        is_one && open().and_then(|mut file| write!(file, "\r\n{text}\r\n")).is_ok()
    });
    told.count()
}
