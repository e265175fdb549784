//! Bad input on the command line: one clear error that names the field, the limit or the next step, the right
//! exit code, and nothing half-done.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use nightlatch_tests::complaint::{Case, FAILED, USAGE, check, check_all};
use nightlatch_tests::lab::{Lab, Stage};
use nightlatch_tests::scratch::in_a_lab;
use nightlatch_tests::wait;

const PATIENCE: Duration = Duration::from_secs(30);

/// Words of a command, the exit code, and what the error must say. `@name` stands for one of [`stand_ins`].
type Line = (&'static str, i32, &'static [&'static str]);

/// Each beside `request web-1 --port 22 --reason x`.
const ODD_OPTIONS: [Line; 24] = [
    ("--from everywhere", USAGE, &["everywhere"]),
    ("--from 192.0.2.7/24", USAGE, &["192.0.2.0/24"]),
    ("--from ::ffff:192.0.2.7", USAGE, &["IPv4"]),
    ("--from fe80::1%eth0", USAGE, &["fe80::1%eth0"]),
    ("--from @blank", USAGE, &["--from", "192.0.2.0/24"]),
    ("--from 0.0.0.0", USAGE, &["--from", "nobody connects from there"]),
    ("--from 127.0.0.1", USAGE, &["loopback"]),
    ("--from 224.0.0.1", USAGE, &["multicast"]),
    ("--from 255.255.255.255", USAGE, &["broadcast"]),
    ("--for -5m", USAGE, &["--for", "-5m", "90m"]),
    ("--from @33-sources", USAGE, &["--from", "33", "32"]),
    ("--for 0s", USAGE, &["one second"]),
    ("--for soon", USAGE, &["soon"]),
    ("--for 4h", FAILED, &["--for", "PT4H", "PT3H"]),
    ("--for 100000000h", USAGE, &["--for", "365d"]),
    ("--until yesterday", USAGE, &["yesterday"]),
    ("--until 2020-01-01T00:00:00Z", FAILED, &["has passed"]),
    ("--until 9999-12-31T23:59:59Z", FAILED, &["--until", "PT3H"]),
    ("--timeout 100ms", USAGE, &["--timeout", "seconds"]),
    ("--timeout 48h", USAGE, &["--timeout", "1d"]),
    ("--wait --no-wait", USAGE, &["--wait", "--no-wait"]),
    ("--reason again", USAGE, &["--reason"]),
    ("--output xml", USAGE, &["xml"]),
    ("web-9", FAILED, &["web-9"]),
];

const ODD_REQUESTS: [Line; 19] = [
    ("request", USAGE, &["MACHINE"]),
    ("request web-1 --reason x", USAGE, &["--port"]),
    ("request web-1 --port 22", USAGE, &["--reason"]),
    ("request web-1 --port 22 --reason @blank", USAGE, &["1 to 1000"]),
    ("request web-1 --port 22 --reason @long", USAGE, &["1 to 1000"]),
    (
        "request web-1 --port 22 --reason @lines",
        USAGE,
        &["no control characters"],
    ),
    (
        "request web-1 --port 0 --reason x",
        USAGE,
        &["--port", "1 to 65535"],
    ),
    ("request web-1 --port 65536 --reason x", USAGE, &["1 to 65535"]),
    (
        "request web-1 --port ssh --reason x",
        USAGE,
        &["`ssh` is not a port"],
    ),
    (
        "request web-1 --port 30-20 --reason x",
        USAGE,
        &["lower port first"],
    ),
    ("request web-1 --port 1-300 --reason x", USAGE, &["256"]),
    (
        "request web-1 --port 22/sctp --reason x",
        USAGE,
        &["tcp, udp or *"],
    ),
    (
        "request web-1 --port @33-ports --reason x",
        USAGE,
        &["--port", "33", "32"],
    ),
    ("request web-1 --port 23 --reason x", FAILED, &["23", "22/tcp"]),
    (
        "request web-1 --port 22/udp --reason x",
        FAILED,
        &["22/udp", "not in the machine's policy"],
    ),
    ("request web-9 --port 22 --reason x", FAILED, &["web-9"]),
    (
        "request web_9 --port 22 --reason x",
        USAGE,
        &["not a machine name"],
    ),
    (
        "request @blank --port 22 --reason x",
        USAGE,
        &["not a machine name"],
    ),
    (
        "request web-1 web-1 --port 22 --reason x",
        USAGE,
        &["web-1", "twice"],
    ),
];

const ODD_COMMANDS: [Line; 62] = [
    ("fly", USAGE, &["fly"]),
    ("done @nobody", FAILED, &[NOBODY]),
    ("done xyz", USAGE, &["xyz"]),
    ("done @blank", USAGE, &["not a grant"]),
    ("done --machine web-9", FAILED, &["web-9"]),
    ("done @nobody --machine web-1", FAILED, &[NOBODY]),
    ("list grants --limit 0", USAGE, &["1..=100000"]),
    ("list requests --limit 5 --all", USAGE, &["--limit", "--all"]),
    ("list requests --limit some", USAGE, &["--limit", "some"]),
    ("revoke", USAGE, &["GRANT"]),
    ("revoke 019a", USAGE, &["first 8 characters"]),
    ("revoke @nobody", FAILED, &[NOBODY]),
    ("grant show @nobody", FAILED, &[NOBODY]),
    ("grant show short", USAGE, &["short"]),
    ("grant show accessRequests/7", USAGE, &["accessRequests/7"]),
    ("policy show web-9", FAILED, &["web-9"]),
    ("policy set web-1", USAGE, &["--port"]),
    ("policy set web-1 --port 22", USAGE, &["22/tcp"]),
    (
        "policy set web-1 --port 22/tcp,max=PT1M",
        USAGE,
        &["PT5M", "PT24H"],
    ),
    (
        "policy set web-1 --port 22/tcp,max=PT25H",
        USAGE,
        &["PT5M", "PT24H"],
    ),
    ("policy set web-1 --port 22/tcp,until=PT1H", USAGE, &["until"]),
    ("policy set web-1 --port 1-65535/tcp", USAGE, &["256"]),
    (
        "policy set web-1 --port 22/tcp --port 20-30/*",
        USAGE,
        &["overlap"],
    ),
    (
        "policy set web-1 --port 22/tcp -f @no-rules",
        USAGE,
        &["--port", "--file"],
    ),
    ("policy set web-1 -f @missing", FAILED, &["missing.toml"]),
    (
        "policy set web-1 -f @folder",
        FAILED,
        &["folder", "check the path"],
    ),
    ("policy set web-1 -f @binary", FAILED, &["binary", "utf-8"]),
    (
        "policy set web-1 -f /dev/zero",
        FAILED,
        &["/dev/zero", "1024 KiB"],
    ),
    ("policy set web-1 -f @unknown-key", FAILED, &["line 3", "source"]),
    (
        "policy set web-1 -f @wrong-type",
        FAILED,
        &["line 2", "`rules[0].port`", "expected a string"],
    ),
    ("policy set web-1 -f @no-rules", FAILED, &["`rules`"]),
    ("policy set web-1 -f @not-toml", FAILED, &["not.toml"]),
    ("policy delete web-9", FAILED, &["web-9"]),
    ("policy delete web-1 --etag=", USAGE, &["--etag"]),
    ("policy set web-1 --port 22/tcp --etag=", USAGE, &["--etag"]),
    ("policy delete web-1 --etag x", FAILED, &["--etag", "ETAG_STALE"]),
    ("events --limit 0", USAGE, &["1..=1000"]),
    ("events --limit 1001", USAGE, &["1..=1000"]),
    ("events --limit some", USAGE, &["--limit", "some"]),
    ("events --machine web-9", FAILED, &["web-9"]),
    ("events --grant x", USAGE, &["--grant"]),
    ("list people", USAGE, &["people"]),
    ("list grants --machine web-9", FAILED, &["web-9"]),
    ("list grants --machine a_b", USAGE, &["--machine", "a_b"]),
    ("keys export here", USAGE, &["here"]),
    (
        "list machines --server ftp://192.0.2.1",
        USAGE,
        &["ftp://192.0.2.1"],
    ),
    (
        "list machines --server 192.0.2.1:99999",
        USAGE,
        &["server", "99999"],
    ),
    ("list machines --server 192.0.2.1:9", FAILED, &["192.0.2.1:9"]),
    (
        "list machines --ca /dev/zero",
        FAILED,
        &["/dev/zero", "regular file"],
    ),
    (
        "list machines --cert /dev/zero",
        FAILED,
        &["/dev/zero", "regular file"],
    ),
    (
        "list machines --cert @huge",
        FAILED,
        &["--cert:", "huge", "1024 KiB"],
    ),
    (
        "list machines --key @shared",
        FAILED,
        &["--key:", "0644", "chmod 600"],
    ),
    (
        "list machines --ca @missing",
        FAILED,
        &["--ca:", "missing.toml", "NIGHTLATCH_CA"],
    ),
    (
        "list machines --ca @folder",
        FAILED,
        &["folder", "check the path"],
    ),
    ("list machines --ca @binary", FAILED, &["--ca:", "binary", "PEM"]),
    ("list machines --ca @root.pub", FAILED, &["root.pub"]),
    (
        "list machines --cert @missing",
        FAILED,
        &["--cert:", "missing.toml"],
    ),
    ("list machines --cert @no-rules", FAILED, &["empty.toml", "PEM"]),
    ("list machines --cert @root.pub", FAILED, &["root.pub", "PEM"]),
    (
        "list machines --key @folder",
        FAILED,
        &["folder", "check the path"],
    ),
    (
        "list machines --key @binary",
        FAILED,
        &["--key:", "binary", "PEM"],
    ),
    (
        "list machines --key @server.key",
        FAILED,
        &["--key:", "server.key"],
    ),
];

const NOBODY: &str = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11";

#[test]
fn the_command_line_says_what_is_wrong() -> Result<()> {
    in_a_lab(1, Stage::Guarded, |lab| {
        let stand_ins = stand_ins(lab)?;
        let events = lab.client().events()?.len();
        let options = ODD_OPTIONS.map(|(options, code, says)| {
            let line = format!("request web-1 --port 22 --reason x {options}");
            (line, code, says)
        });
        let rest = ODD_REQUESTS.into_iter().chain(ODD_COMMANDS);
        let lines: Vec<(String, i32, &[&str])> = options
            .into_iter()
            .chain(rest.map(|(line, code, says)| (line.to_owned(), code, says)))
            .collect();
        let words: Vec<Vec<&str>> = lines
            .iter()
            .map(|(line, ..)| {
                let meant = |word| stand_ins.get(word).map_or(word, String::as_str);
                line.split(' ').map(meant).collect()
            })
            .collect();
        let cases: Vec<Case<'_>> = words
            .iter()
            .zip(&lines)
            .map(|(words, (_, code, says))| (words.as_slice(), *code, *says))
            .collect();
        check_all("nightlatch", &cases, |arguments| lab.client().run(arguments))?;
        check_settings_files(lab)?;
        check_nothing_happened(lab, events)
    })
}

fn stand_ins(lab: &Lab) -> Result<BTreeMap<&'static str, String>> {
    let file = |name: &str, bytes: &[u8]| -> Result<String> {
        let path = lab.dir().join(name);
        fs::write(&path, bytes)?;
        let mode = if name == "shared" { 0o644 } else { 0o600 };
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path.display().to_string())
    };
    let state = |name: &str| lab.control().state().join(name).display().to_string();
    let folder = lab.dir().join("folder");
    fs::create_dir(&folder)?;
    let list = |item: &dyn Fn(u16) -> String| (1..=33).map(item).collect::<Vec<_>>().join(",");
    Ok(BTreeMap::from([
        ("@blank", " ".to_owned()),
        ("@lines", "two\nlines".to_owned()),
        ("@long", "x".repeat(1001)),
        ("@nobody", NOBODY.to_owned()),
        ("@33-sources", list(&|number| format!("198.51.100.{number}"))),
        ("@33-ports", list(&|number| format!("{}", 9000 + number))),
        ("@missing", lab.dir().join("missing.toml").display().to_string()),
        ("@folder", folder.display().to_string()),
        ("@huge", file("huge", &vec![b'x'; (1 << 20) + 1])?),
        ("@shared", file("shared", b"a key that all may read")?),
        ("@binary", file("binary", b"\xff\xfe")?),
        ("@no-rules", file("empty.toml", b"")?),
        ("@not-toml", file("not.toml", b"{\"rules\": []}")?),
        (
            "@unknown-key",
            file("key.toml", b"[[rules]]\nport = \"22/tcp\"\nsource = \"*\"\n")?,
        ),
        ("@wrong-type", file("type.toml", b"[[rules]]\nport = 22\n")?),
        ("@root.pub", state("root.pub")),
        ("@server.key", state("server.key")),
    ]))
}

