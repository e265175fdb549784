//! From where one connects, and how to connect to what has been opened.

use std::fmt;
use std::net::IpAddr;

use nightlatch_core::prefix::{Family, InvalidPrefix, NobodyThere, Prefix};
use nightlatch_proto::convert::access::Source;

use crate::record::OutcomeRecord;

/// Why a text is no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidSource {
    #[error(transparent)]
    Prefix(#[from] InvalidPrefix),
    #[error(transparent)]
    NobodyThere(#[from] NobodyThere),
}

/// # Errors
/// Neither `me` nor an address or prefix, or one that nobody connects from.
pub(crate) fn source(text: &str) -> Result<Source, InvalidSource> {
    if text == "me" {
        return Ok(Source::Caller);
    }
    Ok(Source::Prefix(text.parse::<Prefix>()?.given()?))
}

/// By what to call a machine.
pub(crate) enum Way<'o> {
    Address(&'o str),
    /// No address of a family that the sources cover is known.
    Name {
        machine: &'o str,
        by: Option<Detour<'o>>,
    },
}

pub(crate) struct Detour<'o> {
    wanted: Family,
    known: &'o str,
}

impl<'o> Way<'o> {
    pub(crate) fn to(outcome: &'o OutcomeRecord, sources: &[String]) -> Self {
        let families: Vec<Family> = sources
            .iter()
            .filter_map(|source| source.parse().ok())
            .map(Prefix::family)
            .collect();
        let fits = |address: &&String| {
            let family = family(address);
            families.is_empty() || family.is_some_and(|family| families.contains(&family))
        };
        let known = || outcome.addresses.iter();
        match (known().find(fits), known().next(), families.first()) {
            (Some(address), ..) => Self::Address(address),
            (None, Some(known), Some(wanted)) => Self::Name {
                machine: &outcome.machine,
                by: Some(Detour {
                    wanted: *wanted,
                    known,
                }),
            },
            (None, ..) => Self::Name {
                machine: &outcome.machine,
                by: None,
            },
        }
    }

    pub(crate) fn lines(&self, ports: &[String]) -> Vec<String> {
        let (host, ssh_option, over) = match self {
            Self::Address(address) => (*address, "", ""),
            Self::Name { machine, by: None } => (*machine, "", ""),
            Self::Name {
                machine,
                by: Some(detour),
            } => match detour.wanted {
                Family::Ipv4 => (*machine, "-4 ", " over IPv4,"),
                Family::Ipv6 => (*machine, "-6 ", " over IPv6,"),
            },
        };
        ports
            .iter()
            .map(|port| match port.split_once('/').unwrap_or((port, "")) {
                ("22", "" | "tcp" | "*") => format!("ssh {ssh_option}USER@{host}"),
                (port, protocol) => {
                    let plural = if port.contains('-') { "s" } else { "" };
                    let udp = if protocol == "udp" { " (udp)" } else { "" };
                    format!("connect to {host}{over} port{plural} {port}{udp}")
                }
            })
            .collect()
    }

    /// What to mind where the one address that is known doesn't do.
    pub(crate) fn detour(&self) -> Option<String> {
        match self {
            Self::Name {
                machine,
                by: Some(Detour { wanted, known }),
            } => {
                let wanted = InWords(*wanted);
                Some(format!(
                    "the grant is for {wanted} sources, and the server knows {machine} only as {known}: \
                     use its name or its {wanted} address"
                ))
            }
            _ => None,
        }
    }
}

fn family(address: &str) -> Option<Family> {
    let address: IpAddr = address.parse().ok()?;
    Some(Prefix::from(address).family())
}

struct InWords(Family);

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::OutcomeState;

    fn outcome(addresses: &[&str]) -> OutcomeRecord {
        OutcomeRecord {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            ..OutcomeRecord::example("web-1", OutcomeState::Open)
        }
    }

    fn texts(of: &[&str]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_port_has_its_line() {
        let outcome = outcome(&["192.0.2.10"]);
        let ports = texts(&["22", "22/tcp", "22/udp", "3389/*", "8000-8010/tcp"]);
        assert_eq!(
            Way::to(&outcome, &[]).lines(&ports),
            [
                "ssh USER@192.0.2.10",
                "ssh USER@192.0.2.10",
                "connect to 192.0.2.10 port 22 (udp)",
                "connect to 192.0.2.10 port 3389",
                "connect to 192.0.2.10 ports 8000-8010",
            ]
        );
    }

    #[test]
    fn an_address_is_named_only_if_the_grant_covers_its_family() {
        let [v4, v6] = ["198.51.100.7/32", "2001:db8::2/128"];
        let [known4, known6] = ["192.0.2.10", "2001:db8::10"];
        for (known, sources, line) in [
            (&[known4][..], &[v4][..], "ssh USER@192.0.2.10"),
            (&[known6], &[v6], "ssh USER@2001:db8::10"),
            (&[known6], &[v4, v6], "ssh USER@2001:db8::10"),
            (&[known6, known4], &[v4], "ssh USER@192.0.2.10"),
            (&[known4], &[v6], "ssh -6 USER@web-1"),
            (&[known6], &[v4], "ssh -4 USER@web-1"),
            (&[], &[v4], "ssh USER@web-1"),
        ] {
            let outcome = outcome(known);
            let way = Way::to(&outcome, &texts(sources));
            assert_eq!(way.lines(&texts(&["22"])), [line]);
            assert_eq!(
                way.detour().is_some(),
                line.contains('-') && line.contains("ssh -")
            );
        }
        let outcome = outcome(&[known4]);
        let way = Way::to(&outcome, &texts(&[v6]));
        assert_eq!(
            way.lines(&texts(&["3389/udp"])),
            ["connect to web-1 over IPv6, port 3389 (udp)"]
        );
        assert_eq!(
            way.detour().unwrap(),
            "the grant is for IPv6 sources, and the server knows web-1 only as 192.0.2.10: use its name or its IPv6 address"
        );
    }

    #[test]
    fn nobody_connects_from_what_is_no_sender() {
        for text in [
            "0.0.0.0",
            "0.0.0.0/8",
            "127.0.0.1",
            "224.0.0.1",
            "239.1.0.0/16",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ] {
            let error = source(text).unwrap_err().to_string();
            assert!(error.contains("nobody connects from there"), "{text}: {error}");
        }
        for text in ["me", "192.0.2.7", "0.0.0.0/0", "::/0", "2001:db8::/64"] {
            assert!(source(text).is_ok(), "{text}");
        }
    }
}
