//! No tool at all: `nft add element`, on the machine itself.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::peer::{At, Peer, Request};
use crate::place::{Place, quiet};

pub(crate) struct SpawnedNft;

const RULES: &str = "table inet byhand {
  set open { type ipv4_addr; flags timeout; }
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related accept
    tcp dport 22 ip saddr != @open drop
  }
}
";

impl Peer for SpawnedNft {
    fn name(&self) -> &'static str {
        "nft by hand"
    }

    fn at(&self) -> At {
        At::Machine
    }

    fn start(&mut self, _grant: Duration) -> Result<Place> {
        let place = Place::make()?;
        let file = place.write("rules.nft", RULES)?;
        place.on_machine("nft", &["-f", &file.display().to_string()])?;
        Ok(place)
    }

    fn request(&self, _place: &Place, source: Ipv4Addr, grant: Duration) -> Result<Request<'_>> {
        let mut nft = quiet("nft");
        nft.arg(format!(
            "add element inet byhand open {{ {source} timeout {}s }}",
            grant.as_secs()
        ));
        Ok(Request::Command(nft))
    }

    fn ask_many(
        &self,
        place: &Place,
        sources: &[Ipv4Addr],
        grant: Duration,
        deadline: Instant,
    ) -> Result<Duration> {
        let element = |source: &Ipv4Addr| format!("{source} timeout {}s", grant.as_secs());
        let elements: Vec<String> = sources.iter().map(element).collect();
        let text = format!("add element inet byhand open {{ {} }}\n", elements.join(", "));
        let file = place.write("many.nft", &text)?;
        let mut nft = quiet("nft");
        nft.arg("-f").arg(file);
        place.run_until(self.at(), nft, deadline)
    }
}
