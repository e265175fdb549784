//! The host's own file, agent.toml: what its owner has settled, and no server changes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nightlatch_core::break_glass;
use nightlatch_core::ceiling::Ceiling;
use nightlatch_core::host::HostRules;
use nightlatch_core::policy::MOST_GUARDED;
use nightlatch_core::port::{PortPattern, PortSpan};
use nightlatch_core::prefix::{Family, Prefix};
use nightlatch_core::time::{format_iso8601, parse_iso8601};
use serde::Deserialize;

/// The longest file that is read, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;
const MOST_TRUSTED: usize = 64;
const MOST_INTERFACES: usize = 64;
/// IFNAMSIZ without the final zero (netdevice(7)).
const LONGEST_INTERFACE: usize = 15;
const DEFAULT_UDP_GRACE: Duration = Duration::from_secs(3600);
const LONGEST_UDP_GRACE: Duration = Duration::from_secs(24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Seven days: what is asked for at most, with room for an owner who wants longer ones.
const LONGEST_CEILING: Duration = Duration::from_secs(7 * 24 * 3600);
const DEFAULT_WIDEST_IPV4: u8 = 24;
const DEFAULT_WIDEST_IPV6: u8 = 64;

/// A host's file that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    pub rules: HostRules,
    pub log: LogLevel,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Why the host's file can't be followed. Nothing of it is taken then.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("cannot read {}: see that it is a text in UTF-8 that you may read, or name another with --config", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} can be written by everyone: run `chmod o-w` on it", .0.display())]
    WorldWritable(PathBuf),
    #[error("{} is longer than {LONGEST_FILE} bytes: shorten it", .0.display())]
    TooLong(PathBuf),
    #[error("{} line {line}: {why}: correct that line", path.display())]
    NotToml { path: PathBuf, line: usize, why: String },
    #[error("{}: `{key}` {why}", path.display())]
    Key { path: PathBuf, key: String, why: String },
}

