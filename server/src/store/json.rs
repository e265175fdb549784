//! How policies and ceilings are written into the store.

use nightlatch_core::ceiling::Ceiling;
use nightlatch_core::policy::{AllowedSources, Policy, PortRule};
use nightlatch_core::port::{PortPattern, Protocols};
use nightlatch_core::prefix::Prefix;
use nightlatch_core::time::{format_iso8601, parse_iso8601};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredPolicy {
    rules: Vec<StoredRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRule {
    port: String,
    /// Absent: any source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Vec<Prefix>>,
    max: String,
}

impl From<&Policy> for StoredPolicy {
    fn from(policy: &Policy) -> Self {
        let stored = |rule: &PortRule| StoredRule {
            port: PortPattern {
                range: rule.range,
                protocols: Some(rule.protocols),
            }
            .to_string(),
            from: match &rule.sources {
                AllowedSources::Any => None,
                AllowedSources::Only(allowed) => Some(allowed.clone()),
            },
            max: format_iso8601(rule.longest()),
        };
        Self {
            rules: policy.rules().iter().map(stored).collect(),
        }
    }
}

impl TryFrom<StoredPolicy> for Policy {
    type Error = String;

    fn try_from(stored: StoredPolicy) -> Result<Self, String> {
        let rules = stored.rules.into_iter().map(PortRule::try_from);
        Self::new(rules.collect::<Result<_, _>>()?).map_err(|error| error.to_string())
    }
}

impl TryFrom<StoredRule> for PortRule {
    type Error = String;

    fn try_from(stored: StoredRule) -> Result<Self, String> {
        let StoredRule { port, from, max } = stored;
        let PortPattern { range, protocols } = port.parse().map_err(|error| format!("{error}"))?;
        let sources = from.map_or(AllowedSources::Any, AllowedSources::Only);
        let longest = parse_iso8601(&max).map_err(|error| error.to_string())?;
        Self::new(range, protocols.unwrap_or(Protocols::Both), sources, longest)
            .map_err(|error| error.to_string())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredCeiling {
    ports: Vec<String>,
    longest: String,
    max_ahead: String,
    widest_ipv4: u8,
    widest_ipv6: u8,
}

impl From<&Ceiling> for StoredCeiling {
    fn from(ceiling: &Ceiling) -> Self {
        let Ceiling {
            ports,
            longest,
            max_ahead,
            widest_ipv4,
            widest_ipv6,
        } = ceiling;
        Self {
            ports: ports.iter().map(ToString::to_string).collect(),
            longest: format_iso8601(*longest),
            max_ahead: format_iso8601(*max_ahead),
            widest_ipv4: *widest_ipv4,
            widest_ipv6: *widest_ipv6,
        }
    }
}

impl TryFrom<StoredCeiling> for Ceiling {
    type Error = String;

    fn try_from(stored: StoredCeiling) -> Result<Self, String> {
        let StoredCeiling {
            ports,
            longest,
            max_ahead,
            widest_ipv4,
            widest_ipv6,
        } = stored;
        let ports = ports
            .iter()
            .map(|text| text.parse::<PortPattern>())
            .collect::<Result<_, _>>();
        Ok(Self {
            ports: ports.map_err(|error| error.to_string())?,
            longest: parse_iso8601(&longest).map_err(|error| error.to_string())?,
            max_ahead: parse_iso8601(&max_ahead).map_err(|error| error.to_string())?,
            widest_ipv4,
            widest_ipv6,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn policies_and_ceilings_survive_the_store() {
        let rule = |port: &str, sources| {
            let PortPattern { range, protocols } = port.parse().unwrap();
            PortRule::new(range, protocols.unwrap(), sources, Duration::from_secs(5400)).unwrap()
        };
        let only = AllowedSources::Only(vec!["192.0.2.0/24".parse().unwrap()]);
        let policy = Policy::new(vec![rule("22/tcp", AllowedSources::Any), rule("3389/*", only)]).unwrap();
        let text = serde_json::to_string(&StoredPolicy::from(&policy)).unwrap();
        let stored: StoredPolicy = serde_json::from_str(&text).unwrap();
        assert_eq!(Policy::try_from(stored), Ok(policy));

        let ceiling = Ceiling {
            ports: vec!["22".parse().unwrap(), "8000-8010/udp".parse().unwrap()],
            longest: Duration::from_secs(86_400),
            max_ahead: Duration::ZERO,
            widest_ipv4: 24,
            widest_ipv6: 64,
        };
        let text = serde_json::to_string(&StoredCeiling::from(&ceiling)).unwrap();
        let stored: StoredCeiling = serde_json::from_str(&text).unwrap();
        assert_eq!(Ceiling::try_from(stored), Ok(ceiling));
    }
}
