//! letmein: an authenticated knock over TCP, a rule a source in nftables.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nightlatch_tests::wait;

use crate::peer::{BASE, Peer, Request};
use crate::place::{MACHINE, Place, quiet};

pub(crate) struct Letmein {
    bin: PathBuf,
}

const USER_AND_KEY: &str = "00000001 = 80E9C81DFA4879B2C64910E1B6870DA42DFB82261B76C859F3A0F5A09DEA2A3D";

impl Letmein {
    pub(crate) fn new(tools: &Path) -> Self {
        Self {
            bin: tools.join("letmein/bin"),
        }
    }

    fn start_daemons(&self, place: &mut Place) -> Result<()> {
        let bin = self.bin.display().to_string();
        for (daemon, become_user) in [
            ("letmeinfwd", ""),
            ("letmeind", "setpriv --reuid 64022 --regid 64022 --clear-groups "),
        ] {
            let script = format!(
                "mount --bind \"$1/passwd\" /etc/passwd; mount --bind \"$1/group\" /etc/group; \
                 mkdir -p -m 1777 \"$1/run\"; \
                 exec {become_user}'{bin}/{daemon}' --config \"$1/letmeind.conf\" --rundir \"$1/run\" --no-systemd --seccomp off"
            );
            place.start_daemon(daemon, &script)?;
            let ready = place.dir.join(if daemon == "letmeinfwd" {
                "run/letmeinfwd/letmeinfwd.sock"
            } else {
                "letmeind.log"
            });
            wait::until_true(&format!("{daemon} is not up"), Duration::from_secs(10), || {
                Ok(ready.exists())
            })?;
        }
        let listening = || {
            let listeners = place.on_machine("ss", &["-Hltn", "sport = :5800"])?;
            Ok(!listeners.is_empty())
        };
        wait::until_true("letmeind does not listen", Duration::from_secs(10), listening)
    }
}

impl Peer for Letmein {
    fn name(&self) -> &'static str {
        "letmein"
    }

    fn names_source(&self) -> bool {
        false
    }

    fn start(&mut self, grant: Duration) -> Result<Place> {
        let mut place = Place::make()?;
        let rules = place.write("rules.nft", BASE)?;
        place.on_machine("nft", &["-f", &rules.display().to_string()])?;
        // A user that exists for its daemons alone, by mounts that they alone see.
        for (file, line) in [
            ("passwd", "letmeind:x:64022:64022::/:/bin/false\n"),
            ("group", "letmeind:x:64022:\n"),
        ] {
            let real = fs::read_to_string(Path::new("/etc").join(file)).context("reading the users")?;
            place.write(file, &(real + line))?;
        }
        let common = format!("[KEYS]\n{USER_AND_KEY}\n\n[RESOURCES]\n00000022 = port: 22\n");
        place.write(
            "letmeind.conf",
            &format!(
                "[GENERAL]\nport = 5800\ncontrol-timeout = 5.0\n\n[NFTABLES]\nexe = nft\nfamily = inet\ntable = filter\n\
                 chain-input = LETMEIN-INPUT\ntimeout = {}\nmax-nr-rules = 5000\n\n{common}",
                grant.as_secs()
            ),
        )?;
        place.write(
            "letmein.conf",
            &format!("[GENERAL]\nport = 5800\n\n[CLIENT]\ndefault-user = 00000001\n\n{common}"),
        )?;
        self.start_daemons(&mut place)?;
        Ok(place)
    }

    fn request(&self, place: &Place, _source: Ipv4Addr, _grant: Duration) -> Result<Request<'_>> {
        let mut client = quiet(self.bin.join("letmein"));
        let config = place.dir.join("letmein.conf");
        client
            .args(["--config", config.to_str().context("a path that is no text")?])
            .args(["knock", "--user", "00000001", "--ipv4"])
            .args([&MACHINE.to_string(), "22"]);
        Ok(Request::Command(client))
    }
}