impl AgentConfig {
    /// # Errors
    /// The first thing that doesn't fit, by file, key, limit and next step.
    pub fn read(path: &Path) -> Result<Self, InvalidConfig> {
        let unreadable = |source| InvalidConfig::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.mode() & 0o002 != 0 {
            return Err(InvalidConfig::WorldWritable(path.to_owned()));
        }
        if metadata.len() > LONGEST_FILE {
            return Err(InvalidConfig::TooLong(path.to_owned()));
        }
        let mut text = String::new();
        file.take(LONGEST_FILE)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, InvalidConfig> {
        let not_toml = |key: Option<String>, error: &toml::de::Error| {
            let before = error
                .span()
                .and_then(|span| text.get(..span.start))
                .unwrap_or_default();
            let key = key.map(|key| format!("`{key}`: ")).unwrap_or_default();
            InvalidConfig::NotToml {
                path: path.to_owned(),
                line: before.matches('\n').count().saturating_add(1),
                why: format!("{key}{}", error.message().trim().replace('\n', ", ")),
            }
        };
        let document = toml::Deserializer::parse(text).map_err(|error| not_toml(None, &error))?;
        let raw: RawConfig = serde_path_to_error::deserialize(document).map_err(|error| {
            let is_within = error.path().iter().next().is_some();
            not_toml(is_within.then(|| error.path().to_string()), error.inner())
        })?;
        raw.validate()
            .map_err(|InvalidKey { key, why }| InvalidConfig::Key {
                path: path.to_owned(),
                key,
                why,
            })
    }
}

struct InvalidKey {
    key: String,
    why: String,
}

fn invalid(key: impl ToString, why: impl ToString) -> InvalidKey {
    InvalidKey {
        key: key.to_string(),
        why: why.to_string(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    guarded: Vec<toml::Value>,
    #[serde(default)]
    server_may: Vec<String>,
    #[serde(default)]
    unguarded_interfaces: Vec<String>,
    #[serde(default)]
    trusted_sources: Vec<String>,
    udp_grace: Option<String>,
    #[serde(default)]
    log: LogLevel,
    ceiling: Option<RawCeiling>,
    break_glass: Option<RawBreakGlass>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCeiling {
    ports: Vec<toml::Value>,
    longest: Option<String>,
    max_ahead: Option<String>,
    widest_ipv4: Option<i64>,
    widest_ipv6: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBreakGlass {
    enabled: Option<bool>,
    longest: Option<String>,
    widest_ipv4: Option<i64>,
    widest_ipv6: Option<i64>,
}

impl RawConfig {
    fn validate(self) -> Result<AgentConfig, InvalidKey> {
        let Self {
            guarded,
            server_may,
            unguarded_interfaces,
            trusted_sources,
            udp_grace,
            log,
            ceiling,
            break_glass,
        } = self;
        check_server_may(&server_may)?;
        let rules = HostRules {
            guarded: read_guarded(&guarded)?,
            trusted_sources: read_trusted(&trusted_sources)?,
            unguarded_interfaces: read_interfaces(unguarded_interfaces)?,
            udp_grace: length("udp_grace", udp_grace, DEFAULT_UDP_GRACE, LONGEST_UDP_GRACE)?,
            ceiling: ceiling.map(RawCeiling::validate).transpose()?,
            break_glass: break_glass
                .map_or_else(|| Ok(break_glass::Limits::default()), RawBreakGlass::validate)?,
            console: Vec::new(),
        };
        Ok(AgentConfig { rules, log })
    }
}

/// What `[break_glass]` says in a file that is faulty elsewhere, or there: each of its keys by itself. The narrowest
/// bounds hold for what can't be read, and an `enabled` that says neither turns it off.
pub fn bounds_alone(path: &Path) -> break_glass::Limits {
    let text = File::open(path).and_then(|file| {
        let is_strangers = file.metadata()?.mode() & 0o002 != 0;
        let mut text = Vec::new();
        file.take(if is_strangers { 0 } else { LONGEST_FILE })
            .read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    });
    bounds_in(&text.unwrap_or_default())
}

fn bounds_in(text: &str) -> break_glass::Limits {
    const SECTION: &str = "break_glass";
    let mut limits = break_glass::Limits::default();
    let mut is_within = false;
    for line in text.lines().map(str::trim) {
        let header = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((name, _)) = header {
            is_within = name.trim() == SECTION;
            continue;
        }
        let line = if is_within {
            format!("{SECTION}.{line}")
        } else if line.starts_with(SECTION) {
            line.to_owned()
        } else {
            continue;
        };
        let read = toml::from_str::<toml::Table>(&line).ok();
        let section = read.and_then(|mut table| table.remove(SECTION));
        if let Some(toml::Value::Table(section)) = section {
            for (key, value) in section {
                bound(&mut limits, &key, value);
            }
        } else if line.contains("enabled") {
            limits.is_enabled = false;
        }
    }
    limits
}

fn bound(limits: &mut break_glass::Limits, key: &str, value: toml::Value) {
    let is_switch = key == "enabled";
    let alone = toml::Table::from_iter([(key.to_owned(), value)]);
    let raw: Option<RawBreakGlass> = alone.try_into().ok();
    let Some(read) = raw.and_then(|raw| raw.validate().ok()) else {
        limits.is_enabled &= !is_switch;
        return;
    };
    match key {
        "enabled" => limits.is_enabled = read.is_enabled,
        "longest" => limits.longest = read.longest,
        "widest_ipv4" => limits.widest_ipv4 = read.widest_ipv4,
        "widest_ipv6" => limits.widest_ipv6 = read.widest_ipv6,
        _ => {}
    }
}

impl RawBreakGlass {
    fn validate(self) -> Result<break_glass::Limits, InvalidKey> {
        let Self {
            enabled,
            longest,
            widest_ipv4,
            widest_ipv6,
        } = self;
        let default = break_glass::Limits::default();
        let key = |name: &str| format!("break_glass.{name}");
        let longest = length(&key("longest"), longest, default.longest, DAY)?;
        if longest.is_zero() {
            return Err(invalid(
                key("longest"),
                "is zero: write PT1H, or `enabled = false` to turn break-glass off",
            ));
        }
        Ok(break_glass::Limits {
            is_enabled: enabled.unwrap_or(default.is_enabled),
            longest,
            widest_ipv4: bits(
                &key("widest_ipv4"),
                widest_ipv4,
                default.widest_ipv4,
                Family::Ipv4,
            )?,
            widest_ipv6: bits(
                &key("widest_ipv6"),
                widest_ipv6,
                default.widest_ipv6,
                Family::Ipv6,
            )?,
        })
    }
}

impl RawCeiling {
    fn validate(self) -> Result<Ceiling, InvalidKey> {
        let Self {
            ports,
            longest,
            max_ahead,
            widest_ipv4,
            widest_ipv6,
        } = self;
        if ports.len() > MOST_GUARDED {
            let why = format!(
                "has {} entries, at most {MOST_GUARDED} are taken: use ranges",
                ports.len()
            );
            return Err(invalid("ceiling.ports", why));
        }
        let longest = length("ceiling.longest", longest, DAY, LONGEST_CEILING)?;
        if longest.is_zero() {
            return Err(invalid(
                "ceiling.longest",
                "is zero, so that no grant could be taken: write PT24H",
            ));
        }
        Ok(Ceiling {
            ports: read_ports("ceiling.ports", &ports)?,
            longest,
            max_ahead: length("ceiling.max_ahead", max_ahead, DAY, LONGEST_CEILING)?,
            widest_ipv4: bits(
                "ceiling.widest_ipv4",
                widest_ipv4,
                DEFAULT_WIDEST_IPV4,
                Family::Ipv4,
            )?,
            widest_ipv6: bits(
                "ceiling.widest_ipv6",
                widest_ipv6,
                DEFAULT_WIDEST_IPV6,
                Family::Ipv6,
            )?,
        })
    }
}

fn check_server_may(values: &[String]) -> Result<(), InvalidKey> {
    for (position, value) in values.iter().enumerate() {
        let key = format!("server_may[{position}]");
        if !matches!(value.as_str(), "observe" | "respect_existing") {
            return Err(invalid(
                key,
                format!("is `{value}`: only \"observe\" and \"respect_existing\" exist"),
            ));
        }
    }
    if values.is_empty() {
        Ok(())
    } else {
        Err(invalid(
            "server_may",
            "is not empty, but this version honours none of its values: write []",
        ))
    }
}

fn read_ports(key: &str, values: &[toml::Value]) -> Result<Vec<PortPattern>, InvalidKey> {
    let read = |(position, value): (usize, &toml::Value)| {
        let text = match value {
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::String(text) => text.clone(),
            toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => {
                let why = "is neither a number nor a text: write 22 or \"22/tcp\"";
                return Err(invalid(format!("{key}[{position}]"), why));
            }
        };
        text.parse()
            .map_err(|error| invalid(format!("{key}[{position}]"), format!("is refused: {error}")))
    };
    values.iter().enumerate().map(read).collect()
}

fn read_guarded(values: &[toml::Value]) -> Result<Vec<PortSpan>, InvalidKey> {
    let spans: Vec<PortSpan> = read_ports("guarded", values)?
        .into_iter()
        .flat_map(PortPattern::spans)
        .collect();
    let keys = spans
        .iter()
        .flat_map(|span| span.keys())
        .collect::<BTreeSet<_>>()
        .len();
    if keys > MOST_GUARDED {
        let why = format!(
            "lists {keys} ports (each protocol counts), at most {MOST_GUARDED} are taken: list fewer"
        );
        return Err(invalid("guarded", why));
    }
    Ok(spans)
}

fn read_trusted(values: &[String]) -> Result<Vec<Prefix>, InvalidKey> {
    if values.len() > MOST_TRUSTED {
        let why = format!(
            "has {} entries, at most {MOST_TRUSTED} are taken: join them to prefixes",
            values.len()
        );
        return Err(invalid("trusted_sources", why));
    }
    let read = |(position, value): (usize, &String)| {
        let key = format!("trusted_sources[{position}]");
        value
            .parse()
            .map_err(|error| invalid(key, format!("is refused: {error}")))
    };
    values.iter().enumerate().map(read).collect()
}

fn read_interfaces(values: Vec<String>) -> Result<BTreeSet<String>, InvalidKey> {
    if values.len() > MOST_INTERFACES {
        let why = format!(
            "has {} entries, at most {MOST_INTERFACES} are taken: list fewer",
            values.len()
        );
        return Err(invalid("unguarded_interfaces", why));
    }
    for (position, value) in values.iter().enumerate() {
        let is_name = (1..=LONGEST_INTERFACE).contains(&value.len())
            && value
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'*' | b'"'))
            && !matches!(value.as_str(), "." | "..");
        if !is_name {
            let why = format!(
                "is `{value}`: write the exact name of an interface, 1 to {LONGEST_INTERFACE} characters, no wildcard"
            );
            return Err(invalid(format!("unguarded_interfaces[{position}]"), why));
        }
    }
    Ok(values.into_iter().collect())
}

fn length(
    key: &str,
    value: Option<String>,
    default: Duration,
    most: Duration,
) -> Result<Duration, InvalidKey> {
    let Some(text) = value else { return Ok(default) };
    let length = parse_iso8601(&text).map_err(|error| invalid(key, format!("is refused: {error}")))?;
    if length > most {
        return Err(invalid(
            key,
            format!("is {text}, at most {} is taken", format_iso8601(most)),
        ));
    }
    Ok(length)
}

fn bits(key: &str, value: Option<i64>, default: u8, family: Family) -> Result<u8, InvalidKey> {
    let Some(number) = value else { return Ok(default) };
    u8::try_from(number)
        .ok()
        .filter(|bits| *bits <= family.bits())
        .ok_or_else(|| {
            invalid(
                key,
                format!("is {number}: write a prefix length from 0 to {}", family.bits()),
            )
        })
}

#[cfg(test)]
mod tests;
