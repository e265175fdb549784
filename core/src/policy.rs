//! Policies: what may be asked for on a machine, and the decision on a request.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use crate::ceiling::{Ceiling, HostCeiling};
use crate::grant::{MOST_OPENINGS, MOST_PARTS};
use crate::id::MachineName;
use crate::port::{PortKey, PortPattern, PortSpan, Protocol};
use crate::prefix::Prefix;
use crate::request::{AccessRequest, Approval, Denial, DenialReason, Span};
use crate::time::Timestamp;

mod machine_policy;
mod rule;

pub use machine_policy::{LONGEST_POLICY, MachinePolicy, PAYLOAD_TYPE, PolicyRejected, VerifiedPolicy};
pub use rule::{AllowedSources, PortRule};

/// The most guarded keys (port and protocol) of a machine.
pub const MOST_GUARDED: usize = 1024;

/// Why rules make no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    #[error("the longest request is {0}: write PT5M to PT24H, in whole seconds")]
    Limit(String),
    #[error("no source is allowed: name prefixes or write *")]
    NoSources,
    #[error("{0} sources are named, at most {most} are taken", most = PortRule::MOST_SOURCES)]
    TooManySources(usize),
    #[error("a policy has at least one rule: delete the policy to stop guarding")]
    NoRules,
    #[error("the rules for {first} and {second} overlap: a port belongs to one rule only")]
    Overlap { first: String, second: String },
    #[error("{0} ports are guarded, at most {MOST_GUARDED} are taken")]
    TooManyPorts(usize),
}

/// What may be asked for on a machine. Its ports are guarded there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<PortRule>,
}

impl Policy {
    /// # Errors
    /// No rule, rules that overlap, more than [`MOST_GUARDED`] port keys.
    pub fn new(rules: Vec<PortRule>) -> Result<Self, InvalidPolicy> {
        if rules.is_empty() {
            return Err(InvalidPolicy::NoRules);
        }
        for (position, rule) in rules.iter().enumerate() {
            if let Some(other) = rules.iter().take(position).find(|other| other.overlaps(rule)) {
                let name = |rule: &PortRule| format!("{}/{}", rule.range, rule.protocols);
                return Err(InvalidPolicy::Overlap {
                    first: name(other),
                    second: name(rule),
                });
            }
        }
        let policy = Self { rules };
        match policy.guarded().map(|span| span.keys().count()).sum() {
            count if count > MOST_GUARDED => Err(InvalidPolicy::TooManyPorts(count)),
            _ => Ok(policy),
        }
    }

    pub fn rules(&self) -> &[PortRule] {
        &self.rules
    }

    /// The ports that are shut where this policy is in force.
    pub fn guarded(&self) -> impl Iterator<Item = PortSpan> {
        self.rules.iter().flat_map(PortRule::spans)
    }

    /// Decides on a request. `ceiling` is the host's own, so that what the host would refuse is refused here
    /// already, with the same reason.
    ///
    /// # Errors
    /// The first thing that the policy or the ceiling doesn't allow, by field.
    pub fn decide(
        &self,
        request: AccessRequest,
        ceiling: HostCeiling<'_>,
        now: Timestamp,
    ) -> Result<Approval, Denial> {
        let ceiling = match ceiling {
            HostCeiling::Known(ceiling) => Some(ceiling),
            HostCeiling::Unheard => None,
            HostCeiling::Missing => return Err(denial("machine", DenialReason::NoCeiling)),
        };
        let length = check_form(&request, now)?;
        let ports = self.ports_allowed(&request, length, ceiling)?;
        if let Some(ceiling) = ceiling {
            check_ceiling(ceiling, &request, length)?;
        }
        let sources: Vec<Prefix> = BTreeSet::from_iter(request.sources).into_iter().collect();
        let keys: usize = ports.iter().map(|span| span.keys().count()).sum();
        if ports.len() > MOST_PARTS {
            return Err(denial("ports", DenialReason::TooManyParts));
        }
        if sources.len().saturating_mul(keys) > MOST_OPENINGS {
            return Err(denial("ports", DenialReason::TooManyOpenings));
        }
        Ok(Approval {
            request: request.id,
            machine: request.machine,
            subject: request.subject,
            ports,
            sources,
            span: request.span,
        })
    }

    /// What is asked for, in order and without repetition, where rules and ceiling have all of it.
    fn ports_allowed(
        &self,
        request: &AccessRequest,
        length: Duration,
        ceiling: Option<&Ceiling>,
    ) -> Result<Vec<PortSpan>, Denial> {
        let rules = self.by_key();
        let mut ports = BTreeSet::new();
        for (position, wish) in request.ports.iter().enumerate() {
            let field = format!("ports[{position}]");
            for span in self
                .spans_wished(wish, &rules)
                .map_err(|reason| denial(&field, reason))?
            {
                // The policy first: what it doesn't have is no fault of the host's ceiling.
                let in_policy = |key| {
                    rules.get(&key).ok_or_else(|| {
                        denial(&field, DenialReason::PortNotInPolicy(key, self.ports_in_words()))
                    })
                };
                let by_rule = span.keys().map(|key| Ok((key, in_policy(key)?)));
                let by_rule = by_rule.collect::<Result<Vec<_>, Denial>>()?;
                if let Some(ceiling) = ceiling {
                    ceiling
                        .check_ports(span)
                        .map_err(|exceeded| denial(&field, exceeded.into()))?;
                }
                for (key, rule) in by_rule {
                    check_rule(rule, key, request, length)?;
                }
                ports.insert(span);
            }
        }
        Ok(ports.into_iter().collect())
    }

