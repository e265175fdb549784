//! Bad input on the command line: one clear error that names the field, the limit or the next step, the right
//! exit code, and nothing half-done.

use std::fs;

use anyhow::{Result, ensure};
use nightlatch_tests::complaint::{Case, FAILED, USAGE, check_all};
use nightlatch_tests::lab::Stage;
use nightlatch_tests::scratch::in_a_lab;

#[test]
fn the_command_line_says_what_is_wrong() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let missing = lab.dir().join("missing.toml").display().to_string();
        let policy = |name: &str, text: &str| -> Result<String> {
            let path = lab.dir().join(name);
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let unknown_key = policy("key.toml", "[[rules]]\nport = \"22/tcp\"\nsource = \"*\"\n")?;
        let no_rules = policy("empty.toml", "")?;
        let not_toml = policy("not.toml", "{\"rules\": []}")?;
        let state = |name: &str| lab.control().state().join(name).display().to_string();
        let (other_ca, other_key) = (state("root.pub"), state("server.key"));
        let long = "x".repeat(1001);
        let nobody = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11";
        let events = lab.client().events()?.len();
        let cases: &[Case<'_>] = &[
            (&["request"], USAGE, &["MACHINE"]),
            (&["request", "web-1", "--reason", "x"], USAGE, &["--port"]),
            (&["request", "web-1", "--port", "22"], USAGE, &["--reason"]),
            (
                &["request", "web-1", "--port", "0", "--reason", "x"],
                USAGE,
                &["--port", "1 to 65535"],
            ),
            (
                &["request", "web-1", "--port", "65536", "--reason", "x"],
                USAGE,
                &["1 to 65535"],
            ),
            (
                &["request", "web-1", "--port", "ssh", "--reason", "x"],
                USAGE,
                &["`ssh` is not a port"],
            ),
            (
                &["request", "web-1", "--port", "30-20", "--reason", "x"],
                USAGE,
                &["lower port first"],
            ),
            (
                &["request", "web-1", "--port", "1-300", "--reason", "x"],
                USAGE,
                &["256"],
            ),
            (
                &["request", "web-1", "--port", "22/sctp", "--reason", "x"],
                USAGE,
                &["tcp, udp or *"],
            ),
            (
                &["request", "web-1", "--port", "22", "--reason", " "],
                USAGE,
                &["1 to 1000"],
            ),
            (
                &["request", "web-1", "--port", "22", "--reason", &long],
                USAGE,
                &["1 to 1000"],
            ),
            (
                &[
                    "request",
                    "web-1",
                    "--port",
                    "22",
                    "--reason",
                    "x",
                    "--from",
                    "everywhere",
                ],
                USAGE,
                &["everywhere"],
            ),
            (
                &[
                    "request",
                    "web-1",
                    "--port",
                    "22",
                    "--reason",
                    "x",
                    "--from",
                    "192.0.2.7/24",
                ],
                USAGE,
                &["192.0.2.0/24"],
            ),
            (
                &[
                    "request",
                    "web-1",
                    "--port",
                    "22",
                    "--reason",
                    "x",
                    "--from",
                    "::ffff:192.0.2.7",
                ],
                USAGE,
                &["IPv4"],
            ),
            (
                &["request", "web-1", "--port", "22", "--reason", "x", "--for", "0s"],
                USAGE,
                &["one second"],
            ),
            (
                &[
                    "request", "web-1", "--port", "22", "--reason", "x", "--for", "soon",
                ],
                USAGE,
                &["soon"],
            ),
            (
                &[
                    "request",
                    "web-1",
                    "--port",
                    "22",
                    "--reason",
                    "x",
                    "--until",
                    "yesterday",
                ],
                USAGE,
                &["yesterday"],
            ),
            (
                &["request", "web-1", "--port", "22", "--reason", "x", "--for", "4h"],
                FAILED,
                &["PT4H", "PT3H"],
            ),
            (
                &["request", "web-1", "--port", "23", "--reason", "x"],
                FAILED,
                &["23", "22/tcp"],
            ),
            (
                &["request", "web-1", "--port", "22/udp", "--reason", "x"],
                FAILED,
                &["22/udp", "ceiling"],
            ),
            (
                &["request", "web-9", "--port", "22", "--reason", "x"],
                FAILED,
                &["web-9"],
            ),
            (
                &["request", "web_9", "--port", "22", "--reason", "x"],
                USAGE,
                &["not a machine name"],
            ),
            (
                &["request", "web-1", "web-9", "--port", "22", "--reason", "x"],
                FAILED,
                &["web-9"],
            ),
            (&["done", nobody], FAILED, &[nobody]),
            (&["done", "xyz"], USAGE, &["xyz"]),
            (&["done", "--machine", "web-9"], FAILED, &["web-9"]),
            (&["revoke"], USAGE, &["GRANT"]),
            (&["revoke", nobody], FAILED, &[nobody]),
            (&["grant", "show", nobody], FAILED, &[nobody]),
            (&["grant", "show", "short"], USAGE, &["short"]),
            (&["policy", "show", "web-9"], FAILED, &["web-9"]),
            (&["policy", "set", "web-1"], USAGE, &["--port"]),
            (&["policy", "set", "web-1", "--port", "22"], USAGE, &["22/tcp"]),
            (
                &["policy", "set", "web-1", "--port", "22/tcp,max=PT1M"],
                USAGE,
                &["PT5M", "PT24H"],
            ),
            (
                &["policy", "set", "web-1", "--port", "22/tcp,max=PT25H"],
                USAGE,
                &["PT5M", "PT24H"],
            ),
            (
                &["policy", "set", "web-1", "--port", "22/tcp,until=PT1H"],
                USAGE,
                &["until"],
            ),
            (
                &["policy", "set", "web-1", "--port", "22/tcp", "--port", "20-30/*"],
                FAILED,
                &["overlap"],
            ),
            (
                &["policy", "set", "web-1", "-f", &missing],
                FAILED,
                &["missing.toml"],
            ),
            (
                &["policy", "set", "web-1", "-f", &unknown_key],
                FAILED,
                &["source"],
            ),
            (&["policy", "set", "web-1", "-f", &no_rules], FAILED, &["rule"]),
            (
                &["policy", "set", "web-1", "-f", &not_toml],
                FAILED,
                &["not.toml"],
            ),
            (&["policy", "delete", "web-9"], FAILED, &["web-9"]),
            (&["events", "--limit", "0"], USAGE, &["1..=1000"]),
            (&["events", "--machine", "web-9"], FAILED, &["web-9"]),
            (&["list", "people"], USAGE, &["people"]),
            (&["list", "machines", "--output", "xml"], USAGE, &["xml"]),
            (&["fly"], USAGE, &["fly"]),
            (
                &["list", "machines", "--server", "ftp://192.0.2.1"],
                FAILED,
                &["ftp://192.0.2.1"],
            ),
            (
                &["list", "machines", "--server", "192.0.2.1:99999"],
                FAILED,
                &["99999"],
            ),
            (
                &["list", "machines", "--server", "192.0.2.1:9"],
                FAILED,
                &["192.0.2.1:9"],
            ),
            (&["list", "machines", "--ca", &missing], FAILED, &["missing.toml"]),
            (&["list", "machines", "--ca", &other_ca], FAILED, &["root.pub"]),
            (
                &["list", "machines", "--key", &other_key],
                FAILED,
                &["server.key"],
            ),
        ];
        check_all("nightlatch", cases, |arguments| lab.client().run(arguments))?;
        let denied = |event: &serde_json::Value| event["kind"] == "access.denied";
        let after: Vec<_> = lab.client().events()?.into_iter().skip(events).collect();
        ensure!(
            after.iter().all(denied),
            "bad input left more than denials behind: {after:?}"
        );
        ensure!(lab.client().grants()?.is_empty(), "{:?}", lab.client().grants()?);
        let shown = lab
            .client()
            .run(&["policy", "show", "web-1"])?
            .expect_success("policy show")?;
        ensure!(
            shown.contains("22/tcp") && shown.contains("PT3H"),
            "the policy has changed: {shown}"
        );
        Ok(())
    })
}
