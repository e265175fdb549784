//! What a change of a machine's policy means there, beyond what it says.

use std::collections::BTreeSet;
use std::fmt;

use nightlatch_core::policy::{AllowedSources, Policy, PortRule};
use nightlatch_core::port::{PortKey, PortPattern, Protocol};
use nightlatch_core::prefix::{Family, Prefix};
use nightlatch_core::time::{format_iso8601, parse_iso8601};
use serde::Serialize;

use crate::client::Client;
use crate::client::calls::GrantFilter;
use crate::failure::Failure;
use crate::naming::MachineRef;
use crate::output;
use crate::record::{CeilingRecord, GrantRecord, MachineRecord, MachineState, PolicyRecord};

/// As many grants are named in one line for people.
const MOST_NAMED: usize = 5;

/// What holds before a change.
pub(crate) struct Before {
    guarded: BTreeSet<PortKey>,
}

impl Before {
    /// # Errors
    /// Whatever keeps the policy from being read, but that there is none.
    pub(crate) async fn read(client: &Client, machine: &MachineRef) -> Result<Self, Failure> {
        match client.policy(machine).await {
            Ok(PolicyRecord { rules, .. }) => Ok(Self {
                guarded: keys(rules.iter().map(|rule| rule.port.as_str())),
            }),
            Err(Failure::Refused(refusal)) if refusal.is_without_policy() => Ok(Self {
                guarded: BTreeSet::new(),
            }),
            Err(failure) => Err(failure),
        }
    }
}

/// What a changed policy leads to.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Consequences {
    /// Ports that nothing guards any more.
    pub(crate) unguarded: Vec<String>,
    /// Ports that are shut, and that the host opens to nobody.
    pub(crate) beyond_ceiling: Vec<String>,
    /// What the policy allows and the host never grants in full.
    pub(crate) curbed: Vec<Curb>,
    /// Live grants for more than may be asked for now: they run to their ends.
    pub(crate) running_on: Vec<String>,
    /// UDP ports that nothing guarded before: flows that are open there may be cut.
    pub(crate) udp_cut: Vec<String>,
}

/// A part of a rule that goes beyond the host's ceiling.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Curb {
    pub(crate) port: String,
    /// `PT8H`, or `192.0.2.0/24`
    pub(crate) allowed: String,
    /// `PT1H`, or `/32`
    pub(crate) ceiling: String,
}

impl fmt::Display for Curb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            port,
            allowed,
            ceiling,
        } = self;
        if ceiling.starts_with('/') {
            write!(f, "{port} from {allowed} (no wider than {ceiling})")
        } else {
            write!(f, "{port} for {allowed} (no longer than {ceiling})")
        }
    }
}

impl Consequences {
    pub(crate) fn of(
        before: &Before,
        policy: Option<&Policy>,
        at: &MachineRecord,
        live: &[GrantRecord],
    ) -> Self {
        let guarded = policy.map(policy_keys).unwrap_or_default();
        let by_host = keys(at.host_guarded.iter().map(String::as_str));
        let is_known = at.ceiling.is_some() || at.last_seen_time.is_some();
        let allowed = keys(
            at.ceiling
                .iter()
                .flat_map(|ceiling| &ceiling.ports)
                .map(String::as_str),
        );
        let left: BTreeSet<PortKey> = before.guarded.difference(&guarded).copied().collect();
        let shut: BTreeSet<PortKey> = guarded.difference(&allowed).copied().collect();
        let newly: BTreeSet<PortKey> = guarded.difference(&before.guarded).copied().collect();
        let newly = newly
            .difference(&by_host)
            .filter(|key| key.protocol == Protocol::Udp);
        let running_on = live
            .iter()
            .filter(|grant| policy.is_some_and(|policy| !allows(policy, grant)));
        Self {
            unguarded: in_words(left.difference(&by_host)),
            beyond_ceiling: if is_known {
                in_words(shut.iter())
            } else {
                Vec::new()
            },
            curbed: policy
                .zip(at.ceiling.as_ref())
                .map(|(policy, ceiling)| curbs(policy, ceiling, &allowed))
                .unwrap_or_default(),
            running_on: running_on.map(|grant| grant.id.clone()).collect(),
            udp_cut: in_words(newly),
        }
    }

