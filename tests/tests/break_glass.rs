//! Break-glass: root opens a port on the console, whatever else doesn't work, and nobody else does.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nightlatch_core::break_glass::{Asked, BreakGlass, Limits, Opener};
use nightlatch_core::port::{PortKey, Protocol};
use nightlatch_core::request::Justification;
use nightlatch_core::signing::SigningKey;
use nightlatch_core::time::{BootId, BootTime};
use nightlatch_tests::complaint::{FAILED, USAGE, check};
use nightlatch_tests::console::Console;
use nightlatch_tests::doors::Doors;
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::machine::AGENT_TOML;
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn beside_a_running_agent_it_opens_for_that_source_until_its_end_and_everyone_is_told() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (doors, console) = (Doors::new(lab)?, Console::of(lab.machine(1))?);
        let told = console.open(1, "12s")?;
        let end = Instant::now() + Duration::from_secs(12);
        ensure!(told.contains("22/tcp is open to 198.51.100.1"), "{told}");
        ensure!(told.lines().count() == 1, "the agent runs and acts on it: {told}");
        doors.check(&[1])?;
        for heard in [console.told(), console.journal()?] {
            for word in [
                "BREAK-GLASS",
                "22/tcp",
                "198.51.100.1",
                "the server burns",
                "uid 0",
            ] {
                ensure!(heard.contains(word), "no `{word}` in {heard}");
            }
        }
        let status = status(lab)?;
        ensure!(
            status["break_glass"][0]["source"] == "198.51.100.1/32",
            "{status}"
        );
        ensure!(status["grants"] == Value::Array(Vec::new()), "{status}");
        wait::until_true("the server isn't told", PATIENCE, || {
            Ok(told_to_server(lab)?.len() == 1)
        })?;
        let event = &told_to_server(lab)?[0];
        ensure!(
            event["message"].to_string().contains("the server burns"),
            "{event}"
        );

        // It outlives the agent's restart and is told once.
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        lab.machine(1).start_agent()?;
        lab.machine(1).wait_connected()?;
        doors.check(&[1])?;
        wait::let_pass_until(end + Duration::from_secs(1));
        doors.check(&[])?;
        ensure!(told_to_server(lab)?.len() == 1, "{:?}", told_to_server(lab)?);

        // Whoever takes the record away shuts it.
        console.open(2, "1h")?;
        doors.check(&[2])?;
        for record in Console::records(&console.live())? {
            fs::remove_file(record)?;
        }
        doors.wait(&[])?;
        ensure!(
            Console::records(&console.lasting())?.len() == 2,
            "no lasting records"
        );
        Ok(())
    })
}

#[test]
fn an_agent_that_hangs_is_dead_or_has_lost_its_ledger_does_not_hold_it_up() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (doors, console) = (Doors::new(lab)?, Console::of(lab.machine(1))?);
        let agent = lab.machine(1).agent_process()?;
        for (door, signal) in [(1, Signal::SIGSTOP), (2, Signal::SIGKILL)] {
            agent.signal(signal);
            let told = console.open(door, "5s")?;
            let end = Instant::now() + Duration::from_secs(5);
            ensure!(told.contains("no agent acted on it"), "{told}");
            doors.check(&[door]).with_context(|| format!("after {signal}"))?;
            wait::let_pass_until(end + Duration::from_millis(200));
            doors
                .check(&[])
                .with_context(|| format!("after {signal}, at its end"))?;
        }
        fs::write(lab.machine(1).state().join("ledger"), "not what it should be")?;
        console.open(3, "1h")?;
        doors.check(&[3])?;
        // So it stays when others have the table made anew, and when the agent is back.
        lab.machine(1)
            .run_agent(&["lockdown"])?
            .expect_success("lockdown")?;
        doors.check(&[3])?;
        lab.machine(1).start_agent()?;
        doors.check(&[3])?;
        wait::until_true("the server isn't told", PATIENCE, || {
            Ok(told_to_server(lab)?.len() == 3)
        })?;
        doors.check(&[3])
    })
}

#[test]
fn it_needs_neither_an_enrolment_nor_the_hosts_own_file() -> Result<()> {
    in_a_lab(1, Stage::Bare, |lab| {
        let machine = lab.machine(1);
        let (doors, console) = (Doors::new(lab)?, Console::of(machine)?);
        let unguarded = console.run(&["--port", "22", "--from", "192.0.2.7", "--for", "1m"])?;
        check(
            "nothing is guarded",
            &unguarded,
            FAILED,
            &["guards nothing", "nft list ruleset"],
        )?;
        machine.configure("guarded = [\"22/tcp\"]\ntrusted_sources = [\"198.51.100.4\"]\n")?;
        machine.run_agent(&["lockdown"])?.expect_success("lockdown")?;
        doors.check(&[4])?;
        machine.configure("guarded = [\n")?;
        console.open(1, "1h")?;
        // What the file let in before goes on.
        doors.check(&[1, 4])?;
        // Without a file nothing is let in but what root has opened.
        let locked = machine.run_agent(&["lockdown"])?;
        check("lockdown without a file", &locked, FAILED, &["agent.toml"])?;
        doors.check(&[1])
    })
}

