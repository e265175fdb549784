//! What the kernel holds now: for `status`, for carrying learnt flows over a rebuild, and to notice tampering.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_packet_core::{DefaultNla, NlasIterator, Parseable};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
    SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage, TableAttribute,
    TableFlags, TableMessage,
};
use nightlatch_core::port::{PortKey, Protocol};
use nightlatch_core::prefix::{Family, Prefix};
use nightlatch_core::ruleset::OpeningKey;

use super::drift::{Drift, ForeignRule, RuleFault};
use super::netlink::{self, LISTING_ATTEMPTS, Netlink};
use super::set::{Key, KeyPart, SetName, Value};
use super::table::{Chain, DENIED, TABLE, Table};
use super::{FirewallError, Mark};
use super::{batch, bytecode};

/// What our table in the kernel says, whoever wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableState {
    pub guarded: BTreeSet<PortKey>,
    pub unguarded_interfaces: BTreeSet<String>,
    /// With the time that remains; `None` for those that don't end.
    pub openings: BTreeMap<OpeningKey, Option<Duration>>,
    /// Refused connection attempts since the table was made.
    pub denied: u64,
    /// If one of ours made it.
    pub(crate) mark: Option<Mark>,
}

/// An element with the time that remains; `None` if it doesn't end.
pub(crate) type Found = (Key, Option<Duration>);

pub(crate) fn exists(netlink: &mut Netlink) -> Result<bool, FirewallError> {
    Ok(table(netlink)?.is_some())
}

/// Reads in several listings what stood at one moment. Where others change tables without a pause, the last reading
/// counts: each of its listings is sound.
pub(crate) fn at_one_moment<T>(
    netlink: &mut Netlink,
    read: impl Fn(&mut Netlink) -> Result<T, FirewallError>,
) -> Result<T, FirewallError> {
    for _ in 1..LISTING_ATTEMPTS {
        let before = netlink.settled_generation()?;
        let found = read(netlink);
        if netlink.generation()? == before {
            return found;
        }
    }
    read(netlink)
}

