//! The table `inet nightlatch` as a plain value: sets, chains and rules, with no word of netlink or JSON.
//!
//! Packets meet the same gate twice: before address translation and fragments are undone, and again
//! right before a local socket. Only connection attempts can be refused there, never an open session.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nightlatch_core::port::Protocol;
use nightlatch_core::prefix::Family;
use nightlatch_core::ruleset::Ruleset;

use super::set::{Key, SHORTEST, SetName, Value};

/// Our only table, of family `inet`.
pub(crate) const TABLE: &str = "nightlatch";
/// The counter of refused connection attempts.
pub(crate) const DENIED: &str = "denied";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChainName {
    Prerouting,
    Input,
    Output,
    Gate,
    FirstFragment,
    Granted,
    Outbound,
}

impl ChainName {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Output => "output",
            Self::Gate => "gate",
            Self::FirstFragment => "first_fragment",
            Self::Granted => "granted",
            Self::Outbound => "outbound",
        }
    }

    /// Where packets enter it; `None` for one that only rules jump to.
    pub(crate) const fn hook(self) -> Option<Hook> {
        match self {
            Self::Prerouting => Some(Hook {
                point: HookPoint::Prerouting,
                priority: RAW,
            }),
            Self::Input => Some(Hook {
                point: HookPoint::Input,
                priority: RAW,
            }),
            Self::Output => Some(Hook {
                point: HookPoint::Output,
                priority: AFTER_NAT,
            }),
            Self::Gate | Self::FirstFragment | Self::Granted | Self::Outbound => None,
        }
    }
}

/// Before destination NAT, so that a port is judged by the number the client asked for.
const RAW: i32 = -300;
/// After destination NAT and the host's own filters: the peer recorded is the one that will answer.
const AFTER_NAT: i32 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) point: HookPoint,
    pub(crate) priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HookPoint {
    Prerouting,
    Input,
    Output,
}

/// A field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// Cut to a prefix length.
    Source(Family, u8),
    Destination(Family),
    Protocol,
    SourcePort,
    DestinationPort,
}

/// A step of a rule: a condition, or what is done if all before it held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    ArrivesByLoopback,
    LeavesByLoopback,
    ArrivesByOneOf(SetName),
    IsFamily(Family),
    IsProtocol(Protocol),
    /// The first of the IPv6 fragments of a packet, or its only one.
    IsFirstFragment,
    /// The transport header begins in this packet, and its ports can be read.
    HasPorts,
    /// Anything but a packet that is only passing through: local, broadcast, multicast, anycast, unknown.
    IsNotRoutedOn,
    /// TCP that answers or refuses; an attempt carries neither bit.
    HasAckOrRst,
    IsIn(SetName, Vec<Field>),
    /// Fails, as a condition does, when the set is full.
    Remember(SetName, Vec<Field>, Duration),
    CountDenied,
    Accept,
    Drop,
    Jump(ChainName),
    Goto(ChainName),
}

pub(crate) type Rule = Vec<Step>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: ChainName,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: SetName,
    /// Those that stay as long as the set; openings are written on their own.
    pub(crate) fixed: Vec<Key>,
}

/// All of the table but the openings in its sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

impl Table {
    /// The table that lets through what `ruleset` allows, openings aside.
    pub(crate) fn of(ruleset: &Ruleset) -> Self {
        Self::with_lengths(ruleset, &ruleset.prefix_lengths())
    }

