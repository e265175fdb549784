//! What agent.toml may say.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn parse(text: &str) -> Result<AgentConfig, InvalidConfig> {
    AgentConfig::parse(Path::new("agent.toml"), text)
}

#[test]
fn an_empty_file_guards_nothing_and_takes_no_grant() {
    let config = parse("").unwrap();
    assert_eq!(
        config.rules,
        HostRules {
            udp_grace: Duration::from_secs(3600),
            ..HostRules::default()
        }
    );
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        guarded = ["22/tcp", 3389, "8000-8010/udp"]
        server_may = []
        unguarded_interfaces = ["wg0"]
        trusted_sources = ["192.0.2.0/24", "2001:db8::7"]
        udp_grace = "PT5M"
        log = "debug"
        [ceiling]
        ports = [22, "3389/*"]
        longest = "PT8H"
        widest_ipv4 = 0
        [break_glass]
        enabled = false
        longest = "PT15M"
        widest_ipv6 = 128
        "#,
    )
    .unwrap();
    let guarded: Vec<String> = config.rules.guarded.iter().map(ToString::to_string).collect();
    assert_eq!(guarded, ["22/tcp", "3389/tcp", "3389/udp", "8000-8010/udp"]);
    assert_eq!(config.rules.trusted_sources.len(), 2);
    assert_eq!(config.log, LogLevel::Debug);
    assert_eq!(
        config.rules.break_glass,
        break_glass::Limits {
            is_enabled: false,
            longest: Duration::from_secs(900),
            widest_ipv4: 32,
            widest_ipv6: 128,
        }
    );
    let ceiling = config.rules.ceiling.unwrap();
    assert_eq!(
        (ceiling.longest, ceiling.max_ahead),
        (Duration::from_secs(8 * 3600), DAY)
    );
    assert_eq!((ceiling.widest_ipv4, ceiling.widest_ipv6), (0, 64));
}

#[test]
fn what_does_not_fit_is_named_by_file_key_and_limit() {
    let many = format!(
        "guarded = [{}]",
        (1..=600)
            .map(|port| port.to_string())
            .collect::<Vec<_>>()
            .join(",")
    );
    let trusted = format!("trusted_sources = [{}]", vec!["\"192.0.2.1\""; 65].join(","));
    for (text, says) in [
        (
            "guarded = []\nguard = []",
            "agent.toml line 2: `guard`: unknown field",
        ),
        ("guarded = [", "agent.toml line 1: "),
        ("guarded = 22", "line 1: `guarded`: invalid type: integer `22`"),
        ("\ntrusted_sources = [1]", "line 2: `trusted_sources[0]`"),
        ("unguarded_interfaces = \"wg0\"", "`unguarded_interfaces`"),
        ("server_may = true", "`server_may`"),
        ("udp_grace = 3600", "`udp_grace`"),
        ("log = 7", "`log`"),
        ("ceiling = \"none\"", "`ceiling`"),
        ("[ceiling]\nports = 22", "line 2: `ceiling.ports`"),
        ("[ceiling]\nports = []\nlongest = 3", "line 3: `ceiling.longest`"),
        ("[ceiling]\nports = []\nmax_ahead = []", "`ceiling.max_ahead`"),
        (
            "[ceiling]\nports = []\nwidest_ipv4 = \"24\"",
            "`ceiling.widest_ipv4`",
        ),
        (
            "[ceiling]\nports = []\nwidest_ipv6 = 1.5",
            "`ceiling.widest_ipv6`",
        ),
        ("guarded = [true]", "`guarded[0]` is neither a number nor a text"),
        (
            "guarded = [22, 70000]",
            "`guarded[1]` is refused: port 70000 is outside 1 to 65535",
        ),
        (
            "guarded = [\"ssh\"]",
            "`guarded[0]` is refused: `ssh` is not a port",
        ),
        ("guarded = [-1]", "`guarded[0]` is refused"),
        (
            &*many,
            "`guarded` lists 1200 ports (each protocol counts), at most 1024",
        ),
        ("server_may = [\"observe\"]", "this version honours none"),
        ("server_may = [\"open\"]", "`server_may[0]` is `open`"),
        (
            "unguarded_interfaces = [\"averylonginterface\"]",
            "1 to 15 characters",
        ),
        ("unguarded_interfaces = [\"eth*\"]", "no wildcard"),
        (
            "trusted_sources = [\"192.0.2.7/24\"]",
            "did you mean 192.0.2.0/24",
        ),
        (&*trusted, "has 65 entries, at most 64"),
        ("udp_grace = \"1h\"", "`udp_grace` is refused"),
        ("udp_grace = \"PT25H\"", "at most PT24H"),
        ("log = \"loud\"", "unknown variant `loud`"),
        ("[ceiling]\nlongest = \"PT1H\"", "missing field `ports`"),
        ("[ceiling]\nports = [22]\nwidest_ipv4 = 33", "from 0 to 32"),
        ("[ceiling]\nports = [22]\nwidest_ipv6 = -1", "from 0 to 128"),
        (
            "[ceiling]\nports = [22]\nlongest = \"PT0S\"",
            "`ceiling.longest` is zero",
        ),
        ("[break_glass]\nenabled = 1", "`break_glass.enabled`"),
        (
            "[break_glass]\nlongest = \"PT0S\"",
            "`break_glass.longest` is zero",
        ),
        ("[break_glass]\nlongest = \"PT25H\"", "at most PT24H"),
        ("[break_glass]\nwidest_ipv4 = 33", "from 0 to 32"),
        ("[break_glass]\nports = [22]", "unknown field `ports`"),
        (
            "[ceiling]\nports = [22]\nlongest = \"P1D\"",
            "`ceiling.longest` is refused",
        ),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains("agent.toml"),
            "{text}: {error}"
        );
    }
}

#[test]
fn a_file_that_everyone_can_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, "guarded = [22]").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
    assert!(matches!(
        AgentConfig::read(&path),
        Err(InvalidConfig::WorldWritable(_))
    ));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(AgentConfig::read(&path).is_ok());
    assert!(matches!(
        AgentConfig::read(&folder.path().join("other.toml")),
        Err(InvalidConfig::Unreadable { .. })
    ));
}

#[test]
fn a_fault_elsewhere_does_not_widen_what_the_file_says_of_break_glass() {
    let default = break_glass::Limits::default();
    let off = break_glass::Limits {
        is_enabled: false,
        ..default
    };
    let short = break_glass::Limits {
        longest: Duration::from_secs(300),
        widest_ipv6: 128,
        ..default
    };
    for (text, limits) in [
        ("", default),
        ("guarded = [\n", default),
        ("guarded = [\n[break_glass]\nenabled = false # not here\n", off),
        ("[break_glass]\nenabled = false\n[ceiling]\nports = nonsense", off),
        ("break_glass = { enabled = false }\nguarded = 22", off),
        ("break_glass.enabled = false\nguarded = 22", off),
        ("[break_glass]\nenabled = flase\n", off),
        ("[break_glass]\nenabled = \"no\"\n", off),
        (
            "guarded = 22\n[ break_glass ]\nlongest = \"PT5M\"\nwidest_ipv4 = 33\nwidest_ipv6 = 128\n",
            short,
        ),
        (
            "[break_glass]\nlongest = \"PT5M\"\nwidest_ipv6 = 128\nodd = 1\n",
            short,
        ),
        ("[ceiling]\nlongest = \"PT5M\"\nenabled = false\n", default),
    ] {
        assert_eq!(bounds_in(text), limits, "{text}");
    }
}
