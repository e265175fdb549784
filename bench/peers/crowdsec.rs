//! crowdsec: decisions, fetched by its bouncer each 10 s as packaged, into a set of nftables; the set is used as a
//! list of those who may come in. Unpacked, not installed: its installation registers with a service on the internet.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nightlatch_tests::wait;

use crate::peer::{At, Peer, Request};
use crate::place::{Place, quiet};

pub(crate) struct Crowdsec {
    root: PathBuf,
}

const RULES: &str = "table ip byhand {
  set open { type ipv4_addr; flags timeout; }
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related accept
    tcp dport 22 ip saddr != @open drop
  }
}
";

impl Crowdsec {
    pub(crate) fn new(tools: &Path) -> Self {
        Self {
            root: tools.join("crowdsec"),
        }
    }

    fn configure(&self, place: &Place) -> Result<()> {
        let (dir, root) = (place.dir.display(), self.root.display());
        for part in ["data", "hub", "notifications", "plugins", "patterns"] {
            fs::create_dir_all(place.dir.join(part)).context("making a folder")?;
        }
        place.write(
            "profiles.yaml",
            "name: none\nfilters:\n - 'false'\non_success: break\n",
        )?;
        place.write("simulation.yaml", "simulation: off\n")?;
        place.write("acquis.yaml", "")?;
        place.write("hub/.index.json", "{}")?;
        place.write(
            "config.yaml",
            &format!(
                "common: {{daemonize: false, log_media: stdout, log_level: info, working_dir: {dir}}}\n\
                 config_paths: {{config_dir: {dir}, data_dir: {dir}/data, simulation_path: {dir}/simulation.yaml, \
                 hub_dir: {dir}/hub, index_path: {dir}/hub/.index.json, notification_dir: {dir}/notifications, \
                 plugin_dir: {dir}/plugins}}\n\
                 crowdsec_service: {{enable: false, acquisition_path: {dir}/acquis.yaml}}\n\
                 db_config: {{log_level: info, type: sqlite, db_path: {dir}/data/crowdsec.db}}\n\
                 plugin_config: {{user: nobody, group: nogroup}}\n\
                 api:\n  client: {{credentials_path: {dir}/credentials.yaml}}\n  server:\n    listen_uri: \
                 127.0.0.1:8080\n    profiles_path: {dir}/profiles.yaml\n\
                 prometheus: {{enabled: false}}\n"
            ),
        )?;
        place.write(
            "bouncer.yaml",
            &format!(
                "mode: nftables\npid_dir: {dir}\nupdate_frequency: 10s\ndaemonize: false\nlog_mode: stdout\n\
                 log_level: info\napi_url: http://127.0.0.1:8080/\napi_key: bench\ndisable_ipv6: true\n\
                 deny_action: DROP\nblacklists_ipv4: open\nsupported_decisions_types: [ban]\n\
                 nftables: {{ipv4: {{enabled: true, set-only: true, table: byhand, chain: input}}, \
                 ipv6: {{enabled: false}}}}\nprometheus: {{enabled: false}}\n"
            ),
        )?;
        place.write("root", &root.to_string()).map(drop)
    }

    fn cscli(&self, place: &Place) -> Command {
        let mut cscli = quiet(self.root.join("usr/bin/cscli"));
        cscli.arg("-c").arg(place.dir.join("config.yaml"));
        cscli
    }

    fn set_up(&self, place: &Place, arguments: &[&str]) -> Result<()> {
        let mut cscli = self.cscli(place);
        cscli.args(arguments);
        let outcome = place
            .machine
            .inside(|| wait::run(&mut cscli, Duration::from_secs(30)))?;
        outcome.expect_success(&format!("cscli {arguments:?}")).map(drop)
    }

    fn start_daemons(&self, place: &mut Place) -> Result<()> {
        let bin = self.root.join("usr/bin").display().to_string();
        place.start_daemon(
            "crowdsec",
            &format!("exec '{bin}/crowdsec' -c \"$1/config.yaml\" -no-cs"),
        )?;
        let listening = || Ok(!place.on_machine("ss", &["-Hltn", "sport = :8080"])?.is_empty());
        wait::until_true("crowdsec does not listen", Duration::from_secs(30), listening)?;
        let bouncer = format!("exec '{bin}/crowdsec-firewall-bouncer' -c \"$1/bouncer.yaml\"");
        place.start_daemon("bouncer", &bouncer)
    }
}

impl Peer for Crowdsec {
    fn name(&self) -> &'static str {
        "crowdsec"
    }

    /// A shorter one can be over before the bouncer asks for it.
    fn short(&self) -> Duration {
        Duration::from_secs(20)
    }

    /// Each waits for the bouncer's next round.
    fn most_asks(&self) -> usize {
        5
    }

    fn round(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn at(&self) -> At {
        At::Machine
    }

    fn start(&mut self, _grant: Duration) -> Result<Place> {
        let mut place = Place::make()?;
        let rules = place.write("rules.nft", RULES)?;
        place.on_machine("nft", &["-f", &rules.display().to_string()])?;
        self.configure(&place)?;
        let credentials = place.dir.join("credentials.yaml").display().to_string();
        place.write("credentials.yaml", "url: http://127.0.0.1:8080/\n")?;
        self.set_up(
            &place,
            &[
                "machines",
                "add",
                "bench",
                "--password",
                "bench",
                "--force",
                "-f",
                &credentials,
            ],
        )?;
        self.set_up(&place, &["bouncers", "add", "bench", "--key", "bench"])?;
        self.start_daemons(&mut place)?;
        Ok(place)
    }

    fn request(&self, place: &Place, source: Ipv4Addr, grant: Duration) -> Result<Request<'_>> {
        let mut cscli = self.cscli(place);
        cscli.args(["decisions", "add", "--ip", &source.to_string()]);
        cscli.args(["--duration", &format!("{}s", grant.as_secs())]);
        Ok(Request::Command(cscli))
    }

    fn ask_many(
        &self,
        place: &Place,
        sources: &[Ipv4Addr],
        grant: Duration,
        deadline: Instant,
    ) -> Result<Duration> {
        let line = |source: &Ipv4Addr| format!("{}s,ban,ip,{source}\n", grant.as_secs());
        let lines: String = sources.iter().map(line).collect();
        let file = place.write("many.csv", &format!("duration,type,scope,value\n{lines}"))?;
        let mut cscli = self.cscli(place);
        cscli.args(["decisions", "import", "-i"]).arg(file);
        place.run_until(self.at(), cscli, deadline)
    }
}
