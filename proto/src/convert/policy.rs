//! Policies and their rules.

use nightlatch_core::policy::{AllowedSources, Policy, PortRule};

use super::port::{protocols, read_protocols};
use super::prefix::{prefixes, read_prefixes};
use super::time::{duration, read_duration};
use super::{InvalidField, list, message};
use crate::pb;

const MOST_RULES: usize = 1024;

impl TryFrom<pb::PortRule> for PortRule {
    type Error = InvalidField;

    fn try_from(rule: pb::PortRule) -> Result<Self, InvalidField> {
        let pb::PortRule {
            range,
            protocol,
            allowed_sources,
            max_duration,
        } = rule;
        let sources = match allowed_sources.as_slice() {
            [any] if any == "*" => AllowedSources::Any,
            texts if texts.iter().any(|text| text == "*") => {
                return Err(InvalidField::new(
                    "allowed_sources",
                    "`*` stands alone: it allows any source",
                ));
            }
            _ => AllowedSources::Only(read_prefixes(
                "allowed_sources",
                allowed_sources,
                Self::MOST_SOURCES,
            )?),
        };
        let longest = match max_duration {
            None => Self::DEFAULT_LIMIT,
            Some(_) => read_duration("max_duration", max_duration)?,
        };
        let range = message("range", range)?;
        Self::new(range, read_protocols("protocol", protocol)?, sources, longest).map_err(|error| {
            use nightlatch_core::policy::InvalidPolicy as Invalid;
            let field = match error {
                Invalid::Limit(_) => "max_duration",
                Invalid::NoSources | Invalid::TooManySources(_) => "allowed_sources",
                Invalid::NoRules | Invalid::Overlap { .. } | Invalid::TooManyPorts(_) => "",
            };
            InvalidField::new(field, error)
        })
    }
}

impl From<&PortRule> for pb::PortRule {
    fn from(rule: &PortRule) -> Self {
        let sources = match &rule.sources {
            AllowedSources::Any => vec!["*".to_owned()],
            AllowedSources::Only(allowed) => prefixes(allowed),
        };
        Self {
            range: Some(rule.range.into()),
            protocol: protocols(rule.protocols).into(),
            allowed_sources: sources,
            max_duration: Some(duration(rule.longest())),
        }
    }
}

/// Reads the rules of a policy, the part of it that people write.
///
/// # Errors
/// The first rule that can't be meant, or what rules may not be together.
pub fn read_rules(field: &str, rules: Vec<pb::PortRule>) -> Result<Policy, InvalidField> {
    let rules = list(field, rules, MOST_RULES, TryInto::try_into)?;
    Policy::new(rules).map_err(|error| InvalidField::new(field, error))
}

pub fn rules(policy: &Policy) -> Vec<pb::PortRule> {
    policy.rules().iter().map(Into::into).collect()
}

impl TryFrom<pb::Policy> for Policy {
    type Error = InvalidField;

    fn try_from(policy: pb::Policy) -> Result<Self, InvalidField> {
        // The name and the etag are the handler's to read; the rest is the server's to fill.
        let pb::Policy {
            name: _,
            rules,
            etag: _,
            update_time: _,
            machine_display_name: _,
        } = policy;
        read_rules("rules", rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn rule(port: u32, sources: &[&str]) -> pb::PortRule {
        pb::PortRule {
            range: Some(pb::PortRange {
                first: port,
                last: port,
            }),
            protocol: pb::Protocol::Tcp.into(),
            allowed_sources: sources.iter().map(|source| (*source).to_owned()).collect(),
            max_duration: None,
        }
    }

    #[test]
    fn a_policy_survives_the_wire_and_lasts_three_hours_by_default() {
        let sent = vec![rule(22, &["*"]), rule(3389, &["192.0.2.0/24", "2001:db8::/64"])];
        let policy = read_rules("rules", sent).unwrap();
        assert_eq!(policy.rules()[0].longest(), Duration::from_secs(3 * 3600));
        assert_eq!(read_rules("rules", rules(&policy)), Ok(policy));
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused_by_its_field() {
        let short = Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        });
        for (rules, field) in [
            (vec![], "rules"),
            (vec![rule(22, &["*"]), rule(22, &["*"])], "rules"),
            (vec![rule(22, &["*"]), rule(0, &["*"])], "rules[1].range.first"),
            (vec![rule(22, &[])], "rules[0].allowed_sources"),
            (vec![rule(22, &["*", "192.0.2.0/24"])], "rules[0].allowed_sources"),
            (
                vec![rule(22, &["192.0.2.0/24", "web-1"])],
                "rules[0].allowed_sources[1]",
            ),
            (
                vec![pb::PortRule {
                    max_duration: short,
                    ..rule(22, &["*"])
                }],
                "rules[0].max_duration",
            ),
            (
                vec![pb::PortRule {
                    protocol: 0,
                    ..rule(22, &["*"])
                }],
                "rules[0].protocol",
            ),
        ] {
            assert_eq!(read_rules("rules", rules).unwrap_err().field, field);
        }
    }
}
