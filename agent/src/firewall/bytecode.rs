//! Rules in the kernel's own small steps.
//!
//! Attribute numbers are those of linux/netfilter/nf_tables.h, where the crate doesn't name them.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};
use nightlatch_core::prefix::Family;

use super::set::SetName;
use super::table::{DENIED, Field, Rule, Step, mask};

/// Registers are named as the kernel names them when it lists the rule.
pub(crate) fn expressions(rule: &Rule) -> Vec<Expressions> {
    rule.iter().flat_map(step).collect()
}

/// The lowest register, in which one thing after the other is looked at.
const FIRST: Register = Register::Reg1;

fn step(step: &Step) -> Vec<Expressions> {
    match step {
        // The loopback interface is the first of each network namespace.
        Step::ArrivesByLoopback => vec![meta(MetaKey::Iif), cmp(Operator::Equal, 1_u32.to_ne_bytes())],
        Step::LeavesByLoopback => vec![meta(MetaKey::Oif), cmp(Operator::Equal, 1_u32.to_ne_bytes())],
        Step::ArrivesByOneOf(set) => vec![meta(MetaKey::Iifname), lookup(*set)],
        Step::IsFamily(family) => {
            const NFPROTO_IPV4: u8 = 2;
            const NFPROTO_IPV6: u8 = 10;
            let number = match family {
                Family::Ipv4 => NFPROTO_IPV4,
                Family::Ipv6 => NFPROTO_IPV6,
            };
            vec![meta(MetaKey::Nfproto), cmp(Operator::Equal, [number])]
        }
        Step::IsProtocol(protocol) => vec![meta(MetaKey::L4Proto), cmp(Operator::Equal, [protocol.number()])],
        Step::IsFirstFragment => {
            const OFFSET: [u8; 2] = [0xff, 0xf8];
            vec![
                fragment_offset(),
                bitwise(FIRST, OFFSET.into()),
                cmp(Operator::Equal, [0, 0]),
            ]
        }
        // Any port will do: the comparison fails where there is nothing to load.
        Step::HasPorts => vec![
            payload(FIRST, TRANSPORT_HEADER, 2, 2),
            cmp(Operator::GreatherThanEqual, [0, 0]),
        ],
        Step::IsNotRoutedOn => {
            const RTN_UNICAST: u32 = 1;
            vec![
                fib_type_of_destination(),
                cmp(Operator::NotEqual, RTN_UNICAST.to_ne_bytes()),
            ]
        }
        Step::HasAckOrRst => {
            const FLAGS_OFFSET: u32 = 13;
            const ACK_OR_RST: u8 = 0x10 | 0x04;
            vec![
                payload(FIRST, TRANSPORT_HEADER, FLAGS_OFFSET, 1),
                bitwise(FIRST, vec![ACK_OR_RST]),
                cmp(Operator::NotEqual, [0]),
            ]
        }
        Step::IsIn(set, fields) => load(fields).into_iter().chain([lookup(*set)]).collect(),
        Step::Remember(set, fields, length) => load(fields)
            .into_iter()
            .chain([update(*set, millis(*length))])
            .collect(),
        Step::CountDenied => vec![Expressions::Other {
            expression_type: "objref".into(),
            attributes: vec![
                DefaultNla::new(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER.to_be_bytes().into()),
                DefaultNla::new(NFTA_OBJREF_IMM_NAME, text(DENIED)),
            ],
        }],
        Step::Accept => vec![verdict(vec![VerdictAttribute::Code(Verdict::Other(1))])],
        Step::Drop => vec![verdict(vec![VerdictAttribute::Code(Verdict::Other(0))])],
        Step::Jump(chain) => {
            vec![verdict(vec![
                VerdictAttribute::Code(Verdict::Jump),
                VerdictAttribute::Chain(chain.as_str().into()),
            ])]
        }
        Step::Goto(chain) => {
            vec![verdict(vec![
                VerdictAttribute::Code(Verdict::Goto),
                VerdictAttribute::Chain(chain.as_str().into()),
            ])]
        }
    }
}

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const NFTA_OBJREF_IMM_TYPE: u16 = 1;
const NFTA_OBJREF_IMM_NAME: u16 = 2;

