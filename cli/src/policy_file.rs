//! Policies as people write them: `22/tcp,from=192.0.2.0/24,max=PT3H`, or the same in TOML.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nightlatch_core::policy::{AllowedSources, InvalidPolicy, Policy, PortRule};
use nightlatch_core::port::{InvalidPort, PortPattern};
use nightlatch_core::prefix::InvalidPrefix;
use serde::Deserialize;

use crate::record::RuleRecord;
use crate::toml_file;
use crate::when::{InvalidLength, parse_length};

/// Far more than the 1,024 ports of a policy can take.
const MOST_BYTES: u64 = 1 << 20;

/// What is wrong with one rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRule {
    #[error("port: {0}")]
    Port(#[from] InvalidPort),
    #[error("from: {0}")]
    From(#[from] InvalidPrefix),
    #[error("from: write `*` alone, or prefixes")]
    AnyAmongOthers,
    #[error("from: write \"*\" or a list of prefixes such as [\"192.0.2.0/24\"]")]
    NoSources,
    #[error("max: {0}")]
    Max(#[from] InvalidLength),
    #[error("from: {0}")]
    Sources(InvalidPolicy),
    #[error("max: {0}")]
    Limit(InvalidPolicy),
    #[error("`{0}` is unknown: after the port come from=PREFIX and max=LENGTH")]
    Unknown(String),
    #[error("`{0}` is given twice")]
    Twice(&'static str),
}

/// Why rules or a file make no policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidPolicyFile {
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{} is not a policy: {reason}", path.display())]
    NotToml { path: PathBuf, reason: String },
    #[error("{}: rules[{position}].{reason}", path.display())]
    Rule {
        path: PathBuf,
        position: usize,
        reason: InvalidRule,
    },
    #[error("{}: {reason}", path.display())]
    Policy { path: PathBuf, reason: InvalidPolicy },
    #[error("--port: {0}")]
    Options(InvalidPolicy),
}

impl InvalidPolicyFile {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "check the path and who may read it".to_string(),
            Self::NotToml { .. } => {
                "write [[rules]] with port = \"22/tcp\", and if wanted from = [\"192.0.2.0/24\"] and max = \"PT3H\"".to_string()
            }
            Self::Rule { .. } | Self::Policy { .. } => "correct the file; nothing was changed".to_string(),
            Self::Options(_) => "correct the rules; nothing was changed".to_string(),
        }
    }
}

/// Reads `PORT/PROTOCOL[,from=PREFIX[,PREFIX]...][,max=LENGTH]`.
///
/// # Errors
/// The first part that is wrong.
pub(crate) fn parse_rule(text: &str) -> Result<PortRule, InvalidRule> {
    let mut parts = text.split(',').map(str::trim);
    let port = parts.next().unwrap_or_default();
    let mut sources: Vec<&str> = Vec::new();
    let mut longest = None;
    let mut in_sources = false;
    for part in parts {
        match part.split_once('=') {
            Some(("from", source)) => {
                sources.push(source);
                in_sources = true;
            }
            Some(("max", length)) => {
                in_sources = false;
                if longest.replace(length).is_some() {
                    return Err(InvalidRule::Twice("max"));
                }
            }
            // A prefix that follows another one.
            None if in_sources => sources.push(part),
            _ => return Err(InvalidRule::Unknown(part.to_string())),
        }
    }
    rule(port, &sources, longest)
}

