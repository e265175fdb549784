//! Source prefixes: a single address is a prefix of full length.

use alloc::string::{String, ToString};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 prefix without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix(IpNet);

/// The address family of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// The length in bits of an address, and so of the narrowest prefix.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }
}

/// What addresses are that nobody connects to a guarded port from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSender {
    Unspecified,
    Loopback,
    Multicast,
    Broadcast,
}

impl fmt::Display for NoSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "no address",
            Self::Loopback => "the loopback of each host",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
        })
    }
}

/// A source that is given where nobody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given} is {kind}: nobody connects from there; write the address you connect from, or `me`")]
pub struct NobodyThere {
    pub given: Prefix,
    pub kind: NoSender,
}

/// RFC 1122 3.2.1.3, RFC 4291 2.5.2, 2.5.3 and 2.7.
const NO_SENDERS: [(IpAddr, u8, NoSender); 7] = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8, NoSender::Unspecified),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8, NoSender::Loopback),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4, NoSender::Multicast),
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32, NoSender::Broadcast),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128, NoSender::Unspecified),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128, NoSender::Loopback),
    (
        IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)),
        8,
        NoSender::Multicast,
    ),
];

/// Why a text is no source prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    #[error("`{0}` is not an address or prefix: write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/64")]
    NotAPrefix(String),
    #[error("`{given}` has bits set beyond its length: did you mean {meant}?")]
    HostBits { given: String, meant: Prefix },
    #[error("`{0}` is an IPv4 address written as IPv6: write it as IPv4")]
    Ipv4Mapped(String),
}

impl Prefix {
    /// # Errors
    /// Host bits beyond the length, or an IPv4 address mapped into IPv6 (`::ffff:0:0/96`, RFC 4291 2.5.5.2):
    /// on the wire such a packet is IPv4, so the prefix would never match.
    pub fn new(net: IpNet) -> Result<Self, InvalidPrefix> {
        if let IpNet::V6(v6) = net
            && v6.addr().to_ipv4_mapped().is_some()
        {
            return Err(InvalidPrefix::Ipv4Mapped(net.to_string()));
        }
        let meant = net.trunc();
        if meant == net {
            Ok(Self(net))
        } else {
            Err(InvalidPrefix::HostBits {
                given: net.to_string(),
                meant: Self(meant),
            })
        }
    }

    pub fn family(self) -> Family {
        match self.0 {
            IpNet::V4(_) => Family::Ipv4,
            IpNet::V6(_) => Family::Ipv6,
        }
    }

    /// The first address of the prefix.
    pub fn address(self) -> IpAddr {
        self.0.addr()
    }

    /// The length in bits.
    pub fn length(self) -> u8 {
        self.0.prefix_len()
    }

    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    pub fn covers(self, other: Self) -> bool {
        self.0.contains(&other.0)
    }

    /// What it is, where nobody connects to a guarded port from any of its addresses.
    pub fn no_sender(self) -> Option<NoSender> {
        let mut kinds = NO_SENDERS.into_iter();
        kinds.find_map(|(address, length, kind)| {
            let wide = Self::around(address, length)?;
            wide.covers(self).then_some(kind)
        })
    }

    /// As a source that somebody gives, and that is not merely where they are seen.
    ///
    /// # Errors
    /// One that nobody connects from.
    pub fn given(self) -> Result<Self, NobodyThere> {
        match self.no_sender() {
            Some(kind) => Err(NobodyThere { given: self, kind }),
            None => Ok(self),
        }
    }

    /// Whether any packet's sender may lie in it. On the host itself that may be its loopback.
    pub fn can_send(self) -> bool {
        matches!(self.no_sender(), None | Some(NoSender::Loopback))
    }

    /// The prefix of `length` bits that `address` lies in, if the family has that many bits.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        IpNet::new(address, length).ok().map(|net| Self(net.trunc()))
    }
}

/// An address alone. An IPv4 address mapped into IPv6 becomes the IPv4 address it stands for.
impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(IpNet::V4(Ipv4Net::from(v4))),
            IpAddr::V6(v6) => Self(IpNet::V6(Ipv6Net::from(v6))),
        }
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let net = if text.contains('/') {
            text.parse::<IpNet>().ok()
        } else {
            text.parse::<IpAddr>().ok().map(IpNet::from)
        };
        Self::new(net.ok_or_else(|| InvalidPrefix::NotAPrefix(text.to_string()))?)
    }
}

impl TryFrom<String> for Prefix {
    type Error = InvalidPrefix;

    fn try_from(text: String) -> Result<Self, InvalidPrefix> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0.to_string()
    }
}

/// Always with its length, also for a single address.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_prefix_of_full_length() {
        assert_eq!("192.0.2.7".parse::<Prefix>().unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(
            "2001:db8::7".parse::<Prefix>().unwrap().to_string(),
            "2001:db8::7/128"
        );
    }

    #[test]
    fn only_what_can_send_is_a_sender() {
        for (text, can) in [
            ("0.0.0.0", false),
            ("::", false),
            ("255.255.255.255", false),
            ("0.0.0.0/8", false),
            ("0.1.2.3", false),
            ("224.0.0.1", false),
            ("224.0.0.0/4", false),
            ("ff02::1", false),
            ("ff00::/8", false),
            ("0.0.0.0/0", true),
            ("::/0", true),
            ("224.0.0.0/3", true),
            ("127.0.0.1", true),
            ("fe80::1", true),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().can_send(), can, "{text}");
        }
    }

    #[test]
    fn what_is_no_sender_is_named_by_its_kind() {
        for (text, kind) in [
            ("0.0.0.0/8", Some(NoSender::Unspecified)),
            ("::", Some(NoSender::Unspecified)),
            ("127.0.0.0/8", Some(NoSender::Loopback)),
            ("::1", Some(NoSender::Loopback)),
            ("239.1.0.0/16", Some(NoSender::Multicast)),
            ("ff02::1", Some(NoSender::Multicast)),
            ("255.255.255.255", Some(NoSender::Broadcast)),
            ("126.0.0.0/7", None),
            ("::/127", None),
            ("255.255.255.0/24", None),
            ("192.0.2.7", None),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().no_sender(), kind, "{text}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused_with_what_to_write() {
        for (text, says) in [
            ("", "not an address"),
            ("192.0.2.0/33", "not an address"),
            ("192.0.2.7/24", "did you mean 192.0.2.0/24"),
            ("::ffff:192.0.2.7", "write it as IPv4"),
            ("fe80::1%eth0", "not an address"),
            ("web-1", "not an address"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
