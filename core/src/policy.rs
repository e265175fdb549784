//! Policies: what may be asked for on a machine, and the decision on a request.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ceiling::HostCeiling;
use crate::grant::{MOST_OPENINGS, MOST_PARTS, Version1};
use crate::id::{MachineId, MachineName};
use crate::keys::VerifiedKeys;
use crate::port::{PortKey, PortPattern, PortRange, PortSpan, Protocol, Protocols};
use crate::prefix::Prefix;
use crate::request::{AccessRequest, Approval, Denial, DenialReason, Span};
use crate::signing::{self, EnvelopeRejected, SigningKey};
use crate::time::{Timestamp, format_iso8601};

/// The most guarded keys (port and protocol) of a machine.
pub const MOST_GUARDED: usize = 1024;

/// The sources that may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedSources {
    /// `*`
    Any,
    Only(Vec<Prefix>),
}

impl AllowedSources {
    fn allow(&self, source: Prefix) -> bool {
        match self {
            Self::Any => true,
            Self::Only(allowed) => allowed.iter().any(|prefix| prefix.covers(source)),
        }
    }
}

impl fmt::Display for AllowedSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Only(allowed) => {
                let texts: Vec<String> = allowed.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(", "))
            }
        }
    }
}

/// What may be asked for on one port or range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRule {
    pub range: PortRange,
    pub protocols: Protocols,
    pub sources: AllowedSources,
    longest: Duration,
}

impl PortRule {
    /// The least that a rule's longest request may be.
    pub const SHORTEST_LIMIT: Duration = Duration::from_secs(5 * 60);
    /// The most that a rule's longest request may be.
    pub const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 3600);
    /// The longest request where the rule doesn't say.
    pub const DEFAULT_LIMIT: Duration = Duration::from_secs(3 * 3600);
    /// The most allowed prefixes of one rule.
    pub const MOST_SOURCES: usize = 256;

    /// `longest` is the longest request, five minutes to 24 hours.
    ///
    /// # Errors
    /// A limit outside these bounds, an empty or too long list of sources.
    pub fn new(
        range: PortRange,
        protocols: Protocols,
        sources: AllowedSources,
        longest: Duration,
    ) -> Result<Self, InvalidPolicy> {
        if !(Self::SHORTEST_LIMIT..=Self::LONGEST_LIMIT).contains(&longest) || longest.subsec_nanos() != 0 {
            return Err(InvalidPolicy::Limit(format_iso8601(longest)));
        }
        match &sources {
            AllowedSources::Only(allowed) if allowed.is_empty() => Err(InvalidPolicy::NoSources),
            AllowedSources::Only(allowed) if allowed.len() > Self::MOST_SOURCES => {
                Err(InvalidPolicy::TooManySources(allowed.len()))
            }
            AllowedSources::Any | AllowedSources::Only(_) => Ok(Self {
                range,
                protocols,
                sources,
                longest,
            }),
        }
    }

    pub const fn longest(&self) -> Duration {
        self.longest
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.range.overlaps(other.range)
            && self
                .protocols
                .each()
                .iter()
                .any(|protocol| other.protocols.contains(*protocol))
    }

    fn spans(&self) -> impl Iterator<Item = PortSpan> {
        self.protocols.each().iter().map(|&protocol| PortSpan {
            protocol,
            range: self.range,
        })
    }
}

impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            range,
            protocols,
            sources,
            longest,
        } = self;
        write!(
            f,
            "{range}/{protocols} from {sources} max {}",
            format_iso8601(*longest)
        )
    }
}

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
                    check_rule(rule, key, &request, length)?;
                }
                ports.insert(span);
            }
        }
        if let Some(ceiling) = ceiling {
            for (position, source) in request.sources.iter().enumerate() {
                let field = format!("sources[{position}]");
                ceiling
                    .check_source(*source)
                    .map_err(|exceeded| denial(&field, exceeded.into()))?;
            }
            let field = span_field(request.span);
            ceiling
                .check_length(length)
                .map_err(|exceeded| denial(field, exceeded.into()))?;
        }

        let ports: Vec<PortSpan> = ports.into_iter().collect();
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

