use nightlatch_server::clock::Clock;
use nightlatch_server::config::ServerConfig;
use nightlatch_server::console;
use nightlatch_server::identity::{Identity, Kind};
use nightlatch_server::init::{InitError, NotAHost, init};
use nightlatch_server::server::Server;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::world::{HandClock, World};

#[tokio::test]
async fn init_overwrites_nothing_and_a_failed_one_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let now = HandClock::default().now();
    let bad = init(&state, &["not a host".to_owned()], now).await;
    assert!(matches!(bad, Err(InitError::NotAHost(NotAHost::Neither(_)))));
    for nowhere in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255"] {
        let nowhere = init(&state, &["localhost".to_owned(), nowhere.to_owned()], now).await;
        assert!(matches!(
            nowhere,
            Err(InitError::NotAHost(NotAHost::Unreachable(_)))
        ));
    }
    // An agent takes no more addresses, and resolves no such name.
    let many: Vec<String> = (0..17).map(|number| format!("control-{number}")).collect();
    let many = init(&state, &many, now).await.unwrap_err().to_string();
    assert!(many.contains("17 names are given, at most 16"), "{many}");
    let mistyped = init(&state, &["192.0.2.300".to_owned()], now).await;
    assert!(matches!(mistyped, Err(InitError::NotAHost(NotAHost::Neither(_)))));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);

    std::fs::create_dir(&state).unwrap();
    init(&state, &["localhost".to_owned()], now).await.unwrap();
    let key = std::fs::read(state.join("ca.key")).unwrap();
    assert!(matches!(
        init(&state, &["localhost".to_owned()], now).await,
        Err(InitError::NotEmpty(_))
    ));
    assert_eq!(std::fs::read(state.join("ca.key")).unwrap(), key);
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let name = entry.file_name().into_string().unwrap();
        let is_secret = name.ends_with(".key") || name.ends_with(".db");
        assert_eq!(mode, if is_secret { 0o600 } else { 0o644 }, "{name}");
    }
}

