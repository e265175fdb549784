//! Where the server is and who we are: options, environment, configuration files, in this order.

mod invalid;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Deserialize;

pub(crate) use self::invalid::{Credential, InvalidSettings};
use crate::bounded_file;
use crate::toml_file;

/// Four settings need far less.
const MOST_BYTES: u64 = 64 << 10;
const SYSTEM_FILE: &str = "/etc/nightlatch/cli.toml";

/// What every command takes to find the server.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// The server, as `https://HOST:7443` or `HOST[:7443]` [env: NIGHTLATCH_SERVER].
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,
    /// The certificate of the server's authority (ca.pem) [env: NIGHTLATCH_CA].
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Your client certificate [env: NIGHTLATCH_CERT].
    #[arg(long, global = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The private key of your client certificate [env: NIGHTLATCH_KEY].
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// The settings with nothing left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) server: ServerAddress,
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Connection {
    /// The options and the environment first, then the user's file, then the system's, setting by setting.
    ///
    /// # Errors
    /// A setting that is nowhere, a file that can't be read or says something unknown.
    pub(crate) fn settings(&self) -> Result<Settings, InvalidSettings> {
        let user_file = user_file(env::var_os("XDG_CONFIG_HOME"), env::home_dir());
        let files: Vec<PathBuf> = user_file
            .into_iter()
            .chain([PathBuf::from(SYSTEM_FILE)])
            .collect();
        self.or_from(|name| env::var_os(name)).settings_from(&files)
    }

    /// clap would list settings of the environment in each usage line, as if they had been written there.
    fn or_from(&self, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let server = || variable("NIGHTLATCH_SERVER").map(|text| text.to_string_lossy().into_owned());
        let path = |name: &str| variable(name).map(PathBuf::from);
        Self {
            server: self.server.clone().or_else(server),
            ca: self.ca.clone().or_else(|| path("NIGHTLATCH_CA")),
            cert: self.cert.clone().or_else(|| path("NIGHTLATCH_CERT")),
            key: self.key.clone().or_else(|| path("NIGHTLATCH_KEY")),
        }
    }

    fn settings_from(&self, files: &[PathBuf]) -> Result<Settings, InvalidSettings> {
        let mut found = File {
            server: self.server.clone().filter(|text| !text.is_empty()),
            ca: self.ca.clone().filter(|path| !path.as_os_str().is_empty()),
            cert: self.cert.clone().filter(|path| !path.as_os_str().is_empty()),
            key: self.key.clone().filter(|path| !path.as_os_str().is_empty()),
        };
        for path in files {
            let complete =
                found.server.is_some() && found.ca.is_some() && found.cert.is_some() && found.key.is_some();
            if complete {
                break;
            }
            let File {
                server,
                ca,
                cert,
                key,
            } = File::read(path)?;
            found.server = found.server.or(server);
            found.ca = found.ca.or(ca);
            found.cert = found.cert.or(cert);
            found.key = found.key.or(key);
        }
        let file = files
            .first()
            .cloned()
            .unwrap_or_else(|| PathBuf::from(SYSTEM_FILE));
        let missing = |setting, example| InvalidSettings::Missing {
            setting,
            example,
            file: file.clone(),
        };
        Ok(Settings {
            server: found
                .server
                .ok_or_else(|| missing("server", "https://control.example.org:7443"))?
                .parse()?,
            ca: found.ca.ok_or_else(|| missing("ca", "ca.pem"))?,
            cert: found.cert.ok_or_else(|| missing("cert", "alice.pem"))?,
            key: found.key.ok_or_else(|| missing("key", "alice.key"))?,
        })
    }
}

fn user_file(config_home: Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification has relative paths ignored.
    let config_home = config_home.map(PathBuf::from).filter(|path| path.is_absolute());
    let config_home = config_home.or_else(|| home.map(|home| home.join(".config")))?;
    Some(config_home.join("nightlatch/config.toml"))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl File {
    /// A file that isn't there says nothing.
    fn read(path: &Path) -> Result<Self, InvalidSettings> {
        let utf8 = |bytes| String::from_utf8(bytes).map_err(io::Error::other);
        let text = match bounded_file::read(path, MOST_BYTES).and_then(utf8) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(InvalidSettings::UnreadableFile {
                    path: path.into(),
                    error,
                });
            }
        };
        let file: Self = toml_file::from_str(&text).map_err(|reason| InvalidSettings::NotSettings {
            path: path.into(),
            reason,
        })?;
        let beside = |given: PathBuf| in_place(path, given, env::home_dir());
        Ok(Self {
            server: file.server,
            ca: file.ca.map(beside),
            cert: file.cert.map(beside),
            key: file.key.map(beside),
        })
    }
}

