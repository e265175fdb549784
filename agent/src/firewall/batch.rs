//! The table as netlink messages: one batch is one transaction, and it holds whole or not at all.

use std::net::IpAddr;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkBuffer,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, InetHookNumber, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetDescription, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::Mark;
use super::bytecode::{NFT_OBJECT_COUNTER, expressions, millis, text};
use super::netlink::{emit, inet};
use super::set::{Key, KeyPart, Lifetime, SetKind, SetName, Value};
use super::table::{Chain, DENIED, HookPoint, Set, TABLE};

/// A list of elements is one attribute, whose length is a 16-bit number.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// The subsystem number of nf_tables, said once at the start of a batch.
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// A transaction in the making. Messages are encoded at once, so that a large one costs its bytes only.
pub(crate) struct Batch {
    pub(crate) first: u32,
    bytes: Vec<u8>,
    /// What each message is about.
    parts: Vec<&'static str>,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    pub(crate) fn beginning_at(first: u32) -> Self {
        let mut bytes = Vec::new();
        emit(
            &mut bytes,
            NetfilterMessage::new(nf_tables(), ControlMessage::BatchBegin),
            NLM_F_REQUEST,
            first,
        );
        Self {
            first,
            bytes,
            parts: Vec::new(),
            last: 0,
        }
    }

    /// Refused with ERESTART unless the ruleset of the network namespace has this generation. Comes first.
    pub(crate) fn only_in(&mut self, generation: u32) {
        const NFNL_BATCH_GENID: u16 = 1;
        let attribute = DefaultNla::new(NFNL_BATCH_GENID, generation.to_be_bytes().into());
        let start = self.bytes.len();
        self.bytes.resize(start.saturating_add(attribute.buffer_len()), 0);
        if let Some(place) = self.bytes.get_mut(start..) {
            attribute.emit(place);
        }
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        NetlinkBuffer::new(&mut self.bytes).set_length(length);
    }

    /// The number of the last message so far.
    pub(crate) fn sequence(&self) -> u32 {
        self.first
            .wrapping_add(u32::try_from(self.parts.len()).unwrap_or(u32::MAX))
    }

    /// The bytes to send, and what each of the messages is about. The last one asks for an answer.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<&'static str>) {
        if let Some(last) = self.bytes.get_mut(self.last..) {
            let mut last = NetlinkBuffer::new(last);
            last.set_flags(last.flags() | NLM_F_ACK);
        }
        let end = self.sequence().wrapping_add(1);
        let message = NetfilterMessage::new(nf_tables(), ControlMessage::BatchEnd);
        emit(&mut self.bytes, message, NLM_F_REQUEST, end);
        (self.bytes, self.parts)
    }

    fn push(&mut self, what: &'static str, message: NfTablesMessage, flags: u16) {
        self.last = self.bytes.len();
        self.parts.push(what);
        let sequence = self.sequence();
        emit(
            &mut self.bytes,
            NetfilterMessage::new(inet(), message),
            NLM_F_REQUEST | flags,
            sequence,
        );
    }

    pub(crate) fn create_table(&mut self, mark: Mark) {
        self.begin_table(NLM_F_CREATE, Some(mark));
    }

    /// Refused with EEXIST if there is one.
    pub(crate) fn create_new_table(&mut self, mark: Mark) {
        self.begin_table(NLM_F_CREATE | NLM_F_EXCL, Some(mark));
    }

    fn begin_table(&mut self, flags: u16, mark: Option<Mark>) {
        let mut attributes = vec![TableAttribute::Name(TABLE.into())];
        attributes.extend(mark.map(|mark| TableAttribute::UserData(mark.encoded())));
        self.push(
            "the table",
            NfTablesMessage::NewTable(TableMessage { attributes }),
            flags,
        );
    }

    /// Deleting a table that is missing is an error, so it is created first.
    pub(crate) fn delete_table(&mut self) {
        self.begin_table(NLM_F_CREATE, None);
        let attributes = vec![TableAttribute::Name(TABLE.into())];
        self.push(
            "deleting the table",
            NfTablesMessage::DeleteTable(TableMessage { attributes }),
            0,
        );
    }

    /// With the packets counted so far.
    pub(crate) fn create_counter(&mut self, packets: u64, bytes: u64) {
        const NFTA_OBJ: [u16; 4] = [1, 2, 3, 4];
        let [table, name, kind, data] = NFTA_OBJ;
        let counts = [
            DefaultNla::new(1, bytes.to_be_bytes().into()),
            DefaultNla::new(2, packets.to_be_bytes().into()),
        ];
        let mut nested = vec![0; counts.as_slice().buffer_len()];
        counts.as_slice().emit(&mut nested);
        let attributes = vec![
            DefaultNla::new(table, text(TABLE)),
            DefaultNla::new(name, text(DENIED)),
            DefaultNla::new(kind, NFT_OBJECT_COUNTER.to_be_bytes().into()),
            DefaultNla::new(data | NLA_F_NESTED, nested),
        ];
        self.push(
            "the counter",
            NfTablesMessage::NewObject(attributes),
            NLM_F_CREATE,
        );
    }

    pub(crate) fn create_set(&mut self, set: &Set) {
        let key = set.name.key();
        let flags = match set.name.kind() {
            SetKind::Plain => SetFlags::empty(),
            SetKind::Timed => SetFlags::Timeout,
            SetKind::Learning { .. } => SetFlags::Timeout | SetFlags::Eval,
        };
        let mut attributes = vec![
            SetAttribute::Table(TABLE.into()),
            SetAttribute::Name(set.name.to_string()),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(key_type(&key)),
            SetAttribute::KeyLen(
                key.iter()
                    .fold(0, |length, part| length.saturating_add(part.padded_length())),
            ),
            SetAttribute::Id(u32::try_from(self.parts.len()).unwrap_or(u32::MAX)),
        ];
        if key.contains(&KeyPart::Interface) {
            attributes.push(SetAttribute::UserData(host_byte_order()));
        }
        if let SetKind::Learning { most } = set.name.kind() {
            attributes.push(SetAttribute::Description(vec![SetDescription::Size(most)]));
        }
        self.push(
            "a set",
            NfTablesMessage::NewSet(SetMessage { attributes }),
            NLM_F_CREATE,
        );
        self.put(
            set.name,
            set.fixed.iter().map(|key| (key.clone(), Lifetime::Never)),
        );
    }

    pub(crate) fn delete_set(&mut self, set: SetName) {
        let attributes = vec![
            SetAttribute::Table(TABLE.into()),
            SetAttribute::Name(set.to_string()),
        ];
        self.push(
            "deleting a set",
            NfTablesMessage::DeleteSet(SetMessage { attributes }),
            0,
        );
    }

    pub(crate) fn create_chain(&mut self, chain: &Chain) {
        let attributes = chain_attributes(chain);
        self.push(
            "a chain",
            NfTablesMessage::NewChain(ChainMessage { attributes }),
            NLM_F_CREATE,
        );
    }

    pub(crate) fn flush_chain(&mut self, chain: &Chain) {
        let attributes = vec![
            RuleAttribute::Table(TABLE.into()),
            RuleAttribute::Chain(chain.name.as_str().into()),
        ];
        self.push(
            "flushing a chain",
            NfTablesMessage::DeleteRule(RuleMessage { attributes }),
            0,
        );
    }

    pub(crate) fn fill_chain(&mut self, chain: &Chain) {
        self.rules(chain, NLM_F_CREATE | NLM_F_APPEND);
    }

    /// Before the rules that are there.
    pub(crate) fn put_first(&mut self, chain: &Chain) {
        self.rules(chain, NLM_F_CREATE);
    }

    fn rules(&mut self, chain: &Chain, flags: u16) {
        for rule in &chain.rules {
            let attributes = vec![
                RuleAttribute::Table(TABLE.into()),
                RuleAttribute::Chain(chain.name.as_str().into()),
                RuleAttribute::Expressions(expressions(rule).into_iter().map(Into::into).collect()),
            ];
            self.push(
                "a rule",
                NfTablesMessage::NewRule(RuleMessage { attributes }),
                flags,
            );
        }
    }

    /// Adds elements that aren't there, or lengthens none: up to Linux 6.11 a present one stays as it is.
    pub(crate) fn put(&mut self, set: SetName, elements: impl IntoIterator<Item = (Key, Lifetime)>) {
        let elements = elements
            .into_iter()
            .map(|(key, lifetime)| element(&key, Some(lifetime)));
        self.elements(
            "an element",
            set,
            elements,
            NfTablesMessage::NewSetElement,
            NLM_F_CREATE,
        );
    }

    /// Takes elements out that must be there.
    pub(crate) fn take(&mut self, set: SetName, keys: impl IntoIterator<Item = Key>) {
        let elements = keys.into_iter().map(|key| element(&key, None));
        self.elements(
            "deleting an element",
            set,
            elements,
            NfTablesMessage::DeleteSetElement,
            0,
        );
    }

    fn elements(
        &mut self,
        what: &'static str,
        set: SetName,
        elements: impl Iterator<Item = ListAttribute<SetElementAttribute>>,
        message: fn(SetElementMessage) -> NfTablesMessage,
        flags: u16,
    ) {
        let mut elements = elements.peekable();
        while elements.peek().is_some() {
            let attributes = vec![
                SetElementList::Table(TABLE.into()),
                SetElementList::Set(set.to_string()),
                SetElementList::Elements(elements.by_ref().take(ELEMENTS_PER_MESSAGE).collect()),
            ];
            self.push(what, message(SetElementMessage { attributes }), flags);
        }
    }
}

