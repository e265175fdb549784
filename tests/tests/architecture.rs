//! The shape of the code: which crate may know which, and where the types of the outside world may be named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_tests::wait;
use serde_json::Value;

const EVERY_CRATE: &[&str] = &[
    "core/src",
    "proto/src",
    "server/src",
    "agent/src",
    "cli/src",
    "tests/src",
    "bench/src",
    "packaging/src",
];

#[test]
fn dependencies_point_one_way() -> Result<()> {
    let allowed = BTreeMap::from([
        ("core", BTreeSet::new()),
        ("proto", BTreeSet::from(["core"])),
        ("server", BTreeSet::from(["core", "proto"])),
        ("agent", BTreeSet::from(["core", "proto"])),
        ("cli", BTreeSet::from(["core", "proto"])),
        (
            "bench",
            BTreeSet::from(["core", "proto", "server", "agent", "cli", "tests"]),
        ),
        (
            "tests",
            BTreeSet::from(["core", "proto", "server", "agent", "cli"]),
        ),
        ("packaging", BTreeSet::from(["server", "agent", "cli"])),
    ]);
    let mut seen = BTreeSet::new();
    for (name, dependencies) in workspace()? {
        let known = allowed
            .get(name.as_str())
            .with_context(|| format!("a crate without a rule: {name}"))?;
        for dependency in &dependencies {
            ensure!(
                known.contains(dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
        seen.insert(name);
    }
    ensure!(
        seen.len() == allowed.len(),
        "crates that are ruled but gone: {seen:?}"
    );
    Ok(())
}

#[test]
fn the_rules_of_access_do_no_io() -> Result<()> {
    let lib = fs::read_to_string(root().join("core/src/lib.rs"))?;
    ensure!(lib.contains("\n#![no_std]\n"), "core is no longer no_std");
    ensure!(
        lib.contains("\n#![forbid(unsafe_code)]\n"),
        "core no longer forbids unsafe code"
    );
    check_absent(&["core/src"], &[], &["std::", "tokio", "async fn"])
}

#[test]
fn protobuf_types_stay_at_the_doors() -> Result<()> {
    let doors = [
        "server/src/api",
        "server/src/api.rs",
        "server/src/server.rs",
        "agent/src/server_link",
        "agent/src/server_link.rs",
        "agent/src/enroll.rs",
        "cli/src/client",
        "cli/src/client.rs",
    ];
    check_absent(
        &["core/src", "server/src", "agent/src", "cli/src"],
        &doors,
        &["pb::"],
    )
}

#[test]
fn the_command_line_knows_the_api_and_nothing_behind_it() -> Result<()> {
    check_absent(
        &["cli/src"],
        &[],
        &["nightlatch_server", "nightlatch_agent", "sqlx"],
    )
}

#[test]
fn the_kernels_firewall_is_named_in_the_agents_firewall_only() -> Result<()> {
    let names = ["nftables::", "netlink_packet", "netlink_sys"];
    let crates = ["core/src", "proto/src", "server/src", "agent/src", "cli/src"];
    check_absent(&crates, &["agent/src/firewall", "agent/src/firewall.rs"], &names)
}

#[test]
fn sql_is_spoken_in_the_servers_store_only() -> Result<()> {
    let crates = ["core/src", "proto/src", "server/src", "agent/src", "cli/src"];
    check_absent(
        &crates,
        &["server/src/store", "server/src/store.rs"],
        &["sqlx::query", "sqlx::migrate", "sqlx::Row"],
    )
}

#[test]
fn unsafe_code_stands_in_the_netlink_socket_only() -> Result<()> {
    check_absent(
        EVERY_CRATE,
        &["agent/src/firewall"],
        &["unsafe {", "unsafe fn", "unsafe impl"],
    )
}

#[test]
fn each_promise_names_a_test_that_exists() -> Result<()> {
    let page = fs::read_to_string(root().join("SECURITY.md"))?;
    let promises = page.lines().filter(|line| line.starts_with("| "));
    let quoted = promises.flat_map(|line| line.split('`').skip(1).step_by(2));
    let named: BTreeSet<&str> = quoted
        .filter(|name| name.matches('_').count() > 2 || name.ends_with(".rs"))
        .collect();
    ensure!(named.len() > 10, "few tests are named: {named:?}");
    let mut tests = String::new();
    for folder in ["core", "server", "agent", "cli", "tests"] {
        for file in rust_files(&root().join(folder))? {
            writeln!(tests, "{}", file.display())?;
            tests.push_str(&fs::read_to_string(&file)?);
        }
    }
    for name in named {
        let wanted = if name.ends_with(".rs") {
            format!("tests/{name}\n")
        } else {
            format!("fn {name}(")
        };
        ensure!(
            tests.contains(&wanted),
            "SECURITY.md names a test that does not exist: {name}"
        );
    }
    Ok(())
}

#[test]
fn nothing_is_left_to_be_done() -> Result<()> {
    check_absent(
        EVERY_CRATE,
        &[],
        &["todo!(", "unimplemented!(", "FIXME", "TODO:", "XXX"],
    )
}

/// Looks for words in the code of some folders, unit tests and comments left out, some places excepted.
fn check_absent(folders: &[&str], except: &[&str], words: &[&str]) -> Result<()> {
    let excepted: Vec<PathBuf> = except.iter().map(|path| root().join(path)).collect();
    let mut looked_at = 0;
    for folder in folders {
        for file in rust_files(&root().join(folder))? {
            if excepted.iter().any(|path| file.starts_with(path)) {
                continue;
            }
            looked_at += 1;
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                for word in words {
                    ensure!(
                        !names(line, word),
                        "{}:{}: `{word}` has no place here",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
    ensure!(looked_at > 0, "no file was looked at in {folders:?}");
    Ok(())
}

/// Whether the word stands there by itself, not as the end of a longer one.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The crates of the workspace by folder, with those that they depend on outside of tests.
fn workspace() -> Result<Vec<(String, BTreeSet<String>)>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root());
    let text = wait::run(&mut cargo, Duration::from_secs(60))?.expect_success("cargo metadata")?;
    let metadata: Value = serde_json::from_str(&text)?;
    let short = |name: &Value| name.as_str()?.strip_prefix("nightlatch-").map(str::to_owned);
    let packages = metadata["packages"].as_array().context("no packages")?;
    let read = |package: &Value| {
        let dependencies = package["dependencies"].as_array()?.iter();
        let ours = dependencies
            .filter(|it| it["kind"] != "dev")
            .filter_map(|it| short(&it["name"]));
        Some((short(&package["name"])?, ours.collect()))
    };
    packages
        .iter()
        .map(read)
        .collect::<Option<_>>()
        .context("unexpected metadata")
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
