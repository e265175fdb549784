//! The netlink socket to nf_tables: sends a batch, waits for the verdict, and lists what is there.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla, NlasIterator, Parseable,
};
use netlink_packet_netfilter::nftables::{GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::FirewallError;
use super::batch::Batch;

/// The kernel answers within its own system call, so a longer wait means a lost answer.
const PATIENCE_SECONDS: i64 = 5;
/// A limit, not an allocation: a batch of 200,000 elements fits.
const SEND_BUFFER: usize = 64 << 20;
const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel fills at most 32 KiB for one read of a listing.
pub(crate) const READ: usize = 64 << 10;
/// A listing that the table changed under is read again, so many times.
pub(crate) const LISTING_ATTEMPTS: usize = 8;

/// A hash set that is growing in the background refuses new elements until it's done.
const BUSY_ATTEMPTS: usize = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// The socket to nf_tables of one network namespace.
pub(crate) struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
    #[cfg(test)]
    pub(crate) answers_no_question: bool,
}

impl Netlink {
    /// In the network namespace of the calling thread, in which it stays.
    pub(crate) fn open() -> Result<Self, FirewallError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(no_socket)?;
        prepare(&mut socket, RECEIVE_BUFFER)?;
        let wait = TimeVal::seconds(PATIENCE_SECONDS);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &wait)
            .and_then(|()| {
                setsockopt(&socket.as_fd(), sockopt::SndBufForce, &SEND_BUFFER)
                    .or_else(|_| setsockopt(&socket.as_fd(), sockopt::SndBuf, &SEND_BUFFER))
            })
            .map_err(|errno| FirewallError::Socket(errno.into()))?;
        let mut address = SocketAddr::new(0, 0);
        socket.get_address(&mut address).map_err(FirewallError::Socket)?;
        let mut netlink = Self {
            socket,
            port: address.port_number(),
            sequence: 0,
            #[cfg(test)]
            answers_no_question: false,
        };
        netlink.probe()?;
        Ok(netlink)
    }

    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// Any nf_tables tells its generation to those who may change it.
    fn probe(&mut self) -> Result<(), FirewallError> {
        match self.generation() {
            Err(FirewallError::Refused { source, .. }) => Err(if is(&source, Errno::EPERM) {
                FirewallError::NeedsNetAdmin
            } else {
                FirewallError::NoNfTables(source)
            }),
            answer => answer.map(drop),
        }
    }

    /// Rises by one with each transaction of anybody in this network namespace, and with nothing else.
    pub(crate) fn generation(&mut self) -> Result<Option<u32>, FirewallError> {
        const NFTA_GEN_ID: u16 = 1;
        let request = NfTablesMessage::GetGen(GenMessage {
            attributes: Vec::new(),
        });
        let Some(answer) = self.ask("the generation", request)? else {
            return Ok(None);
        };
        let number = value(&answer.attributes()?, NFTA_GEN_ID);
        Ok(number.and_then(|number| Some(u32::from_be_bytes(*number.first_chunk()?))))
    }

    /// As [`Self::generation`], and what is listed from now on is no older: a transaction has its number a moment before
    /// it takes effect.
    pub(crate) fn settled_generation(&mut self) -> Result<Option<u32>, FirewallError> {
        let generation = self.generation()?;
        // An empty transaction waits for those before it, and changes nothing, not even the number.
        let batch = self.batch();
        self.sequence = batch.sequence().wrapping_add(2);
        let (bytes, _) = batch.finish();
        self.send(&bytes)?;
        Ok(generation)
    }

    /// Begins a transaction; it must be the next thing sent.
    pub(crate) fn batch(&self) -> Batch {
        Batch::beginning_at(self.sequence)
    }

    /// Sends a batch. On any error but a lost answer the table is as it was.
    pub(crate) fn transact(&mut self, batch: Batch) -> Result<(), FirewallError> {
        let first = batch.first;
        let last = batch.sequence();
        let (bytes, parts) = batch.finish();
        self.sequence = last.wrapping_add(2);
        for _ in 0..BUSY_ATTEMPTS {
            match self.attempt(&bytes, &parts, first, last) {
                Err(FirewallError::Refused { source, .. }) if is(&source, Errno::EBUSY) => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                outcome => return outcome,
            }
        }
        self.attempt(&bytes, &parts, first, last)
    }

    fn attempt(
        &self,
        bytes: &[u8],
        parts: &[&'static str],
        first: u32,
        last: u32,
    ) -> Result<(), FirewallError> {
        self.send(bytes)?;
        let mut refusal: Option<FirewallError> = None;
        loop {
            for (header, payload) in self.receive()? {
                let NetlinkPayload::Error(answer) = payload else {
                    continue;
                };
                let place = usize::try_from(header.sequence_number.wrapping_sub(first)).unwrap_or(usize::MAX);
                if place > parts.len() {
                    continue;
                }
                if answer.code.is_some() {
                    // What is refused as a whole is answered at the first message, before the parts.
                    let what = place.checked_sub(1).and_then(|place| parts.get(place));
                    let what = what.copied().unwrap_or("the transaction");
                    refusal.get_or_insert_with(|| FirewallError::Refused {
                        what,
                        source: answer.to_io(),
                    });
                }
                // Without the capability, and in another generation than asked for, only the first message is answered.
                let is_alone = |errno| is(&answer.to_io(), errno);
                let is_alone = place == 0 && (is_alone(Errno::EPERM) || is_alone(Errno::ERESTART));
                if header.sequence_number == last || is_alone {
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// One object, or nothing if there is no such object.
    pub(crate) fn ask(
        &mut self,
        what: &'static str,
        request: NfTablesMessage,
    ) -> Result<Option<Answer>, FirewallError> {
        match self.exchange(what, request, NLM_F_REQUEST | NLM_F_ACK) {
            Ok(Listing::Whole(answers)) => Ok(answers.into_iter().next()),
            Ok(Listing::Torn) => Ok(None),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind; none if what holds them doesn't exist.
    pub(crate) fn list(
        &mut self,
        what: &'static str,
        request: &NfTablesMessage,
    ) -> Result<Vec<Answer>, FirewallError> {
        for _ in 0..LISTING_ATTEMPTS {
            match self.exchange(what, request.clone(), NLM_F_REQUEST | NLM_F_DUMP) {
                Ok(Listing::Whole(answers)) => return Ok(answers),
                Ok(Listing::Torn) => {}
                Err(FirewallError::Socket(error)) if is(&error, Errno::ENOBUFS) => {}
                Err(error) if error.is_absence() => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        Err(FirewallError::NeverStill { what })
    }

    fn exchange(
        &mut self,
        what: &'static str,
        request: NfTablesMessage,
        flags: u16,
    ) -> Result<Listing, FirewallError> {
        #[cfg(test)]
        if self.answers_no_question {
            return Err(FirewallError::NoAnswer);
        }
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        emit(
            &mut bytes,
            NetfilterMessage::new(inet(), request),
            flags,
            sequence,
        );
        self.send(&bytes)?;

        let mut answers = Vec::new();
        let mut torn = false;
        loop {
            for (header, payload) in self.receive()? {
                if header.sequence_number != sequence {
                    continue;
                }
                torn |= header.flags & NLM_F_DUMP_INTR != 0;
                let end = match payload {
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        continue;
                    }
                    NetlinkPayload::Done(done) => done.code,
                    NetlinkPayload::Error(answer) => answer.raw_code(),
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => continue,
                };
                return match end {
                    0 if torn => Ok(Listing::Torn),
                    0 => Ok(Listing::Whole(answers)),
                    code => Err(FirewallError::Refused {
                        what,
                        source: io::Error::from_raw_os_error(code.saturating_abs()),
                    }),
                };
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), FirewallError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FirewallError::Socket(error)),
            }
        }
    }

    fn receive(&self) -> Result<Vec<(NetlinkHeader, NetlinkPayload<Answer>)>, FirewallError> {
        let mut buffer = Vec::with_capacity(READ);
        let length = loop {
            match self.socket.recv(&mut buffer, 0) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(FirewallError::NoAnswer);
                }
                Err(error) => return Err(FirewallError::Socket(error)),
            }
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::<Answer>::deserialize(rest).map_err(FirewallError::Garbled)?;
            let (header, payload) = message.into_parts();
            let length = usize::try_from(header.length)
                .unwrap_or(usize::MAX)
                .checked_next_multiple_of(4);
            rest = length.and_then(|length| rest.get(length..)).unwrap_or_default();
            messages.push((header, payload));
        }
        if messages.is_empty() {
            Err(FirewallError::Garbled(DecodeError::from("empty answer")))
        } else {
            Ok(messages)
        }
    }
}

/// The attributes of an object found, still encoded: long lists of elements are decoded piece by piece.
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    pub(crate) fn decode<T: Parseable<[u8]>>(&self) -> Result<T, FirewallError> {
        T::parse(&self.0).map_err(FirewallError::Garbled)
    }

    pub(crate) fn attributes(&self) -> Result<Vec<DefaultNla>, FirewallError> {
        attributes(&self.0)
    }
}

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let attributes = payload.get(inet().buffer_len()..);
        attributes
            .map(|attributes| Self(attributes.to_vec()))
            .ok_or_else(|| DecodeError::from("no header"))
    }
}

