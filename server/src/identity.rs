//! Who is who: the certificate authority, certificates of one kind each, enrolment tokens.

pub mod ca;
pub mod peer;
pub mod token;

use std::fmt;
use std::str::FromStr;

use nightlatch_core::id::InstallationId;
use nightlatch_core::signing;

/// What a certificate is for. Each has one kind, and each listener takes its own only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Server,
    Machine,
    Person,
    Program,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Machine => "machine",
            Self::Person => "person",
            Self::Program => "program",
        })
    }
}

/// What a certificate says its holder is: `nightlatch://<installation>/<kind>/<id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub installation: InstallationId,
    pub kind: Kind,
    pub id: String,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Nightlatch identity")]
pub struct InvalidIdentity;

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(uri: &str) -> Result<Self, InvalidIdentity> {
        let mut parts = uri
            .strip_prefix("nightlatch://")
            .ok_or(InvalidIdentity)?
            .split('/');
        let (Some(installation), Some(kind), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidIdentity);
        };
        let kinds = [Kind::Server, Kind::Machine, Kind::Person, Kind::Program];
        let kind = kinds
            .into_iter()
            .find(|known| known.to_string() == kind)
            .ok_or(InvalidIdentity)?;
        let installation = installation.parse().ok().ok_or(InvalidIdentity)?;
        if id.is_empty() {
            return Err(InvalidIdentity);
        }
        Ok(Self {
            installation,
            kind,
            id: id.to_owned(),
        })
    }
}

/// Hex SHA-256 of a certificate's DER: the one that counts for its holder is in the store.
pub fn fingerprint(certificate: &[u8]) -> String {
    signing::hex(&signing::sha256(certificate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_installation_kind_and_id() {
        let uri = "nightlatch://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/person/alice@example.org";
        assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        for bad in [
            "",
            "nightlatch://",
            "spiffe://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/person/alice",
            "nightlatch://x/person/alice",
            "nightlatch://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/root/alice",
            "nightlatch://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/person/",
            "nightlatch://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/person/alice/x",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