/// No source given means any, no limit given means the default.
fn rule(port: &str, sources: &[&str], longest: Option<&str>) -> Result<PortRule, InvalidRule> {
    let pattern: PortPattern = port.parse()?;
    let protocols = pattern
        .protocols
        .ok_or_else(|| InvalidPort::ProtocolMissing(port.to_string()))?;
    let sources = match sources {
        [] | ["*"] => AllowedSources::Any,
        several if several.contains(&"*") => return Err(InvalidRule::AnyAmongOthers),
        several => AllowedSources::Only(
            several
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
        ),
    };
    let longest = longest
        .map(parse_length)
        .transpose()?
        .unwrap_or(PortRule::DEFAULT_LIMIT);
    PortRule::new(pattern.range, protocols, sources, longest).map_err(|invalid| match invalid {
        InvalidPolicy::NoSources | InvalidPolicy::TooManySources(_) => InvalidRule::Sources(invalid),
        invalid => InvalidRule::Limit(invalid),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    port: String,
    from: Option<toml::Value>,
    max: Option<String>,
}

impl RawRule {
    fn rule(&self) -> Result<PortRule, InvalidRule> {
        let sources = match &self.from {
            None => Vec::new(),
            Some(toml::Value::String(any)) => vec![any.as_str()],
            Some(toml::Value::Array(several)) if !several.is_empty() => {
                let texts: Option<Vec<&str>> = several.iter().map(toml::Value::as_str).collect();
                texts.ok_or(InvalidRule::NoSources)?
            }
            // An empty list allows nobody, which is not what a missing one means.
            Some(_) => return Err(InvalidRule::NoSources),
        };
        rule(&self.port, &sources, self.max.as_deref())
    }
}

/// # Errors
/// A file that can't be read, isn't a policy in TOML, or names what no policy may hold.
pub(crate) fn read(path: &Path) -> Result<Policy, InvalidPolicyFile> {
    let unreadable = |error| InvalidPolicyFile::Unreadable {
        path: path.into(),
        error,
    };
    let mut source: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(io::stdin()),
        _ => Box::new(File::open(path).map_err(unreadable)?),
    };
    let mut bytes = Vec::new();
    source
        .by_ref()
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    let not_toml = |reason: String| InvalidPolicyFile::NotToml {
        path: path.into(),
        reason,
    };
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MOST_BYTES) {
        return Err(not_toml(format!("it is larger than {} KiB", MOST_BYTES / 1024)));
    }
    let text = String::from_utf8(bytes).map_err(|error| not_toml(error.to_string()))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Policy, InvalidPolicyFile> {
    let raw: RawPolicy = toml_file::from_str(text).map_err(|reason| InvalidPolicyFile::NotToml {
        path: path.into(),
        reason,
    })?;
    let rules = raw.rules.iter().enumerate().map(|(position, raw)| {
        raw.rule().map_err(|reason| InvalidPolicyFile::Rule {
            path: path.into(),
            position,
            reason,
        })
    });
    Policy::new(rules.collect::<Result<_, _>>()?).map_err(|reason| InvalidPolicyFile::Policy {
        path: path.into(),
        reason,
    })
}

pub(crate) fn to_toml(rules: &[RuleRecord]) -> String {
    let mut text = String::new();
    for (position, RuleRecord { port, from, max }) in rules.iter().enumerate() {
        let blank = if position > 0 { "\n" } else { "" };
        let from = match from.as_slice() {
            [any] if any == "*" => toml::Value::String(any.clone()),
            several => toml::Value::Array(several.iter().cloned().map(toml::Value::String).collect()),
        };
        let [port, max] = [port, max].map(|text| toml::Value::String(text.clone()));
        // Writing to a String does not fail.
        write!(
            text,
            "{blank}[[rules]]\nport = {port}\nfrom = {from}\nmax = {max}\n"
        )
        .unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::time::format_iso8601;

    fn record(rule: &PortRule) -> RuleRecord {
        RuleRecord {
            port: format!("{}/{}", rule.range, rule.protocols),
            from: rule
                .sources
                .to_string()
                .split(", ")
                .map(ToString::to_string)
                .collect(),
            max: format_iso8601(rule.longest()),
        }
    }

    #[test]
    fn a_rule_is_written_in_one_word() {
        for (text, means) in [
            ("22/tcp", "22/tcp from * max PT3H"),
            ("22/tcp,from=*", "22/tcp from * max PT3H"),
            ("3389/*,max=30m", "3389/* from * max PT30M"),
            (
                "8000-8010/udp,from=192.0.2.0/24,2001:db8::/32,max=PT1H",
                "8000-8010/udp from 192.0.2.0/24, 2001:db8::/32 max PT1H",
            ),
            (
                "22/tcp,from=192.0.2.7,from=198.51.100.0/24",
                "22/tcp from 192.0.2.7/32, 198.51.100.0/24 max PT3H",
            ),
        ] {
            assert_eq!(parse_rule(text).unwrap().to_string(), means);
        }
    }

    #[test]
    fn a_bad_rule_is_refused_with_the_part_and_the_limit() {
        for (text, says) in [
            ("", "not a port"),
            ("22", "write it as 22/tcp"),
            ("22/sctp", "not a protocol"),
            ("22/tcp,from=", "not an address"),
            ("22/tcp,from=192.0.2.7/24", "did you mean 192.0.2.0/24"),
            ("22/tcp,from=*,192.0.2.7", "`*` alone"),
            ("22/tcp,max=1m", "PT5M to PT24H"),
            ("22/tcp,max=25h", "PT5M to PT24H"),
            ("22/tcp,max=soon", "not a length of time"),
            ("22/tcp,max=1h,max=2h", "given twice"),
            ("22/tcp,192.0.2.7", "is unknown"),
            ("22/tcp,color=red", "is unknown"),
        ] {
            let error = parse_rule(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn too_many_sources_are_told_of_as_sources() {
        let sources: Vec<String> = (0..300)
            .map(|number| format!("10.0.{}.{}", number / 256, number % 256))
            .collect();
        let says = "from: 300 sources are named, at most 256";
        let error = parse_rule(&format!("22/tcp,from={}", sources.join(",")))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(says), "{error}");
        let text = format!("[[rules]]\nport = \"22/tcp\"\nfrom = {sources:?}\n");
        let error = parse(&text, Path::new("web-1.toml")).unwrap_err().to_string();
        assert!(error.contains(&format!("rules[0].{says}")), "{error}");
    }

    #[test]
    fn what_is_shown_as_toml_can_be_set_again() {
        let text = "[[rules]]\nport = \"22/tcp\"\nfrom = \"*\"\nmax = \"PT3H\"\n\n\
                    [[rules]]\nport = \"8000-8010/*\"\nfrom = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nmax = \"PT30M\"\n";
        let policy = parse(text, Path::new("web-1.toml")).unwrap();
        let rules: Vec<RuleRecord> = policy.rules().iter().map(record).collect();
        assert_eq!(to_toml(&rules), text);
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line_or_rule() {
        for (text, says) in [
            ("", "missing field `rules`"),
            ("rules = []", "at least one rule"),
            ("[[rules]]\nport = 22", "line 2: `rules[0].port`"),
            ("rules = 5", "line 1: `rules`"),
            (
                "[[rules]]\nport = \"22/tcp\"\nform = \"*\"",
                "unknown field `form`",
            ),
            (
                "[[rules]]\nport = \"22/tcp\"\nfrom = []",
                "rules[0].from: write \"*\" or a list",
            ),
            ("[[rules]]\nport = \"22/tcp\"\nfrom = [1]", "rules[0].from"),
            (
                "[[rules]]\nport = \"22/tcp\"\n[[rules]]\nport = \"22/*\"",
                "overlap",
            ),
            (
                "[[rules]]\nport = \"22/tcp\"\n[[rules]]\nport = \"0/tcp\"",
                "rules[1].port: port 0 is outside",
            ),
            ("[[rules", "line 1"),
        ] {
            let error = parse(text, Path::new("web-1.toml")).unwrap_err().to_string();
            assert!(
                error.starts_with("web-1.toml") && error.contains(says),
                "{text}: {error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