/// Loads the fields side by side from the first register on, each on its own multiple of four bytes.
fn load(fields: &[Field]) -> Vec<Expressions> {
    let mut place = 0_u32;
    let mut steps = Vec::new();
    for field in fields {
        let register = register(place);
        let width = match *field {
            Field::Source(family, length) => {
                let (offset, width) = source(family);
                steps.push(payload(register, NETWORK_HEADER, offset, width));
                if length < family.bits() {
                    let mask = match mask(family, length) {
                        IpAddr::V4(mask) => mask.octets().to_vec(),
                        IpAddr::V6(mask) => mask.octets().to_vec(),
                    };
                    steps.push(bitwise(register, mask));
                }
                width
            }
            Field::Destination(family) => {
                let (offset, width) = source(family);
                steps.push(payload(
                    register,
                    NETWORK_HEADER,
                    offset.saturating_add(width),
                    width,
                ));
                width
            }
            Field::Protocol => {
                steps.push(Expressions::Meta(vec![
                    Meta::DestinationRegister(register),
                    Meta::Key(MetaKey::L4Proto),
                ]));
                4
            }
            Field::SourcePort => {
                steps.push(payload(register, TRANSPORT_HEADER, 0, 2));
                4
            }
            Field::DestinationPort => {
                steps.push(payload(register, TRANSPORT_HEADER, 2, 2));
                4
            }
        };
        place = place.saturating_add(width);
    }
    steps
}

/// Where the source address stands in the header, and how long it is; the destination follows it.
const fn source(family: Family) -> (u32, u32) {
    match family {
        Family::Ipv4 => (12, 4),
        Family::Ipv6 => (8, 16),
    }
}

/// Each multiple of sixteen bytes has a number of its own, which the kernel prefers.
fn register(place: u32) -> Register {
    const NFT_REG_1: u32 = 1;
    const NFT_REG32_00: u32 = 8;
    let number = if place.is_multiple_of(16) {
        NFT_REG_1.saturating_add(place / 16)
    } else {
        NFT_REG32_00.saturating_add(place / 4)
    };
    Register::from(number)
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(FIRST), Meta::Key(key)])
}

fn cmp(op: Operator, value: impl Into<Vec<u8>>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(FIRST),
        Cmp::Op(op),
        Cmp::Data(DataAttribute::Value(value.into())),
    ])
}

fn payload(to: Register, header: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(to),
        Payload::Base(header),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn bitwise(register: Register, mask: Vec<u8>) -> Expressions {
    let zero = vec![0; mask.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register),
        Bitwise::DestinationRegister(register),
        Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(zero)),
    ])
}

fn lookup(set: SetName) -> Expressions {
    Expressions::Lookup(vec![Lookup::Set(set.to_string()), Lookup::SourceRegister(FIRST)])
}