fn check_senders(sources: &[Prefix]) -> Result<(), Denial> {
    let mut sources = sources.iter().enumerate();
    match sources.find(|(_, source)| !source.can_send()) {
        None => Ok(()),
        Some((position, source)) => Err(denial(
            &format!("sources[{position}]"),
            DenialReason::SourceCannotSend(*source),
        )),
    }
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
    if length > rule.longest {
        let reason = DenialReason::TooLong {
            asked: length,
            longest: rule.longest,
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

/// The payload type in a machine policy's DSSE envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.nightlatch.policy.v1+json";

/// The longest policy envelope, in bytes: room for [`MOST_GUARDED`] ports that don't neighbour one another.
pub const LONGEST_POLICY: usize = 96 * 1024;

/// The host's part of a policy: what it guards. Signed like a grant, so that a thief without the key can't
/// unguard a port. No ports: the machine has no policy (any more).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePolicy {
    version: Version1,
    pub machine: MachineId,
    pub epoch: u64,
    /// Rises with each change; a host refuses a lower one.
    pub number: u64,
    pub guarded: Vec<PortSpan>,
    pub issued_at: Timestamp,
}

impl MachinePolicy {
    pub fn new(
        machine: MachineId,
        epoch: u64,
        number: u64,
        policy: Option<&Policy>,
        issued_at: Timestamp,
    ) -> Self {
        let guarded = policy
            .map(|policy| policy.guarded().collect())
            .unwrap_or_default();
        Self {
            version: Version1,
            machine,
            epoch,
            number,
            guarded,
            issued_at,
        }
    }

    /// Signs it and gives the envelope's bytes.
    pub fn seal(&self, key: &SigningKey) -> Vec<u8> {
        key.seal(PAYLOAD_TYPE, &serde_json::to_vec(self).unwrap_or_default())
    }
}

/// Why a host does not take a machine policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRejected {
    #[error(transparent)]
    Envelope(#[from] EnvelopeRejected),
    #[error("the policy is for the machine {0}, not for this one")]
    OtherMachine(MachineId),
    #[error("the policy has number {offered} of epoch {epoch}, the host already has a later one")]
    Older { epoch: u64, offered: u64 },
    #[error("the policy guards {0} ports, at most {MOST_GUARDED} are taken")]
    TooManyPorts(usize),
}

impl PolicyRejected {
    /// The stable code that events and logs carry.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Envelope(rejected) => rejected.code(),
            Self::OtherMachine(_) => "OTHER_MACHINE",
            Self::Older { .. } => "POLICY_OLDER",
            Self::TooManyPorts(_) => "TOO_MANY_PORTS",
        }
    }
}

/// A machine policy that this host may follow, with the bytes that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPolicy {
    policy: MachinePolicy,
    envelope: Vec<u8>,
}

impl VerifiedPolicy {
    /// # Errors
    /// The first thing that speaks against it; its age against what the host has is the ledger's to judge.
    pub fn verify(envelope: &[u8], keys: &VerifiedKeys, machine: MachineId) -> Result<Self, PolicyRejected> {
        let policy: MachinePolicy =
            signing::open_json(envelope, PAYLOAD_TYPE, LONGEST_POLICY, |id| keys.key(id))?;
        let count = policy.guarded.iter().map(|span| span.keys().count()).sum();
        if policy.machine != machine {
            Err(PolicyRejected::OtherMachine(policy.machine))
        } else if count > MOST_GUARDED {
            Err(PolicyRejected::TooManyPorts(count))
        } else {
            Ok(Self {
                policy,
                envelope: envelope.to_vec(),
            })
        }
    }

    pub const fn policy(&self) -> &MachinePolicy {
        &self.policy
    }

    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    /// Which of two is later: (epoch, number).
    pub const fn rank(&self) -> (u64, u64) {
        (self.policy.epoch, self.policy.number)
    }
}
