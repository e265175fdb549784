//! The table as nft's own JSON: for people, for dry runs, and to compare with what netlink made.
//!
//! Times are whole seconds here, because nft's JSON knows no others; the kernel gets milliseconds.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, Elem, Expression, Exthdr, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression,
    Payload, PayloadField,
};
use nftables::schema::{
    Chain, Counter, Element, NfListObject, Nftables, Rule, Set, SetFlag, SetType, SetTypeValue,
    Table as NftTable,
};
use nftables::stmt::{
    Counter as CounterStatement, JumpTarget, Match, Operator, Set as SetStatement, SetOp, Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use nightlatch_core::prefix::Family;
use nightlatch_core::ruleset::Ruleset;
use nightlatch_core::time::BootTime;

use super::set::{Key, KeyPart, Lifetime, SetKind, SetName, Value, key_of, set_of};
use super::table::{self, DENIED, Field, HookPoint, Step, TABLE, Table};

/// The commands that make the table of `ruleset` where there is none.
pub fn rendering(ruleset: &Ruleset, now: BootTime) -> Nftables<'static> {
    let table = Table::of(ruleset);
    let mut batch = Batch::new();
    if ruleset.is_empty() {
        return batch.to_nftables();
    }
    batch.add(NfListObject::Table(NftTable {
        family: NfFamily::INet,
        name: TABLE.into(),
        handle: None,
    }));
    batch.add(NfListObject::Counter(Counter {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: DENIED.into(),
        packets: Some(0),
        bytes: Some(0),
        ..Counter::default()
    }));
    for set in &table.sets {
        batch.add(NfListObject::Set(Box::new(set_object(set))));
    }
    for chain in &table.chains {
        batch.add(NfListObject::Chain(chain_object(chain)));
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            batch.add(NfListObject::Rule(Rule {
                family: NfFamily::INet,
                table: TABLE.into(),
                chain: chain.name.as_str().into(),
                expr: rule.iter().map(statement).collect::<Vec<_>>().into(),
                ..Rule::default()
            }));
        }
    }
    let all = ruleset.openings().sorted();
    for set in &table.sets {
        let fixed = set.fixed.iter().map(|key| element(key, Lifetime::Never));
        let openings = all.iter().filter(|(opening, _)| set_of(opening) == set.name);
        let openings = openings.filter_map(|(opening, end)| {
            Some(element(
                &key_of(opening),
                in_seconds(Lifetime::until(**end, now)?)?,
            ))
        });
        let elements: Vec<Expression<'static>> = fixed.chain(openings).collect();
        if !elements.is_empty() {
            batch.add(NfListObject::Element(Element {
                family: NfFamily::INet,
                table: TABLE.into(),
                name: set.name.to_string().into(),
                elem: elements.into(),
            }));
        }
    }
    batch.to_nftables()
}

/// Rounded down; less than a second isn't shown, since zero means "for ever" to nft.
fn in_seconds(lifetime: Lifetime) -> Option<Lifetime> {
    match lifetime {
        Lifetime::Never => Some(Lifetime::Never),
        Lifetime::For(length) => {
            (length >= Duration::from_secs(1)).then(|| Lifetime::For(Duration::from_secs(length.as_secs())))
        }
    }
}

fn set_object(set: &table::Set) -> Set<'static> {
    let types: Vec<SetType> = set.name.key().into_iter().map(set_type).collect();
    let flags: &[SetFlag] = match set.name.kind() {
        SetKind::Plain => &[],
        // A set that rules write into is made dynamic by nft itself, whose older JSON doesn't know the word.
        SetKind::Timed | SetKind::Learning { .. } => &[SetFlag::Timeout],
    };
    Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: set.name.to_string().into(),
        set_type: match types.as_slice() {
            [single] => SetTypeValue::Single(*single),
            _ => SetTypeValue::Concatenated(types.into()),
        },
        flags: (!flags.is_empty()).then(|| flags.iter().copied().collect()),
        size: match set.name.kind() {
            SetKind::Learning { most } => Some(most),
            SetKind::Plain | SetKind::Timed => None,
        },
        ..Set::default()
    }
}

const fn set_type(part: KeyPart) -> SetType {
    match part {
        KeyPart::Ipv4 => SetType::Ipv4Addr,
        KeyPart::Ipv6 => SetType::Ipv6Addr,
        KeyPart::Protocol => SetType::InetProto,
        KeyPart::Port => SetType::InetService,
        KeyPart::Interface => SetType::Ifname,
    }
}

fn chain_object(chain: &table::Chain) -> Chain<'static> {
    let hook = chain.name.hook();
    Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: chain.name.as_str().into(),
        _type: hook.map(|_| NfChainType::Filter),
        hook: hook.map(|hook| match hook.point {
            HookPoint::Prerouting => NfHook::Prerouting,
            HookPoint::Input => NfHook::Input,
            HookPoint::Output => NfHook::Output,
        }),
        prio: hook.map(|hook| hook.priority),
        policy: hook.map(|_| NfChainPolicy::Accept),
        ..Chain::default()
    }
}

