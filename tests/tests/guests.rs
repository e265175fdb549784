//! Packages on booted machines: from install to purge, a guarded port is never open to whom nobody let in.
#![expect(clippy::print_stdout, reason = "the figures of the probe are worth reading")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_tests::extent;
use nightlatch_tests::guests::{Failures, Guest, Site, Suite, packages};
use nightlatch_tests::probe::Probe;
use nightlatch_tests::transfer::Transfer;
use nightlatch_tests::wait;
use serde_json::Value;

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

#[test]
fn on_bookworm_a_guarded_port_is_shut_from_policy_to_purge() -> Result<()> {
    from_install_to_purge(Suite::Bookworm)
}

#[test]
fn on_trixie_a_guarded_port_is_shut_from_policy_to_purge() -> Result<()> {
    from_install_to_purge(Suite::Trixie)
}

fn from_install_to_purge(suite: Suite) -> Result<()> {
    let site = Site::open(&[ALICE, BRIEFLY, STRANGER])?;
    let control = site.boot(Suite::Bookworm, "control", CONTROL)?;
    let web = site.boot(suite, "web", WEB)?;
    let story = Story {
        site: &site,
        control,
        web,
    };
    story
        .tell()
        .with_context(|| format!("{}\n{}", story.control.logs(), story.web.logs()))
}