#[test]
fn full_disks_do_not_hold_it_up() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (doors, console) = (Doors::new(lab)?, Console::of(lab.machine(1))?);
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        let disk = lab.machine(1).start_agent_on_small_disk(512)?;
        disk.fill()?;
        let lasting = console.lasting();
        fs::create_dir_all(&lasting)?;
        let command = console.command(&["--port", "22", "--from", &Doors::source(1), "--for", "1h"]);
        let script = "mount -t tmpfs -o size=4k,mode=0755 tmpfs \"$1\"; cat /dev/zero >\"$1/filler\" 2>/dev/null || :; \
                      shift; exec \"$@\"";
        let mut full = std::process::Command::new("unshare");
        full.args(["--mount", "sh", "-ec", script, "sh"]).arg(&lasting);
        full.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            full.env(name, value.unwrap_or_default());
        }
        let outcome = wait::run(&mut full, PATIENCE)?;
        ensure!(outcome.succeeded(), "{outcome}");
        ensure!(outcome.stderr.contains("until the next boot only"), "{outcome}");
        doors.check(&[1])?;
        ensure!(Console::records(&lasting)?.is_empty(), "the disk was not full");
        // The agent has it from the record of this boot, and so has the server.
        ensure!(outcome.stdout.lines().count() == 1, "{outcome}");
        wait::until_true("the server isn't told", PATIENCE, || {
            Ok(told_to_server(lab)?.len() == 1)
        })
    })
}

#[test]
fn a_record_that_root_has_not_made_for_now_and_within_the_file_opens_nothing() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (doors, console) = (Doors::new(lab)?, Console::of(lab.machine(1))?);
        let boot_id = boot(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim())?;
        let here = (
            boot_id,
            BootTime::new(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into()),
        );
        let (known, unknown) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let folder = console.live();
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o750))?;
        write(&folder.join("known.pub"), known.public().to_pem()?.as_bytes())?;
        let good = |number| forged(number, 2, 600, here);
        let other_boot = (boot("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11")?, here.1);
        let past = (here.0, BootTime::default());
        let longer = Limits::default().longest.as_secs() + 1;
        let mut wide = good(6)?;
        wide.source = "198.51.100.0/24".parse()?;
        for (what, used, key) in [
            ("another key", good(1)?, &unknown),
            ("another boot", forged(2, 2, 600, other_boot)?, &known),
            ("an end that has passed", forged(3, 2, 1, past)?, &known),
            (
                "a start that lies ahead",
                forged(4, 2, 600, (here.0, here.1.plus(PATIENCE)))?,
                &known,
            ),
            ("too long a time", forged(5, 2, longer, here)?, &known),
            ("too wide a source", wide, &known),
        ] {
            write(&folder.join(format!("{}.json", used.id)), &used.seal(key))
                .with_context(|| what.to_owned())?;
        }
        let written = |number: u128| -> Result<std::path::PathBuf> {
            let used = good(number)?;
            let path = folder.join(format!("{}.json", used.id));
            write(&path, &used.seal(&known))?;
            Ok(path)
        };
        fs::set_permissions(written(7)?, fs::Permissions::from_mode(0o666))?;
        chown(written(8)?, Some(65_534), None)?;
        let aside = console.live().with_extension("aside");
        fs::rename(written(10)?, &aside)?;
        symlink(&aside, folder.join(format!("{}.json", good(10)?.id)))?;
        write(&folder.join("garbage.json"), b"{]")?;
        write(&folder.join("huge.json"), &vec![b' '; 17 * 1024])?;

        wait::until_true("the server isn't told", PATIENCE, || {
            let events = lab.client().events()?;
            Ok(events
                .iter()
                .any(|event| event["reason"] == "BREAK_GLASS_REFUSED"))
        })?;
        doors.check(&[])?;
        // The check can tell: the same as it should be opens.
        let sound = forged(11, 3, 600, here)?;
        write(&folder.join(format!("{}.json", sound.id)), &sound.seal(&known))?;
        doors.wait(&[3])?;
        wait::until_true("the server isn't told", PATIENCE, || {
            Ok(!told_to_server(lab)?.is_empty())
        })?;
        let told = told_to_server(lab)?;
        ensure!(
            told.len() == 1 && told[0].to_string().contains(&Doors::source(3)),
            "told of what opened nothing: {told:?}"
        );
        // And where others may write, nothing counts.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o757))?;
        doors.wait(&[])?;
        lab.machine(1).end_agent(Signal::SIGTERM)?;
        lab.machine(1).start_agent()?;
        doors.check(&[])
    })
}

