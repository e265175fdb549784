//! Bad input on the server's commands and files: one clear error that names the field, the limit or the next step, the right
//! exit code, and nothing half-done.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::complaint::{Case, FAILED, USAGE, check, check_all};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait::{self, Outcome};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_server_says_what_is_wrong() -> Result<()> {
    in_a_lab(1, Stage::Bare, |lab| {
        let control = lab.control();
        let before = listing(&control.state())?;
        let out = lab.dir().join("missing/alice").display().to_string();
        let cases: &[Case<'_>] = &[
            (&[], USAGE, &["init"]),
            (&["init"], USAGE, &["--name"]),
            (&["init", "--name", "control"], FAILED, &["state"]),
            (&["init", "--name", "not a name"], USAGE, &["not a name"]),
            (
                &["init", "--name", "192.0.2.300"],
                USAGE,
                &["--name", "192.0.2.300", "192.0.2.1"],
            ),
            (&["init", "--name", "0.0.0.0"], USAGE, &["--name", "0.0.0.0"]),
            (
                &["user", "issue", "..", "--role", "reader"],
                USAGE,
                &["`..`", "dots"],
            ),
            (
                &["token", "create", "--machine", "a_b"],
                USAGE,
                &["not a machine name"],
            ),
            (
                &["token", "create", "--replace", "--machine", ""],
                USAGE,
                &["machine"],
            ),
            (&["user", "issue", "alice"], USAGE, &["--role"]),
            (
                &["user", "issue", "alice", "--role", "king"],
                USAGE,
                &["king", "administrator"],
            ),
            (&["user", "issue", "a/b", "--role", "reader"], USAGE, &["a/b"]),
            (
                &["user", "issue", "alice", "--role", "reader", "--out", &out],
                FAILED,
                &["missing"],
            ),
            (&["root", "export", "/proc/nothing"], FAILED, &["/proc/nothing"]),
            (&["run", "--port", "1"], USAGE, &["--port"]),
        ];
        check_all("nightlatch-server", cases, |arguments| control.run(arguments))?;
        // A second server over the same database would have its own idea of what is published.
        let second = control.run(&["run"])?;
        check(
            "nightlatch-server run, a second one",
            &second,
            FAILED,
            &["another nightlatch-server"],
        )?;
        ensure!(
            listing(&control.state())? == before,
            "{:?} became {:?}",
            before,
            listing(&control.state())?
        );

        control.end(Signal::SIGTERM)?;
        for (text, words) in [
            ("listen = 7443", "line 1: `listen`"),
            ("\nlog = []", "line 2: `log`"),
            ("state = 1", "`state`"),
            ("listen_agents = { port = 7444 }", "`listen_agents`"),
            ("listen = \"7443\"", "listen"),
            (
                "listen = \"[::]:7443\"\nlisten_agents = \"[::]:7443\"",
                "listen_agents",
            ),
            ("state = \"relative\"", "state"),
            ("log = \"loud\"", "loud"),
            ("listening = \"[::]:7443\"", "listening"),
            ("= 5", "server-bad.toml"),
            (
                "[limits]\nconnections = 0",
                "`limits.connections`: 0 is not 1 to 1000000",
            ),
            (
                "[limits]\nagent_connections = 1000001",
                "`limits.agent_connections`",
            ),
            (
                "[limits]\nconnections = 10\nconnections_per_address = 11",
                "`limits.connections_per_address`: 11 is more than `limits.connections`, 10",
            ),
            (
                "[limits]\ngrants_per_machine = \"many\"",
                "line 2: `limits.grants_per_machine`",
            ),
            ("[limits]\ngrants_per_machine = 0", "`limits.grants_per_machine`"),
            (
                "[limits]\ngrants_per_caller_and_machine = -1",
                "`limits.grants_per_caller_and_machine`",
            ),
            ("[limits]\nconections = 1", "`limits.conections`"),
            ("limits = 7", "`limits`"),
        ] {
            let file = lab.dir().join("server-bad.toml");
            fs::write(&file, text)?;
            let outcome = server(lab, &file, &control.state(), &["run", "--check-config"])?;
            check(text, &outcome, FAILED, &["server-bad.toml", words])?;
        }
        let binary = lab.dir().join("server-bad.toml");
        fs::write(&binary, b"\xff")?;
        for (file, word) in [
            (binary.as_path(), "UTF-8"),
            (&lab.dir(), "directory"),
            (Path::new("/dev/zero"), "longer than 1048576 bytes"),
        ] {
            let outcome = server(lab, file, &control.state(), &["run", "--check-config"])?;
            check("no text", &outcome, FAILED, &[&file.display().to_string(), word])?;
        }
        let absent = lab.dir().join("absent");
        let outcome = server(lab, &absent, &control.state(), &["run", "--check-config"])?;
        check("a file that is not there", &outcome, FAILED, &["absent"])?;
        let good = control.dir().join("server.toml");
        for verb in [
            &["run"][..],
            &["token", "create"],
            &["user", "issue", "a", "--role", "reader"],
            &["root", "remove"],
        ] {
            let outcome = server(lab, &good, &absent, verb)?;
            check(
                &format!("{verb:?} without init"),
                &outcome,
                FAILED,
                &["absent", "init"],
            )?;
            ensure!(!absent.exists(), "{verb:?} made a state directory");
        }
        check_init_is_whole_or_nothing(lab)?;
        check_damaged_state(lab)
    })
}

