//! What packages install: units, users, folders and the default configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::plan::binaries_beside;
use nightlatch_tests::wait::{self, Outcome};
use tempfile::TempDir;

const UNITS: [&str; 5] = [
    "nightlatch-agent.service",
    "nightlatch-follow.service",
    "nightlatch-lockdown.service",
    "nightlatch-relock.service",
    "nightlatch-server.service",
];

#[test]
fn systemd_accepts_the_units() -> Result<()> {
    let root = installed()?;
    let verify = |unit: &str| run("systemd-analyze", &["verify", "--man=no", &root_of(&root), unit]);
    for unit in UNITS {
        let outcome = verify(unit)?;
        ensure!(
            outcome.succeeded() && outcome.stderr.trim().is_empty(),
            "{unit}: {outcome}"
        );
    }
    // The check can tell: a unit with a slip in it is not accepted.
    let path = root.path().join("etc/systemd/system/nightlatch-agent.service");
    fs::write(
        &path,
        fs::read_to_string(&path)?.replace("ProtectHome", "ProtectHouse"),
    )?;
    ensure!(
        !verify("nightlatch-agent.service")?.stderr.trim().is_empty(),
        "a misspelt key went unseen"
    );
    Ok(())
}

#[test]
fn the_units_leave_a_stolen_daemon_little_to_work_with() -> Result<()> {
    let root = installed()?;
    for unit in UNITS {
        let options = [
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold=20",
            &root_of(&root),
            unit,
        ];
        let outcome = run("systemd-analyze", &options)?;
        ensure!(outcome.succeeded(), "{unit}: {outcome}");
    }
    Ok(())
}

#[test]
fn the_ports_are_shut_before_the_network_is_up() -> Result<()> {
    let unit = fs::read_to_string(source("systemd/nightlatch-lockdown.service"))?;
    for line in [
        "DefaultDependencies=no",
        "Before=network-pre.target cloud-init-local.service",
        "Wants=network-pre.target",
        "Type=oneshot",
    ] {
        ensure!(
            unit.lines().any(|found| found == line),
            "the lockdown unit lacks {line}"
        );
    }
    let after = unit
        .lines()
        .find(|line| line.starts_with("After="))
        .context("no After=")?;
    // It starts with a flush of everything.
    ensure!(after.contains("nftables.service"), "{after}");
    // It may be started at any later time; only what isn't active any more is then started with it.
    let unit = fs::read_to_string(source("systemd/nightlatch-follow.service"))?;
    ensure!(
        unit.contains("WantedBy=nftables.service") && !unit.contains("RemainAfterExit"),
        "the follow unit doesn't follow each start"
    );
    // And so it does when it is stopped; then what started before it follows.
    let unit = fs::read_to_string(source("systemd/nightlatch-relock.service"))?;
    for line in [
        "Before=nftables.service",
        "ExecStop=/usr/bin/nightlatch-agent lockdown",
    ] {
        ensure!(
            unit.lines().any(|found| found == line),
            "the relock unit lacks {line}"
        );
    }
    Ok(())
}

#[test]
fn neither_a_missing_file_nor_a_failed_disk_keeps_the_ports_from_being_shut() -> Result<()> {
    for name in ["lockdown", "follow", "relock"] {
        let unit = fs::read_to_string(source(&format!("systemd/nightlatch-{name}.service")))?;
        for line in [
            "ConditionPathExists=|/etc/nightlatch/agent.toml",
            "ConditionPathExists=|/var/lib/nightlatch-agent/enrollment.json",
            "RequiresMountsFor=/etc/nightlatch",
        ] {
            ensure!(
                unit.lines().any(|found| found == line),
                "the {name} unit lacks {line}"
            );
        }
        // systemd derives a RequiresMountsFor= from it.
        ensure!(
            !unit.lines().any(|line| line.starts_with("StateDirectory=")),
            "the {name} unit requires the disk of the state directory"
        );
    }
    Ok(())
}

#[test]
fn an_agent_or_a_server_that_fails_is_started_again_for_ever() -> Result<()> {
    for name in ["agent", "server"] {
        let unit = fs::read_to_string(source(&format!("systemd/nightlatch-{name}.service")))?;
        for line in ["Type=notify", "Restart=always", "StartLimitIntervalSec=0"] {
            ensure!(
                unit.lines().any(|found| found == line),
                "the {name}'s unit lacks {line}"
            );
        }
    }
    Ok(())
}