#[tokio::test]
async fn a_server_does_not_start_with_a_key_that_others_may_read_or_a_list_of_other_keys() {
    let mut world = World::begin().await;
    world.stop().await;
    let failure = async |config: &ServerConfig| {
        let bound = Server::bind(config, Arc::new(HandClock::default())).await;
        bound.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let key = world.config.state.join("signing.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(failure(&world.config).await.contains("chmod 600"));
    std::fs::copy(world.config.state.join("root.key"), &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(failure(&world.config).await.contains("does not list"));
    std::fs::remove_file(&key).unwrap();
    assert!(failure(&world.config).await.contains("signing.key"));
}

#[tokio::test]
async fn checking_finds_what_would_keep_the_server_from_starting() {
    let mut world = World::begin().await;
    Server::check(&world.config).await.unwrap();
    world.stop().await;
    Server::check(&world.config).await.unwrap();
    let failure = async |config: &ServerConfig| {
        let checked = Server::check(config).await;
        checked.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let state = world.config.state.clone();
    let key = state.join("server.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(failure(&world.config).await.contains("chmod 600"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    for file in ["nightlatch.db-wal", "nightlatch.db-shm"] {
        drop(std::fs::remove_file(state.join(file)));
    }
    std::fs::write(state.join("nightlatch.db"), "damaged").unwrap();
    assert!(failure(&world.config).await.contains("nightlatch.db"));
}

/// Another installation's state directory.
async fn another(world: &World) -> std::path::PathBuf {
    let other = world.directory.path().join("other");
    init(&other, &["localhost".to_owned()], world.clock.now())
        .await
        .unwrap();
    other
}

/// What starting and checking complain of, which is the same.
async fn complaint(config: &ServerConfig) -> String {
    let bound = Server::bind(config, Arc::new(HandClock::default())).await;
    let bound = bound.err().map(|error| error.to_string()).unwrap_or_default();
    let checked = Server::check(config).await;
    assert_eq!(
        checked.err().map(|error| error.to_string()).unwrap_or_default(),
        bound
    );
    bound
}

#[tokio::test]
async fn files_of_another_installation_are_refused_by_name() {
    let mut world = World::begin().await;
    let other = another(&world).await;
    world.stop().await;
    let state = world.config.state.clone();
    let kept = world.directory.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    for (files, says) in [
        (&["nightlatch.db"][..], "nightlatch.db is of another installation"),
        (&["ca.pem", "ca.key"], "ca.pem is of another installation"),
        (&["ca.pem"], "ca.pem"),
        (&["ca.key"], "ca.pem and ca.key"),
        (
            &["server.pem", "server.key"],
            "server.pem is of another installation",
        ),
        (&["signing.key"], "signing.key"),
        (&["keys.dsse"], "keys.dsse"),
        (
            &["root.pub", "keys.dsse", "signing.key", "root.key"],
            "keys.dsse is of another installation",
        ),
        (&["root.key"], "root.key is not the key of"),
    ] {
        for file in files {
            std::fs::copy(state.join(file), kept.join(file)).unwrap();
            std::fs::copy(other.join(file), state.join(file)).unwrap();
        }
        let complaint = complaint(&world.config).await;
        assert!(
            complaint.contains(says) && complaint.contains("back from a copy"),
            "{files:?}: {complaint}"
        );
        for file in files {
            std::fs::copy(kept.join(file), state.join(file)).unwrap();
        }
    }
    assert_eq!(complaint(&world.config).await, "");
    std::fs::copy(other.join("ca.pem"), state.join("ca.pem")).unwrap();
    std::fs::copy(other.join("ca.key"), state.join("ca.key")).unwrap();
    let token = console::create_token(&world.config, None, false, world.clock.now()).await;
    let refused = token.err().unwrap().to_string();
    assert!(refused.contains("ca.pem is of another installation"), "{refused}");
}

#[tokio::test]
async fn a_server_certificate_of_an_earlier_authority_or_of_a_person_is_refused() {
    use nightlatch_server::identity::ca::CertificateAuthority;
    let mut world = World::begin().await;
    world.stop().await;
    let state = world.state();
    let ca = state.authority().unwrap();
    let installation = ca.installation().unwrap();
    let now = world.clock.now();
    let made = CertificateAuthority::create(&installation.to_string(), now).unwrap();
    let earlier = CertificateAuthority::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
    let identity = |kind| Identity {
        installation,
        kind,
        id: "x".to_owned(),
    };
    let names = ["localhost".to_owned()];
    for issued in [
        earlier
            .issue_server(&identity(Kind::Server), &names, now)
            .unwrap(),
        ca.issue(&identity(Kind::Person), now).unwrap(),
    ] {
        state
            .replace("server.pem", &issued.certificate_pem, 0o644)
            .unwrap();
        state.replace("server.key", &issued.key_pem, 0o600).unwrap();
        let complaint = complaint(&world.config).await;
        assert!(
            complaint.contains("server.pem is not a certificate that ca.pem has issued"),
            "{complaint}"
        );
    }
    // What an interrupted renewal leaves is made good.
    let issued = ca.issue_server(&identity(Kind::Server), &names, now).unwrap();
    state
        .replace("server.pem", &issued.certificate_pem, 0o644)
        .unwrap();
    world.start().await;
    assert_ne!(state.read("server.pem").unwrap(), issued.certificate_pem);
}

#[tokio::test]
async fn a_server_certificate_that_is_none_is_issued_anew() {
    let mut world = World::begin().await;
    let state = world.state();
    let garbled = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    for damaged in ["", "not PEM", garbled] {
        world.stop().await;
        state.replace("server.pem", damaged, 0o644).unwrap();
        Server::check(&world.config).await.unwrap();
        world.start().await;
        assert!(state.read("server.pem").unwrap().len() > damaged.len());
        world.client(&world.admin()).await.events().await;
    }
}

#[tokio::test]
async fn a_state_directory_that_others_may_use_is_refused() {
    let mut world = World::begin().await;
    world.stop().await;
    let set = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&world.config.state, mode).unwrap();
    };
    for mode in [0o777, 0o770, 0o701] {
        set(mode);
        let complaint = complaint(&world.config).await;
        assert!(
            complaint.contains(&format!("mode {mode:o}")) && complaint.contains("chmod 700"),
            "{complaint}"
        );
        let token = console::create_token(&world.config, None, false, world.clock.now()).await;
        assert!(token.is_err());
    }
    set(0o700);
    assert_eq!(complaint(&world.config).await, "");
}

#[tokio::test]
async fn two_servers_never_run_over_one_state_directory() {
    let mut world = World::begin().await;
    let second = Server::bind(&world.config, Arc::new(HandClock::default())).await;
    assert!(
        second
            .err()
            .is_some_and(|error| error.to_string().contains("another nightlatch-server works in"))
    );
    world.stop().await;
    world.start().await;
}

#[tokio::test]
async fn the_server_certificate_is_renewed_before_it_ends() {
    let mut world = World::begin().await;
    let before = world.state().read("server.pem").unwrap();
    world.stop().await;
    world.start().await;
    assert_eq!(world.state().read("server.pem").unwrap(), before);
    world.stop().await;
    world
        .clock
        .advance(core::time::Duration::from_secs(340 * 24 * 3600));
    world.start().await;
    assert_ne!(world.state().read("server.pem").unwrap(), before);
}

#[tokio::test]
async fn the_root_key_is_removed_only_with_a_sound_copy_elsewhere() {
    let world = World::begin().await;
    let (config, now) = (&world.config, world.clock.now());
    let refusal = async |copy: Option<&Path>| {
        let refused = console::remove_root(config, copy, now).await.err().unwrap();
        assert!(config.state.join("root.key").exists());
        refused.to_string()
    };
    assert!(refusal(None).await.contains("root export FILE"));
    let inside = config.state.join("root.copy");
    let refused = console::export_root(config, &inside, now).await.err().unwrap();
    assert!(
        refused.to_string().contains("elsewhere") && !inside.exists(),
        "{refused}"
    );

    let file = world.directory.path().join("root.copy");
    console::export_root(config, &file, now).await.unwrap();
    let again = console::export_root(config, &file, now).await.err().unwrap();
    assert!(again.to_string().contains("name another file"), "{again}");
    let root = std::fs::read(config.state.join("root.key")).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), root);

    let moved = world.directory.path().join("moved");
    std::fs::rename(&file, &moved).unwrap();
    assert!(refusal(None).await.contains("--copy"));
    for other in ["", "not a key", &world.state().read("signing.key").unwrap()] {
        std::fs::write(&file, other).unwrap();
        assert!(refusal(None).await.contains("is not a copy of the root key"));
    }
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(config.state.join("root.key"), &file).unwrap();
    assert!(refusal(None).await.contains("state directory"));
    assert!(
        refusal(Some(world.directory.path()))
            .await
            .contains("is not a copy")
    );
    assert!(
        refusal(Some(Path::new("/dev/zero")))
            .await
            .contains("is not a copy")
    );

    console::remove_root(config, Some(&moved), now).await.unwrap();
    assert!(!config.state.join("root.key").exists());
    let third = world.directory.path().join("third");
    assert!(console::export_root(config, &third, now).await.is_err());
    let mut admin = world.client(&world.admin()).await;
    for kind in ["root.exported", "root.removed"] {
        assert_eq!(admin.events_of(kind).await.len(), 1, "{kind}");
    }
}
