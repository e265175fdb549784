//! Whom a certificate names: one URI `nightlatch://<installation>/<kind>/<id>`, and nothing else counts.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use crate::id::{InstallationId, Subject};

/// What a certificate is for. Each has one kind, and counts for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Server,
    Machine,
    Person,
    Program,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Server, Self::Machine, Self::Person, Self::Program];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Machine => "machine",
            Self::Person => "person",
            Self::Program => "program",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub installation: InstallationId,
    pub kind: Kind,
    /// An id or a name: 1 to 128 of letters, digits and `.` `_` `-` `+` `@`.
    pub id: String,
}

/// A certificate's names are not those of a member of a Nightlatch installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not have exactly one URI name of the form nightlatch://INSTALLATION/KIND/ID")]
pub struct InvalidIdentity;

impl Identity {
    /// Reads the URIs among a certificate's names.
    ///
    /// # Errors
    /// None or several of them, or one that is no identity.
    pub fn from_uris<'u>(uris: impl IntoIterator<Item = &'u str>) -> Result<Self, InvalidIdentity> {
        let mut uris = uris.into_iter();
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse(),
            _ => Err(InvalidIdentity),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            installation,
            kind,
            id,
        } = self;
        write!(f, "nightlatch://{installation}/{kind}/{id}")
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    /// One identity has one text.
    fn from_str(uri: &str) -> Result<Self, InvalidIdentity> {
        let rest = uri.strip_prefix("nightlatch://").ok_or(InvalidIdentity)?;
        let mut parts = rest.split('/');
        let (Some(installation), Some(kind), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidIdentity);
        };
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
        // Ids of servers and machines are written in the characters of names, too.
        let id = id.parse::<Subject>().ok().ok_or(InvalidIdentity)?;
        Ok(Self {
            installation: installation.parse().ok().ok_or(InvalidIdentity)?,
            kind: kind.ok_or(InvalidIdentity)?,
            id: id.as_str().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "nightlatch://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/person/alice@example.org";

    #[test]
    fn an_identity_is_installation_kind_and_id() {
        for kind in Kind::ALL {
            let uri = ALICE.replace("person", kind.as_str());
            let identity: Identity = uri.parse().unwrap();
            assert_eq!((identity.kind, identity.id.as_str()), (kind, "alice@example.org"));
            assert_eq!(identity.to_string(), uri);
        }
    }

    #[test]
    fn what_is_written_otherwise_names_nobody() {
        for (of, by) in [
            (ALICE, ""),
            ("nightlatch", "spiffe"),
            ("nightlatch", "Nightlatch"),
            ("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11", "x"),
            ("019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11", ""),
            ("019aa0b2", "019AA0B2"),
            ("person", "root"),
            ("person", "Person"),
            ("alice@example.org", ""),
            ("alice@example.org", "alice/x"),
            ("alice@example.org", "alice/"),
            ("alice@example.org", "alice?x"),
            ("alice@example.org", "alice%40example.org"),
            ("alice@example.org", "al ice"),
        ] {
            let uri = ALICE.replace(of, by);
            assert_eq!(uri.parse::<Identity>(), Err(InvalidIdentity), "{uri}");
        }
    }

    #[test]
    fn only_exactly_one_uri_counts() {
        assert!(Identity::from_uris([ALICE]).is_ok());
        for uris in [&[][..], &[ALICE, ALICE], &[ALICE, "https://example.org"]] {
            assert_eq!(
                Identity::from_uris(uris.iter().copied()),
                Err(InvalidIdentity),
                "{uris:?}"
            );
        }
    }
}
