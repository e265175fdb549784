//! Commands beside the server, where what they do on disk and what the log says of it must agree.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nightlatch_core::id::Subject;
use nightlatch_core::rights::Role;
use nightlatch_server::clock::Clock;
use nightlatch_server::config::ServerConfig;
use nightlatch_server::console;
use nightlatch_server::init::init;
use nightlatch_server::server::Server;
use sqlx::{AnyConnection, Connection, Executor};
use tokio::time::timeout;

use crate::world::World;

/// Longer than a command takes that nothing keeps waiting.
const A_WHILE: Duration = Duration::from_millis(500);

async fn connection(database: &Path) -> AnyConnection {
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}", database.display());
    AnyConnection::connect(&url).await.unwrap()
}

/// A change by another process, for which all others wait.
async fn others_change(config: &ServerConfig) -> AnyConnection {
    let mut other = connection(&config.state.join("nightlatch.db")).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    other
}

#[tokio::test]
async fn nothing_is_done_on_disk_while_it_can_not_be_recorded() {
    let mut world = World::begin().await;
    let (config, now) = (world.config.clone(), world.clock.now());
    let root = config.state.join("root.key");
    let [copy, other_copy, user] = ["copy", "other", "bob"].map(|name| world.directory.path().join(name));
    console::export_root(&config, &copy, now).await.unwrap();
    world.stop().await;

    let mut other = others_change(&config).await;
    let bob: Subject = "bob".parse().unwrap();
    // Whoever goes away while waiting has done nothing.
    let (removed, exported, issued) = tokio::join!(
        timeout(A_WHILE, console::remove_root(&config, Some(&copy), now)),
        timeout(A_WHILE, console::export_root(&config, &other_copy, now)),
        timeout(
            A_WHILE,
            console::issue_user(&config, &bob, [Role::Reader].into(), &user, now)
        ),
    );
    assert!(removed.is_err() && exported.is_err() && issued.is_err());
    assert!(root.exists(), "the root key is gone, and no event says so");
    assert!(!other_copy.exists(), "a copy that no event knows of");
    assert!(!user.with_extension("key").exists());
    other.execute("ROLLBACK").await.unwrap();
    other.close().await.unwrap();
    world.start().await;
    let mut admin = world.client(&world.admin()).await;
    assert_eq!(admin.events_of("root.exported").await.len(), 1);
}

#[tokio::test]
async fn an_export_that_was_killed_can_be_repeated() {
    let world = World::begin().await;
    let (config, now) = (world.config.clone(), world.clock.now());
    let copy = world.directory.path().join("copy");
    std::fs::write(&copy, "").unwrap();
    let open_to_others = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&copy, open_to_others).unwrap();
    assert!(console::export_root(&config, &copy, now).await.is_err());
    // As one leaves it that is killed before it has written the key.
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
    console::export_root(&config, &copy, now).await.unwrap();
    let root = config.state.join("root.key");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(root).unwrap());
    assert!(
        console::export_root(&config, &copy, now).await.is_err(),
        "it is no longer empty"
    );
}

#[tokio::test]
async fn an_export_takes_over_no_file_that_another_has_in_hand() {
    let world = World::begin().await;
    let (config, now) = (world.config.clone(), world.clock.now());
    let copy = world.directory.path().join("copy");
    std::fs::write(&copy, "").unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
    let linked = world.directory.path().join("linked");
    std::fs::hard_link(&copy, &linked).unwrap();
    assert!(
        console::export_root(&config, &copy, now).await.is_err(),
        "it has another name"
    );
    std::fs::remove_file(&linked).unwrap();
    // As an export has it that has not written the key yet.
    let other = std::fs::File::options().write(true).open(&copy).unwrap();
    other.lock().unwrap();
    assert!(
        console::export_root(&config, &copy, now).await.is_err(),
        "another export has it"
    );
    assert_eq!(std::fs::read(&copy).unwrap(), b"");
    drop(other);
    console::export_root(&config, &copy, now).await.unwrap();
}

