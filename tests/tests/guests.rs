//! Packages on booted machines: from install to purge, a guarded port is never open to whom nobody let in.
#![expect(clippy::print_stdout, reason = "the figures of the probe are worth reading")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_core::time::Timestamp;
use nightlatch_tests::extent;
use nightlatch_tests::forge::moment;
use nightlatch_tests::guests::{Failures, Guest, Site, Suite, ipv6_beside, packages};
use nightlatch_tests::probe::{Probe, Sight};
use nightlatch_tests::process::Process;
use nightlatch_tests::transfer::Transfer;
use nightlatch_tests::wait;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const CONTROL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// Who is let in, who is let in for a moment, and who never asks.
const ALICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);
const BRIEFLY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 102);
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 103);
/// What a grant may lack after a reboot: the time since the last mark, and that of reading it here.
const SLACK: f64 = 5.0;
/// Far more than what follows nftables.service takes: beyond it, nothing followed.
const FLUSHED_FOR_AT_MOST: Duration = Duration::from_secs(5);

/// As unattended upgrades do: what the owner changed stays.
const INSTALL: &str = "dpkg --force-confold --install /root/package.deb";
const VERSION: &str = "dpkg-query -f '${Version}' -W nightlatch-agent";

#[test]
fn on_bookworm_a_guarded_port_is_shut_from_policy_to_purge() -> Result<()> {
    from_install_to_purge(Suite::Bookworm)
}

#[test]
fn on_trixie_a_guarded_port_is_shut_from_policy_to_purge() -> Result<()> {
    from_install_to_purge(Suite::Trixie)
}

fn from_install_to_purge(suite: Suite) -> Result<()> {
    let addresses: [IpAddr; 4] = [
        ALICE.into(),
        BRIEFLY.into(),
        STRANGER.into(),
        ipv6_beside(STRANGER).into(),
    ];
    let site = Site::open(&addresses)?;
    let control = site.boot(Suite::Bookworm, "control", CONTROL)?;
    let web = site.boot(suite, "web", WEB)?;
    let story = Story {
        suite,
        site: &site,
        control,
        web,
    };
    let told = story
        .tell()
        .with_context(|| format!("{}\n{}", story.control.logs(), story.web.logs()));
    let inits = [story.control.init_process(), story.web.init_process()];
    drop(site);
    told?;
    // A killed one may still wait for the disk.
    wait::until_true("guests outlive their test", PATIENCE, || {
        Ok(!inits.into_iter().flatten().any(Process::is_alive))
    })
}

struct Story<'s> {
    suite: Suite,
    site: &'s Site,
    control: Guest<'s>,
    web: Guest<'s>,
}

