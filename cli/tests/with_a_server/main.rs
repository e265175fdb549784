//! The binary against a small server of canned answers, over real TLS on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops where something is not as it should be"
)]

mod authority;
mod fake;

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use fake::{Authority, Certificate, Fake, Kind};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_ends(output: &Output, exit: i32, stderr_says: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    for says in stderr_says {
        assert!(stderr.contains(says), "`{says}` is missing in: {stderr}");
    }
    for jargon in [
        "grpc",
        "gRPC",
        "transport error",
        "Status",
        "panicked",
        "rustls",
        "h2 ",
    ] {
        assert!(!stderr.contains(jargon), "{stderr}");
    }
}

const ASK: [&str; 5] = ["--port", "22", "--reason", "x", "--timeout=1s"];

#[test]
fn an_open_port_is_exit_0_and_says_how_to_connect() {
    let fake = Fake::start();
    let output = fake.run(&[&["request", "open-1"][..], &ASK].concat());
    assert_ends(&output, 0, &[]);
    let stdout = text(&output.stdout);
    assert!(
        stdout.contains("open-1: open until ") && stdout.contains("ssh USER@192.0.2.10"),
        "{stdout}"
    );
}

#[test]
fn a_machine_that_is_away_is_exit_3_and_says_how_to_withdraw() {
    let fake = Fake::start();
    for how in ["--no-wait", "--timeout=1s"] {
        let output = fake.run(&[
            "request", "away-1", "open-1", "--port", "22", "--reason", "x", how,
        ]);
        assert_ends(
            &output,
            3,
            &["hint: the request stands", "nightlatch done accessRequests/"],
        );
        assert!(text(&output.stdout).contains("open-1: open"));
        assert!(text(&output.stdout).contains("away-1: not open yet"));
    }
}

#[test]
fn waiting_survives_a_broken_connection() {
    let fake = Fake::start();
    let output = fake.run(&["request", "late-1", "--port", "22", "--reason", "x", "--wait"]);
    assert_ends(&output, 0, &[]);
}

#[test]
fn a_request_whose_answer_is_lost_is_repeated_once_under_the_same_id() {
    let fake = Fake::start();
    let server = fake.behind_a_breaking_network().to_string();
    let output = fake.run(&[&["request", "cut-1", "open-1", "--server", &server][..], &ASK].concat());
    let asked = fake.asked();
    assert_eq!(asked.len(), 2, "{}", text(&output.stderr));
    assert!(asked[0].len() == 36 && asked[0] == asked[1], "{asked:?}");
    assert!(text(&output.stdout).contains("open-1: open until "));
    let again = fake.run(&[&["request", "open-1"][..], &ASK].concat());
    assert_ends(&again, 0, &[]);
    assert_ne!(fake.asked()[2], asked[0]);
}

#[test]
fn from_another_address_a_request_is_asked_for_anew() {
    let fake = Fake::start();
    let output = fake.run(&[&["request", "moved-1", "open-1"][..], &ASK].concat());
    let says = text(&output.stderr);
    assert!(says.contains("`nightlatch done accessRequests/1`"), "{says}");
    let asked = fake.asked();
    assert!(asked.len() == 2 && asked[0] != asked[1], "{asked:?}");
    assert!(text(&output.stdout).contains("open-1: open until "));
}

#[test]
fn a_refusal_is_exit_1_with_its_reason() {
    let fake = Fake::start();
    let output = fake.run(&[&["request", "denied-1"][..], &ASK].concat());
    assert_ends(
        &output,
        1,
        &[
            "error: denied-1: --port: port 22/tcp is not in the machine's policy (PORT_NOT_IN_POLICY)",
            "hint: `nightlatch policy show denied-1`",
        ],
    );
    let output = fake.run(&[&["request", "open-1", "refused-1"][..], &ASK].concat());
    assert_ends(
        &output,
        1,
        &["error: refused-1: the host refused the grant (CEILING_PORT)"],
    );
    assert!(text(&output.stdout).contains("open-1: open"));
}