fn element(key: &Key, lifetime: Lifetime) -> Expression<'static> {
    let mut values: Vec<Expression<'static>> = key.iter().map(value).collect();
    let value = match values.pop() {
        Some(single) if values.is_empty() => single,
        last => named(NamedExpression::Concat(values.into_iter().chain(last).collect())),
    };
    match lifetime {
        Lifetime::Never => value,
        Lifetime::For(length) => timed(value, length),
    }
}

fn timed(value: Expression<'static>, length: Duration) -> Expression<'static> {
    named(NamedExpression::Elem(Elem {
        val: Box::new(value),
        timeout: Some(u32::try_from(length.as_secs()).unwrap_or(u32::MAX)),
        expires: None,
        comment: None,
        counter: None,
    }))
}

fn value(value: &Value) -> Expression<'static> {
    match value {
        Value::Address(address) => text(address.to_string()),
        Value::Protocol(protocol) => text(protocol.to_string()),
        Value::Port(port) => Expression::Number((*port).into()),
        Value::Interface(name) => text(name.clone()),
    }
}

fn statement(step: &Step) -> Statement<'static> {
    match step {
        Step::ArrivesByLoopback => equals(meta(MetaKey::Iif), text("lo")),
        Step::LeavesByLoopback => equals(meta(MetaKey::Oif), text("lo")),
        Step::ArrivesByOneOf(set) => equals(meta(MetaKey::Iifname), reference(*set)),
        Step::IsFamily(Family::Ipv4) => equals(meta(MetaKey::Nfproto), text("ipv4")),
        Step::IsFamily(Family::Ipv6) => equals(meta(MetaKey::Nfproto), text("ipv6")),
        Step::IsProtocol(protocol) => equals(meta(MetaKey::L4proto), text(protocol.to_string())),
        Step::IsFirstFragment => {
            let offset = named(NamedExpression::Exthdr(Exthdr {
                name: "frag".into(),
                field: Some("frag-off".into()),
                offset: None,
            }));
            equals(offset, Expression::Number(0))
        }
        Step::HasPorts => matches(Operator::GEQ, payload("th", "dport"), Expression::Number(0)),
        Step::IsNotRoutedOn => {
            let flags = [FibFlag::Daddr].into_iter().collect();
            let fib = named(NamedExpression::Fib(Fib {
                result: FibResult::Type,
                flags,
            }));
            matches(Operator::NEQ, fib, text("unicast"))
        }
        Step::HasAckOrRst => {
            let flags = payload("tcp", "flags");
            let wanted =
                Expression::BinaryOperation(Box::new(BinaryOperation::OR(vec![text("ack"), text("rst")])));
            let masked = Expression::BinaryOperation(Box::new(BinaryOperation::AND(flags, wanted)));
            matches(Operator::NEQ, masked, Expression::Number(0))
        }
        Step::IsIn(set, fields) => equals(concat(fields), reference(*set)),
        Step::Remember(set, fields, length) => Statement::Set(SetStatement {
            op: SetOp::Update,
            elem: timed(concat(fields), *length),
            set: format!("@{set}").into(),
        }),
        Step::CountDenied => Statement::Counter(CounterStatement::Named(DENIED.into())),
        Step::Accept => Statement::Accept(None),
        Step::Drop => Statement::Drop(None),
        Step::Jump(chain) => Statement::Jump(JumpTarget {
            target: chain.as_str().into(),
        }),
        Step::Goto(chain) => Statement::Goto(JumpTarget {
            target: chain.as_str().into(),
        }),
    }
}

fn concat(fields: &[Field]) -> Expression<'static> {
    named(NamedExpression::Concat(fields.iter().map(field).collect()))
}

fn field(field: &Field) -> Expression<'static> {
    match *field {
        Field::Source(family, length) => {
            let source = payload(header(family), "saddr");
            if length == family.bits() {
                return source;
            }
            let mask: IpAddr = table::mask(family, length);
            Expression::BinaryOperation(Box::new(BinaryOperation::AND(source, text(mask.to_string()))))
        }
        Field::Destination(family) => payload(header(family), "daddr"),
        Field::Protocol => meta(MetaKey::L4proto),
        Field::SourcePort => payload("th", "sport"),
        Field::DestinationPort => payload("th", "dport"),
    }
}

const fn header(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    };
    named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn meta(key: MetaKey) -> Expression<'static> {
    named(NamedExpression::Meta(Meta { key }))
}

fn equals(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    matches(Operator::EQ, left, right)
}

fn matches(op: Operator, left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn reference(set: SetName) -> Expression<'static> {
    text(format!("@{set}"))
}

fn text(text: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(text.into())
}

fn named(expression: NamedExpression<'static>) -> Expression<'static> {
    Expression::Named(expression)
}
