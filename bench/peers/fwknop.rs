//! fwknop: one authorised packet, a rule a source by iptables. Its UDP server is asked, which is faster than libpcap.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use nightlatch_tests::wait;

use crate::peer::{Peer, Request, base_by_iptables};
use crate::place::{MACHINE, Place, quiet};

pub(crate) struct Fwknop;

const KEY: &str = "bmlnaHRsYXRjaC1iZW5jaC1yaWpuZGFlbC1rZXktMzI=";
const HMAC: &str = "bmlnaHRsYXRjaC1iZW5jaC1obWFjLWZvci1md2tub3AtNDU2Nzg5MA==";

impl Fwknop {
    fn start_daemons(place: &mut Place) -> Result<()> {
        place.start_daemon(
            "fwknopd",
            "exec fwknopd --foreground --config-file \"$1/fwknopd.conf\" --access-file \"$1/access.conf\"",
        )?;
        let listening = || Ok(!place.on_machine("ss", &["-Hlun", "sport = :62201"])?.is_empty());
        wait::until_true("fwknopd does not listen", Duration::from_secs(10), listening)
    }
}

impl Peer for Fwknop {
    fn name(&self) -> &'static str {
        "fwknop"
    }

    /// What it is told too fast it forgets.
    fn pause(&self) -> Duration {
        Duration::from_millis(2)
    }

    fn start(&mut self, grant: Duration) -> Result<Place> {
        let mut place = Place::make()?;
        base_by_iptables(&place)?;
        place.write(
            "access.conf",
            &format!(
                "SOURCE ANY\nOPEN_PORTS tcp/22\nKEY_BASE64 {KEY}\nHMAC_KEY_BASE64 {HMAC}\nFW_ACCESS_TIMEOUT {}\n",
                grant.as_secs()
            ),
        )?;
        place.write(
            "fwknopd.conf",
            &format!(
                "PCAP_INTF eth0;\nENABLE_UDP_SERVER Y;\nUDPSERV_PORT 62201;\nFWKNOP_RUN_DIR {0};\nFWKNOP_PID_FILE \
                 {0}/fwknopd.own.pid;\nDIGEST_FILE {0}/digest.cache;\nFIREWALL_EXE /usr/sbin/iptables-nft;\n",
                place.dir.display()
            ),
        )?;
        // It writes its rules for chains that it makes itself, ahead of the drop.
        Self::start_daemons(&mut place)?;
        Ok(place)
    }

    fn request(&self, place: &Place, source: Ipv4Addr, _grant: Duration) -> Result<Request<'_>> {
        let mut client = quiet("fwknop");
        client
            .args(["--access", "tcp/22", "--destination", &MACHINE.to_string()])
            .args(["--allow-ip", &source.to_string()])
            .args([
                "--key-base64-rijndael",
                KEY,
                "--key-base64-hmac",
                HMAC,
                "--use-hmac",
            ])
            .args(["--no-save-args", "--no-rc-file"])
            .env("HOME", &place.dir);
        Ok(Request::Command(client))
    }
}