#[test]
fn wrong_usage_is_exit_2() {
    let fake = Fake::start();
    for words in [
        &["request", "open-1"][..],
        &["revoke"],
        &["nonsense"],
        &["request", "open-1", "--port", "0"],
    ] {
        assert_eq!(fake.run(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn done_asks_only_where_somebody_sits() {
    let fake = Fake::start();
    for words in [&["done"][..], &["done", "--yes"]] {
        let output = fake.run(words);
        assert_ends(&output, 3, &[]);
        assert!(text(&output.stdout).contains("open-1: ended ("), "{words:?}");
    }
    // script(1) gives it a terminal.
    for (answer, ends) in [("n", false), ("y", true)] {
        let terminal = format!(
            "echo {answer} | script -qec '{} done' /dev/null",
            env!("CARGO_BIN_EXE_nightlatch")
        );
        let mut command = fake.command(&[]);
        let environment: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        command = Command::new("sh");
        let output = command
            .args(["-c", &terminal])
            .envs(environment)
            .output()
            .unwrap();
        let said = text(&output.stdout);
        assert!(said.contains("End all 2? [y/N]"), "{said}");
        assert_eq!(said.contains("open-1: ended ("), ends, "{said}");
        assert_eq!(said.contains("nothing was ended"), !ends, "{said}");
    }
}

#[test]
fn done_with_a_machine_ends_what_is_named_there_and_nothing_if_one_is_elsewhere() {
    let fake = Fake::start();
    let [here, away, request] = [1, 2, 7].map(|number| format!("00000000-0000-7000-8000-{number:012}"));
    let output = fake.run(&["done", &here, "--machine", "open-1"]);
    assert_ends(&output, 0, &[]);
    assert!(text(&output.stdout).contains("open-1: ended ("));
    let words = ["done", &here, &away, "--machine", "open-1"];
    let output = fake.run(&words);
    let says = format!("nothing was ended: grants/{away} is for away-1, not for open-1");
    assert_ends(
        &output,
        1,
        &[&says, "nightlatch list grants --live --mine --machine open-1"],
    );
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    let output = fake.run(&[&words[..], &["--output", "json"]].concat());
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = &told["error"];
    assert!(
        error["code"] == "NOT_ON_MACHINE" && error["field"] == "GRANT" && error["machine"] == "open-1",
        "{told}"
    );
    for named in [request.clone(), format!("accessRequests/{request}")] {
        let output = fake.run(&["done", &named, "-m", "away-1"]);
        assert_ends(&output, 0, &[]);
        assert!(text(&output.stdout).contains("withdrawn"), "{named}");
        assert_ends(
            &fake.run(&["done", &named, "-m", "open-1"]),
            1,
            &["is for away-1"],
        );
    }
    let nobody = "00000000-0000-7000-8000-000000000009";
    assert_ends(
        &fake.run(&["done", nobody, "-m", "open-1"]),
        1,
        &["error: no such grant"],
    );
}

#[test]
fn an_end_that_the_host_has_not_confirmed_is_exit_3() {
    let fake = Fake::start();
    let output = fake.run(&["done", "--yes"]);
    assert_ends(&output, 3, &[]);
    let stdout = text(&output.stdout);
    assert!(
        stdout.contains("open-1: ended (") && stdout.contains("runs to its end there"),
        "{stdout}"
    );
    let output = fake.run(&["revoke", "00000000-0000-7000-8000-000000000001"]);
    assert_ends(&output, 0, &[]);
    let output = fake.run(&["revoke", "00000000-0000-7000-8000-000000000009"]);
    assert_ends(&output, 1, &["error: no such grant"]);
    let output = fake.run(&["done", "00000000-0"]);
    assert_ends(&output, 1, &["is the start of several ids"]);
}

#[test]
fn what_waits_is_withdrawn_by_revoke_too() {
    let fake = Fake::start();
    for target in [
        "accessRequests/00000000-0000-7000-8000-000000000007",
        "00000000-0000-7000-8000-000000000007",
    ] {
        let output = fake.run(&["revoke", target]);
        assert_ends(&output, 0, &[]);
        assert!(text(&output.stdout).contains("withdrawn"), "{target}");
    }
}

/// Where the port is open, or about to be, it takes the end of the grant.
#[test]
fn an_end_of_a_request_withdraws_what_waits_and_ends_what_is_signed() {
    let fake = Fake::start();
    let id = |number: u32| format!("00000000-0000-7000-8000-{number:012}");
    for (number, exit, says, never) in [
        (8, 0, &["late-1: ended ("][..], "withdrawn"),
        (3, 0, &["late-1: ended ("], "withdrawn"),
        (12, 3, &["runs to its end there"], "withdrawn"),
        (
            6,
            0,
            &["open-1: ended (", ": withdrawn for away-1\n"],
            "open-1: withdrawn",
        ),
        (5, 0, &[": withdrawn\n"], "ended"),
        (
            4,
            0,
            &[": nothing to end: for denied-1 it neither waits nor"],
            "withdrawn",
        ),
    ] {
        for verb in ["done", "revoke"] {
            for name in [format!("accessRequests/{}", id(number)), id(number)] {
                if number == 3 && !name.contains('/') {
                    // That is a grant's id too.
                    continue;
                }
                let output = fake.run(&[verb, &name]);
                assert_ends(&output, exit, &[]);
                let said = text(&output.stdout);
                assert!(
                    says.iter().all(|says| said.contains(says)),
                    "{verb} {name}: {said}"
                );
                assert!(!said.contains(never), "{verb} {name}: {said}");
            }
        }
    }
    let output = fake.run(&["done", "-m", "raced-1"]);
    assert_ends(&output, 0, &[]);
    assert!(text(&output.stdout).contains("late-1: ended ("), "{output:?}");
}

#[test]
fn an_end_of_a_request_with_a_machine_ends_that_machines_part_alone() {
    let fake = Fake::start();
    let json = |name: &str, machine: &str| -> serde_json::Value {
        let output = fake.run(&["done", name, "-m", machine, "--output", "json"]);
        assert_ends(&output, 0, &[]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let both_wait = "accessRequests/00000000-0000-7000-8000-000000000005";
    let told = json(both_wait, "away-1");
    let states = |told: &serde_json::Value| {
        let outcomes = told["access_requests"][0]["outcomes"].as_array().unwrap();
        let states = outcomes.iter().map(|outcome| outcome["state"].to_string());
        states.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(states(&told), r#""ended" "waiting""#);
    let output = fake.run(&["done", both_wait, "-m", "away-2"]);
    assert!(
        text(&output.stdout).contains(": withdrawn for away-2\n"),
        "{output:?}"
    );

    let one_open = "accessRequests/00000000-0000-7000-8000-000000000006";
    let told = json(one_open, "open-1");
    assert_eq!(told["grants"][0]["state"], "ended", "{told}");
    assert_eq!(states(&told), r#""ended" "waiting""#);
    let told = json(one_open, "away-1");
    assert_eq!(told["grants"].as_array().map(Vec::len), Some(0), "{told}");
    assert_eq!(states(&told), r#""open" "ended""#);
}

#[test]
fn a_list_that_can_not_be_had_keeps_nothing_else_from_ending() {
    let fake = Fake::start();
    let output = fake.run(&["done", "--machine", "unlisted-1"]);
    assert_ends(&output, 1, &["error: the store is not available"]);
    let stdout = text(&output.stdout);
    assert!(
        stdout.contains("open-1: ended (") && stdout.contains("runs to its end there"),
        "{stdout}"
    );
}

#[test]
fn a_policy_for_a_machine_that_is_away_is_exit_3_and_says_when_it_takes_effect() {
    let fake = Fake::start();
    let output = fake.run(&["policy", "set", "web-1", "--port", "22/tcp"]);
    assert_ends(&output, 0, &[]);
    let output = fake.run(&["policy", "set", "away-1", "--port", "22/tcp"]);
    assert_ends(
        &output,
        3,
        &["away-1 is away: its ports are shut when it connects"],
    );
}

#[test]
fn a_policy_that_was_set_is_told_so_even_if_nothing_more_can_be_found_out() {
    let fake = Fake::start();
    let output = fake.run(&["policy", "set", "lost-1", "--port", "22/tcp"]);
    assert_ends(
        &output,
        0,
        &[
            "warning: the policy is set, but whether lost-1 is connected and what is open there can't be found out",
        ],
    );
    assert!(text(&output.stdout).contains("22/tcp"));
}

#[test]
fn a_change_of_policy_says_what_becomes_open_what_stays_shut_and_what_runs_on() {
    let fake = Fake::start();
    let says = [
        "on was-1 now nothing guards 22/tcp",
        "9200/tcp is shut on was-1, and nobody can be let in",
        "runs on to its end: 00000000-0000-7000-8000-000000000001",
    ];
    let words = ["policy", "set", "was-1", "--port", "9200/tcp"];
    assert_ends(&fake.run(&words), 0, &says);
    let output = fake.run(&[&words[..], &["--output", "json"]].concat());
    assert_ends(&output, 0, &[]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        told["unguarded"][0] == "22/tcp" && told["beyond_ceiling"][0] == "9200/tcp",
        "{told}"
    );
    assert_eq!(told["running_on"].as_array().map(Vec::len), Some(2), "{told}");
    let output = fake.run(&["policy", "set", "was-1", "--port", "22/tcp"]);
    assert_ends(&output, 0, &[]);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));

    let words = ["policy", "set", "was-1", "--port", "22/*"];
    let says_udp = [
        "a UDP flow to 22/udp that is open on was-1 is cut now",
        "trusted_sources",
    ];
    assert_ends(&fake.run(&words), 0, &says_udp);
    let output = fake.run(&[&words[..], &["--output", "json"]].concat());
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["udp_cut"][0], "22/udp", "{told}");

    let output = fake.run(&["policy", "delete", "was-1"]);
    assert_ends(&output, 0, &says[..1]);
    assert!(text(&output.stdout).contains("these grants end: 00000000-0000-7000-8000-000000000001"));
    let output = fake.run(&["policy", "delete", "away-1"]);
    assert_ends(&output, 3, &["away-1 is away: its ports stay shut"]);
    for verb in ["set", "delete"] {
        let words = ["policy", verb, "was-1", "--etag=", "--port", "22/tcp"];
        let words = if verb == "set" { &words[..] } else { &words[..4] };
        assert_ends(&fake.run(words), 2, &["--etag"]);
    }
}

#[test]
fn interrupted_while_waiting_says_that_the_request_stands() {
    let fake = Fake::start();
    let mut child = fake
        .command(&["request", "away-1", "--port", "22", "--reason", "x", "--wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    fake.wait_until_watched();
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut first = String::new();
    BufReader::new(child.stderr.as_mut().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert!(
        first.contains("the request stands") && first.contains("nightlatch done accessRequests/"),
        "{first}"
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    let fake = Fake::start();
    for words in [
        &["events", "--all"][..],
        &["events", "--all", "--output", "json"],
        &["list", "grants"],
    ] {
        let mut child = fake
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_ends(&output, 0, &[]);
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    }
}

#[test]
fn json_has_its_promised_shape() {
    let fake = Fake::start();
    let json = |words: &[&str]| -> serde_json::Value {
        let output = fake.run(&[words, &["--output", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    };
    let grants = json(&["list", "grants"]);
    assert_eq!(grants["grants"][0]["machine"], "open-1");
    assert_eq!(grants["grants"][0]["state"], "open");
    let events = json(&["events", "--all"]);
    assert_eq!(events["events"].as_array().unwrap().len(), 400);
    assert_eq!(
        json(&["events", "--limit", "7"])["events"]
            .as_array()
            .unwrap()
            .len(),
        7
    );
    let request = json(&[&["request", "open-1"][..], &ASK].concat());
    assert_eq!(request["access_request"]["outcomes"][0]["state"], "open");
    let grant = &request["grants"][0];
    let id = "00000000-0000-7000-8000-000000000001";
    assert_eq!(grant["name"], format!("grants/{id}"));
    assert_eq!(grant["id"], id);
    assert_eq!(grant["machine"], "open-1");
    assert_eq!(grant["state"], "open");
    assert!(
        grant["end_time"].is_string() && request.get("error").is_none(),
        "{request}"
    );
}

#[test]
fn programs_get_whole_lists_and_are_told_of_a_cut() {
    let fake = Fake::start();
    let json = |words: &str| -> serde_json::Value {
        let words: Vec<&str> = words.split(' ').chain(["--output", "json"]).collect();
        let output = fake.run(&words);
        assert_ends(&output, 0, &[]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    };
    for (words, member, found, is_cut) in [
        ("list grants -m many-1", "grants", 250, false),
        ("list grants -m many-1 --all", "grants", 250, false),
        ("list grants -m many-1 --limit 250", "grants", 250, false),
        ("list grants -m many-1 --limit 200", "grants", 200, true),
        ("list requests -m many-1", "access_requests", 250, false),
        ("list requests -m many-1 --limit 7", "access_requests", 7, true),
        ("list requests", "access_requests", 0, false),
        ("events", "events", 400, false),
        ("events --limit 400", "events", 400, false),
        ("events --limit 7", "events", 7, true),
    ] {
        let list = json(words);
        assert_eq!(list[member].as_array().map(Vec::len), Some(found), "{words}");
        assert_eq!(list["is_cut"], is_cut, "{words}");
    }
    for (words, hint) in [
        (&["list", "grants", "-m", "many-1"][..], "only the newest 100"),
        (&["list", "requests", "-m", "many-1"], "only the newest 100"),
        (&["events"], "only the newest 50"),
    ] {
        assert_ends(&fake.run(words), 0, &[hint, "--all shows all"]);
        let all = fake.run(&[words, &["--all"]].concat());
        assert_ends(&all, 0, &[]);
        assert!(all.stderr.is_empty(), "{}", text(&all.stderr));
    }
}

#[test]
fn a_failure_is_json_too_where_json_is_asked_for() {
    let fake = Fake::start();
    let ask = &ASK[..4];
    for (words, exit, code, field) in [
        (
            &[&["request", "denied-1"][..], ask].concat()[..],
            1,
            "PORT_NOT_IN_POLICY",
            "--port",
        ),
        (
            &[&["request", "refused-1"][..], ask].concat(),
            1,
            "CEILING_PORT",
            "MACHINE",
        ),
        (
            &[&["request", "open-1", "open-1"][..], ask].concat(),
            2,
            "NAMED_TWICE",
            "MACHINE",
        ),
        (&["request", "open-1", "--port", "0"], 2, "USAGE", "--port"),
        (
            &["list", "machines", "--server", "ftp://x"],
            2,
            "SETTINGS_INVALID",
            "--server",
        ),
        (
            &["grant", "show", "00000000-0000-7000-8000-000000000009"],
            1,
            "NOT_FOUND",
            "",
        ),
        (
            &["revoke", "00000000-0000-7000-8000-000000000009"],
            1,
            "NOT_FOUND",
            "",
        ),
    ] {
        let output = fake.run(&[words, &["--output", "json"]].concat());
        assert_ends(&output, exit, &["error: "]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = &told["error"];
        assert!(
            error["code"] == code && error["field"] == field,
            "{words:?}: {error}"
        );
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{error}"
        );
    }
}

#[test]
fn what_was_done_is_told_even_if_the_result_cannot_be_written() {
    let fake = Fake::start();
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ask = &ASK[..4];
    for format in ["table", "json"] {
        let words = [&["request", "open-1"][..], ask, &["--output", format]].concat();
        let child = fake.command(&words).stdout(full()).stderr(Stdio::piped()).spawn();
        let says = "access to open-1 is open all the same (grants/00000000-0000-7000-8000-000000000001)";
        assert_ends(
            &child.unwrap().wait_with_output().unwrap(),
            4,
            &[says, "nightlatch done"],
        );
    }
    for (words, exit, says) in [
        (
            &["revoke", "00000000-0000-7000-8000-000000000001"][..],
            4,
            "open-1: ended",
        ),
        (&["list", "grants"], 1, "cannot be written"),
        (&["--help"], 1, "cannot be written"),
    ] {
        let child = fake.command(words).stdout(full()).stderr(Stdio::piped()).spawn();
        assert_ends(&child.unwrap().wait_with_output().unwrap(), exit, &[says]);
    }
}

#[test]
fn what_a_change_of_policy_leads_to_is_told_even_if_the_result_cannot_be_written() {
    let fake = Fake::start();
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let set = ["policy", "set", "was-1", "--port", "9200/tcp"];
    for (words, says) in [
        (
            &set[..],
            &["9200/tcp is shut on was-1", "is set all the same"][..],
        ),
        (
            &["policy", "set", "away-1", "--port", "22/tcp"],
            &["away-1 is away: its ports are shut when it connects"],
        ),
        (&["policy", "delete", "was-1"], &["is deleted all the same"]),
    ] {
        for format in ["table", "json"] {
            let words = [words, &["--output", format]].concat();
            let child = fake.command(&words).stdout(full()).stderr(Stdio::piped()).spawn();
            let output = child.unwrap().wait_with_output().unwrap();
            assert_ends(&output, 4, says);
            let said = text(&output.stderr);
            if words[2] == "was-1" {
                assert!(said.contains("on was-1 now nothing guards 22/tcp"), "{said}");
            }
            assert!(
                said.contains(&format!("nightlatch policy show {}", words[2]))
                    && !said.contains("nightlatch done"),
                "{said}"
            );
        }
    }
}

#[test]
fn an_address_that_the_grant_does_not_cover_is_not_advised() {
    let fake = Fake::start();
    let advice = |source: &str| {
        let output = fake.run(&[&["request", "open-1", "--from", source][..], &ASK].concat());
        assert_ends(&output, 0, &[]);
        (text(&output.stdout), text(&output.stderr))
    };
    let (advised, hint) = advice("198.51.100.7");
    assert!(
        advised.contains("ssh USER@192.0.2.10") && hint.is_empty(),
        "{advised}{hint}"
    );
    let (advised, hint) = advice("2001:db8::2");
    assert!(
        advised.contains("ssh -6 USER@open-1") && !advised.contains("192.0.2.10"),
        "{advised}"
    );
    assert!(
        hint.contains("the grant is for IPv6 sources") && hint.contains("192.0.2.10"),
        "{hint}"
    );
}

#[test]
fn usage_leaves_out_what_the_environment_gives() {
    let fake = Fake::start();
    let output = fake.run(&["request", "open-1", "--port", "22"]);
    assert_ends(&output, 2, &["--reason", "Usage:"]);
    assert!(
        !text(&output.stderr).contains("--server"),
        "{}",
        text(&output.stderr)
    );
    let output = fake.run(&["list", "machines", &"x".repeat(1000)]);
    assert_ends(&output, 2, &["… (1000 characters)"]);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_step() {
    let fake = Fake::start();
    let key = fake.keep("open.key", "no key yet");
    assert!(
        Command::new("chmod")
            .args(["644", &key])
            .status()
            .unwrap()
            .success()
    );
    let output = fake.run(&["list", "machines", "--key", &key]);
    assert_ends(
        &output,
        1,
        &["can be read by others", "0644", &format!("chmod 600 {key}")],
    );
}

#[test]
fn the_envelope_comes_byte_for_byte() {
    let fake = Fake::start();
    let output = fake.run(&[
        "grant",
        "show",
        "00000000-0000-7000-8000-000000000001",
        "--envelope",
    ]);
    assert_ends(&output, 0, &[]);
    assert_eq!(text(&output.stdout), fake::ENVELOPE);
}

#[test]
fn a_server_that_is_not_there_is_told_with_the_next_step() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fake = Fake::start();
    let output = fake.run(&["list", "machines", "--server", &free.to_string()]);
    assert_ends(
        &output,
        1,
        &[
            "error: cannot reach 127.0.0.1:",
            "nothing listens there",
            "hint: check that",
        ],
    );
    let output = fake.run(&["list", "machines", "--server", "no-such-host.invalid"]);
    assert_ends(&output, 1, &["the host name no-such-host.invalid is not known"]);
    let output = fake.run(&["list", "machines", "--server", "http://127.0.0.1"]);
    assert_ends(&output, 2, &["is not a server: write https://HOST:7443"]);
}

#[test]
fn what_does_not_speak_tls_is_not_our_server() {
    let fake = Fake::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let talker = std::thread::spawn(move || {
        use std::io::Write as _;
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
    });
    let output = fake.run(&["list", "machines", "--server", &address]);
    assert_ends(&output, 1, &["does not speak TLS", "7443"]);
    talker.join().unwrap();
}

#[test]
fn a_server_of_another_authority_is_not_trusted() {
    let fake = Fake::start();
    let other = Authority::new();
    let ca = fake.keep("other-ca.pem", &other.pem());
    let output = fake.run(&["list", "machines", "--ca", &ca]);
    assert_ends(
        &output,
        1,
        &[
            "was not signed by the authority in",
            "other-ca.pem",
            "hint: use the ca.pem",
        ],
    );
}

#[test]
fn a_server_must_have_a_servers_certificate_for_its_name() {
    let person = Fake::start_as(&Certificate {
        kind: Kind::Person,
        ..Certificate::server()
    });
    let output = person.run(&["list", "machines"]);
    assert_ends(&output, 1, &["is not a Nightlatch server", "hint: do not trust"]);
    let elsewhere = Fake::start_as(&Certificate {
        names: &["control.example.org"],
        ..Certificate::server()
    });
    let output = elsewhere.run(&["list", "machines"]);
    assert_ends(
        &output,
        1,
        &[
            "is not for the name 127.0.0.1",
            "call it by one of its names: control.example.org",
        ],
    );
    let expired = Fake::start_as(&Certificate {
        expired: true,
        ..Certificate::server()
    });
    let output = expired.run(&["list", "machines"]);
    assert_ends(&output, 1, &["the certificate of 127.0.0.1:", "has expired"]);
}

#[test]
fn a_client_certificate_that_does_not_count_is_named() {
    let fake = Fake::start();
    let stranger = Authority::new().issue(&Certificate::person());
    let cert = fake.keep("stranger.pem", &stranger.0);
    let key = fake.keep("stranger.key", &stranger.1);
    let output = fake.run(&["list", "machines", "--cert", &cert, "--key", &key]);
    assert_ends(
        &output,
        1,
        &[
            "does not accept the client certificate",
            "stranger.pem",
            "user issue",
        ],
    );
    let output = fake.run(&["list", "machines", "--key", &key]);
    assert_ends(&output, 1, &["cannot be used together", "issued together"]);
    let late = fake.authority.issue(&Certificate {
        expired: true,
        ..Certificate::person()
    });
    let cert = fake.keep("late.pem", &late.0);
    let key = fake.keep("late.key", &late.1);
    let output = fake.run(&["list", "machines", "--cert", &cert, "--key", &key]);
    assert_ends(
        &output,
        1,
        &["late.pem expired at 2020-01-01", "have a new one issued"],
    );
}

#[test]
fn files_that_are_no_credentials_are_named() {
    let fake = Fake::start();
    let junk = fake.keep("junk.pem", "no pem at all");
    for (option, says) in [
        ("--ca", "certificate of an authority in PEM"),
        ("--cert", "certificate in PEM"),
        ("--key", "private key in PEM"),
    ] {
        for (path, says) in [
            (junk.as_str(), &["junk.pem holds no", says][..]),
            (
                "/nowhere/x.pem",
                &["cannot be read from /nowhere/x.pem", "check the path"],
            ),
        ] {
            let variable = option.replace("--", "NIGHTLATCH_").to_uppercase();
            let output = fake.run(&["list", "machines", option, path, "--output", "json"]);
            let error = format!("error: {option}: ");
            assert_ends(&output, 1, &[says, &[error.as_str(), &variable]].concat());
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(told["error"]["field"], option, "{told}");
        }
    }
}