/// `None` if there is no table of ours.
pub(crate) fn state(netlink: &mut Netlink) -> Result<Option<TableState>, FirewallError> {
    let Some(table) = table(netlink)? else {
        return Ok(None);
    };
    let mut state = TableState {
        denied: counted(netlink)?.packets,
        mark: mark_of(&table),
        ..TableState::default()
    };
    for set in set_names(netlink)?.iter().filter_map(|name| SetName::parse(name)) {
        if set.is_learning() {
            continue;
        }
        for (key, remaining) in elements(netlink, set)? {
            match (set, key.as_slice()) {
                (SetName::Guarded, [Value::Protocol(protocol), Value::Port(port)]) => {
                    state.guarded.insert(PortKey {
                        protocol: *protocol,
                        port: *port,
                    });
                }
                (SetName::UnguardedInterfaces, [Value::Interface(name)]) => {
                    state.unguarded_interfaces.insert(name.clone());
                }
                (
                    SetName::Open(_, length),
                    [
                        Value::Address(address),
                        Value::Protocol(protocol),
                        Value::Port(port),
                    ],
                ) => {
                    // What has bits beyond its length matches no packet.
                    let source =
                        Prefix::around(*address, length).filter(|source| source.address() == *address);
                    let Some(source) = source else { continue };
                    let key = PortKey {
                        protocol: *protocol,
                        port: *port,
                    };
                    state.openings.insert(OpeningKey { source, key }, remaining);
                }
                _ => {}
            }
        }
    }
    Ok(Some(state))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Zero if there is no such counter.
pub(crate) fn counted(netlink: &mut Netlink) -> Result<Counted, FirewallError> {
    const NFTA_OBJ_TABLE: u16 = 1;
    const NFTA_OBJ_NAME: u16 = 2;
    const NFTA_OBJ_TYPE: u16 = 3;
    const NFTA_OBJ_DATA: u16 = 4;
    const NFTA_COUNTER_BYTES: u16 = 1;
    const NFTA_COUNTER_PACKETS: u16 = 2;
    let request = NfTablesMessage::GetObject(vec![
        DefaultNla::new(NFTA_OBJ_TABLE, bytecode::text(TABLE)),
        DefaultNla::new(NFTA_OBJ_NAME, bytecode::text(DENIED)),
        DefaultNla::new(NFTA_OBJ_TYPE, bytecode::NFT_OBJECT_COUNTER.to_be_bytes().into()),
    ]);
    let Some(counter) = netlink.ask("the counter", request)? else {
        return Ok(Counted::default());
    };
    let data = netlink::value(&counter.attributes()?, NFTA_OBJ_DATA).unwrap_or_default();
    let data = netlink::attributes(&data)?;
    let count = |kind| {
        let bytes = netlink::value(&data, kind).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        bytes.map_or(0, u64::from_be_bytes)
    };
    Ok(Counted {
        packets: count(NFTA_COUNTER_PACKETS),
        bytes: count(NFTA_COUNTER_BYTES),
    })
}

/// The elements of a set, but those that we could never have written; none if there is no such set.
pub(crate) fn elements(netlink: &mut Netlink, set: SetName) -> Result<Vec<Found>, FirewallError> {
    Ok(all_elements(netlink, set)?.0)
}

/// The elements of a set, and whether there is one that we could never have written. While the kernel resizes a hash
/// set, or packets fill it, a listing repeats some elements and may lack others.
pub(crate) fn all_elements(netlink: &mut Netlink, set: SetName) -> Result<(Vec<Found>, bool), FirewallError> {
    let mut all: BTreeMap<Vec<u8>, Found> = BTreeMap::new();
    let mut has_strange = false;
    for _ in 0..LISTING_ATTEMPTS {
        let mut seen = BTreeSet::new();
        let mut has_repetition = false;
        for found in listed_once(netlink, set)? {
            let Some((key, remaining)) = found else {
                has_strange = true;
                continue;
            };
            let bytes = batch::key_bytes(&key);
            has_repetition |= !seen.insert(bytes.clone());
            all.insert(bytes, (key, remaining));
        }
        if !has_repetition {
            break;
        }
    }
    Ok((all.into_values().collect(), has_strange))
}

fn listed_once(netlink: &mut Netlink, set: SetName) -> Result<Vec<Option<Found>>, FirewallError> {
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    let attributes = vec![
        SetElementList::Table(TABLE.into()),
        SetElementList::Set(set.to_string()),
    ];
    let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
    let parts = set.key();
    let mut found = Vec::new();
    for answer in netlink.list("the elements of a set", &request)? {
        let list = netlink::value(&answer.attributes()?, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
        for element in NlasIterator::new(&list) {
            let element = element.map_err(FirewallError::Garbled)?;
            found.push(read_element(&parts, element.value()));
        }
    }
    Ok(found)
}

/// What of flags, sets, chains and rules is not that of `table`, no more and no less. Elements are compared elsewhere.
pub(crate) fn frame_drift(netlink: &mut Netlink, table: &Table) -> Result<Option<Drift>, FirewallError> {
    // A dormant table is skipped by packets; a table with an owner isn't ours to change.
    match table_flags(netlink)? {
        None => return Ok(Some(Drift::NoTable)),
        Some(flags) if flags != TableFlags::empty() => return Ok(Some(Drift::Flags)),
        Some(_) => {}
    }
    let wanted: BTreeSet<String> = table.sets.iter().map(|set| set.name.to_string()).collect();
    if set_names(netlink)? != wanted {
        return Ok(Some(Drift::Sets));
    }
    let chains = chains(netlink)?;
    let is_there = |chain| {
        chains
            .iter()
            .any(|found| bytecode::covers(found, &batch::chain_attributes(chain)))
    };
    if chains.len() != table.chains.len() || !table.chains.iter().all(is_there) {
        return Ok(Some(Drift::Chains));
    }
    let mut rules = rules(netlink)?;
    let drift = table.chains.iter().find_map(|chain| {
        let found = rules.remove(chain.name.as_str()).unwrap_or_default();
        rule_fault(chain, &found).map(|what| ForeignRule {
            chain: chain.name.as_str(),
            what,
        })
    });
    Ok(drift.map(Drift::Rules))
}

fn rule_fault(chain: &Chain, found: &[FoundRule]) -> Option<RuleFault> {
    let is_ours = |found: &&FoundRule| chain.rules.iter().any(|rule| bytecode::is_same_rule(rule, found));
    let mut pairs = found.iter().zip(&chain.rules);
    match found.len().cmp(&chain.rules.len()) {
        Ordering::Less => Some(RuleFault::Missing),
        Ordering::Equal => {
            let is_whole = pairs.all(|(found, rule)| bytecode::is_same_rule(rule, found));
            (!is_whole).then_some(RuleFault::Changed)
        }
        Ordering::Greater => {
            let accepts = |found: &FoundRule| bytecode::accepts(found);
            let mut foreign = found.iter().filter(|found| !is_ours(found));
            Some(if foreign.any(accepts) {
                RuleFault::Accepts
            } else {
                RuleFault::Added
            })
        }
    }
}

fn table(netlink: &mut Netlink) -> Result<Option<TableMessage>, FirewallError> {
    let request = NfTablesMessage::GetTable(TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.into())],
    });
    let table = netlink.ask("the table", request)?;
    table.map(|table| table.decode()).transpose()
}

