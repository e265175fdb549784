//! What is asked of everyone who is examined.

use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::netns::Netns;

use crate::place::Place;

/// Where a client runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    User,
    Machine,
}

/// A request that is ready to be made.
pub(crate) enum Request<'p> {
    Command(Command),
    Call(Box<dyn FnOnce() -> Result<()> + Send + 'p>),
}

impl Request<'_> {
    /// Returns when the client has its answer, which must be a good one.
    pub(crate) fn make(self) -> Result<()> {
        match self {
            Self::Command(mut client) => {
                let status = client.status().context("running the client")?;
                ensure!(status.success(), "the client ended with {status}");
                Ok(())
            }
            Self::Call(call) => call(),
        }
    }
}

/// One who opens ports for a while.
pub(crate) trait Peer: Sync {
    fn name(&self) -> &'static str;

    /// Whether this is only another way to ask daemons that are examined already.
    fn is_another_way(&self) -> bool {
        false
    }

    /// How long a short grant is here.
    fn short(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// How many single requests can be waited for.
    fn most_asks(&self) -> usize {
        usize::MAX
    }

    /// If it works in rounds, how long one takes: requests come at all times of it.
    fn round(&self) -> Duration {
        Duration::ZERO
    }

    /// Where its clients run.
    fn at(&self) -> At {
        At::User
    }

    /// Whether its client names the address that is to be let in; else it is the one that the client speaks from.
    fn names_source(&self) -> bool {
        true
    }

    /// Between two requests of many.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }

    /// Brings it up with the port shut; grants last as long as that.
    fn start(&mut self, grant: Duration) -> Result<Place>;

    /// What a person or a program does to be let in from an address.
    fn request(&self, place: &Place, source: Ipv4Addr, grant: Duration) -> Result<Request<'_>>;

    /// Lets many in, as fast as the peer's own tools can, at most until `deadline`. Returns the part of the time
    /// that went into changing the address that the client speaks from.
    fn ask_many(
        &self,
        place: &Place,
        sources: &[Ipv4Addr],
        grant: Duration,
        deadline: Instant,
    ) -> Result<Duration> {
        netns(place, self.at()).inside(|| {
            let mut aside = Duration::ZERO;
            for source in sources.iter().take_while(|_| Instant::now() < deadline) {
                if !self.names_source() {
                    let begin = Instant::now();
                    place.speak_from(*source)?;
                    aside += begin.elapsed();
                }
                self.request(place, *source, grant)?.make()?;
                thread::sleep(self.pause());
            }
            Ok(aside)
        })
    }

    /// Whatever must be so before a request for this address can be made.
    fn speak_from(&self, place: &Place, source: Ipv4Addr) -> Result<()> {
        if self.names_source() {
            return Ok(());
        }
        place.speak_from(source)
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