#[test]
fn whoever_listens_no_more_and_a_wall_that_fails_lose_neither_record_nor_word() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let (doors, console) = (Doors::new(lab)?, Console::of(lab.machine(1))?);
        let terminal = console.without_wall()?;
        let source = Doors::source(1);
        let mut command = console.command(&["--port", "22", "--from", &source, "--for", "1h"]);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn()?;
        drop(child.stdout.take());
        wait::until_true("it does not end", PATIENCE, || Ok(child.try_wait()?.is_some()))?;
        doors.check(&[1])?;
        ensure!(
            Console::records(&console.lasting())?.len() == 1,
            "no lasting record"
        );
        let heard = fs::read_to_string(terminal)?;
        ensure!(heard.contains("BREAK-GLASS"), "the terminal was told {heard}");
        Ok(())
    })
}

#[test]
fn whoever_is_not_root_and_whatever_the_file_does_not_allow_is_refused() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let machine = lab.machine(1);
        let (doors, console) = (Doors::new(lab)?, Console::of(machine)?);
        let arguments = ["--port", "22", "--from", "198.51.100.1", "--for", "1m"];
        let as_nobody = console.command(&arguments);
        let mut nobody = lab.machine(1).exec("setpriv");
        nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        // The agent's own words, behind those that lead into the machine.
        let words: Vec<_> = as_nobody.get_args().collect();
        let own = words
            .iter()
            .position(|word| word.to_string_lossy().ends_with("/nightlatch-agent"))
            .context("no agent in the command")?;
        nobody.args(words.get(own..).unwrap_or_default());
        let refused = wait::run(&mut nobody, PATIENCE)?;
        check("as nobody", &refused, FAILED, &["root"])?;

        let asked = |port, from, length| ["--port", port, "--from", from, "--for", length];
        for (words, code, says) in [
            (asked("22", "198.51.100.1", "61m"), FAILED, "PT1H"),
            (asked("22", "198.51.100.0/24", "1m"), FAILED, "widest_ipv4"),
            (asked("22", "127.0.0.1", "1m"), FAILED, "connects from"),
            (asked("23", "198.51.100.1", "1m"), FAILED, "22/tcp"),
            (asked("22/udp", "198.51.100.1", "1m"), FAILED, "22/tcp"),
            (asked("22", "198.51.100.1", "0s"), FAILED, "PT1S"),
            (asked("ssh", "198.51.100.1", "1m"), USAGE, "--port"),
            (asked("22", "me", "1m"), USAGE, "--from"),
            (asked("22", "198.51.100.1", "soon"), USAGE, "15m"),
        ] {
            check(&format!("{words:?}"), &console.run(&words)?, code, &[says])?;
        }
        let terse = machine.run_agent(&[&["break-glass", "--reason", "help"], &arguments[..]].concat())?;
        check("a terse reason", &terse, USAGE, &["--reason", "8 to 1000"])?;
        machine.configure(&format!("{AGENT_TOML}[break_glass]\nenabled = false\n"))?;
        check(
            "turned off",
            &console.run(&arguments)?,
            FAILED,
            &["enabled = false"],
        )?;
        ensure!(
            !console.live().exists() || Console::records(&console.live())?.is_empty(),
            "records of nothing"
        );
        ensure!(console.told().is_empty(), "told of nothing: {}", console.told());
        doors.check(&[])
    })
}

fn status(lab: &Lab) -> Result<Value> {
    let status = lab.machine(1).run_agent(&["status", "--output", "json"])?;
    Ok(serde_json::from_str(&status.expect_success("status")?)?)
}

fn told_to_server(lab: &Lab) -> Result<Vec<Value>> {
    let mut events = lab.client().events()?;
    events.retain(|event| event["kind"] == "machine.break_glass");
    Ok(events)
}

fn boot(id: &str) -> Result<BootId> {
    Ok(serde_json::from_value(Value::from(id))?)
}

/// For one of the doors, within whatever limits.
fn forged(number: u128, door: u8, seconds: u64, (boot, start): (BootId, BootTime)) -> Result<BreakGlass> {
    let asked = Asked {
        ports: vec!["22/tcp".parse()?],
        source: Doors::source(door).parse()?,
        length: Duration::from_secs(seconds),
        reason: Justification::try_from("the server burns".to_owned())?,
    };
    let limits = Limits {
        longest: Duration::MAX,
        ..Limits::default()
    };
    let ports = BTreeSet::from([PortKey {
        protocol: Protocol::Tcp,
        port: 22,
    }]);
    let at = (boot, start, "2026-11-22T09:30:00Z".parse()?);
    let id = format!("019aa0b2-6a51-7c3e-9d6a-{number:012x}").parse()?;
    Ok(BreakGlass::new(
        id,
        &asked,
        &ports,
        &limits,
        at,
        Opener::default(),
    )?)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o640))?;
    fs::rename(new, path).with_context(|| format!("writing {}", path.display()))
}