/// Read where an option or variable is missing, here that of the key.
fn check_settings_files(lab: &Lab) -> Result<()> {
    let folder = lab.dir().join("client/nightlatch");
    fs::create_dir_all(&folder)?;
    let file = folder.join("config.toml");
    let named = file.display().to_string();
    let run = || {
        let mut command = lab.client().nightlatch(&["list", "machines"]);
        wait::run(command.env_remove("NIGHTLATCH_KEY"), PATIENCE)
    };
    let cases: [(&[u8], i32, &[&str]); 8] = [
        (b"", USAGE, &["no key is set", "--key", &named]),
        (
            b"keys = 'admin.key'",
            USAGE,
            &["line 1", "`keys`", "unknown field"],
        ),
        (b"\nkey = 7", USAGE, &["line 2", "`key`", "expected path string"]),
        (b"[key]\nfile = 'x'", USAGE, &["line 1", "`key`"]),
        (b"{}", USAGE, &["line 1", "not a settings file"]),
        (b"\xff", FAILED, &["UTF-8"]),
        (
            b"key = 'gone.key'",
            FAILED,
            &["--key:", "client/nightlatch/gone.key", "a settings file"],
        ),
        (&[b'#'; (64 << 10) + 1], FAILED, &["64 KiB"]),
    ];
    for (content, code, words) in cases {
        fs::write(&file, content)?;
        let called = format!(
            "nightlatch with {}",
            String::from_utf8_lossy(&content[..content.len().min(20)])
        );
        let is_about_the_file = [words, &["config.toml"]].concat();
        let words = if words[0] == "--key:" {
            words
        } else {
            &is_about_the_file
        };
        check(&called, &run()?, code, words)?;
    }
    fs::remove_file(&file)?;
    fs::create_dir(&file)?;
    check(
        "nightlatch with a folder",
        &run()?,
        FAILED,
        &["config.toml", "regular file"],
    )?;
    Ok(fs::remove_dir_all(&folder)?)
}

fn check_nothing_happened(lab: &Lab, events: usize) -> Result<()> {
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
}