impl Story<'_> {
    fn tell(&self) -> Result<()> {
        let bare = self.snapshot()?;
        self.install_the_server()?;
        let fresh = self.install_the_agent()?;
        self.watched("turning it on", Seen::Open, || self.enrol())?;
        self.set_the_policy()?;
        let end = self.let_in(ALICE, "20m")?;

        let transfer = Transfer::start(self.site.ssh(ALICE, WEB))?;
        let mut session = self.site.session(ALICE, WEB)?;
        self.watched("stop, start, restart, kill and upgrade", Seen::Shut, || {
            self.end_and_start_the_agent()?;
            if self.suite == Suite::Trixie || extent::is_long() {
                self.hang_the_agent()?;
            }
            self.fail_to_upgrade()?;
            self.upgrade()?;
            self.fail_to_remove()
        })?;
        transfer.expect_flowing()?;
        session.check_alive()?;
        ensure!(transfer.end()? > 0, "nothing was transferred");
        drop(session);
        self.expect_remaining(end)?;

        self.watched_boot("a reboot", || self.web.reboot())?;
        self.wait_agent()?;
        self.expect_remaining(end)?;
        self.boot_without_the_hosts_own_file(end)?;
        self.turn_the_hosts_own_rules_on()?;
        self.watched_boot("a power cut", || self.cut_the_power())?;
        self.expect_remaining(end)?;
        self.watched_boot("a boot without the server", || self.boot_alone())?;
        self.expect_remaining(end)?;
        self.upgrade_and_boot_the_server()?;
        self.expect_remaining(end)?;

        self.reload_the_hosts_own_rules()?;
        self.turn_off_and_on(end, &fresh)?;
        self.remove_and_install_again(end, &fresh)?;
        self.purge(&bare, &fresh)
    }

    fn install_the_server(&self) -> Result<()> {
        install(&self.control, &["nightlatch-server", "nightlatch"])?;
        self.control.sh(&format!(
            "nightlatch-server init --name {CONTROL}; systemctl start nightlatch-server; cd /var/lib/nightlatch-server; \
             printf 'server = \"{CONTROL}\"\\nca = \"%s/ca.pem\"\\ncert = \"%s/admin.pem\"\\nkey = \"%s/admin.key\"\\n' \
             $PWD $PWD $PWD >/etc/nightlatch/cli.toml"
        ))?;
        expect(&self.control, "systemctl is-active nightlatch-server", "active")?;
        let strangers = "find /var/lib/nightlatch-server ! -user nightlatch-server";
        expect(&self.control, strangers, "")
    }

    /// Gives the files of the host as they were before the machine joined.
    fn install_the_agent(&self) -> Result<String> {
        let own = "flush ruleset\ntable inet owner {\n chain input {\n  type filter hook input priority 0; policy \
                   accept;\n  ip saddr 198.51.100.7 drop\n }\n}\n";
        self.web.sh(&format!(
            "printf '%s' '{own}' >/etc/nftables.conf; nft -f /etc/nftables.conf"
        ))?;
        let rules = self.rules()?;
        install(&self.web, &["nightlatch-agent"])?;
        // Installed, it runs nothing and shuts nothing.
        ensure!(self.rules()? == rules, "installing changed the host's rules");
        ensure!(self.is_open()?, "installing shut a port");
        expect(
            &self.web,
            "systemctl is-enabled nightlatch-lockdown nightlatch-agent",
            "enabled\nenabled",
        )?;
        expect(
            &self.web,
            "systemctl show -p ActiveState --value nightlatch-agent",
            "inactive",
        )?;
        self.web
            .sh("echo '# the owner was here' >>/etc/nightlatch/agent.toml")?;
        Ok(rules)
    }

    fn enrol(&self) -> Result<()> {
        let token = self.control.sh("nightlatch-server token create --machine web")?;
        let token = token.trim();
        self.web.sh(&format!(
            "nightlatch-agent enroll {token} --name web; systemctl start nightlatch-agent"
        ))?;
        self.wait_agent()?;
        expect(
            &self.web,
            "find /var/lib/nightlatch-agent ! -user nightlatch-agent",
            "",
        )?;
        // CAP_NET_ADMIN alone, and no way to more.
        expect(
            &self.web,
            "awk -v user=$(id -u nightlatch-agent) '/^Uid/ {print $2 == user, $3 == user, $4 == user} \
             /^(Cap|NoNew)/ {sub(/^0+/, \"\", $2); print $2}' \
             /proc/$(systemctl show -p MainPID --value nightlatch-agent)/status | paste -sd ' '",
            "1 1 1 1000 1000 1000 1000 1000 1",
        )
    }

    fn set_the_policy(&self) -> Result<()> {
        self.nightlatch("policy set web --port 22/tcp")?;
        wait::until_true("port 22 is not shut", PATIENCE, || self.is_shut())
    }

    /// Gives a moment by which the grant ends.
    fn let_in(&self, from: Ipv4Addr, length: &str) -> Result<Instant> {
        self.nightlatch(&format!(
            "request web --port 22 --from {from} --for {length} --reason 'ticket 4711'"
        ))?;
        ensure!(self.reaches(from)?, "a grant that was confirmed opens nothing");
        self.end_of(from)
    }

    /// As it was signed, however long the answer took.
    fn end_of(&self, from: Ipv4Addr) -> Result<Instant> {
        let status: Value = serde_json::from_str(&self.web.sh("nightlatch-agent status --output json")?)?;
        let source = json!([format!("{from}/32")]);
        let grants = status["grants"].as_array().into_iter().flatten();
        let end = grants
            .filter(|grant| grant["sources"] == source)
            .find_map(|grant| grant["end_time"].as_str())
            .with_context(|| format!("no grant for {from} in {status}"))?
            .parse::<Timestamp>()?;
        let remaining = end.micros().saturating_sub(moment(Duration::ZERO)?.micros());
        Ok(Instant::now() + Duration::from_micros(remaining.try_into().unwrap_or_default()))
    }

    fn end_and_start_the_agent(&self) -> Result<()> {
        self.web.sh("systemctl stop nightlatch-agent")?;
        ensure!(self.reaches(ALICE)?, "stopping the agent shut an open grant");
        self.web.sh("systemctl start nightlatch-agent")?;
        self.web.sh("systemctl restart nightlatch-agent")?;
        let before = self.agent_pid()?;
        self.web.sh("systemctl kill -s KILL nightlatch-agent")?;
        ensure!(self.reaches(ALICE)?, "killing the agent shut an open grant");
        self.wait_new_agent(&before)?;
        self.web.sh("systemctl restart nightlatch-lockdown")?;
        self.wait_agent()
    }

    /// The watchdog notices within half a minute.
    fn hang_the_agent(&self) -> Result<()> {
        let before = self.agent_pid()?;
        self.web.sh("systemctl kill -s STOP nightlatch-agent")?;
        ensure!(self.reaches(ALICE)?, "an agent that hangs shut an open grant");
        wait::until_true("the watchdog sleeps", Duration::from_secs(60), || {
            Ok(!["0\n", &before].contains(&self.agent_pid()?.as_str()))
        })?;
        self.wait_agent()
    }

    /// Both have changed the configuration: the owner since the installation, and the package.
    fn upgrade(&self) -> Result<()> {
        let before = self.agent_pid()?;
        put_package(&self.web, &packages()?.join("upgrade"), "nightlatch-agent")?;
        self.web.sh(
            "cd /root; dpkg-deb --raw-extract package.deb newer; echo '# a newer default' \
             >>newer/etc/nightlatch/agent.toml; dpkg-deb -Znone --build newer package.deb",
        )?;
        self.web.sh(INSTALL)?;
        self.wait_new_agent(&before)?;
        expect(&self.web, VERSION, "0.1.0-2")?;
        expect(
            &self.web,
            "tail -n 1 /etc/nightlatch/agent.toml",
            "# the owner was here",
        )
    }

    /// dpkg takes back an upgrade that fails.
    fn fail_to_upgrade(&self) -> Result<()> {
        put_package(&self.web, &packages()?.join("upgrade"), "nightlatch-agent")?;
        self.web.sh(
            "cd /root; dpkg-deb --raw-extract package.deb broken; printf '#!/bin/sh\\nexit 1\\n' >broken/DEBIAN/preinst; \
             chmod 755 broken/DEBIAN/preinst; dpkg-deb -Znone --build broken broken.deb",
        )?;
        let refused = self.web.run(&["dpkg", "--install", "/root/broken.deb"])?;
        ensure!(!refused.succeeded(), "{refused}");
        expect(&self.web, VERSION, "0.1.0-1")?;
        self.wait_agent()
    }

    /// And a removal: who else works in the state directory keeps the table from being taken away.
    fn fail_to_remove(&self) -> Result<()> {
        self.web
            .sh("systemd-run --quiet --unit=holder flock /var/lib/nightlatch-agent sleep infinity")?;
        let refused = self.web.run(&["dpkg", "--remove", "nightlatch-agent"])?;
        ensure!(
            !refused.succeeded() && refused.stderr.contains("stop it"),
            "{refused}"
        );
        ensure!(self.reaches(ALICE)?, "a removal that failed shut an open grant");
        self.web.sh("systemctl stop holder")?;
        self.wait_agent()
    }

    /// It stays off until a short grant has ended: that one never comes back.
    fn cut_the_power(&self) -> Result<Instant> {
        let end = self.let_in(BRIEFLY, "6s")?;
        self.web.cut_power()?;
        wait::let_pass_until(end);
        let begun = Instant::now();
        self.web.start()?;
        self.wait_agent()?;
        ensure!(!self.reaches(BRIEFLY)?, "a grant came back that had ended");
        Ok(begun)
    }

    fn boot_alone(&self) -> Result<Instant> {
        let end = self.let_in(BRIEFLY, "6s")?;
        self.control.sh("systemctl stop nightlatch-server")?;
        let begun = self.web.reboot()?;
        ensure!(
            self.reaches(ALICE)?,
            "without the server the grant did not come back"
        );
        wait::let_pass_until(end);
        ensure!(!self.reaches(BRIEFLY)?, "a grant got longer by a reboot");
        self.control.sh("systemctl start nightlatch-server")?;
        self.wait_agent()?;
        Ok(begun)
    }

    fn upgrade_and_boot_the_server(&self) -> Result<()> {
        let before = self.server_pid()?;
        install(&self.control, &["nightlatch-server"])?;
        wait::until_true("no new server runs", PATIENCE, || {
            Ok(!["0\n", &before].contains(&self.server_pid()?.as_str()))
        })?;
        self.wait_agent()?;
        self.control.reboot()?;
        self.wait_agent()
    }

    /// `nft -f` flushes all tables, ours among them; the lockdown follows at once, with the agent or without.
    fn reload_the_hosts_own_rules(&self) -> Result<()> {
        for script in [
            "systemctl reload nftables",
            "systemctl stop nightlatch-agent; systemctl reload nftables",
            "systemctl restart nftables",
            "systemctl stop nftables",
            "systemctl start nftables",
        ] {
            self.flushed(script)?;
        }
        self.web.sh("systemctl start nightlatch-agent")?;
        self.wait_agent()
    }

    /// The policy's ports are known without it; what is open isn't judged.
    fn boot_without_the_hosts_own_file(&self, end: Instant) -> Result<()> {
        self.web.sh("mv /etc/nightlatch/agent.toml /root/")?;
        self.watched_boot("a boot without the host's own file", || {
            self.web.reboot_with(Failures::Expected)
        })?;
        ensure!(!self.reaches(ALICE)?, "a grant is open that nothing can judge");
        self.web.sh(
            "mv /root/agent.toml /etc/nightlatch/; systemctl restart nightlatch-lockdown nightlatch-agent",
        )?;
        self.wait_agent()?;
        self.expect_remaining(end)
    }

    /// From now on a unit of the host flushes all tables, at each start and end. The lockdown is active by then, and no
    /// agent is there to notice.
    fn turn_the_hosts_own_rules_on(&self) -> Result<()> {
        self.web.sh("systemctl stop nightlatch-agent")?;
        expect(&self.web, "systemctl is-active nftables", "inactive")?;
        self.flushed("systemctl enable --now nftables")?;
        self.web.sh("systemctl start nightlatch-agent")?;
        self.wait_agent()
    }

    fn flushed(&self, script: &str) -> Result<()> {
        let probe = self.probe();
        self.web.sh(script)?;
        wait::until_true("the table is not back", PATIENCE, || {
            Ok(self.web.sh("nft list tables")?.contains("table inet nightlatch"))
        })
        .with_context(|| format!("after {script}"))?;
        ensure!(self.is_shut()?, "{script} opened a port");
        ensure!(self.reaches(ALICE)?, "{script} shut an open grant");
        for (family, sight) in probe.end()? {
            let span = sight.span();
            println!("{script}: open by {family} for {span:?}");
            ensure!(
                span < FLUSHED_FOR_AT_MOST,
                "{script}: open by {family} for {span:?}"
            );
        }
        Ok(())
    }

    fn turn_off_and_on(&self, end: Instant, rules: &str) -> Result<()> {
        let refused = self.web.run(&["nightlatch-agent", "disable"])?;
        ensure!(
            refused.code == Some(1) && refused.stderr.contains("--yes"),
            "{refused}"
        );
        let refused = self
            .web
            .run(&["nightlatch-agent", "disable", "--yes", "--table-only"])?;
        ensure!(
            refused.code == Some(1) && refused.stderr.contains("stop it"),
            "{refused}"
        );
        ensure!(self.is_shut()?, "a refused command opened a port");

        let told = self.web.sh("nightlatch-agent disable --yes")?;
        ensure!(told.contains("no longer guarded: 22/tcp"), "{told}");
        ensure!(
            self.rules()? == rules,
            "turned off, it leaves the host's rules changed"
        );
        // This boot shows that the probe over the others could have seen one.
        self.watched("a boot while it is turned off", Seen::Open, || {
            self.web.reboot().map(drop)
        })?;
        ensure!(self.is_open()?, "it came back by itself");
        // Another version, though an older one.
        install(&self.web, &["nightlatch-agent"])?;
        expect(&self.web, VERSION, "0.1.0-1")?;
        let units = "nightlatch-lockdown nightlatch-follow nightlatch-agent";
        expect(
            &self.web,
            &format!("systemctl is-enabled {units}; systemctl is-active {units}"),
            "disabled\ndisabled\ndisabled\ninactive\ninactive\ninactive",
        )?;
        expect(&self.web, "nft list tables", "table inet owner")?;
        ensure!(self.is_open()?, "an upgrade turned it on again");
        self.web
            .sh("systemctl enable --now nightlatch-lockdown nightlatch-agent")?;
        ensure!(self.is_shut()?, "it can't be turned on again");
        self.wait_agent()?;
        self.expect_remaining(end)
    }

    fn remove_and_install_again(&self, end: Instant, rules: &str) -> Result<()> {
        let told = self.web.sh("dpkg --remove nightlatch-agent")?;
        ensure!(told.contains("no longer guarded: 22/tcp"), "{told}");
        ensure!(
            self.rules()? == rules,
            "removed, it leaves the host's rules changed"
        );
        ensure!(self.is_open()?, "removing the package locked people out");
        install(&self.web, &["nightlatch-agent"])?;
        ensure!(self.is_shut()?, "installed again, it guards nothing");
        self.wait_agent()?;
        self.expect_remaining(end)
    }

    fn purge(&self, bare: &str, rules: &str) -> Result<()> {
        // As an enrolment that was cut off leaves it, with keys in it.
        self.web.sh(
            "mkdir /var/lib/nightlatch-agent.joining; touch /var/lib/nightlatch-agent.joining/agent.key",
        )?;
        if self.suite == Suite::Trixie {
            self.web
                .sh("dpkg --remove nightlatch-agent; test -e /var/lib/nightlatch-agent/ledger")?;
            self.control.sh("dpkg --remove nightlatch-server nightlatch")?;
        }
        self.web.sh("dpkg --purge nightlatch-agent")?;
        ensure!(self.rules()? == rules, "the host's rules are not what they were");
        self.control.sh("dpkg --purge nightlatch-server nightlatch")?;
        self.control
            .sh("rm /etc/nightlatch/cli.toml; rmdir /etc/nightlatch")?;
        self.web.sh("systemctl --quiet disable nftables")?;
        let left = self.snapshot()?;
        let only_in = |one: &str, other: &str| -> Vec<String> {
            let other: BTreeSet<&str> = other.lines().collect();
            let lines = one.lines().filter(|line| !other.contains(line));
            lines.map(str::to_owned).collect()
        };
        ensure!(
            left == bare,
            "left behind: {:?}; missing: {:?}",
            only_in(&left, bare),
            only_in(bare, &left)
        );
        Ok(())
    }

    /// Whatever the packages could leave on the guests: files, users, groups and units. Not what was copied there
    /// to be installed, the journal, and what changes by itself.
    fn snapshot(&self) -> Result<String> {
        let take = "cut -d: -f1 /etc/passwd /etc/group /etc/shadow /etc/gshadow; \
                    systemctl list-units --all --plain --no-legend 'nightlatch*'; \
                    find /etc /opt /run /srv /usr /var/lib -xdev \
                    \\( -path /run/systemd -o -path /run/udev -o -path /run/user -o -path /run/log \
                    -o -path /var/lib/dpkg -o -path /var/lib/systemd/timers \\) -prune -o -not -path '/etc/*-' -print | sort; \
                    find / -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /var/log \\) -prune -o -iname \
                    '*nightlatch*' -print | sort";
        Ok(self.web.sh(take)? + &self.control.sh(take)?)
    }

    /// The host's tables, without counters.
    fn rules(&self) -> Result<String> {
        self.web.sh("nft -s list ruleset")
    }

    fn expect_remaining(&self, end: Instant) -> Result<()> {
        ensure!(self.reaches(ALICE)?, "the grant is not open");
        let status = self.web.sh("nightlatch-agent status --output json")?;
        let status: Value = serde_json::from_str(&status)?;
        let due = end.saturating_duration_since(Instant::now()).as_secs_f64();
        let remaining = status["grants"][0]["kernel_remaining_seconds"]
            .as_f64()
            .with_context(|| format!("no open grant in {status}"))?;
        ensure!(
            remaining <= due + 1.0 && remaining >= due - SLACK,
            "{remaining} s remain, {due} s are due: {status}"
        );
        Ok(())
    }

    /// Watches the port from sources that nobody let in, while something is done.
    fn watched(&self, what: &str, expected: Seen, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let probe = self.probe();
        work().with_context(|| what.to_owned())?;
        for (family, sight) in probe.end()? {
            tell(what, family, &sight);
            match expected {
                Seen::Shut => sight.expect_shut(what)?,
                // The probe can tell.
                Seen::Open => ensure!(!sight.passed.is_empty(), "the probe by {family} saw nothing"),
            }
        }
        Ok(())
    }

    /// The same over a boot, of which `work` gives the beginning. Before it a refusal is none of the firewall: sshd has
    /// ended, and when a guest's network namespace goes, its rules go before its interfaces.
    fn watched_boot(&self, what: &str, work: impl FnOnce() -> Result<Instant>) -> Result<()> {
        let probe = self.probe();
        let begun = work().with_context(|| what.to_owned())?;
        for (family, sight) in probe.end()? {
            tell(what, family, &sight);
            sight.expect_shut_from(begun, what)?;
        }
        Ok(())
    }

    fn probe(&self) -> Probes {
        let netns = self.site.netns();
        let probe = |from, to| Probe::start(&netns, from, SocketAddr::new(to, 22));
        Probes([
            ("IPv4", probe(STRANGER.into(), WEB.into())),
            (
                "IPv6",
                probe(ipv6_beside(STRANGER).into(), ipv6_beside(WEB).into()),
            ),
        ])
    }

    fn reaches(&self, from: impl Into<IpAddr>) -> Result<bool> {
        let from = from.into();
        let to = if from.is_ipv6() {
            ipv6_beside(WEB).into()
        } else {
            WEB.into()
        };
        nightlatch_tests::probe::reaches(&self.site.netns(), from, SocketAddr::new(to, 22))
    }

    /// To whom nobody let in, by both families.
    fn is_shut(&self) -> Result<bool> {
        Ok(!self.reaches(STRANGER)? && !self.reaches(ipv6_beside(STRANGER))?)
    }

    fn is_open(&self) -> Result<bool> {
        Ok(self.reaches(STRANGER)? && self.reaches(ipv6_beside(STRANGER))?)
    }

    fn nightlatch(&self, arguments: &str) -> Result<String> {
        self.control.sh(&format!("nightlatch {arguments}"))
    }

    fn agent_pid(&self) -> Result<String> {
        self.web.sh("systemctl show -p MainPID --value nightlatch-agent")
    }

    fn server_pid(&self) -> Result<String> {
        self.control
            .sh("systemctl show -p MainPID --value nightlatch-server")
    }

    fn wait_new_agent(&self, before: &str) -> Result<()> {
        wait::until_true("no new agent runs", PATIENCE, || Ok(self.agent_pid()? != before))?;
        self.wait_agent()
    }

    /// Until it runs and the server has it connected.
    fn wait_agent(&self) -> Result<()> {
        wait::until_true("the agent is not connected", PATIENCE, || {
            let state = self.web.run(&["systemctl", "is-active", "nightlatch-agent"])?;
            let machines = self.nightlatch("list machines --output json")?;
            Ok(state.stdout.trim() == "active" && machines.contains("\"connected\""))
        })
    }
}

