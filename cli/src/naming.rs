//! How machines and grants are named: by name, by id, by resource name, and grants by the start of their id.

use std::fmt;
use std::str::FromStr;

use nightlatch_core::id::{GrantId, RequestId};
use nightlatch_proto::convert::{InvalidField, resource};

/// `web-1`, a machine's id, or `machines/` and either of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineRef(resource::MachineRef);

impl MachineRef {
    pub(crate) fn resource(&self) -> String {
        resource::machine(&self.0)
    }

    pub(crate) fn policy(&self) -> String {
        resource::policy(&self.0)
    }

    /// Whether it is the machine of a record, by its name or its id.
    pub(crate) fn is(&self, name: &str, id: &str) -> bool {
        let given = self.to_string();
        given.eq_ignore_ascii_case(name) || given.eq_ignore_ascii_case(id)
    }
}

impl fmt::Display for MachineRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MachineRef {
    type Err = InvalidField;

    fn from_str(text: &str) -> Result<Self, InvalidField> {
        text.strip_prefix("machines/")
            .unwrap_or(text)
            .to_ascii_lowercase()
            .parse()
            .map(Self)
    }
}

/// `grants/ID`, the id alone, or at least its first eight characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GrantRef {
    Id(GrantId),
    Start(String),
}

impl GrantRef {
    const LEAST: usize = 8;
}

/// Why a text names no grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidName {
    #[error("`{0}` is not a grant: write its id, grants/ID, or at least the first {least} characters of the id", least = GrantRef::LEAST)]
    NotAGrant(String),
    #[error("`{0}` is not an access request: write accessRequests/ and its id")]
    NotARequest(String),
}

impl FromStr for GrantRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let id = text.strip_prefix("grants/").unwrap_or(text).to_ascii_lowercase();
        let is_start = (Self::LEAST..36).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        match id.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) if is_start => Ok(Self::Start(id)),
            Err(_) => Err(InvalidName::NotAGrant(text.to_string())),
        }
    }
}

pub(crate) fn grant_resource(id: GrantId) -> String {
    resource::grant(id)
}

const REQUESTS: &str = "accessRequests/";

pub(crate) fn request_resource(id: RequestId) -> String {
    resource::request(id)
}

/// What can be ended or looked at: a grant, or a request with all that came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Grant(GrantRef),
    Request(RequestId),
}

impl FromStr for Target {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.strip_prefix(REQUESTS) {
            None => text.parse().map(Self::Grant),
            Some(id) => {
                let id = id.to_ascii_lowercase().parse().ok();
                id.map(Self::Request)
                    .ok_or_else(|| InvalidName::NotARequest(text.to_string()))
            }
        }
    }
}

/// The start of an id fits no grant, or several.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnknownName {
    #[error("no grant that you may see has an id that starts with {0}")]
    NoGrant(String),
    #[error("{start} is the start of several ids: {}", ids.join(", "))]
    SeveralGrants { start: String, ids: Vec<String> },
}

impl UnknownName {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::NoGrant(_) => "`nightlatch list grants` lists them".to_string(),
            Self::SeveralGrants { .. } => "write more of the id".to_string(),
        }
    }
}

/// The one id that starts so.
///
/// # Errors
/// None or several.
pub(crate) fn only_one(start: &str, ids: Vec<String>) -> Result<String, UnknownName> {
    match <[String; 1]>::try_from(ids) {
        Ok([id]) => Ok(id),
        Err(ids) if ids.is_empty() => Err(UnknownName::NoGrant(start.to_string())),
        Err(ids) => Err(UnknownName::SeveralGrants {
            start: start.to_string(),
            ids,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11";

    #[test]
    fn a_machine_is_named_by_name_or_id() {
        for (text, means) in [
            ("web-1", "machines/web-1".to_string()),
            ("Web-1", "machines/web-1".to_string()),
            ("machines/web-1", "machines/web-1".to_string()),
            (ID, format!("machines/{ID}")),
            (&ID.to_uppercase(), format!("machines/{ID}")),
        ] {
            assert_eq!(text.parse::<MachineRef>().unwrap().resource(), means);
        }
        for text in ["", "machines/", "a/b", "grants/web-1", "we b"] {
            assert!(text.parse::<MachineRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_grant_is_named_by_its_id_or_the_start_of_it() {
        let id = GrantRef::Id(ID.parse().unwrap());
        assert_eq!(ID.parse(), Ok(id.clone()));
        assert_eq!(format!("grants/{ID}").parse(), Ok(id));
        assert_eq!(
            "019AA0B2-6".parse(),
            Ok(GrantRef::Start("019aa0b2-6".to_string()))
        );
        for text in [
            "",
            "019aa0b",
            "web-1",
            "grants/",
            &format!("{ID}0"),
            "machines/019aa0b2",
        ] {
            assert!(text.parse::<GrantRef>().is_err(), "{text}");
        }
        assert_eq!(
            format!("accessRequests/{ID}").parse(),
            Ok(Target::Request(ID.parse().unwrap()))
        );
        assert!("accessRequests/019aa0b2".parse::<Target>().is_err());
    }

    #[test]
    fn the_start_of_several_ids_names_none() {
        assert_eq!(only_one("019aa0b2", vec![ID.to_string()]), Ok(ID.to_string()));
        assert!(matches!(
            only_one("019aa0b2", vec![]),
            Err(UnknownName::NoGrant(_))
        ));
        let two = only_one("019aa0b2", vec![ID.to_string(), ID.replace('1', "2")]);
        assert!(matches!(two, Err(UnknownName::SeveralGrants { .. })));
    }
}
