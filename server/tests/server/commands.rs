//! The command itself: what it says, and where that can't be said.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use sqlx::Connection;

use crate::world::World;

fn command(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightlatch-server"));
    command.args(["--config", "/dev/null", "--state"]).arg(state);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn unsaid(state: &Path, arguments: &[&str], to: Stdio) -> String {
    let output: Output = command(state, arguments).stdout(to).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(
        said.starts_with("error: ") && !said.contains("panicked"),
        "{arguments:?}: {said}"
    );
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    said
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

async fn tokens(world: &World) -> i64 {
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}", world.state().path("nightlatch.db").display());
    let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM tokens");
    count.fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn a_token_that_can_not_be_handed_over_is_taken_back() {
    let world = World::begin().await;
    for to in [full(), closed()] {
        let said = unsaid(
            &world.config.state,
            &["token", "create", "--machine", "web-1"],
            to,
        );
        assert!(
            said.contains("standard output") && said.contains("taken back"),
            "{said}"
        );
    }
    assert_eq!(tokens(&world).await, 0);
    let mut admin = world.client(&world.admin()).await;
    for kind in ["token.created", "token.withdrawn"] {
        let events = admin.events_of(kind).await;
        assert_eq!(events.len(), 2, "{kind}");
        assert!(
            events.iter().all(|event| event.machine_display_name == "web-1"),
            "{events:?}"
        );
    }
}

#[tokio::test]
async fn no_token_is_made_where_its_secret_would_be_lost() {
    let world = World::begin().await;
    let made = command(&world.config.state, &["token", "create"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" >&-", "sh"]);
    shell.arg(made.get_program()).args(made.get_args());
    let closed = shell.output().unwrap();
    assert_eq!(closed.status.code(), Some(1));
    let said = String::from_utf8(closed.stderr).unwrap();
    assert!(said.contains("standard output is closed"), "{said}");
    unsaid(&world.config.state, &["token", "create"], Stdio::null());
    assert_eq!(tokens(&world).await, 0);
}

#[tokio::test]
async fn what_was_done_is_said_by_the_error_where_it_can_not_be_said_otherwise() {
    let world = World::begin().await;
    let state = &world.config.state;
    let out = world.directory.path().join("alice").display().to_string();
    let copy = world.directory.path().join("root.copy").display().to_string();
    let new = world.directory.path().join("new");
    for (state, arguments, words) in [
        (state, &["run", "--check-config"][..], "can be used"),
        (
            state,
            &["user", "issue", "alice", "--role", "reader", "--out", &out],
            "alice.pem",
        ),
        (state, &["root", "export", &copy], "root.copy"),
        (&new, &["init", "--name", "localhost"], "admin.key"),
    ] {
        let said = unsaid(state, arguments, full());
        assert!(said.contains("it was done") && said.contains(words), "{said}");
    }
    for made in [&format!("{out}.pem"), &format!("{out}.key"), &copy] {
        assert!(Path::new(made).is_file(), "{made}");
    }
    assert!(new.join("ca.pem").is_file());
    unsaid(state, &["--help"], full());
    unsaid(state, &["--version"], full());
}

#[tokio::test]
async fn an_error_that_can_not_be_said_is_still_an_error() {
    let world = World::begin().await;
    let mut command = command(&world.config.state, &["token", "create"]);
    let output = command.stdout(full()).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn a_cause_is_told_once_and_with_the_next_step() {
    let mut world = World::begin().await;
    let state = world.config.state.clone();
    let out = world.directory.path().join("alice").display().to_string();
    let issue = ["user", "issue", "alice", "--role", "reader", "--out", &out];
    assert!(command(&state, &issue).output().unwrap().status.success());
    let again = unsaid(&state, &issue, Stdio::null());
    assert!(again.contains("alice.pem") && again.contains("--out"), "{again}");
    world.stop().await;
    for file in ["nightlatch.db-wal", "nightlatch.db-shm"] {
        drop(std::fs::remove_file(state.join(file)));
    }
    std::fs::write(state.join("nightlatch.db"), "damaged").unwrap();
    let damaged = unsaid(&state, &["token", "create"], full());
    assert_eq!(damaged.matches("not a database").count(), 1, "{damaged}");
    std::fs::remove_file(state.join("signing.key")).unwrap();
    let missing = unsaid(&state, &["run", "--check-config"], Stdio::null());
    assert!(
        missing.contains("signing.key") && missing.contains("copy"),
        "{missing}"
    );
}