/// Says for whom a batch is.
fn nf_tables() -> NetfilterHeader {
    NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES)
}

/// Only for nft, which otherwise lists names as empty (libnftnl's udata.h: type, length, value).
fn host_byte_order() -> Vec<u8> {
    const NFTNL_UDATA_SET_KEYBYTEORDER: u8 = 0;
    const BYTEORDER_HOST_ENDIAN: u32 = 1;
    [
        [NFTNL_UDATA_SET_KEYBYTEORDER, 4].as_slice(),
        &BYTEORDER_HOST_ENDIAN.to_ne_bytes(),
    ]
    .concat()
}

/// How nft names the types of a key when it lists one: six bits a field.
fn key_type(key: &[KeyPart]) -> u32 {
    key.iter().fold(0, |packed: u32, part| {
        let number = match part {
            KeyPart::Ipv4 => 7,
            KeyPart::Ipv6 => 8,
            KeyPart::Protocol => 12,
            KeyPart::Port => 13,
            KeyPart::Interface => 41,
        };
        (packed << 6) | number
    })
}

fn element(key: &Key, lifetime: Option<Lifetime>) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(key_bytes(key)))];
    if let Some(Lifetime::For(length)) = lifetime {
        attributes.push(SetElementAttribute::Timeout(millis(length)));
    }
    ListAttribute::Element(attributes)
}

