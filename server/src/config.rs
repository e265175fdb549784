//! The configuration file.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tracing::Level;

/// Where the file is if no other is named.
pub const DEFAULT_FILE: &str = "/etc/nightlatch/server.toml";

const LONGEST_FILE: usize = 1024 * 1024;

/// What the server is told by its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The state directory.
    pub state: PathBuf,
    /// For people and programs.
    pub listen: SocketAddr,
    pub listen_agents: SocketAddr,
    pub log: Level,
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration file {} can't be read: see that it is a text in UTF-8 that you may read, or name another with --config", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not valid: {}", path.display(), reason.trim_end())]
    Invalid { path: PathBuf, reason: String },
}

impl Default for ServerConfig {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self {
            state: PathBuf::from("/var/lib/nightlatch-server"),
            listen: any(7443),
            listen_agents: any(7444),
            log: Level::INFO,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    state: Option<PathBuf>,
    listen: Option<String>,
    listen_agents: Option<String>,
    log: Option<String>,
}

impl ServerConfig {
    /// Reads `file`, or the default file, which may be missing.
    ///
    /// # Errors
    /// A named file that is missing, an unknown key, a value that can't be meant.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or_else(|| Path::new(DEFAULT_FILE));
        let text = match read_file(path) {
            Ok(text) if text.len() <= LONGEST_FILE => text,
            Ok(_) => {
                return Err(ConfigError::Invalid {
                    path: path.to_owned(),
                    reason: format!("it is longer than {LONGEST_FILE} bytes: shorten it"),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
                return Ok(Self::default());
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Self::parse(&text).map_err(|reason| ConfigError::Invalid {
            path: path.to_owned(),
            reason,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let RawConfig {
            state,
            listen,
            listen_agents,
            log,
        } = read(text)?;
        let default = Self::default();
        let config = Self {
            state: state.unwrap_or(default.state),
            listen: address("listen", listen, default.listen)?,
            listen_agents: address("listen_agents", listen_agents, default.listen_agents)?,
            log: match log {
                None => default.log,
                Some(text) => text.parse().map_err(|_error| {
                    format!("`log`: `{text}` is not a level: write error, warn, info, debug or trace")
                })?,
            },
        };
        if !config.state.is_absolute() {
            return Err(format!(
                "`state`: `{}` is not an absolute path: write one that begins with /",
                config.state.display()
            ));
        }
        if config.listen == config.listen_agents && config.listen.port() != 0 {
            return Err(format!(
                "`listen` and `listen_agents` are both {}: agents need their own",
                config.listen
            ));
        }
        Ok(config)
    }
}

fn read_file(path: &Path) -> std::io::Result<String> {
    // One more than is taken, so that a longer one shows.
    let most = u64::try_from(LONGEST_FILE).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = String::new();
    File::open(path)?.take(most).read_to_string(&mut text)?;
    Ok(text)
}

fn read(text: &str) -> Result<RawConfig, String> {
    let not_toml = |key: Option<String>, error: &toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        let key = key.map(|key| format!("`{key}`: ")).unwrap_or_default();
        let why = error.message().trim().replace('\n', ", ");
        format!("line {line}: {key}{why}: correct that line")
    };
    let document = toml::Deserializer::parse(text).map_err(|error| not_toml(None, &error))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let is_within = error.path().iter().next().is_some();
        not_toml(is_within.then(|| error.path().to_string()), error.inner())
    })
}

fn address(key: &str, text: Option<String>, default: SocketAddr) -> Result<SocketAddr, String> {
    let Some(text) = text else { return Ok(default) };
    text.parse().map_err(|_error| {
        format!(
            "`{key}`: `{text}` is not an address and port: write \"[::]:{}\" or \"192.0.2.1:{0}\"",
            default.port()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_default() {
        assert_eq!(ServerConfig::parse(""), Ok(ServerConfig::default()));
        let config = ServerConfig::parse("listen = '127.0.0.1:1'\nlog = 'debug'\nstate = '/s'").unwrap();
        assert_eq!((config.listen.port(), config.log), (1, Level::DEBUG));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        for (text, says) in [
            ("listen = 'here'", "`listen`"),
            (
                "\nlisten_agents = 7444",
                "line 2: `listen_agents`: invalid type: integer `7444`, expected a string",
            ),
            ("log = ['info']", "`log`"),
            ("state = true", "`state`"),
            ("log = 'loud'", "`log`"),
            ("state = 'here'", "`state`"),
            ("listn = ''", "listn"),
            ("listen = '[::]:7444'", "agents need their own"),
            ("=", "1"),
        ] {
            let error = ServerConfig::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let missing = Path::new("/nonexistent/server.toml");
        assert!(matches!(
            ServerConfig::load(Some(missing)),
            Err(ConfigError::Read { .. })
        ));
    }
}