fn mark_of(table: &TableMessage) -> Option<Mark> {
    table.attributes.iter().find_map(|attribute| {
        if let TableAttribute::UserData(bytes) = attribute {
            Mark::parse(bytes)
        } else {
            None
        }
    })
}

fn table_flags(netlink: &mut Netlink) -> Result<Option<TableFlags>, FirewallError> {
    let Some(table) = table(netlink)? else {
        return Ok(None);
    };
    let flags = table.attributes.into_iter().find_map(|attribute| {
        if let TableAttribute::Flags(flags) = attribute {
            Some(flags)
        } else {
            None
        }
    });
    Ok(Some(flags.unwrap_or_default()))
}

fn set_names(netlink: &mut Netlink) -> Result<BTreeSet<String>, FirewallError> {
    let request = NfTablesMessage::GetSet(SetMessage {
        attributes: vec![SetAttribute::Table(TABLE.into())],
    });
    let mut names = BTreeSet::new();
    for answer in netlink.list("the sets", &request)? {
        let SetMessage { attributes } = answer.decode()?;
        names.extend(attributes.into_iter().filter_map(|attribute| {
            if let SetAttribute::Name(name) = attribute {
                Some(name)
            } else {
                None
            }
        }));
    }
    Ok(names)
}

/// Those for which the table has a set of openings.
pub(crate) fn prefix_lengths(netlink: &mut Netlink) -> Result<BTreeSet<(Family, u8)>, FirewallError> {
    let names = set_names(netlink)?;
    let lengths = names.iter().filter_map(|name| {
        if let Some(SetName::Open(family, length)) = SetName::parse(name) {
            Some((family, length))
        } else {
            None
        }
    });
    Ok(lengths.collect())
}

fn chains(netlink: &mut Netlink) -> Result<Vec<Vec<ChainAttribute>>, FirewallError> {
    let request = NfTablesMessage::GetChain(ChainMessage {
        attributes: Vec::new(),
    });
    let mut chains = Vec::new();
    for answer in netlink.list("the chains", &request)? {
        let ChainMessage { attributes } = answer.decode()?;
        // Up to some kernels the list is of all tables of the family.
        if attributes.contains(&ChainAttribute::Table(TABLE.into())) {
            chains.push(attributes);
        }
    }
    Ok(chains)
}

type FoundRule = Vec<ListAttribute<netlink_packet_netfilter::nftables::ExpressionAttribute>>;

fn rules(netlink: &mut Netlink) -> Result<BTreeMap<String, Vec<FoundRule>>, FirewallError> {
    let request = NfTablesMessage::GetRule(RuleMessage {
        attributes: vec![RuleAttribute::Table(TABLE.into())],
    });
    let mut rules: BTreeMap<String, Vec<FoundRule>> = BTreeMap::new();
    for answer in netlink.list("the rules", &request)? {
        let RuleMessage { attributes } = answer.decode()?;
        let (mut chain, mut expressions) = (String::new(), Vec::new());
        for attribute in attributes {
            if let RuleAttribute::Chain(name) = attribute {
                chain = name;
            } else if let RuleAttribute::Expressions(found) = attribute {
                expressions = found;
            }
        }
        rules.entry(chain).or_default().push(expressions);
    }
    Ok(rules)
}

fn read_element(parts: &[KeyPart], attributes: &[u8]) -> Option<Found> {
    let mut key = None;
    let mut remaining = None;
    for attribute in NlasIterator::new(attributes) {
        let attribute = SetElementAttribute::parse(&attribute.ok()?).ok()?;
        if let SetElementAttribute::Key(DataAttribute::Value(bytes)) = attribute {
            key = read_key(parts, &bytes);
        } else if let SetElementAttribute::Expiration(millis) = attribute {
            remaining = Some(Duration::from_millis(millis));
        }
    }
    Some((key?, remaining))
}

fn read_key(parts: &[KeyPart], mut bytes: &[u8]) -> Option<Key> {
    let mut key = Vec::with_capacity(parts.len());
    for part in parts {
        let (field, rest) = bytes.split_at_checked(usize::try_from(part.padded_length()).ok()?)?;
        bytes = rest;
        key.push(match part {
            KeyPart::Ipv4 => Value::Address(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(field).ok()?))),
            KeyPart::Ipv6 => Value::Address(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(field).ok()?))),
            KeyPart::Protocol => Value::Protocol(protocol(*field.first()?)?),
            KeyPart::Port => Value::Port(u16::from_be_bytes(*field.first_chunk()?)),
            KeyPart::Interface => {
                let name = field.split(|byte| *byte == 0).next()?;
                Value::Interface(String::from_utf8(name.to_vec()).ok()?)
            }
        });
    }
    bytes.is_empty().then_some(key)
}

fn protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.number() == number)
}