pub(crate) fn key_bytes(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    for value in key {
        match value {
            Value::Address(IpAddr::V4(address)) => bytes.extend(address.octets()),
            Value::Address(IpAddr::V6(address)) => bytes.extend(address.octets()),
            Value::Protocol(protocol) => bytes.extend([protocol.number(), 0, 0, 0]),
            Value::Port(port) => {
                bytes.extend(port.to_be_bytes());
                bytes.extend([0, 0]);
            }
            Value::Interface(name) => bytes.extend(name.bytes().chain(std::iter::repeat(0)).take(16)),
        }
    }
    bytes
}

/// What a chain is created with, and is found to have as long as nobody replaced it.
pub(crate) fn chain_attributes(chain: &Chain) -> Vec<ChainAttribute> {
    const NF_ACCEPT: u32 = 1;
    let mut attributes = vec![
        ChainAttribute::Table(TABLE.into()),
        ChainAttribute::Name(chain.name.as_str().into()),
    ];
    if let Some(hook) = chain.name.hook() {
        let number = match hook.point {
            HookPoint::Prerouting => InetHookNumber::PreRouting,
            HookPoint::Input => InetHookNumber::LocalIn,
            HookPoint::Output => InetHookNumber::LocalOut,
        };
        let hook = vec![
            Hook::Number(number.into()),
            Hook::Priority(hook.priority.cast_unsigned()),
        ];
        attributes.extend([
            ChainAttribute::Hook(hook),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type("filter".into()),
        ]);
    }
    attributes
}
