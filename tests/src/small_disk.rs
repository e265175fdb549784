//! A daemon whose state lies on a small file system of its own, to be filled and emptied.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::Process;

/// Lets `command` find a copy of `state` in the place of it, on a file system of that many KiB that only it sees;
/// the copy goes with the process.
pub fn on_small_disk(command: &Command, state: &Path, kib: u32) -> Command {
    let script = "mount -t tmpfs -o \"size=$2k,mode=0700\" tmpfs /mnt; cp -a \"$1/.\" /mnt/; \
                  mount --move /mnt \"$1\"; shift 2; exec \"$@\"";
    let mut wrapped = Command::new("unshare");
    wrapped
        .args(["--mount", "sh", "-ec", script, "sh"])
        .arg(state)
        .arg(kib.to_string())
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap_or_default());
    }
    wrapped
}

/// The disk of such a process.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn of(process: Process, state: &Path) -> Result<Self> {
        let inside = state.strip_prefix("/").context("a relative state directory")?;
        Ok(Self(
            Path::new(&format!("/proc/{}/root", process.pid())).join(inside),
        ))
    }

    /// Leaves not a byte free.
    pub fn fill(&self) -> Result<()> {
        let mut filler = fs::File::create(self.filler()).context("making the filler")?;
        for piece in [&[b'x'; 4096][..], b"x"] {
            loop {
                match filler.write(piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("filling the disk"),
                }
            }
        }
        Ok(())
    }

    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("removing the filler")
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}