#[tokio::test]
async fn a_removal_that_fails_is_recorded_and_can_be_repeated() {
    let world = World::begin().await;
    let (config, now) = (world.config.clone(), world.clock.now());
    let root = config.state.join("root.key");
    let copy = world.directory.path().join("copy");
    console::export_root(&config, &copy, now).await.unwrap();

    let mut other = others_change(&config).await;
    let aside = config.state.join("aside");
    let meanwhile = async {
        tokio::time::sleep(A_WHILE).await;
        // What is in the key's place then can't be unlinked.
        std::fs::rename(&root, &aside).unwrap();
        std::fs::create_dir(&root).unwrap();
        other.execute("ROLLBACK").await.unwrap();
    };
    let (removed, ()) = tokio::join!(console::remove_root(&config, Some(&copy), now), meanwhile);
    let refused = removed.unwrap_err().to_string();
    assert!(
        refused.contains("recorded") && refused.contains("run it again"),
        "{refused}"
    );
    let mut admin = world.client(&world.admin()).await;
    assert_eq!(admin.events_of("root.removed").await.len(), 1);

    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&aside, &root).unwrap();
    console::remove_root(&config, Some(&copy), now).await.unwrap();
    assert!(!root.exists());
}

/// A state directory with the database of another installation, as an earlier version has left it.
async fn with_anothers_database(world: &World) -> Vec<u8> {
    let other = world.directory.path().join("other");
    init(&other, &["localhost".to_owned()], world.clock.now())
        .await
        .unwrap();
    let database = other.join("nightlatch.db");
    let mut connection = connection(&database).await;
    for statement in [
        "DELETE FROM _sqlx_migrations WHERE version >= 2",
        "DROP TABLE break_glass",
        "DROP TABLE held",
        "DROP INDEX grants_leaving",
        "DROP INDEX requests_by_key",
        "ALTER TABLE grants DROP COLUMN leaves_at",
        "ALTER TABLE tokens DROP COLUMN machine",
        "ALTER TABLE tokens DROP COLUMN keys_sha256",
        "ALTER TABLE requests DROP COLUMN request_key",
        "ALTER TABLE requests DROP COLUMN body_sha256",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ] {
        connection.execute(statement).await.unwrap();
    }
    connection.close().await.unwrap();
    let content = std::fs::read(&database).unwrap();
    std::fs::write(world.config.state.join("nightlatch.db"), &content).unwrap();
    content
}

#[tokio::test]
async fn no_command_changes_another_installations_database() {
    let mut world = World::begin().await;
    let (config, now) = (world.config.clone(), world.clock.now());
    let copy = world.directory.path().join("copy");
    console::export_root(&config, &copy, now).await.unwrap();
    let token = console::create_token(&config, None, false, now).await.unwrap();
    world.stop().await;
    let content = with_anothers_database(&world).await;

    let refused = |what: &str, why: Option<String>| {
        let why = why.unwrap_or_default();
        assert!(
            why.contains("nightlatch.db is of another installation"),
            "{what}: {why}"
        );
        let after = std::fs::read(config.state.join("nightlatch.db")).unwrap();
        assert!(after == content, "{what} has changed the database");
    };
    let said = |error: console::ConsoleError| Some(error.to_string());
    let third = world.directory.path().join("third");
    let exported = console::export_root(&config, &third, now).await;
    refused("root export", exported.err().and_then(said));
    assert!(!third.exists());
    let removed = console::remove_root(&config, Some(&copy), now).await;
    refused("root remove", removed.err().and_then(said));
    assert!(config.state.join("root.key").exists());
    let withdrawn = console::withdraw_token(&config, &token, now).await;
    refused("taking a token back", withdrawn.err().and_then(said));
    let created = console::create_token(&config, None, false, now).await;
    refused("token create", created.err().and_then(said));
    let bound = Server::bind(&config, world.clock.clone()).await;
    refused("run", bound.err().map(|error| error.to_string()));
}