struct Story<'s> {
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
            if extent::is_long() {
                self.hang_the_agent()?;
            }
            self.upgrade()
        })?;
        transfer.expect_flowing()?;
        session.check_alive()?;
        ensure!(transfer.end()? > 0, "nothing was transferred");
        drop(session);
        self.expect_remaining(end)?;

        self.watched("a reboot", Seen::Shut, || self.web.reboot())?;
        self.wait_agent()?;
        self.expect_remaining(end)?;
        self.boot_without_the_hosts_own_file(end)?;
        self.turn_the_hosts_own_rules_on()?;
        self.watched("a power cut", Seen::Shut, || self.cut_the_power())?;
        self.expect_remaining(end)?;
        self.watched("a boot without the server", Seen::Unserved, || self.boot_alone())?;
        self.expect_remaining(end)?;

        self.reload_the_hosts_own_rules()?;
        self.turn_off_and_on(end)?;
        self.remove_and_install_again(end)?;
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
        ensure!(self.reaches(STRANGER)?, "installing shut a port");
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
        )
    }

    fn set_the_policy(&self) -> Result<()> {
        self.nightlatch("policy set web --port 22/tcp")?;
        wait::until_true("port 22 is not shut", PATIENCE, || Ok(!self.reaches(STRANGER)?))
    }

    /// Gives a moment by which the grant ends.
    fn let_in(&self, from: Ipv4Addr, length: &str) -> Result<Instant> {
        self.nightlatch(&format!(
            "request web --port 22 --from {from} --for {length} --reason 'ticket 4711'"
        ))?;
        ensure!(self.reaches(from)?, "a grant that was confirmed opens nothing");
        let seconds = length.strip_suffix('m').map_or(1, |_| 60);
        let count: u64 = length.trim_end_matches(['m', 's']).parse()?;
        Ok(Instant::now() + Duration::from_secs(count * seconds))
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

    fn upgrade(&self) -> Result<()> {
        let before = self.agent_pid()?;
        install_from(&self.web, packages()?.join("upgrade"), &["nightlatch-agent"])?;
        self.wait_new_agent(&before)?;
        expect(
            &self.web,
            "dpkg-query -f '${Version}' -W nightlatch-agent",
            "0.1.0-2",
        )?;
        expect(
            &self.web,
            "tail -n 1 /etc/nightlatch/agent.toml",
            "# the owner was here",
        )
    }

    /// It stays off until a short grant has ended: that one never comes back.
    fn cut_the_power(&self) -> Result<()> {
        let end = self.let_in(BRIEFLY, "6s")?;
        self.web.cut_power()?;
        wait::let_pass_until(end);
        self.web.start()?;
        self.wait_agent()?;
        ensure!(!self.reaches(BRIEFLY)?, "a grant came back that had ended");
        Ok(())
    }

    fn boot_alone(&self) -> Result<()> {
        let end = self.let_in(BRIEFLY, "6s")?;
        self.control.sh("systemctl stop nightlatch-server")?;
        self.web.reboot()?;
        ensure!(
            self.reaches(ALICE)?,
            "without the server the grant did not come back"
        );
        wait::let_pass_until(end);
        ensure!(!self.reaches(BRIEFLY)?, "a grant got longer by a reboot");
        self.control.sh("systemctl start nightlatch-server")?;
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
        self.watched("a boot without the host's own file", Seen::Shut, || {
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
        ensure!(!self.reaches(STRANGER)?, "{script} opened a port");
        ensure!(self.reaches(ALICE)?, "{script} shut an open grant");
        let span = probe.end()?.span();
        println!("{script}: open for {span:?}");
        ensure!(span < FLUSHED_FOR_AT_MOST, "{script}: open for {span:?}");
        Ok(())
    }

    fn turn_off_and_on(&self, end: Instant) -> Result<()> {
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
        ensure!(!self.reaches(STRANGER)?, "a refused command opened a port");

        let told = self.web.sh("nightlatch-agent disable --yes")?;
        ensure!(told.contains("no longer guarded: 22/tcp"), "{told}");
        expect(&self.web, "nft list tables", "table inet owner")?;
        self.web.reboot()?;
        ensure!(self.reaches(STRANGER)?, "it came back by itself");
        self.web
            .sh("systemctl enable --now nightlatch-lockdown nightlatch-agent")?;
        ensure!(!self.reaches(STRANGER)?, "it can't be turned on again");
        self.wait_agent()?;
        self.expect_remaining(end)
    }

    fn remove_and_install_again(&self, end: Instant) -> Result<()> {
        let told = self.web.sh("dpkg --remove nightlatch-agent")?;
        ensure!(told.contains("no longer guarded: 22/tcp"), "{told}");
        expect(&self.web, "nft list tables", "table inet owner")?;
        ensure!(self.reaches(STRANGER)?, "removing the package locked people out");
        install(&self.web, &["nightlatch-agent"])?;
        ensure!(!self.reaches(STRANGER)?, "installed again, it guards nothing");
        self.wait_agent()?;
        self.expect_remaining(end)
    }

    fn purge(&self, bare: &str, rules: &str) -> Result<()> {
        // As an enrolment that was cut off leaves it, with keys in it.
        self.web.sh(
            "mkdir /var/lib/nightlatch-agent.joining; touch /var/lib/nightlatch-agent.joining/agent.key",
        )?;
        self.web.sh("dpkg --purge nightlatch-agent")?;
        ensure!(self.rules()? == rules, "the host's rules are not what they were");
        self.control.sh("dpkg --purge nightlatch-server nightlatch")?;
        for guest in [&self.web, &self.control] {
            expect(
                guest,
                "getent passwd nightlatch-agent nightlatch-server || true",
                "",
            )?;
            expect(
                guest,
                "getent group nightlatch-agent nightlatch-server || true",
                "",
            )?;
        }
        self.control
            .sh("rm /etc/nightlatch/cli.toml; rmdir /etc/nightlatch")?;
        let left = self.snapshot()?;
        ensure!(left == bare, "left behind:\n{left}\nbefore:\n{bare}");
        Ok(())
    }

    /// Files of ours on the guests, but for what was copied there to be installed, and the journal.
    fn snapshot(&self) -> Result<String> {
        let find = "find / -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /var/log \\) -prune -o -iname \
                    '*nightlatch*' -print; systemctl list-units --all --plain --no-legend 'nightlatch*'";
        Ok(self.web.sh(find)? + &self.control.sh(find)?)
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

    /// Watches the port from a source that nobody let in, while something is done.
    fn watched(&self, what: &str, expected: Seen, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let probe = self.probe();
        work().with_context(|| what.to_owned())?;
        let sight = probe.end()?;
        println!(
            "{what}: {} tries, {} passed within {:?}",
            sight.tries,
            sight.passed.len(),
            sight.span()
        );
        match expected {
            Seen::Shut => sight.expect_shut(what),
            Seen::Unserved => sight.expect_unserved(what),
            // The probe can tell.
            Seen::Open => {
                ensure!(
                    !sight.passed.is_empty(),
                    "the probe saw nothing in {} tries",
                    sight.tries
                );
                Ok(())
            }
        }
    }

    fn probe(&self) -> Probe {
        Probe::start(&self.site.netns(), STRANGER.into(), SocketAddr::from((WEB, 22)))
    }

    fn reaches(&self, from: Ipv4Addr) -> Result<bool> {
        nightlatch_tests::probe::reaches(&self.site.netns(), from.into(), SocketAddr::from((WEB, 22)))
    }

    fn nightlatch(&self, arguments: &str) -> Result<String> {
        self.control.sh(&format!("nightlatch {arguments}"))
    }

    fn agent_pid(&self) -> Result<String> {
        self.web.sh("systemctl show -p MainPID --value nightlatch-agent")
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

#[derive(Clone, Copy)]
enum Seen {
    Shut,
    /// Nobody got in, though for a moment it was the end of sshd and not the firewall that saw to it.
    Unserved,
    Open,
}

fn install(guest: &Guest<'_>, names: &[&str]) -> Result<()> {
    install_from(guest, packages()?, names)
}

fn install_from(guest: &Guest<'_>, folder: PathBuf, names: &[&str]) -> Result<()> {
    for name in names {
        let file = fs::read_dir(&folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                let file = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                file.starts_with(&format!("{name}_"))
            })
            .with_context(|| format!("no package {name} in {}", folder.display()))?;
        guest.put(&file, "/root/package.deb")?;
        guest.sh("dpkg --install /root/package.deb")?;
    }
    Ok(())
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
