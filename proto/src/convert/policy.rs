//! Policies and their rules.

use nightlatch_core::policy::{AllowedSources, AtEnd, Policy, PortRule};

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
            at_end,
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
        let at_end = at_end.map_or_else(|| Ok(AtEnd::default()), read_at_end)?;
        let range = message("range", range)?;
        let mut rule =
            Self::new(range, read_protocols("protocol", protocol)?, sources, longest).map_err(|error| {
                use nightlatch_core::policy::InvalidPolicy as Invalid;
                let field = match error {
                    Invalid::Limit(_) => "max_duration",
                    Invalid::NoSources | Invalid::TooManySources(_) => "allowed_sources",
                    Invalid::NoRules | Invalid::Overlap { .. } | Invalid::TooManyPorts(_) => "",
                };
                InvalidField::new(field, error)
            })?;
        rule.at_end = at_end;
        Ok(rule)
    }
}

fn read_at_end(number: i32) -> Result<AtEnd, InvalidField> {
    match pb::AtEnd::try_from(number) {
        Ok(pb::AtEnd::Keep) => Ok(AtEnd::Keep),
        Ok(pb::AtEnd::Cut) => Ok(AtEnd::Cut),
        Ok(pb::AtEnd::Unspecified) | Err(_) => Err(InvalidField::new("at_end", "is neither keep nor cut")),
    }
}

fn at_end(at_end: AtEnd) -> pb::AtEnd {
    match at_end {
        AtEnd::Keep => pb::AtEnd::Keep,
        AtEnd::Cut => pb::AtEnd::Cut,
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
            at_end: Some(at_end(rule.at_end).into()),
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
            at_end: None,
        }
    }

    #[test]
    fn a_policy_survives_the_wire_and_lasts_three_hours_by_default() {
        let cut = pb::PortRule {
            at_end: Some(pb::AtEnd::Cut.into()),
            ..rule(5985, &["*"])
        };
        let sent = vec![
            rule(22, &["*"]),
            rule(3389, &["192.0.2.0/24", "2001:db8::/64"]),
            cut,
        ];
        let policy = read_rules("rules", sent).unwrap();
        let ends: Vec<AtEnd> = policy.rules().iter().map(|rule| rule.at_end).collect();
        assert_eq!(ends, [AtEnd::Keep, AtEnd::Keep, AtEnd::Cut]);
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
            (
                vec![pb::PortRule {
                    at_end: Some(0),
                    ..rule(22, &["*"])
                }],
                "rules[0].at_end",
            ),
        ] {
            assert_eq!(read_rules("rules", rules).unwrap_err().field, field);
        }
    }
}