fn verdict(verdict: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

/// The field with the offset and the bits behind it, of the first fragment header.
fn fragment_offset() -> Expressions {
    const NFTA_EXTHDR_DREG: u16 = 1;
    const NFTA_EXTHDR_TYPE: u16 = 2;
    const NFTA_EXTHDR_OFFSET: u16 = 3;
    const NFTA_EXTHDR_LEN: u16 = 4;
    const FRAGMENT_HEADER: u8 = 44;
    Expressions::Other {
        expression_type: "exthdr".into(),
        attributes: vec![
            DefaultNla::new(NFTA_EXTHDR_DREG, u32::from(FIRST).to_be_bytes().into()),
            DefaultNla::new(NFTA_EXTHDR_TYPE, vec![FRAGMENT_HEADER]),
            DefaultNla::new(NFTA_EXTHDR_OFFSET, 2_u32.to_be_bytes().into()),
            DefaultNla::new(NFTA_EXTHDR_LEN, 2_u32.to_be_bytes().into()),
        ],
    }
}

fn fib_type_of_destination() -> Expressions {
    const NFTA_FIB_DREG: u16 = 1;
    const NFTA_FIB_RESULT: u16 = 2;
    const NFTA_FIB_FLAGS: u16 = 3;
    const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
    const NFTA_FIB_F_DADDR: u32 = 2;
    Expressions::Other {
        expression_type: "fib".into(),
        attributes: vec![
            DefaultNla::new(NFTA_FIB_DREG, u32::from(FIRST).to_be_bytes().into()),
            DefaultNla::new(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE.to_be_bytes().into()),
            DefaultNla::new(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR.to_be_bytes().into()),
        ],
    }
}

fn update(set: SetName, timeout: u64) -> Expressions {
    const NFTA_DYNSET_SET_NAME: u16 = 1;
    const NFTA_DYNSET_OP: u16 = 3;
    const NFTA_DYNSET_SREG_KEY: u16 = 4;
    const NFTA_DYNSET_TIMEOUT: u16 = 6;
    const NFT_DYNSET_OP_UPDATE: u32 = 1;
    Expressions::Other {
        expression_type: "dynset".into(),
        attributes: vec![
            DefaultNla::new(NFTA_DYNSET_SET_NAME, text(&set.to_string())),
            DefaultNla::new(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE.to_be_bytes().into()),
            DefaultNla::new(NFTA_DYNSET_SREG_KEY, u32::from(FIRST).to_be_bytes().into()),
            DefaultNla::new(NFTA_DYNSET_TIMEOUT, timeout.to_be_bytes().into()),
        ],
    }
}

/// Whether a rule found in the kernel is the one sent: it may say more than was sent, but not less or other.
pub(crate) fn is_same_rule(sent: &Rule, found: &[ListAttribute<ExpressionAttribute>]) -> bool {
    let sent = expressions(sent);
    sent.len() == found.len()
        && sent
            .into_iter()
            .zip(found)
            .all(|(sent, found)| is_same_expression(sent, found))
}

/// Whether a rule found in the kernel lets packets through by itself.
pub(crate) fn accepts(found: &[ListAttribute<ExpressionAttribute>]) -> bool {
    let accept = || expressions(&vec![Step::Accept]).into_iter();
    found
        .iter()
        .any(|found| accept().any(|accept| is_same_expression(accept, found)))
}

fn is_same_expression(sent: Expressions, found: &ListAttribute<ExpressionAttribute>) -> bool {
    let ListAttribute::Element(found) = found else {
        return false;
    };
    let found = found.iter().find_map(|attribute| {
        if let ExpressionAttribute::Data(found) = attribute {
            Some(found)
        } else {
            None
        }
    });
    let Some(found) = found else { return false };
    match (sent, found) {
        (Expressions::Bitwise(sent), Expressions::Bitwise(found)) => covers(found, &sent),
        (Expressions::Cmp(sent), Expressions::Cmp(found)) => covers(found, &sent),
        (Expressions::Immediate(sent), Expressions::Immediate(found)) => covers(found, &sent),
        (Expressions::Lookup(sent), Expressions::Lookup(found)) => covers(found, &sent),
        (Expressions::Meta(sent), Expressions::Meta(found)) => covers(found, &sent),
        (Expressions::Payload(sent), Expressions::Payload(found)) => covers(found, &sent),
        (
            Expressions::Other {
                expression_type: sent_type,
                attributes: sent,
            },
            Expressions::Other {
                expression_type: found_type,
                attributes: found,
            },
        ) => sent_type == *found_type && covers(found, &sent),
        _ => false,
    }
}

/// Whether all of `few` are among `many`.
pub(crate) fn covers<T: PartialEq>(many: &[T], few: &[T]) -> bool {
    few.iter().all(|one| many.contains(one))
}

pub(crate) const NFT_OBJECT_COUNTER: u32 = 1;

pub(crate) fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

pub(crate) fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