/// `~/` is the home directory; other relative paths are meant from the file that names them.
fn in_place(file: &Path, given: PathBuf, home: Option<PathBuf>) -> PathBuf {
    match (given.strip_prefix("~"), home, file.parent()) {
        (Ok(rest), Some(home), _) => home.join(rest),
        (_, _, Some(folder)) => folder.join(given),
        _ => given,
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    host: String,
    port: u16,
}

impl ServerAddress {
    const PORT: u16 = 7443;

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{self}")
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

impl FromStr for ServerAddress {
    type Err = InvalidSettings;

    fn from_str(text: &str) -> Result<Self, InvalidSettings> {
        let invalid = || InvalidSettings::NotAServer(text.to_string());
        let rest = match text.split_once("://") {
            None => text,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => rest,
            Some(_) => return Err(invalid()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self {
                host: rest.to_string(),
                port: Self::PORT,
            });
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !rest.ends_with(']') => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                (
                    host,
                    port.parse()
                        .ok()
                        .filter(|port| digits && *port > 0)
                        .ok_or_else(invalid)?,
                )
            }
            _ => (rest, Self::PORT),
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => host.parse::<Ipv6Addr>().ok().ok_or_else(invalid)?.to_string(),
            None if is_host_name(host) => host.to_string(),
            None => return Err(invalid()),
        };
        Ok(Self { host, port })
    }
}

fn is_host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_server_is_written_with_or_without_scheme_and_port() {
        for (text, means) in [
            ("https://control.example.org:7443", "control.example.org:7443"),
            ("https://control.example.org/", "control.example.org:7443"),
            ("control", "control:7443"),
            ("HTTPS://192.0.2.1:8443", "192.0.2.1:8443"),
            ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
            ("2001:db8::1", "[2001:db8::1]:7443"),
            ("[2001:db8::1]", "[2001:db8::1]:7443"),
        ] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), means);
        }
        for text in [
            "",
            "http://control",
            "https://",
            "control:0",
            "control:99999",
            "control:+1",
            "a/b",
            "[::1",
            "a b",
        ] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_option_beats_the_users_file_and_that_the_systems() {
        let folder = tempfile::tempdir().unwrap();
        let [user, system] = ["user.toml", "system.toml"].map(|name| folder.path().join(name));
        fs::write(&user, "cert = 'me.pem'\nkey = '/keys/me.key'\n").unwrap();
        fs::write(&system, "server = 'control'\nca = 'ca.pem'\ncert = 'other.pem'\n").unwrap();
        let connection = Connection {
            server: Some("[::1]".to_string()),
            ..Connection::default()
        };
        let settings = connection.settings_from(&[user, system]).unwrap();
        assert_eq!(
            settings,
            Settings {
                server: "[::1]:7443".parse().unwrap(),
                ca: folder.path().join("ca.pem"),
                cert: folder.path().join("me.pem"),
                key: "/keys/me.key".into(),
            }
        );
    }

    #[test]
    fn an_option_beats_the_environment() {
        let connection = Connection {
            ca: Some("mine.pem".into()),
            ..Connection::default()
        };
        let found = connection.or_from(|name| Some(format!("{name}.pem").into()));
        assert_eq!(found.ca, Some("mine.pem".into()));
        assert_eq!(found.key, Some("NIGHTLATCH_KEY.pem".into()));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let error = Connection::default()
            .settings_from(std::slice::from_ref(&path))
            .unwrap_err();
        assert_eq!(error.to_string(), "no server is set");
        assert!(error.hint().contains(path.to_str().unwrap()));
        fs::write(&path, "sever = 'control'\n").unwrap();
        let error = Connection::default()
            .settings_from(&[path])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("config.toml is not a settings file: line 1: `sever`: unknown field"),
            "{error}"
        );
    }

    #[test]
    fn paths_in_a_file_are_meant_from_there_or_from_home() {
        let home = Some(PathBuf::from("/home/alice"));
        let file = Path::new("/etc/nightlatch/cli.toml");
        for (given, means) in [
            ("~/a.pem", "/home/alice/a.pem"),
            ("a.pem", "/etc/nightlatch/a.pem"),
            ("/a.pem", "/a.pem"),
        ] {
            assert_eq!(in_place(file, given.into(), home.clone()), Path::new(means));
        }
        assert_eq!(
            user_file(Some("relative".into()), home.clone()),
            user_file(None, home)
        );
    }
}
