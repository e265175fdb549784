//! An ssh session that stays open.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(10);
/// Lines that nobody has read yet; beyond that, reading from the session waits.
const BACKLOG: usize = 4096;

/// A connected `ssh`, ended when it is dropped.
pub struct Session {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Session {
    /// `command` is an ssh that runs a shell without a terminal on the other side.
    pub(crate) fn open(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting ssh")?;
        let input = child.stdin.take().context("ssh takes no input")?;
        let output = BufReader::new(child.stdout.take().context("ssh gives no output")?);
        let (sender, lines) = mpsc::sync_channel(BACKLOG);
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut session = Self { child, input, lines };
        session.check_alive().context("opening an ssh session")?;
        Ok(session)
    }

    /// Types a command and gives what it prints.
    pub fn type_line(&mut self, command: &str) -> Result<String> {
        const END: &str = "-- that was all --";
        writeln!(self.input, "{command}; echo '{END}'").context("the session is closed")?;
        self.input.flush().context("the session is closed")?;
        let deadline = Instant::now() + PATIENCE;
        let mut answer = Vec::new();
        loop {
            match self.next_line(deadline)? {
                line if line == END => return Ok(answer.join("\n")),
                line => answer.push(line),
            }
        }
    }

    /// The session answers: what is typed comes back from the other side.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.type_line("echo $((6 * 7))")?.as_str() {
            "42" => Ok(()),
            other => bail!("the session answers `{other}`"),
        }
    }

    /// Lets the other side print a number every 20 ms from now on, without being asked.
    pub fn stream(mut self) -> Result<Stream> {
        writeln!(
            self.input,
            "n=0; while :; do echo $n; n=$((n + 1)); sleep 0.02; done"
        )
        .context("the session is closed")?;
        self.input.flush().context("the session is closed")?;
        let mut stream = Stream {
            session: self,
            next: 0,
        };
        stream.check_flowing()?;
        Ok(stream)
    }

    fn next_line(&self, deadline: Instant) -> Result<String> {
        let patience = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(patience).context("the session is silent")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already, which is just as good.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A session in which the other side prints numbers, one after the other.
pub struct Stream {
    session: Session,
    next: u64,
}

impl Stream {
    /// Numbers that were sent after this call arrive, none missing and none twice.
    pub fn check_flowing(&mut self) -> Result<()> {
        // What has piled up since says nothing about now.
        while let Ok(line) = self.session.lines.try_recv() {
            self.take(&line)?;
        }
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..5 {
            let line = self.session.next_line(deadline)?;
            self.take(&line)?;
        }
        Ok(())
    }

    fn take(&mut self, line: &str) -> Result<()> {
        if line != self.next.to_string() {
            bail!("expected {} in the stream, got `{line}`", self.next);
        }
        self.next += 1;
        Ok(())
    }
}