/// One of each family.
struct Probes([(&'static str, Probe); 2]);

impl Probes {
    fn end(self) -> Result<Vec<(&'static str, Sight)>> {
        let sights = self.0.map(|(family, probe)| Ok((family, probe.end()?)));
        sights.into_iter().collect()
    }
}

#[derive(Clone, Copy)]
enum Seen {
    Shut,
    Open,
}

fn tell(what: &str, family: &str, sight: &Sight) {
    println!(
        "{what}, by {family}: {} tries, {} passed within {:?}",
        sight.tries,
        sight.passed.len(),
        sight.span()
    );
}

fn install(guest: &Guest<'_>, names: &[&str]) -> Result<()> {
    install_from(guest, &packages()?, names)
}

fn install_from(guest: &Guest<'_>, folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        put_package(guest, folder, name)?;
        guest.sh(INSTALL)?;
    }
    Ok(())
}

fn put_package(guest: &Guest<'_>, folder: &Path, name: &str) -> Result<()> {
    let file = fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&format!("{name}_"))
        })
        .with_context(|| format!("no package {name} in {}", folder.display()))?;
    guest.put(&file, "/root/package.deb")
}

fn expect(guest: &Guest<'_>, script: &str, wanted: &str) -> Result<()> {
    let outcome = guest.run(&["sh", "-c", script])?;
    ensure!(
        outcome.stdout.trim() == wanted,
        "{}: {script}: expected `{wanted}`: {outcome}",
        guest.name()
    );
    Ok(())
}