#[test]
fn users_and_folders_are_made_by_systemd() -> Result<()> {
    let root = installed()?;
    let etc = root.path().join("etc");
    fs::write(etc.join("passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(etc.join("group"), "root:x:0:\n")?;
    for name in ["nightlatch-agent", "nightlatch-server"] {
        let path = |kind: &str| {
            source(&format!("systemd/{kind}.d/{name}.conf"))
                .display()
                .to_string()
        };
        run("systemd-sysusers", &[&root_of(&root), &path("sysusers")])?.expect_success("systemd-sysusers")?;
        run(
            "systemd-tmpfiles",
            &["--create", &root_of(&root), &path("tmpfiles")],
        )?
        .expect_success("systemd-tmpfiles")?;
        let folder = root.path().join("var/lib").join(name);
        let mode = fs::metadata(&folder)
            .with_context(|| format!("no {}", folder.display()))?
            .permissions()
            .mode();
        ensure!(mode & 0o7777 == 0o700, "{} has mode {mode:o}", folder.display());
        let users = fs::read_to_string(etc.join("passwd"))?;
        ensure!(
            users.lines().any(|line| line.starts_with(&format!("{name}:"))),
            "no user {name}: {users}"
        );
    }
    Ok(())
}

#[test]
fn the_packaged_configuration_is_accepted_and_explains_every_key() -> Result<()> {
    let state = tempfile::tempdir()?;
    let state = state.path().display().to_string();
    let file = |name: &str| source(&format!("packaging/{name}")).display().to_string();
    let server = run(
        &binary("nightlatch-server")?,
        &[
            "--config",
            &file("server.toml"),
            "--state",
            &state,
            "run",
            "--check-config",
        ],
    )?;
    // Nothing has been initialised there, and only that may be wrong.
    ensure!(
        server.succeeded() || server.stderr.contains("nightlatch-server init"),
        "{server}"
    );
    let agent = run(
        &binary("nightlatch-agent")?,
        &["--config", &file("agent.toml"), "--state", &state, "ruleset"],
    )?;
    ensure!(
        agent.succeeded() || agent.stderr.contains("nightlatch-agent enroll"),
        "{agent}"
    );

    for name in ["agent.toml", "server.toml"] {
        let text = fs::read_to_string(file(name))?;
        let mut previous = "";
        for line in text.lines() {
            let is_key = line.contains(" = ") && !line.starts_with('#');
            ensure!(
                !is_key || previous.starts_with('#'),
                "{name}: no comment above `{line}`"
            );
            previous = line;
        }
    }
    Ok(())
}

#[test]
fn the_packaged_agent_guards_nothing_and_has_a_ceiling() -> Result<()> {
    let text = fs::read_to_string(source("packaging/agent.toml"))?;
    let table: toml::Table = toml::from_str(&text)?;
    let expected: toml::Table = toml::from_str(
        "guarded = []\n[ceiling]\nports = [22, 3389, 5985, 5986]\nlongest = \"PT24H\"\nmax_ahead = \"PT24H\"\n\
         widest_ipv4 = 24\nwidest_ipv6 = 64\n",
    )?;
    for (key, value) in &expected {
        ensure!(table.get(key) == Some(value), "{key} is {:?}", table.get(key));
    }
    Ok(())
}

/// A root folder as packages leave it, with the units of this system around.
fn installed() -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    for folder in ["etc/systemd/system", "usr/bin", "usr/lib/systemd", "var/lib"] {
        fs::create_dir_all(at(folder))?;
    }
    for unit in UNITS {
        fs::copy(
            source(&format!("systemd/{unit}")),
            at("etc/systemd/system").join(unit),
        )?;
    }
    for name in ["nightlatch-agent", "nightlatch-server"] {
        let path = at("usr/bin").join(name);
        fs::write(&path, "#!/bin/sh\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let units = at("usr/lib/systemd/system").display().to_string();
    run("cp", &["-r", "/usr/lib/systemd/system", &units])?.expect_success("copying this system's units")?;
    Ok(root)
}

fn root_of(root: &TempDir) -> String {
    format!("--root={}", root.path().display())
}

fn source(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

fn binary(name: &str) -> Result<String> {
    let folder = binaries_beside(&std::env::current_exe()?).context("the binaries are not built")?;
    Ok(folder.join(name).display().to_string())
}

fn run(program: &str, arguments: &[&str]) -> Result<Outcome> {
    wait::run(Command::new(program).args(arguments), Duration::from_secs(60))
}