    /// The same with sets for these prefix lengths, which may be more than are in use.
    pub(crate) fn with_lengths(ruleset: &Ruleset, lengths: &BTreeSet<(Family, u8)>) -> Self {
        let has_udp = ruleset.guarded().iter().any(|key| key.protocol == Protocol::Udp);
        let interfaces = interfaces(ruleset);

        let mut sets = vec![Set {
            name: SetName::Guarded,
            fixed: guarded(ruleset),
        }];
        if !interfaces.is_empty() {
            sets.push(Set {
                name: SetName::UnguardedInterfaces,
                fixed: interfaces,
            });
        }
        let open = lengths
            .iter()
            .map(|&(family, length)| SetName::Open(family, length));
        let learning = FAMILIES
            .into_iter()
            .flat_map(|family| {
                [
                    SetName::Flows(family),
                    SetName::Own(family),
                    SetName::Served(family),
                ]
            })
            .filter(|set| has_udp && set.memory(ruleset.udp_grace()) >= SHORTEST);
        sets.extend(open.chain(learning).map(|name| Set {
            name,
            fixed: Vec::new(),
        }));

        let mut chains = vec![
            Chain {
                name: ChainName::Prerouting,
                rules: vec![vec![
                    to_guarded(),
                    Step::IsNotRoutedOn,
                    Step::Jump(ChainName::Gate),
                ]],
            },
            // Local sockets are also reached by other routing tables, transparent proxies and redirects.
            Chain {
                name: ChainName::Input,
                rules: vec![
                    vec![to_guarded(), Step::Jump(ChainName::Gate)],
                    // Only IPv6 comes here in fragments; put together, it reaches the socket past this table.
                    vec![
                        Step::IsFamily(Family::Ipv6),
                        Step::IsFirstFragment,
                        Step::Jump(ChainName::FirstFragment),
                    ],
                ],
            },
            Chain {
                name: ChainName::Gate,
                rules: gate(&sets, has_udp),
            },
            // A chain of headers that goes on in the next fragment hides the port (forbidden by RFC 7112).
            Chain {
                name: ChainName::FirstFragment,
                rules: first_fragment(&sets),
            },
        ];
        if has_udp {
            chains.push(Chain {
                name: ChainName::Granted,
                rules: granted(ruleset.udp_grace()),
            });
            chains.push(Chain {
                name: ChainName::Output,
                rules: vec![
                    vec![Step::LeavesByLoopback, Step::Accept],
                    vec![
                        Step::IsProtocol(Protocol::Udp),
                        Step::IsIn(SetName::Guarded, vec![Field::Protocol, Field::SourcePort]),
                        Step::Goto(ChainName::Outbound),
                    ],
                ],
            });
            chains.push(Chain {
                name: ChainName::Outbound,
                rules: outbound(ruleset.udp_grace()),
            });
        }
        Self { sets, chains }
    }
}

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

fn guarded(ruleset: &Ruleset) -> Vec<Key> {
    ruleset
        .guarded()
        .iter()
        .map(|key| vec![Value::Protocol(key.protocol), Value::Port(key.port)])
        .collect()
}

/// A longer name can't exist, and cut short it would be the name of another interface (IFNAMSIZ).
fn interfaces(ruleset: &Ruleset) -> Vec<Key> {
    let possible = ruleset
        .unguarded_interfaces()
        .iter()
        .filter(|name| (1..16).contains(&name.len()));
    possible
        .map(|name| vec![Value::Interface(name.clone())])
        .collect()
}

fn to_guarded() -> Step {
    Step::IsIn(SetName::Guarded, vec![Field::Protocol, Field::DestinationPort])
}

fn gate(sets: &[Set], has_udp: bool) -> Vec<Rule> {
    let mut rules = vec![
        // A session that is open must never be cut here, whatever else is forgotten.
        vec![Step::IsProtocol(Protocol::Tcp), Step::HasAckOrRst, Step::Accept],
        vec![Step::ArrivesByLoopback, Step::Accept],
    ];
    for set in sets.iter().map(|set| set.name) {
        match set {
            SetName::UnguardedInterfaces => rules.push(vec![Step::ArrivesByOneOf(set), Step::Accept]),
            SetName::Open(family, length) => rules.push(lets_in(family, length, has_udp)),
            // These don't refresh what they match: else a client that keeps sending would never end.
            SetName::Flows(family) | SetName::Own(family) => rules.push(vec![
                Step::IsFamily(family),
                Step::IsProtocol(Protocol::Udp),
                Step::IsIn(set, inbound_flow(family)),
                Step::Accept,
            ]),
            SetName::Guarded | SetName::Served(_) => {}
        }
    }
    rules.push(vec![Step::CountDenied]);
    rules.push(vec![Step::Drop]);
    rules
}

