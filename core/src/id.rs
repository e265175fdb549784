//! Ids and names, each a type of its own.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is no id or name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("`{0}` is not an id: ids look like 019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11")]
    NotAnId(String),
    #[error(
        "`{0}` is not a machine name: write up to 253 letters, digits, `-` and `.`, \
         each label 1 to 63 long and with a letter or digit at both ends (RFC 1123)"
    )]
    NotAMachineName(String),
    #[error(
        "`{0}` is not a user name: write 1 to 128 of letters, digits and `.` `_` `-` `+` `@`, not only dots"
    )]
    NotASubject(String),
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Uuid);

        impl $name {
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Takes the hyphenated form only, in lower case: one id, one text.
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let id = Uuid::try_parse(text).ok().map(Self);
                id.filter(|id| id.to_string() == text).ok_or_else(|| InvalidId::NotAnId(text.to_string()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

uuid_id!(
    /// One Nightlatch: a server or several over one store, and its machines.
    InstallationId
);
uuid_id!(
    /// A machine, given at enrolment; it stands in the machine's certificate and in each of its grants.
    MachineId
);
uuid_id!(GrantId);
uuid_id!(RequestId);
uuid_id!(
    /// One use of break-glass.
    BreakGlassId
);

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $error:ident, $canonical:expr, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let name: String = $canonical(text);
                if $valid(name.as_str()) { Ok(Self(name)) } else { Err(InvalidId::$error(text.to_string())) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

text_name!(
    /// What people call a machine: a host name in lower case (RFC 1123, 2.1), unique, and never like an id.
    MachineName,
    NotAMachineName,
    str::to_ascii_lowercase,
    |name: &str| {
        name.len() <= 253
            && Uuid::try_parse(name).is_err()
            && name.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            })
    }
);
text_name!(
    /// Who asks: the name of a person or program as its login or certificate says it.
    Subject,
    NotASubject,
    str::to_string,
    |name: &str| {
        (1..=128).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+@".contains(&byte))
            && !name.bytes().all(|byte| byte == b'.')
    }
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn a_machine_name_is_a_host_name_and_never_an_id() {
        for name in ["web-1", "db.example.org", "a", "7"] {
            assert_eq!(name.parse::<MachineName>().unwrap().as_str(), name);
        }
        assert_eq!("Web-1".parse::<MachineName>().unwrap().as_str(), "web-1");
        let long = "a".repeat(64);
        for name in [
            "",
            "-a",
            "a-",
            "a..b",
            "a_b",
            "a b",
            "über",
            &long,
            "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11",
        ] {
            assert!(name.parse::<MachineName>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_user_name_is_no_name_of_a_folder() {
        for name in ["alice", "alice@example.org", "a.b", ".a", "-"] {
            assert_eq!(name.parse::<Subject>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "...", "a/b", "a b", &"a".repeat(129)] {
            assert!(name.parse::<Subject>().is_err(), "{name}");
        }
    }

    #[test]
    fn one_id_has_one_text() {
        let id = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11";
        assert_eq!(id.parse::<GrantId>().unwrap().to_string(), id);
        for other in [
            id.to_uppercase(),
            id.replace('-', ""),
            format!("{{{id}}}"),
            format!("urn:uuid:{id}"),
        ] {
            assert!(other.parse::<GrantId>().is_err(), "{other}");
        }
    }
}