/// Hears only the kernel.
pub(crate) fn prepare(socket: &mut Socket, receive_buffer: usize) -> Result<(), FirewallError> {
    socket.bind_auto().map_err(FirewallError::Socket)?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(FirewallError::Socket)?;
    // Refusals come without a copy of what was refused, or a large one wouldn't fit the buffer.
    socket.set_cap_ack(true).map_err(FirewallError::Socket)?;
    // Beyond the limits of net.core only with CAP_NET_ADMIN in the first user namespace.
    setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &receive_buffer)
        .or_else(|_| setsockopt(&socket.as_fd(), sockopt::RcvBuf, &receive_buffer))
        .map_err(|errno| FirewallError::Socket(errno.into()))
}

/// A kernel without nfnetlink knows no such protocol, one without netlink no such family (socket(2)).
fn no_socket(error: io::Error) -> FirewallError {
    if is(&error, Errno::EPROTONOSUPPORT) || is(&error, Errno::EAFNOSUPPORT) {
        FirewallError::NoNfTables(error)
    } else {
        FirewallError::Socket(error)
    }
}

enum Listing {
    Whole(Vec<Answer>),
    /// The ruleset changed while it was read.
    Torn,
}

pub(crate) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(errno)
}

pub(crate) fn inet() -> NetfilterHeader {
    NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0)
}

pub(crate) fn emit(bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start.saturating_add(message.buffer_len()), 0);
    if let Some(place) = bytes.get_mut(start..) {
        message.serialize(place);
    }
}

/// The attributes in the value of another.
pub(crate) fn attributes(bytes: &[u8]) -> Result<Vec<DefaultNla>, FirewallError> {
    let parsed = NlasIterator::new(bytes)
        .map(|attribute| attribute.and_then(|attribute| DefaultNla::parse(&attribute)));
    parsed.collect::<Result<_, _>>().map_err(FirewallError::Garbled)
}

/// The value of the first attribute of a kind.
pub(crate) fn value(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    let found = attributes
        .iter()
        .find(|attribute| attribute.kind() & NLA_TYPE_MASK == kind)?;
    let mut value = vec![0; found.value_len()];
    found.emit_value(&mut value);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nfnetlink_has_no_nf_tables() {
        for (errno, has_none) in [
            (Errno::EPROTONOSUPPORT, true),
            (Errno::EAFNOSUPPORT, true),
            (Errno::EMFILE, false),
        ] {
            let found = no_socket(errno.into());
            assert_eq!(matches!(found, FirewallError::NoNfTables(_)), has_none, "{found}");
        }
    }
}
