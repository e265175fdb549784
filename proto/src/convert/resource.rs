//! Resource names: `machines/{id or host name}`, `grants/{id}`, `accessRequests/{id}`.

use core::fmt;
use core::str::FromStr;

use nightlatch_core::id::{GrantId, MachineId, MachineName, RequestId};

use super::InvalidField;

/// A machine, by its id or by what people call it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MachineRef {
    Id(MachineId),
    Name(MachineName),
}

impl FromStr for MachineRef {
    type Err = InvalidField;

    /// Takes the part after `machines/`.
    fn from_str(text: &str) -> Result<Self, InvalidField> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        text.parse()
            .map(Self::Name)
            .map_err(|error| InvalidField::new("", error))
    }
}

impl fmt::Display for MachineRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// # Errors
/// Anything but `machines/` and an id or host name.
pub fn read_machine(field: &str, name: &str) -> Result<MachineRef, InvalidField> {
    read(field, name, "machines/", "", "machines/{id or host name}")
}

/// # Errors
/// Anything but `machines/`, an id or host name, and `/policy`.
pub fn read_policy(field: &str, name: &str) -> Result<MachineRef, InvalidField> {
    read(
        field,
        name,
        "machines/",
        "/policy",
        "machines/{id or host name}/policy",
    )
}

/// # Errors
/// Anything but `grants/` and an id.
pub fn read_grant(field: &str, name: &str) -> Result<GrantId, InvalidField> {
    read(field, name, "grants/", "", "grants/{id}")
}

/// # Errors
/// Anything but `accessRequests/` and an id.
pub fn read_request(field: &str, name: &str) -> Result<RequestId, InvalidField> {
    read(field, name, "accessRequests/", "", "accessRequests/{id}")
}

pub fn machine(machine: impl fmt::Display) -> String {
    format!("machines/{machine}")
}

pub fn policy(machine: impl fmt::Display) -> String {
    format!("machines/{machine}/policy")
}

pub fn grant(id: GrantId) -> String {
    format!("grants/{id}")
}

pub fn request(id: RequestId) -> String {
    format!("accessRequests/{id}")
}

fn read<T: FromStr<Err: fmt::Display>>(
    field: &str,
    name: &str,
    prefix: &str,
    suffix: &str,
    form: &str,
) -> Result<T, InvalidField> {
    let inner = name
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_suffix(suffix));
    let inner = inner.filter(|inner| !inner.is_empty());
    let inner =
        inner.ok_or_else(|| InvalidField::new(field, format_args!("`{name}` is not of the form {form}")))?;
    inner.parse().map_err(|error| InvalidField::new(field, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_id_or_host_name() {
        let id = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11";
        assert_eq!(
            read_machine("m", &machine(id)),
            Ok(MachineRef::Id(id.parse().unwrap()))
        );
        assert_eq!(
            read_policy("p", &policy("web-1")),
            Ok(MachineRef::Name("web-1".parse().unwrap()))
        );
        for name in [
            "",
            "machines/",
            "machines/a b",
            "machines/a/policy",
            "grants/web-1",
            "web-1",
        ] {
            assert_eq!(read_machine("m", name).unwrap_err().field, "m", "{name}");
        }
        assert!(read_grant("g", "grants/web-1").is_err());
    }
}
