//! Roles and what they may do. Identity is settled elsewhere; here only names count.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::Subject;

/// One thing that a caller may be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    ReadMachines,
    ReadPolicies,
    EditPolicies,
    /// Ask for access, see and end one's own grants.
    RequestAccess,
    /// See everyone's grants.
    ReadGrants,
    /// End anyone's grants.
    RevokeGrants,
    ReadEvents,
}

impl Permission {
    pub const ALL: [Self; 7] = [
        Self::ReadMachines,
        Self::ReadPolicies,
        Self::EditPolicies,
        Self::RequestAccess,
        Self::ReadGrants,
        Self::RevokeGrants,
        Self::ReadEvents,
    ];
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadMachines => "machines.read",
            Self::ReadPolicies => "policies.read",
            Self::EditPolicies => "policies.edit",
            Self::RequestAccess => "access.request",
            Self::ReadGrants => "grants.read",
            Self::RevokeGrants => "grants.revoke",
            Self::ReadEvents => "events.read",
        })
    }
}

/// The built-in roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Role {
    Reader,
    Requester,
    Approver,
    PolicyEditor,
    Auditor,
    Administrator,
}

impl Role {
    pub const ALL: [Self; 6] = [
        Self::Reader,
        Self::Requester,
        Self::Approver,
        Self::PolicyEditor,
        Self::Auditor,
        Self::Administrator,
    ];

    pub const fn allows(self, permission: Permission) -> bool {
        use Permission::{
            EditPolicies, ReadEvents, ReadGrants, ReadMachines, ReadPolicies, RequestAccess, RevokeGrants,
        };
        match self {
            Self::Reader => matches!(permission, ReadMachines | ReadPolicies | ReadGrants),
            // Azure's least privilege for asking: see the machine and its policy, ask (azure-api.md).
            Self::Requester => matches!(permission, ReadMachines | ReadPolicies | RequestAccess),
            Self::Approver => matches!(
                permission,
                ReadMachines | ReadPolicies | ReadGrants | RevokeGrants
            ),
            Self::PolicyEditor => matches!(
                permission,
                ReadMachines | ReadPolicies | ReadGrants | EditPolicies
            ),
            Self::Auditor => matches!(permission, ReadMachines | ReadPolicies | ReadGrants | ReadEvents),
            Self::Administrator => true,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reader => "reader",
            Self::Requester => "requester",
            Self::Approver => "approver",
            Self::PolicyEditor => "policy-editor",
            Self::Auditor => "auditor",
            Self::Administrator => "administrator",
        })
    }
}

/// Why a text is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role: write reader, requester, approver, policy-editor, auditor or administrator")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| InvalidRole(text.to_string()))
    }
}

impl TryFrom<String> for Role {
    type Error = InvalidRole;

    fn try_from(text: String) -> Result<Self, InvalidRole> {
        text.parse()
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.to_string()
    }
}

/// Whoever calls: who they are, what they may do, and the address the server sees them at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub subject: Subject,
    pub roles: BTreeSet<Role>,
    pub address: IpAddr,
}

impl Caller {
    pub fn may(&self, permission: Permission) -> bool {
        self.roles.iter().any(|role| role.allows(permission))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_without_a_role_may_do_nothing() {
        let caller = Caller {
            subject: "alice".parse().unwrap(),
            roles: BTreeSet::new(),
            address: "192.0.2.7".parse().unwrap(),
        };
        assert!(
            Permission::ALL
                .into_iter()
                .all(|permission| !caller.may(permission))
        );
    }

    #[test]
    fn only_an_administrator_may_do_everything() {
        for role in Role::ALL {
            let all = Permission::ALL
                .into_iter()
                .all(|permission| role.allows(permission));
            assert_eq!(all, role == Role::Administrator, "{role}");
            assert_eq!(role.to_string().parse::<Role>(), Ok(role));
        }
    }
}
