//! The configuration file.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use nightlatch_core::ledger::MOST_GRANTS;
use serde::Deserialize;
use tracing::Level;

use crate::issuer::Bounds;

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
    pub limits: Limits,
}

/// How much the server takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of people and programs.
    pub connections: usize,
    /// From one IPv4 address, or one IPv6 network of 64 bits.
    pub connections_per_address: usize,
    pub agent_connections: usize,
    pub grants: Bounds,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 1024,
            agent_connections: 16_384,
            grants: Bounds {
                per_caller: 100,
                per_machine: 12_000,
            },
        }
    }
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
            limits: Limits::default(),
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
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connections: Option<u64>,
    connections_per_address: Option<u64>,
    agent_connections: Option<u64>,
    grants_per_caller_and_machine: Option<u64>,
    grants_per_machine: Option<u64>,
}

impl TryFrom<RawLimits> for Limits {
    type Error = String;

    fn try_from(raw: RawLimits) -> Result<Self, String> {
        let RawLimits {
            connections,
            connections_per_address,
            agent_connections,
            grants_per_caller_and_machine,
            grants_per_machine,
        } = raw;
        let default = Self::default();
        let most_grants = MOST_GRANTS as u64;
        let places = |key, given: Option<u64>, default: usize| {
            number(key, given, default as u64, MOST_CONNECTIONS).map(|number| number as usize)
        };
        let per_machine = number(
            "grants_per_machine",
            grants_per_machine,
            default.grants.per_machine,
            most_grants,
        )?;
        let connections = places("connections", connections, default.connections)?;
        let per_address = places(
            "connections_per_address",
            connections_per_address,
            default.connections_per_address.min(connections),
        )?;
        if per_address > connections {
            return Err(format!(
                "`limits.connections_per_address`: {per_address} is more than `limits.connections`, {connections}: \
                 write at most that"
            ));
        }
        Ok(Self {
            connections,
            connections_per_address: per_address,
            agent_connections: places("agent_connections", agent_connections, default.agent_connections)?,
            grants: Bounds {
                per_caller: number(
                    "grants_per_caller_and_machine",
                    grants_per_caller_and_machine,
                    default.grants.per_caller,
                    most_grants,
                )?,
                per_machine,
            },
        })
    }
}

/// More than one process can have.
const MOST_CONNECTIONS: u64 = 1_000_000;

fn number(key: &str, given: Option<u64>, default: u64, most: u64) -> Result<u64, String> {
    match given.unwrap_or(default) {
        number @ 1.. if number <= most => Ok(number),
        number => Err(format!("`limits.{key}`: {number} is not 1 to {most}")),
    }
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
            limits,
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
            limits: limits.try_into()?,
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
        let config = ServerConfig::parse("[limits]\nconnections = 10").unwrap();
        assert_eq!(config.limits.connections_per_address, 10);
        let config = ServerConfig::parse("[limits]\ngrants_per_caller_and_machine = 7").unwrap();
        assert_eq!(
            (config.limits.grants.per_caller, config.limits.grants.per_machine),
            (7, 12_000)
        );
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
            ("[limits]\nconnections = 0", "`limits.connections`: 0 is not 1 to"),
            (
                "[limits]\nconnections_per_address = -1",
                "connections_per_address",
            ),
            (
                "[limits]\nconnections = 10\nconnections_per_address = 11",
                "`limits.connections_per_address`: 11 is more than",
            ),
            ("[limits]\nagent_connections = 'many'", "agent_connections"),
            (
                "[limits]\ngrants_per_machine = 20001",
                "`limits.grants_per_machine`: 20001 is not 1 to 20000",
            ),
            ("[limits]\nconections = 1", "conections"),
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