/// The gate's rule for the openings of one prefix length.
pub(crate) fn lets_in(family: Family, length: u8, has_udp: bool) -> Rule {
    vec![
        Step::IsFamily(family),
        Step::IsIn(
            SetName::Open(family, length),
            vec![
                Field::Source(family, length),
                Field::Protocol,
                Field::DestinationPort,
            ],
        ),
        if has_udp {
            Step::Goto(ChainName::Granted)
        } else {
            Step::Accept
        },
    ]
}

fn first_fragment(sets: &[Set]) -> Vec<Rule> {
    let mut rules = vec![vec![Step::ArrivesByLoopback, Step::Accept]];
    if let Some(set) = sets.iter().find(|set| set.name == SetName::UnguardedInterfaces) {
        rules.push(vec![Step::ArrivesByOneOf(set.name), Step::Accept]);
    }
    rules.push(vec![Step::HasPorts, Step::Accept]);
    rules.push(vec![Step::CountDenied]);
    rules.push(vec![Step::Drop]);
    rules
}

fn granted(udp_grace: Duration) -> Vec<Rule> {
    let mut rules = vec![vec![Step::IsProtocol(Protocol::Tcp), Step::Accept]];
    for family in FAMILIES {
        if udp_grace >= SHORTEST {
            // In its own rule: while this set is full, a flow only loses its grace.
            let remember = remember(SetName::Flows(family), inbound_flow(family), udp_grace);
            rules.push(vec![Step::IsFamily(family), remember]);
        }
        let client = vec![Field::Source(family, family.bits()), Field::DestinationPort];
        let remember = remember(SetName::Served(family), client, udp_grace);
        rules.push(vec![Step::IsFamily(family), remember, Step::Accept]);
    }
    // A client that can't be remembered isn't let in: its answers would count as the host's own requests.
    rules.push(vec![Step::CountDenied]);
    rules.push(vec![Step::Drop]);
    rules
}

fn outbound(udp_grace: Duration) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        // An answer to a client is no request of the host, or a flow would outlive its grace by being answered.
        let client = vec![Field::Destination(family), Field::SourcePort];
        rules.push(vec![
            Step::IsFamily(family),
            Step::IsIn(SetName::Served(family), client.clone()),
            remember(SetName::Served(family), client, udp_grace),
            Step::Accept,
        ]);
        let answer = vec![
            Field::Destination(family),
            Field::DestinationPort,
            Field::SourcePort,
        ];
        rules.push(vec![
            Step::IsFamily(family),
            remember(SetName::Own(family), answer, udp_grace),
        ]);
    }
    rules
}

fn remember(set: SetName, key: Vec<Field>, udp_grace: Duration) -> Step {
    Step::Remember(set, key, set.memory(udp_grace))
}

fn inbound_flow(family: Family) -> Vec<Field> {
    vec![
        Field::Source(family, family.bits()),
        Field::SourcePort,
        Field::DestinationPort,
    ]
}

/// The mask of a prefix length.
pub(crate) fn mask(family: Family, length: u8) -> IpAddr {
    let bits =
        |width: u32, all: u128| all.checked_shl(width.saturating_sub(length.into())).unwrap_or(0) & all;
    match family {
        Family::Ipv4 => {
            let mask = bits(32, u32::MAX.into());
            Ipv4Addr::from(u32::try_from(mask).unwrap_or(u32::MAX)).into()
        }
        Family::Ipv6 => Ipv6Addr::from(bits(128, u128::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_hold_the_first_bits() {
        for (family, length, says) in [
            (Family::Ipv4, 0, "0.0.0.0"),
            (Family::Ipv4, 1, "128.0.0.0"),
            (Family::Ipv4, 23, "255.255.254.0"),
            (Family::Ipv4, 32, "255.255.255.255"),
            (Family::Ipv6, 0, "::"),
            (Family::Ipv6, 65, "ffff:ffff:ffff:ffff:8000::"),
            (Family::Ipv6, 128, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(mask(family, length).to_string(), says);
        }
    }
}
