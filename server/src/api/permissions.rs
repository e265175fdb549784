//! Which method needs which permission. A method that isn't listed here can't be called.

use nightlatch_core::rights::Permission::{
    self, EditPolicies, ReadEvents, ReadGrants, ReadMachines, ReadPolicies, RequestAccess, RevokeGrants,
};

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Without a certificate too.
    Anyone,
    /// Likewise, a stream that stays open.
    AnyonesStream,
    /// A machine's agent, on the agents' listener.
    Agent,
    /// A person or program with one of these. Where there are two, the first is for what is the caller's own.
    Needs(&'static [Permission]),
}

const METHODS: &[(&str, Rule)] = &[
    ("/grpc.health.v1.Health/Check", Rule::Anyone),
    ("/grpc.health.v1.Health/List", Rule::Anyone),
    ("/grpc.health.v1.Health/Watch", Rule::AnyonesStream),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Rule::AnyonesStream,
    ),
    ("/nightlatch.v1.EnrollmentService/Enroll", Rule::Anyone),
    ("/nightlatch.v1.AgentService/Connect", Rule::Agent),
    (
        "/nightlatch.v1.AccessService/CreateAccessRequest",
        Rule::Needs(&[RequestAccess]),
    ),
    (
        "/nightlatch.v1.AccessService/GetAccessRequest",
        Rule::Needs(&[RequestAccess, ReadGrants]),
    ),
    (
        "/nightlatch.v1.AccessService/ListAccessRequests",
        Rule::Needs(&[RequestAccess, ReadGrants]),
    ),
    (
        "/nightlatch.v1.AccessService/WatchAccessRequest",
        Rule::Needs(&[RequestAccess, ReadGrants]),
    ),
    (
        "/nightlatch.v1.AccessService/CancelAccessRequest",
        Rule::Needs(&[RequestAccess, RevokeGrants]),
    ),
    (
        "/nightlatch.v1.AccessService/GetGrant",
        Rule::Needs(&[RequestAccess, ReadGrants]),
    ),
    (
        "/nightlatch.v1.AccessService/ListGrants",
        Rule::Needs(&[RequestAccess, ReadGrants]),
    ),
    (
        "/nightlatch.v1.AccessService/EndGrant",
        Rule::Needs(&[RequestAccess]),
    ),
    (
        "/nightlatch.v1.AccessService/RevokeGrant",
        Rule::Needs(&[RevokeGrants]),
    ),
    (
        "/nightlatch.v1.MachineService/GetMachine",
        Rule::Needs(&[ReadMachines]),
    ),
    (
        "/nightlatch.v1.MachineService/ListMachines",
        Rule::Needs(&[ReadMachines]),
    ),
    (
        "/nightlatch.v1.MachineService/GetPolicy",
        Rule::Needs(&[ReadPolicies]),
    ),
    (
        "/nightlatch.v1.MachineService/UpdatePolicy",
        Rule::Needs(&[EditPolicies]),
    ),
    (
        "/nightlatch.v1.MachineService/DeletePolicy",
        Rule::Needs(&[EditPolicies]),
    ),
    (
        "/nightlatch.v1.AuditService/ListEvents",
        Rule::Needs(&[ReadEvents]),
    ),
    (
        "/nightlatch.v1.AuditService/ListSigningKeys",
        Rule::Needs(&[ReadMachines]),
    ),
];

/// The rule of the method at `path`, such as `/nightlatch.v1.AccessService/GetGrant`.
pub fn rule(path: &str) -> Option<Rule> {
    METHODS
        .iter()
        .find(|(method, _)| *method == path)
        .map(|(_, rule)| *rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::rights::Role;
    use nightlatch_proto::pb;
    use prost::Message;

    /// Each method with who may call it: the roles' initials in the order of [`Role::ALL`], by hand.
    const WHO: &[(&str, &str)] = &[
        ("AccessService/CreateAccessRequest", "-r---a"),
        ("AccessService/GetAccessRequest", "rrrrra"),
        ("AccessService/ListAccessRequests", "rrrrra"),
        ("AccessService/WatchAccessRequest", "rrrrra"),
        ("AccessService/CancelAccessRequest", "-rr--a"),
        ("AccessService/GetGrant", "rrrrra"),
        ("AccessService/ListGrants", "rrrrra"),
        ("AccessService/EndGrant", "-r---a"),
        ("AccessService/RevokeGrant", "--r--a"),
        ("MachineService/GetMachine", "rrrrra"),
        ("MachineService/ListMachines", "rrrrra"),
        ("MachineService/GetPolicy", "rrrrra"),
        ("MachineService/UpdatePolicy", "---r-a"),
        ("MachineService/DeletePolicy", "---r-a"),
        ("AuditService/ListEvents", "----ra"),
        ("AuditService/ListSigningKeys", "rrrrra"),
        ("AgentService/Connect", "------"),
        ("EnrollmentService/Enroll", "******"),
    ];

    fn methods() -> Vec<String> {
        let files = prost_types::FileDescriptorSet::decode(pb::DESCRIPTORS)
            .unwrap()
            .file;
        let mut methods = Vec::new();
        for file in files.iter().filter(|file| file.package() == "nightlatch.v1") {
            for service in &file.service {
                methods.extend(
                    service
                        .method
                        .iter()
                        .map(|m| format!("{}/{}", service.name(), m.name())),
                );
            }
        }
        methods
    }

    #[test]
    fn every_method_has_a_rule_and_lets_in_just_the_roles_it_should() {
        let methods = methods();
        assert_eq!(methods.len(), WHO.len());
        for method in methods {
            let rule = rule(&format!("/nightlatch.v1.{method}"));
            let who = WHO
                .iter()
                .find(|(known, _)| *known == method)
                .map(|(_, who)| *who);
            let (rule, who) = rule.zip(who).unwrap_or_else(|| panic!("{method} is in no table"));
            for (role, expected) in Role::ALL.into_iter().zip(who.chars()) {
                let may = match rule {
                    Rule::Anyone | Rule::AnyonesStream => '*',
                    Rule::Needs(any) if any.iter().any(|permission| role.allows(*permission)) => 'y',
                    Rule::Needs(_) | Rule::Agent => '-',
                };
                let expected = if expected.is_alphabetic() { 'y' } else { expected };
                assert_eq!(may, expected, "{method} {role}");
            }
        }
    }

    #[test]
    fn what_is_not_listed_has_no_rule() {
        for path in [
            "",
            "/",
            "/nightlatch.v1.AccessService/",
            "/nightlatch.v1.AccessService/getGrant",
        ] {
            assert_eq!(rule(path), None);
        }
    }
}
