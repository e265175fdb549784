//! knockd: a sequence of ports, seen by libpcap, and a command of the administrator's for the rule.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use nightlatch_tests::wait;

use crate::peer::{Peer, Request, base_by_iptables};
use crate::place::{MACHINE, Place, quiet};

pub(crate) struct Knockd;

impl Knockd {
    fn start_daemons(place: &mut Place) -> Result<()> {
        place.start_daemon("knockd", "exec knockd -i eth0 -c \"$1/knockd.conf\" -v")?;
        let daemon = place
            .daemons
            .last()
            .map(|daemon| daemon.pid())
            .unwrap_or_default();
        // It says nothing when it is ready: it is, once it holds a packet socket.
        let hears = || {
            let sockets = place.on_machine("ss", &["-H0lp"])?;
            Ok(sockets.contains(&format!("pid={daemon},")))
        };
        wait::until_true("knockd does not listen", Duration::from_secs(10), hears)
    }
}

impl Peer for Knockd {
    fn name(&self) -> &'static str {
        "knockd"
    }

    fn names_source(&self) -> bool {
        false
    }

    fn start(&mut self, grant: Duration) -> Result<Place> {
        let mut place = Place::make()?;
        base_by_iptables(&place)?;
        let rule = |verb: &str| {
            format!("/usr/sbin/iptables-nft -w {verb} INPUT -s %IP% -p tcp --dport 22 -j ACCEPT")
        };
        place.write(
            "knockd.conf",
            &format!(
                "[options]\n  logfile = {}/knocks.log\n[open]\n  sequence = 7000,8000,9000\n  seq_timeout = 5\n  \
                 tcpflags = syn\n  start_command = {}\n  cmd_timeout = {}\n  stop_command = {}\n",
                place.dir.display(),
                rule("-I"),
                grant.as_secs(),
                rule("-D")
            ),
        )?;
        Self::start_daemons(&mut place)?;
        Ok(place)
    }

    fn request(&self, _place: &Place, _source: Ipv4Addr, _grant: Duration) -> Result<Request<'_>> {
        let mut client = quiet("knock");
        client.args([&MACHINE.to_string(), "7000", "8000", "9000"]);
        Ok(Request::Command(client))
    }
}
