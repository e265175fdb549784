//! Events: who did what, when, where from and why. Stored as the JSON bytes written here.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::grant::Version1;
use crate::id::{GrantId, MachineId, MachineName, RequestId};
use crate::time::Timestamp;

/// What happened. The text form is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    #[serde(rename = "installation.created")]
    InstallationCreated,
    #[serde(rename = "root.exported")]
    RootExported,
    #[serde(rename = "root.removed")]
    RootRemoved,
    #[serde(rename = "user.issued")]
    UserIssued,
    #[serde(rename = "token.created")]
    TokenCreated,
    #[serde(rename = "token.withdrawn")]
    TokenWithdrawn,
    #[serde(rename = "machine.enrolled")]
    MachineEnrolled,
    #[serde(rename = "machine.refused")]
    MachineRefused,
    #[serde(rename = "machine.connected")]
    MachineConnected,
    #[serde(rename = "machine.disconnected")]
    MachineDisconnected,
    #[serde(rename = "machine.reported")]
    MachineReported,
    #[serde(rename = "machine.break_glass")]
    MachineBreakGlass,
    #[serde(rename = "policy.set")]
    PolicySet,
    #[serde(rename = "policy.deleted")]
    PolicyDeleted,
    #[serde(rename = "call.refused")]
    CallRefused,
    #[serde(rename = "access.requested")]
    AccessRequested,
    #[serde(rename = "access.denied")]
    AccessDenied,
    #[serde(rename = "access.waiting")]
    AccessWaiting,
    #[serde(rename = "access.withdrawn")]
    AccessWithdrawn,
    #[serde(rename = "grant.issued")]
    GrantIssued,
    #[serde(rename = "grant.opened")]
    GrantOpened,
    #[serde(rename = "grant.refused")]
    GrantRefused,
    #[serde(rename = "grant.revoked")]
    GrantRevoked,
    #[serde(rename = "grant.closed")]
    GrantClosed,
}

/// One entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    version: Version1,
    pub at: Timestamp,
    pub kind: EventKind,
    /// `person/alice`, `machine/web-1`, `server`, `console` for a command on the server's own host, or
    /// `anonymous/192.0.2.7` for whoever has not proved who they are.
    pub actor: String,
    /// The address that the server saw the actor at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_name: Option<MachineName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// A stable code, for refusals and endings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// One sentence for people.
    pub message: String,
    /// What else belongs to it: ports, sources, end, justification.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

impl Event {
    pub const fn new(at: Timestamp, kind: EventKind, actor: String, message: String) -> Self {
        Self {
            version: Version1,
            at,
            kind,
            actor,
            address: None,
            machine: None,
            machine_name: None,
            grant: None,
            request: None,
            reason: None,
            message,
            details: BTreeMap::new(),
        }
    }
}
