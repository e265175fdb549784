//! firewalld: rich rules with a time limit, by its own command on the machine.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use nightlatch_tests::wait;

use crate::peer::{At, Peer, Request};
use crate::place::{Place, UNGUARDED, quiet};

pub(crate) struct Firewalld;

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy>
</busconfig>
"#;

impl Firewalld {
    fn start_daemons(place: &mut Place) -> Result<()> {
        let socket = bus(place);
        // Its own configuration and state, seen by it alone: all that is not allowed is dropped, but one port.
        let script = format!(
            "mount -t tmpfs tmpfs /etc/firewalld; mount -t tmpfs tmpfs /run; \
             printf 'DefaultZone=drop\\nFirewallBackend=nftables\\nCleanupOnExit=yes\\nLogDenied=off\\n' \
             >/etc/firewalld/firewalld.conf; mkdir /etc/firewalld/zones; \
             printf '<zone target=\"DROP\"><port port=\"{UNGUARDED}\" protocol=\"tcp\"/></zone>' \
             >/etc/firewalld/zones/drop.xml; \
             export DBUS_SYSTEM_BUS_ADDRESS=unix:path={socket}; exec firewalld --nofork --nopid"
        );
        place.start_daemon("firewalld", &script)?;
        let running = || {
            let mut state = place.machine.exec("firewall-cmd");
            state
                .arg("--state")
                .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={socket}"));
            Ok(wait::run(&mut state, Duration::from_secs(20))?.succeeded())
        };
        wait::until_true("firewalld is not running", Duration::from_secs(30), running)
    }
}

impl Peer for Firewalld {
    fn name(&self) -> &'static str {
        "firewalld"
    }

    fn at(&self) -> At {
        At::Machine
    }

    fn start(&mut self, _grant: Duration) -> Result<Place> {
        let mut place = Place::make()?;
        let socket = bus(&place);
        place.write("bus.conf", &BUS.replace("SOCKET", &socket))?;
        let bus = "exec dbus-daemon --config-file \"$1/bus.conf\" --nofork --nopidfile";
        place.start_daemon("bus", bus)?;
        let made = || Ok(std::path::Path::new(&socket).exists());
        wait::until_true("no bus", Duration::from_secs(10), made)?;
        // The bus is not firewalld: a crash leaves it alone.
        place.daemons.clear();
        Self::start_daemons(&mut place)?;
        Ok(place)
    }

    fn request(&self, place: &Place, source: Ipv4Addr, grant: Duration) -> Result<Request<'_>> {
        let mut client = command(place);
        client.arg(format!("--add-rich-rule={}", rule(source)));
        client.arg(format!("--timeout={}", grant.as_secs()));
        Ok(Request::Command(client))
    }

    fn ask_many(
        &self,
        place: &Place,
        sources: &[Ipv4Addr],
        grant: Duration,
        deadline: Instant,
    ) -> Result<Duration> {
        let mut client = command(place);
        client.args(
            sources
                .iter()
                .map(|source| format!("--add-rich-rule={}", rule(*source))),
        );
        client.arg(format!("--timeout={}", grant.as_secs()));
        place.run_until(self.at(), client, deadline)
    }
}

fn bus(place: &Place) -> String {
    place.dir.join("bus").display().to_string()
}

fn command(place: &Place) -> Command {
    let mut command = quiet("firewall-cmd");
    command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", bus(place)));
    command
}

fn rule(source: Ipv4Addr) -> String {
    format!("rule family=ipv4 source address={source} port port=22 protocol=tcp accept")
}