    /// On standard error, where the result itself is no place for it.
    pub(crate) fn tell(&self, at: &MachineRecord) {
        let MachineRecord { machine, state, .. } = at;
        let from = match state {
            MachineState::Connected => "now",
            MachineState::Away => "as soon as it connects",
        };
        if !self.unguarded.is_empty() {
            output::warn(format_args!(
                "on {machine} {from} nothing guards {}: neither the policy nor the host's own file lists it",
                self.unguarded.join(", ")
            ));
        }
        if !self.beyond_ceiling.is_empty() {
            output::warn(format_args!(
                "{} is shut on {machine}, and nobody can be let in: the host's ceiling does not allow it",
                self.beyond_ceiling.join(", ")
            ));
            output::hint(
                "the host's administrator lists the port under [ceiling] in its agent.toml, or take it out of the policy",
            );
        }
        if !self.curbed.is_empty() {
            let curbed: Vec<String> = self.curbed.iter().map(ToString::to_string).collect();
            output::warn(format_args!(
                "on {machine} the host's ceiling refuses a part of what the policy allows: {}",
                some_of(&curbed)
            ));
            output::hint(
                "the host's administrator raises it under [ceiling] in its agent.toml, or ask for less",
            );
        }
        if !self.udp_cut.is_empty() {
            output::warn(format_args!(
                "a UDP flow to {} that is open on {machine} is cut {from}, unless {machine} itself sends next in it: \
                 UDP has no mark by which a flow could be told from a new one",
                self.udp_cut.join(", ")
            ));
            output::hint(
                "open TCP connections go on; a UDP flow goes on as well if its source is among the trusted_sources of \
                 the host's agent.toml",
            );
        }
        if !self.running_on.is_empty() {
            output::warn(format_args!(
                "what the policy no longer allows runs on to its end: {}",
                some_of(&self.running_on)
            ));
            output::hint("`nightlatch revoke GRANT` ends one at once");
        }
    }
}

/// The grants that a machine holds, newest first.
pub(crate) async fn live(client: &Client, machine: &MachineRef) -> Result<Vec<GrantRecord>, Failure> {
    let filter = GrantFilter {
        machine: Some(machine.clone()),
        live_only: true,
        own_only: false,
    };
    Ok(client.grants(&filter, usize::MAX).await?.items)
}

