//! The JSON that programs read. Names and shapes here are promises: add, never rename.

use std::collections::BTreeMap;
use std::fmt;

use nightlatch_core::time::Timestamp;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GrantState {
    /// Signed; the host has not confirmed yet.
    Opening,
    Open,
    Refused,
    /// Ended early; the host has not confirmed yet.
    Closing,
    Ended,
    Unknown,
}

impl fmt::Display for GrantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Refused => "refused",
            Self::Closing => "closing",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutcomeState {
    Open,
    /// Approved; the machine is away.
    Waiting,
    /// Signed; the host has not confirmed yet.
    Opening,
    Refused,
    Ended,
    Unknown,
}

impl fmt::Display for OutcomeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Waiting => "waiting",
            Self::Opening => "opening",
            Self::Refused => "refused",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        })
    }
}

impl OutcomeState {
    pub(crate) const fn is_pending(self) -> bool {
        matches!(self, Self::Waiting | Self::Opening)
    }

    /// Nothing is open there, and nothing will be.
    pub(crate) const fn is_lost(self) -> bool {
        matches!(self, Self::Refused | Self::Ended | Self::Unknown)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MachineState {
    Connected,
    Away,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GrantRecord {
    /// `grants/{id}`
    pub(crate) name: String,
    pub(crate) id: String,
    /// The machine's name, as people call it.
    pub(crate) machine: String,
    pub(crate) machine_id: String,
    pub(crate) state: GrantState,
    pub(crate) subject: String,
    pub(crate) ports: Vec<String>,
    pub(crate) sources: Vec<String>,
    pub(crate) start_time: Option<Timestamp>,
    pub(crate) end_time: Option<Timestamp>,
    pub(crate) open_time: Option<Timestamp>,
    pub(crate) close_time: Option<Timestamp>,
    pub(crate) access_request: String,
    pub(crate) justification: String,
    /// A stable code: why it was refused, or how it ended. Empty otherwise.
    pub(crate) reason: String,
    pub(crate) ended_by: String,
    pub(crate) message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MachineRecord {
    /// `machines/{id}`
    pub(crate) name: String,
    pub(crate) id: String,
    /// The machine's name, as people call it.
    pub(crate) machine: String,
    pub(crate) state: MachineState,
    pub(crate) configured: bool,
    pub(crate) open_grants: u32,
    pub(crate) address: String,
    pub(crate) host_guarded: Vec<String>,
    pub(crate) ceiling: Option<CeilingRecord>,
    pub(crate) agent_version: String,
    pub(crate) kernel_version: String,
    pub(crate) create_time: Option<Timestamp>,
    pub(crate) last_seen_time: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CeilingRecord {
    pub(crate) ports: Vec<String>,
    pub(crate) longest: String,
    pub(crate) max_ahead: String,
    pub(crate) widest_ipv4: u32,
    pub(crate) widest_ipv6: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RequestRecord {
    /// `accessRequests/{id}`
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) subject: String,
    pub(crate) ports: Vec<String>,
    pub(crate) sources: Vec<String>,
    pub(crate) duration: Option<String>,
    pub(crate) end_time: Option<Timestamp>,
    pub(crate) justification: String,
    pub(crate) create_time: Option<Timestamp>,
    pub(crate) outcomes: Vec<OutcomeRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct OutcomeRecord {
    pub(crate) machine: String,
    pub(crate) machine_id: String,
    pub(crate) state: OutcomeState,
    /// `grants/{id}`; empty until it is signed.
    pub(crate) grant: String,
    pub(crate) end_time: Option<Timestamp>,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) address: String,
    /// All that are known, the latest first.
    pub(crate) addresses: Vec<String>,
    pub(crate) offline_since: Option<Timestamp>,
}

/// Why a command failed, or why a part of it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ErrorRecord {
    /// Stable.
    pub(crate) code: String,
    pub(crate) message: String,
    /// The option or argument that is wrong, as it is written: `--port`. Empty where none is.
    pub(crate) field: String,
    pub(crate) machine: String,
    pub(crate) hint: String,
}

/// What the answer to a request says of a grant; `list grants` says the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BriefGrant {
    /// `grants/{id}`
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) machine: String,
    pub(crate) machine_id: String,
    pub(crate) state: GrantState,
    pub(crate) subject: String,
    pub(crate) sources: Vec<String>,
    pub(crate) end_time: Option<Timestamp>,
    pub(crate) access_request: String,
    pub(crate) justification: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl RequestRecord {
    /// Those that are signed.
    pub(crate) fn grants(&self) -> Vec<BriefGrant> {
        let signed = self.outcomes.iter().filter(|outcome| !outcome.grant.is_empty());
        signed.map(|outcome| self.brief(outcome)).collect()
    }

    fn brief(&self, outcome: &OutcomeRecord) -> BriefGrant {
        let id = outcome.grant.trim_start_matches("grants/");
        BriefGrant {
            name: outcome.grant.clone(),
            id: id.to_string(),
            machine: outcome.machine.clone(),
            machine_id: outcome.machine_id.clone(),
            state: match outcome.state {
                OutcomeState::Open => GrantState::Open,
                OutcomeState::Opening | OutcomeState::Waiting => GrantState::Opening,
                OutcomeState::Refused => GrantState::Refused,
                OutcomeState::Ended => GrantState::Ended,
                OutcomeState::Unknown => GrantState::Unknown,
            },
            subject: self.subject.clone(),
            sources: self.sources.clone(),
            end_time: outcome.end_time,
            access_request: self.name.clone(),
            justification: self.justification.clone(),
            reason: outcome.reason.clone(),
            message: outcome.message.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct EventRecord {
    pub(crate) sequence: u64,
    pub(crate) time: Option<Timestamp>,
    pub(crate) kind: String,
    pub(crate) actor: String,
    pub(crate) address: String,
    pub(crate) machine: String,
    pub(crate) machine_id: String,
    /// `grants/{id}`
    pub(crate) grant: String,
    /// `accessRequests/{id}`
    pub(crate) access_request: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) details: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PolicyRecord {
    /// `machines/{id}/policy`
    pub(crate) name: String,
    pub(crate) machine: String,
    pub(crate) rules: Vec<RuleRecord>,
    pub(crate) etag: String,
    pub(crate) update_time: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RuleRecord {
    pub(crate) port: String,
    pub(crate) from: Vec<String>,
    pub(crate) max: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct KeyRecord {
    pub(crate) key_id: String,
    pub(crate) public_key_pem: String,
}

#[cfg(test)]
impl OutcomeRecord {
    pub(crate) fn example(machine: &str, state: OutcomeState) -> Self {
        Self {
            machine: machine.to_string(),
            machine_id: String::new(),
            state,
            grant: String::new(),
            end_time: None,
            reason: String::new(),
            message: String::new(),
            address: String::new(),
            addresses: Vec::new(),
            offline_since: None,
        }
    }
}

#[cfg(test)]
impl MachineRecord {
    /// Connected, and never heard of.
    pub(crate) fn example(machine: &str) -> Self {
        Self {
            name: String::new(),
            id: String::new(),
            machine: machine.to_string(),
            state: MachineState::Connected,
            configured: false,
            open_grants: 0,
            address: String::new(),
            host_guarded: Vec::new(),
            ceiling: None,
            agent_version: String::new(),
            kernel_version: String::new(),
            create_time: None,
            last_seen_time: None,
        }
    }
}

#[cfg(test)]
impl GrantRecord {
    pub(crate) fn example(id: &str, state: GrantState) -> Self {
        Self {
            name: format!("grants/{id}"),
            id: id.to_string(),
            machine: "web-1".to_string(),
            machine_id: String::new(),
            state,
            subject: String::new(),
            ports: Vec::new(),
            sources: Vec::new(),
            start_time: None,
            end_time: None,
            open_time: None,
            close_time: None,
            access_request: String::new(),
            justification: String::new(),
            reason: String::new(),
            ended_by: String::new(),
            message: String::new(),
        }
    }
}
