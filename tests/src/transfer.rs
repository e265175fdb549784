//! A transfer over ssh that goes on and on: what was sent must come back, bit for bit.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;

const BLOCK: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends when it is asked how it went.
pub struct Transfer {
    child: Child,
    over: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<()>>,
}

impl Transfer {
    /// `ssh` logs in somewhere; there `cat` sends everything back.
    pub fn start(mut ssh: Command) -> Result<Self> {
        let mut child = ssh
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting ssh")?;
        let input = child.stdin.take().context("ssh takes no input")?;
        let output = child.stdout.take().context("ssh gives no output")?;
        let over = Arc::new(AtomicBool::new(false));
        let arrived = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&over);
        let counted = Arc::clone(&arrived);
        let transfer = Self {
            child,
            over,
            arrived,
            sender: thread::spawn(move || send(input, &told)),
            receiver: thread::spawn(move || receive(output, &counted)),
        };
        transfer.expect_flowing()?;
        Ok(transfer)
    }

    /// What is sent from now on arrives.
    pub fn expect_flowing(&self) -> Result<()> {
        let before = self.arrived.load(Ordering::Relaxed);
        wait::until_true("the transfer stands still", PATIENCE, || {
            ensure!(!self.receiver.is_finished(), "the transfer broke off");
            Ok(self.arrived.load(Ordering::Relaxed) > before + 64 * 1024)
        })
    }

    /// Ends it, and gives how many bytes came back as they were sent.
    pub fn end(mut self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        self.sender.join().ok().context("the sender fell over")??;
        self.receiver.join().ok().context("the receiver fell over")??;
        let status = self.child.wait().context("waiting for ssh")?;
        ensure!(status.success(), "ssh ended with {status}");
        Ok(self.arrived.load(Ordering::Relaxed))
    }
}

fn send(mut input: ChildStdin, over: &AtomicBool) -> Result<()> {
    let mut noise = Noise::default();
    let mut block = vec![0; BLOCK];
    while !over.load(Ordering::Relaxed) {
        noise.fill(&mut block);
        input.write_all(&block).context("the transfer broke off")?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn receive(mut output: ChildStdout, arrived: &AtomicU64) -> Result<()> {
    let mut noise = Noise::default();
    let (mut found, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let length = output.read(&mut found).context("reading what came back")?;
        if length == 0 {
            return Ok(());
        }
        let wanted = wanted.get_mut(..length).context("more than was asked for")?;
        noise.fill(wanted);
        ensure!(
            found.get(..length) == Some(&*wanted),
            "other bytes came back than were sent, after {}",
            arrived.load(Ordering::Relaxed)
        );
        arrived.fetch_add(u64::try_from(length)?, Ordering::Relaxed);
    }
}

/// Bytes that don't repeat, the same each time (xorshift64).
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let [low, ..] = self.0.to_le_bytes();
            *byte = low;
        }
    }
}