    fn by_key(&self) -> BTreeMap<PortKey, &PortRule> {
        self.rules
            .iter()
            .flat_map(|rule| {
                rule.spans()
                    .flat_map(move |span| span.keys().map(move |key| (key, rule)))
            })
            .collect()
    }

    /// A wish without a protocol means those protocols that the policy has for all its ports.
    fn spans_wished(
        &self,
        wish: &PortPattern,
        rules: &BTreeMap<PortKey, &PortRule>,
    ) -> Result<Vec<PortSpan>, DenialReason> {
        if wish.protocols.is_some() {
            return Ok(wish.spans().collect());
        }
        let known = |port: u16, protocol: Protocol| rules.contains_key(&PortKey { protocol, port });
        let spans: Vec<PortSpan> = wish
            .spans()
            .filter(|span| span.range.each().any(|port| known(port, span.protocol)))
            .collect();
        if spans.is_empty() {
            Err(DenialReason::PortUnknown(
                wish.range.first(),
                self.ports_in_words(),
            ))
        } else {
            Ok(spans)
        }
    }

    fn ports_in_words(&self) -> String {
        let texts: Vec<String> = self
            .rules
            .iter()
            .map(|rule| format!("{}/{}", rule.range, rule.protocols))
            .collect();
        texts.join(", ")
    }
}

/// Without a policy nothing may be asked for.
pub fn deny_without_policy(machine: MachineName) -> Denial {
    denial("machine", DenialReason::NoPolicy(machine))
}

/// Whether it asks for anything, and for how long.
fn check_form(request: &AccessRequest, now: Timestamp) -> Result<Duration, Denial> {
    for (field, count, none) in [
        ("ports", request.ports.len(), DenialReason::NoPorts),
        ("sources", request.sources.len(), DenialReason::NoSources),
    ] {
        match count {
            0 => return Err(denial(field, none)),
            1..=MOST_PARTS => {}
            _ => return Err(denial(field, DenialReason::TooManyParts)),
        }
    }
    check_senders(&request.sources)?;
    let length = request.span.length(now);
    if let Span::Until(end) = request.span
        && end <= now
    {
        return Err(denial("end_time", DenialReason::EndPassed(end)));
    }
    if length < Duration::from_secs(1) {
        return Err(denial(span_field(request.span), DenialReason::TooShort));
    }
    Ok(length)
}

fn check_ceiling(ceiling: &Ceiling, request: &AccessRequest, length: Duration) -> Result<(), Denial> {
    for (position, source) in request.sources.iter().enumerate() {
        let field = format!("sources[{position}]");
        ceiling
            .check_source(*source)
            .map_err(|exceeded| denial(&field, exceeded.into()))?;
    }
    let field = span_field(request.span);
    ceiling
        .check_length(length)
        .map_err(|exceeded| denial(field, exceeded.into()))
}

fn check_senders(sources: &[Prefix]) -> Result<(), Denial> {
    let seen = sources.iter().enumerate();
    // Whoever calls from the server's own host is seen at its loopback.
    let impossible = seen.filter(|(_, source)| !source.can_send());
    check_given(impossible.map(|(position, source)| (position, *source)))
}

/// What somebody gives as sources, each with its position, must be where somebody can be.
///
/// # Errors
/// The first that is not.
pub fn check_given(sources: impl IntoIterator<Item = (usize, Prefix)>) -> Result<(), Denial> {
    sources.into_iter().try_for_each(|(position, source)| {
        let nobody = |nobody| {
            denial(
                &format!("sources[{position}]"),
                DenialReason::SourceCannotSend(nobody),
            )
        };
        source.given().map(drop).map_err(nobody)
    })
}

fn check_rule(
    rule: &PortRule,
    key: PortKey,
    request: &AccessRequest,
    length: Duration,
) -> Result<(), Denial> {
    for (position, source) in request.sources.iter().enumerate() {
        if !rule.sources.allow(*source) {
            let reason = DenialReason::SourceNotAllowed {
                source_: *source,
                port: key,
                allowed: rule.sources.to_string(),
            };
            return Err(denial(&format!("sources[{position}]"), reason));
        }
    }
    if length > rule.longest() {
        let reason = DenialReason::TooLong {
            asked: length,
            longest: rule.longest(),
            port: key,
        };
        return Err(denial(span_field(request.span), reason));
    }
    Ok(())
}

const fn span_field(span: Span) -> &'static str {
    match span {
        Span::For(_) => "duration",
        Span::Until(_) => "end_time",
    }
}

fn denial(field: &str, reason: DenialReason) -> Denial {
    Denial {
        field: field.to_string(),
        reason,
    }
}