pub(crate) fn some_of(ids: &[String]) -> String {
    let named: Vec<&str> = ids.iter().take(MOST_NAMED).map(String::as_str).collect();
    let named = named.join(", ");
    match ids.len().saturating_sub(MOST_NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Of ports that the ceiling lists at all. Where any source may be asked for, none is that wide by itself.
fn curbs(policy: &Policy, ceiling: &CeilingRecord, listed: &BTreeSet<PortKey>) -> Vec<Curb> {
    let longest = parse_iso8601(&ceiling.longest).ok();
    let mut curbs = Vec::new();
    for rule in policy.rules() {
        let is_in = |key: &PortKey| rule.range.contains(key.port) && rule.protocols.contains(key.protocol);
        if !listed.iter().any(is_in) {
            continue;
        }
        let curb = |allowed, ceiling| Curb {
            port: format!("{}/{}", rule.range, rule.protocols),
            allowed,
            ceiling,
        };
        if longest.is_some_and(|longest| longest < rule.longest()) {
            curbs.push(curb(format_iso8601(rule.longest()), ceiling.longest.clone()));
        }
        let named = match &rule.sources {
            AllowedSources::Any => &[][..],
            AllowedSources::Only(several) => several,
        };
        for source in named {
            let widest = match source.family() {
                Family::Ipv4 => ceiling.widest_ipv4,
                Family::Ipv6 => ceiling.widest_ipv6,
            };
            if u32::from(source.length()) < widest {
                curbs.push(curb(source.to_string(), format!("/{widest}")));
            }
        }
    }
    curbs
}

fn allows(policy: &Policy, grant: &GrantRecord) -> bool {
    let wanted = keys(grant.ports.iter().map(String::as_str));
    let sources: Vec<Prefix> = grant
        .sources
        .iter()
        .filter_map(|source| source.parse().ok())
        .collect();
    let by = |rule: &PortRule, key: &PortKey| {
        rule.range.contains(key.port)
            && rule.protocols.contains(key.protocol)
            && sources.iter().all(|source| covers(&rule.sources, *source))
    };
    wanted
        .iter()
        .all(|key| policy.rules().iter().any(|rule| by(rule, key)))
}

fn covers(allowed: &AllowedSources, source: Prefix) -> bool {
    match allowed {
        AllowedSources::Any => true,
        AllowedSources::Only(several) => several.iter().any(|prefix| prefix.covers(source)),
    }
}

fn policy_keys(policy: &Policy) -> BTreeSet<PortKey> {
    policy.guarded().flat_map(|span| span.keys()).collect()
}

fn keys<'t>(ports: impl Iterator<Item = &'t str>) -> BTreeSet<PortKey> {
    ports
        .filter_map(|text| text.parse::<PortPattern>().ok())
        .flat_map(PortPattern::spans)
        .flat_map(|span| span.keys().collect::<Vec<_>>())
        .collect()
}

/// Neighbours as ranges: `22/tcp`, `8000-8010/udp`.
fn in_words<'k>(keys: impl Iterator<Item = &'k PortKey>) -> Vec<String> {
    let mut spans: Vec<(PortKey, u16)> = Vec::new();
    for key in keys {
        match spans.last_mut() {
            Some((first, last))
                if first.protocol == key.protocol && last.checked_add(1) == Some(key.port) =>
            {
                *last = key.port;
            }
            _ => spans.push((*key, key.port)),
        }
    }
    spans
        .into_iter()
        .map(|(PortKey { protocol, port }, last)| {
            if port == last {
                format!("{port}/{protocol}")
            } else {
                format!("{port}-{last}/{protocol}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy_file::parse_rule;
    use crate::record::GrantState;

    fn policy(rules: &[&str]) -> Policy {
        Policy::new(rules.iter().map(|rule| parse_rule(rule).unwrap()).collect()).unwrap()
    }

    fn before(ports: &[&str]) -> Before {
        Before {
            guarded: keys(ports.iter().copied()),
        }
    }

    fn host(guarded: &[&str], ceiling: &[&str]) -> MachineRecord {
        let texts = |of: &[&str]| of.iter().map(ToString::to_string).collect();
        MachineRecord {
            host_guarded: texts(guarded),
            ceiling: Some(CeilingRecord {
                ports: texts(ceiling),
                longest: String::new(),
                max_ahead: String::new(),
                widest_ipv4: 32,
                widest_ipv6: 128,
            }),
            ..MachineRecord::example("web-1")
        }
    }

    fn grant(id: &str, port: &str, source: &str) -> GrantRecord {
        GrantRecord {
            ports: vec![port.to_string()],
            sources: vec![source.to_string()],
            ..GrantRecord::example(id, GrantState::Open)
        }
    }

    #[test]
    fn what_neither_policy_nor_host_guards_any_more_is_named() {
        let before = before(&["22/tcp", "3389/*", "8000-8003/tcp"]);
        let host = host(&["3389/udp"], &["22", "8000-8003"]);
        let told = Consequences::of(&before, Some(&policy(&["8001/tcp"])), &host, &[]);
        assert_eq!(
            told.unguarded,
            ["22/tcp", "3389/tcp", "8000/tcp", "8002-8003/tcp"]
        );
        let deleted = Consequences::of(&before, None, &host, &[]);
        assert!(
            deleted.unguarded.contains(&"8000-8003/tcp".to_string()),
            "{deleted:?}"
        );
    }

    #[test]
    fn what_the_host_opens_to_nobody_is_named() {
        let told = Consequences::of(
            &before(&[]),
            Some(&policy(&["22/*", "9200/tcp"])),
            &host(&[], &["22/tcp"]),
            &[],
        );
        assert_eq!(told.beyond_ceiling, ["9200/tcp", "22/udp"]);
        let without = MachineRecord::example("web-1");
        assert_eq!(
            Consequences::of(&before(&[]), Some(&policy(&["22/tcp"])), &without, &[]),
            Consequences::default()
        );
    }

    #[test]
    fn what_the_host_never_grants_in_full_is_named_with_its_limit() {
        let mut host = host(&[], &["22/tcp", "23/tcp"]);
        let ceiling = host.ceiling.as_mut().unwrap();
        ceiling.longest = "PT1H".to_string();
        (ceiling.widest_ipv4, ceiling.widest_ipv6) = (24, 64);
        let rules = [
            "22/tcp,from=192.0.2.0/24,from=10.0.0.0/8,from=2001:db8::/48,max=PT2H",
            "23/tcp,max=PT1H",
            "9200/tcp",
        ];
        let told = Consequences::of(&before(&[]), Some(&policy(&rules)), &host, &[]);
        let told: Vec<String> = told.curbed.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "22/tcp for PT2H (no longer than PT1H)",
                "22/tcp from 10.0.0.0/8 (no wider than /24)",
                "22/tcp from 2001:db8::/48 (no wider than /64)"
            ]
        );
    }

    #[test]
    fn udp_ports_are_named_where_flows_may_be_cut() {
        let (guarded, on_host) = (before(&["53/udp"]), host(&["161/udp"], &["1-200"]));
        let told = |rules: &[&str]| Consequences::of(&guarded, Some(&policy(rules)), &on_host, &[]).udp_cut;
        assert_eq!(told(&["22/*", "123/udp", "23/tcp"]), ["22/udp", "123/udp"]);
        assert!(told(&["53/*", "161/udp", "22/tcp"]).is_empty());
        assert!(Consequences::of(&guarded, None, &on_host, &[]).udp_cut.is_empty());
    }

    #[test]
    fn grants_for_more_than_the_policy_allows_now_are_named() {
        let live = [
            grant("kept", "22/tcp", "192.0.2.7/32"),
            grant("elsewhere", "22/tcp", "198.51.100.7/32"),
            grant("other", "23/tcp", "192.0.2.7/32"),
        ];
        let narrowed = policy(&["22/tcp,from=192.0.2.0/24"]);
        let told = Consequences::of(
            &before(&["22/tcp"]),
            Some(&narrowed),
            &host(&[], &["22-23"]),
            &live,
        );
        assert_eq!(told.running_on, ["elsewhere", "other"]);
        let many: Vec<String> = (0..7).map(|number| number.to_string()).collect();
        assert_eq!(some_of(&many), "0, 1, 2, 3, 4 and 2 more");
    }
}
