//! Attempts as no socket makes them, put on the wire byte by byte: in fragments and behind other headers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    self, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

use super::Scene;

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A SYN: from whom, to what, and a number that tells it from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) port: u16,
    pub(crate) number: u16,
}

impl Attempt {
    /// The port that it comes from, by which its answer is known.
    fn own_port(self) -> u16 {
        20_000 + self.number
    }

    pub(crate) fn syn(self, data: &[u8]) -> Vec<u8> {
        self.segment(SYN, data)
    }

    /// The same with the other bit, as a packet of an open session has it.
    pub(crate) fn ack(self) -> Vec<u8> {
        self.segment(ACK, &[])
    }

    /// A TCP header of 24 bytes, since it names the largest segment, and what follows it.
    fn segment(self, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.own_port().to_be_bytes());
        segment.extend(self.port.to_be_bytes());
        segment.extend([0, 0, 1, 0, 0, 0, 0, 0, 6 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend([2, 4, 5, 180]);
        segment.extend(data);
        let mut pseudo = [octets(self.from), octets(self.to)].concat();
        pseudo.extend(u32::try_from(segment.len()).unwrap().to_be_bytes());
        pseudo.extend([0, 0, 0, TCP]);
        let sum = checksum(&[pseudo, segment.clone()].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// Bytes `offset..` of an IPv4 payload.
    pub(crate) fn ipv4(self, options: &[u8], offset: u16, is_last: bool, payload: &[u8]) -> Vec<u8> {
        let length = 20 + options.len();
        let mut packet = vec![0x40 | u8::try_from(length / 4).unwrap(), 0];
        packet.extend(u16::try_from(length + payload.len()).unwrap().to_be_bytes());
        packet.extend(self.number.to_be_bytes());
        packet.extend(((offset / 8) | if is_last { 0 } else { 0x2000 }).to_be_bytes());
        packet.extend([64, TCP, 0, 0]);
        packet.extend([octets(self.from), octets(self.to)].concat());
        packet.extend(options);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    /// An IPv6 packet whose payload begins with the header `next`.
    pub(crate) fn ipv6(self, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        packet.extend([next, 64]);
        packet.extend([octets(self.from), octets(self.to)].concat());
        packet.extend(payload);
        packet
    }

    /// Bytes `offset..` of what begins with the header `next`.
    pub(crate) fn ipv6_fragment(self, next: u8, offset: u16, is_last: bool, payload: &[u8]) -> Vec<u8> {
        const FRAGMENT: u8 = 44;
        let mut fragment = vec![next, 0];
        fragment.extend((offset | u16::from(!is_last)).to_be_bytes());
        fragment.extend(u32::from(self.number).to_be_bytes());
        fragment.extend(payload);
        self.ipv6(FRAGMENT, &fragment)
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// The client's end of the wire.
pub(crate) struct Wire {
    socket: OwnedFd,
    client: [u8; 6],
    host: [u8; 6],
}

impl Wire {
    pub(crate) fn of(scene: &Scene) -> Self {
        let host = scene.host.run(|| interface("outside").addr().unwrap());
        scene.client.run(|| {
            let uplink = interface("uplink");
            let socket = socket::socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .unwrap();
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).unwrap();
            socket::bind(socket.as_raw_fd(), &uplink).unwrap();
            Self {
                socket,
                client: uplink.addr().unwrap(),
                host,
            }
        })
    }

    pub(crate) fn send(&self, packet: &[u8]) {
        let kind = if packet[0] >> 4 == 4 {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        };
        let frame = [&self.host[..], &self.client, &kind, packet].concat();
        let sent = socket::send(self.socket.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// The attempts that the host answers with SYN and ACK: until all of `expected` are among them and
    /// then for `silence`, or else for `patience`.
    pub(crate) fn answered(
        &self,
        attempts: &[Attempt],
        expected: usize,
        patience: Duration,
        silence: Duration,
    ) -> BTreeSet<Attempt> {
        let mut answered = BTreeSet::new();
        let mut deadline = Instant::now() + patience;
        let mut is_complete = false;
        while Instant::now() < deadline {
            if let Some((from, to)) = self.syn_ack() {
                answered.extend(
                    attempts
                        .iter()
                        .filter(|attempt| (attempt.port, attempt.own_port()) == (from, to)),
                );
            }
            if answered.len() >= expected && !is_complete {
                is_complete = true;
                deadline = Instant::now() + silence;
            }
        }
        answered
    }

    /// Its ports, if that is what comes next.
    fn syn_ack(&self) -> Option<(u16, u16)> {
        let mut buffer = [0; 2_048];
        let length = socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
        let packet = buffer[..length].strip_prefix(&[self.client, self.host].concat()[..])?;
        let segment = match packet {
            [8, 0, packet @ ..] if packet.get(9) == Some(&TCP) => packet.get(20..)?,
            [0x86, 0xdd, packet @ ..] if packet.get(6) == Some(&TCP) => packet.get(40..)?,
            _ => return None,
        };
        let flags = *segment.get(13)?;
        let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
        (flags & (SYN | ACK) == SYN | ACK).then_some((port(0)?, port(2)?))
    }
}

fn interface(name: &str) -> LinkAddr {
    getifaddrs()
        .unwrap()
        .filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .unwrap()
}