fn server(lab: &Lab, config: &Path, state: &Path, arguments: &[&str]) -> Result<Outcome> {
    let mut command = lab.control().netns().exec(lab.binary("nightlatch-server"));
    command
        .arg("--config")
        .arg(config)
        .arg("--state")
        .arg(state)
        .args(arguments);
    wait::run(&mut command, PATIENCE)
}

fn check_init_is_whole_or_nothing(lab: &Lab) -> Result<()> {
    let good = lab.control().dir().join("server.toml");
    for (state, word) in [("/proc/nightlatch", "/proc"), ("/dev/null/state", "/dev/null")] {
        let outcome = server(lab, &good, Path::new(state), &["init", "--name", "192.0.2.1"])?;
        check(state, &outcome, FAILED, &[word])?;
    }
    let occupied = lab.dir().join("occupied");
    fs::create_dir(&occupied)?;
    fs::write(occupied.join("precious"), "mine")?;
    let outcome = server(lab, &good, &occupied, &["init", "--name", "192.0.2.1"])?;
    check("init over files of others", &outcome, FAILED, &["occupied"])?;
    ensure!(listing(&occupied)? == ["precious"], "{:?}", listing(&occupied)?);
    let siblings = listing(&lab.dir())?;
    ensure!(
        siblings.iter().filter(|name| name.contains("occupied")).count() == 1,
        "left behind: {siblings:?}"
    );
    Ok(())
}

fn check_damaged_state(lab: &Lab) -> Result<()> {
    for name in [
        "signing.key",
        "server.key",
        "server.pem",
        "ca.pem",
        "ca.key",
        "keys.dsse",
        "root.pub",
        "nightlatch.db",
    ] {
        let state = lab.dir().join(format!("without-{name}"));
        copy_state(lab, &state)?;
        fs::remove_file(state.join(name))?;
        check(
            &format!("{name} is missing"),
            &start_for_a_moment(lab, &state)?,
            FAILED,
            &[name],
        )?;
    }
    for name in [
        "signing.key",
        "ca.pem",
        "ca.key",
        "keys.dsse",
        "root.pub",
        "nightlatch.db",
    ] {
        let state = lab.dir().join(format!("garbled-{name}"));
        copy_state(lab, &state)?;
        fs::write(state.join(name), "not what it should be")?;
        check(
            &format!("{name} is garbage"),
            &start_for_a_moment(lab, &state)?,
            FAILED,
            &[name],
        )?;
    }
    // The authority that is there can issue these anew.
    for name in ["server.key", "server.pem"] {
        let state = lab.dir().join(format!("renewed-{name}"));
        copy_state(lab, &state)?;
        fs::write(state.join(name), "not what it should be")?;
        let outcome = start_for_a_moment(lab, &state)?;
        ensure!(
            outcome.code == Some(ENDED_BY_TIMEOUT) && outcome.stderr.contains("renewed"),
            "{name}: {outcome}"
        );
    }
    Ok(())
}

/// Of timeout(1).
const ENDED_BY_TIMEOUT: i32 = 124;

fn start_for_a_moment(lab: &Lab, state: &Path) -> Result<Outcome> {
    let mut command = lab.control().netns().exec("timeout");
    command.arg("2").arg(lab.binary("nightlatch-server"));
    command
        .arg("--config")
        .arg(lab.control().dir().join("server.toml"));
    command.arg("--state").arg(state).arg("run");
    wait::run(&mut command, PATIENCE)
}

fn copy_state(lab: &Lab, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(lab.control().state()).arg(to);
    wait::run(&mut copy, PATIENCE)?.expect_success("cp -a").map(drop)
}

fn listing(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    // SQLite's own companions come and go with a connection.
    names.retain(|name| !name.ends_with("-wal") && !name.ends_with("-shm"));
    names.sort();
    Ok(names)
}
