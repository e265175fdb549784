//! What is asked of everyone who is examined.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nightlatch_tests::netns::Netns;

use crate::place::Place;

/// Where a client runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    User,
    Machine,
}

/// One who opens ports for a while.
pub(crate) trait Peer: Sync {
    fn name(&self) -> &'static str;

    /// How long a short grant is here.
    fn short(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Brings it up with the port shut; grants last as long as that.
    fn start(&mut self, grant: Duration) -> Result<Place>;

    /// What a person runs to be let in from an address, and where.
    fn client(&self, place: &Place, source: Ipv4Addr, grant: Duration) -> Result<(At, Command)>;

    /// Lets many in, as fast as the peer's own tools can, at most until `deadline`.
    fn ask_many(
        &self,
        place: &Place,
        sources: &[Ipv4Addr],
        grant: Duration,
        deadline: Instant,
    ) -> Result<()> {
        for source in sources {
            if Instant::now() >= deadline {
                return Ok(());
            }
            place.speak_from(*source)?;
            let (at, mut client) = self.client(place, *source, grant)?;
            let status = netns(place, at).inside(|| client.status().context("running the client"))?;
            if !status.success() {
                return Ok(());
            }
        }
        Ok(())
    }
}

pub(crate) const fn netns(place: &Place, at: At) -> &Netns {
    match at {
        At::User => &place.user,
        At::Machine => &place.machine,
    }
}

/// The rules that an administrator has before any of these tools: sessions live on, the port is shut.
pub(crate) const BASE: &str = "table inet filter {
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related accept
    jump LETMEIN-INPUT
    tcp dport 22 drop
  }
  chain LETMEIN-INPUT { }
}
";

/// The same by iptables, for tools that speak it.
pub(crate) fn base_by_iptables(place: &Place) -> Result<()> {
    let accept = "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
    for rule in [accept, "-A INPUT -p tcp --dport 22 -j DROP"] {
        let words: Vec<&str> = rule.split(' ').collect();
        place.on_machine("iptables-nft", &words)?;
    }
    Ok(())
}
