//! What a lab is called and where its parts are.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Error, bail};

use crate::netns::{self, Netns};

/// The most machines of a lab: their IPv4 addresses end in 11 to 210.
pub const MOST_MACHINES: u16 = 200;
/// The port for people and programs.
pub const PEOPLE_PORT: u16 = 7443;

const DIR_PREFIX: &str = "nightlatch-lab-";
const TEST_PREFIX: &str = "nltest-";

/// The name of a lab, and the beginning of the names of its namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=32).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            bail!("`{text}` is not the name of a lab: write 1 to 32 of a-z, 0-9 and -, not beginning with -")
        }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabName {
    /// The lab of a test: the process that runs it, and a number among its labs.
    pub fn of_test(pid: u32, number: u32) -> Self {
        Self(format!("{TEST_PREFIX}{pid}-{number}"))
    }

    /// The process that runs the test, if this is the lab of one.
    pub fn test_pid(&self) -> Option<u32> {
        let (pid, _) = self.0.strip_prefix(TEST_PREFIX)?.split_once('-')?;
        pid.parse().ok()
    }

    /// All labs that have files or namespaces, whole or not.
    pub fn all() -> BTreeSet<Self> {
        let files = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
        let dirs = files.filter_map(|file| file.file_name().to_str()?.strip_prefix(DIR_PREFIX)?.parse().ok());
        let parts = netns::all().into_iter();
        let bridges = parts.filter_map(|netns| netns.name().strip_suffix("-net")?.parse().ok());
        dirs.chain(bridges).collect()
    }

    /// Where the lab keeps its files.
    pub fn dir(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{DIR_PREFIX}{}", self.0))
    }

    /// The namespace that holds the bridge, so that nothing shows up on the machine itself.
    pub fn bridge(&self) -> Netns {
        self.netns("net")
    }

    pub fn control(&self) -> Netns {
        self.netns("control")
    }

    pub fn client(&self) -> Netns {
        self.netns("client")
    }

    pub fn machine(&self, number: u16) -> Netns {
        self.netns(&format!("m{number}"))
    }

    /// Whether a namespace is one of this lab's.
    pub fn owns(&self, netns: &Netns) -> bool {
        let part = netns
            .name()
            .strip_prefix(&self.0)
            .and_then(|rest| rest.strip_prefix('-'));
        part.is_some_and(|part| {
            let number = part.strip_prefix('m').unwrap_or_default();
            matches!(part, "net" | "control" | "client")
                || (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }

    fn netns(&self, part: &str) -> Netns {
        Netns::named(format!("{}-{part}", self.0))
    }
}

/// The addresses of one host on the bridge. Each lab is alone in its namespaces, so all use the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

/// The networks that every host of a lab takes for its neighbours: hosts live in the first of each family,
/// the second is for further addresses that tests give to the client.
pub const NEIGHBOURS: [&str; 4] = [
    "192.0.2.0/24",
    "2001:db8::/64",
    "198.51.100.0/24",
    "2001:db8:1::/64",
];

pub const CONTROL: Addresses = host(1);
pub const CLIENT: Addresses = host(2);

/// The addresses of machine `number`, counted from 1.
pub const fn machine_addresses(number: u16) -> Addresses {
    host(number.saturating_add(10))
}

const fn host(last: u16) -> Addresses {
    let [_, low] = last.to_be_bytes();
    Addresses {
        ipv4: Ipv4Addr::new(192, 0, 2, low),
        ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last),
    }
}

/// What machine `number` is called.
pub fn machine_name(number: u16) -> String {
    format!("web-{number}")
}

/// The folder with the binaries that cargo put this one beside or above.
pub fn binaries_beside(executable: &Path) -> Option<PathBuf> {
    executable
        .ancestors()
        .skip(1)
        .find(|dir| dir.join("nightlatch-server").is_file())
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_owns_its_own_namespaces_only() {
        let lab: LabName = "nl".parse().unwrap();
        for own in [
            lab.bridge(),
            lab.control(),
            lab.client(),
            lab.machine(1),
            lab.machine(200),
        ] {
            assert!(lab.owns(&own), "{own:?}");
        }
        for other in [
            "nl",
            "nl-",
            "nl-m",
            "nl-m1-control",
            "nl2-control",
            "nl-mx",
            "control",
            "xnl-client",
        ] {
            assert!(!lab.owns(&Netns::named(other)), "{other}");
        }
    }

    #[test]
    fn the_name_of_a_lab_is_safe_in_paths_and_commands() {
        for name in ["", "-a", "a/b", "a b", "A", "a.b", &"a".repeat(33)] {
            assert!(name.parse::<LabName>().is_err(), "{name}");
        }
    }
}
