//! Every call of the API, given what can't be meant: one refusal with a code, and the field where there is one.

use nightlatch_proto::pb;
use tonic::Code::{InvalidArgument, NotFound};
use tonic::{Code, Response, Status};

use crate::host::Host;
use crate::world::{Client, World, ask, problem, ssh_rule};

const NOBODY: &str = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11";

/// What was refused, the code, and the field; none for what is unknown.
type Refused = (String, Option<Status>, Code, &'static str);

fn refused<T>(what: &str, answer: Result<Response<T>, Status>, code: Code, field: &'static str) -> Refused {
    (what.to_owned(), answer.err(), code, field)
}

fn check(all: Vec<Refused>) {
    let mut wrong = Vec::new();
    for (what, status, code, field) in all {
        let Some(status) = status else {
            wrong.push(format!("{what}: it was taken"));
            continue;
        };
        let found = problem(&status);
        let has_field = found.field().unwrap_or_default() == field;
        let acts = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
        let is_readable = (1..=1000).contains(&status.message().len()) && !status.message().contains(acts);
        if found.code != code || !has_field || found.reason.is_empty() || !is_readable {
            wrong.push(format!("{what}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_name_that_names_nothing_is_refused_by_every_call() {
    let world = World::begin().await;
    let Client {
        access,
        machines,
        audit: _,
        ..
    } = &mut world.client(&world.admin()).await;
    let mut all = Vec::new();
    let long = format!("grants/{}", "9".repeat(70_000));
    for (id, code, field) in [
        ("", InvalidArgument, "name"),
        ("x", InvalidArgument, "name"),
        ("machines/web-1", InvalidArgument, "name"),
        ("grants/", InvalidArgument, "name"),
        ("grants/7", InvalidArgument, "name"),
        (
            "grants/019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/x",
            InvalidArgument,
            "name",
        ),
        ("grants/\u{202e}", InvalidArgument, "name"),
        ("grants/7\r\n\u{1b}[2J", InvalidArgument, "name"),
        (long.as_str(), InvalidArgument, "name"),
        ("grants/019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11", NotFound, "name"),
    ] {
        let shown: String = id.chars().take(60).collect();
        let name = id.to_owned();
        let get = pb::GetGrantRequest { name: name.clone() };
        all.push(refused(
            &format!("GetGrant {shown}"),
            access.get_grant(get).await,
            code,
            field,
        ));
        let end = pb::EndGrantRequest {
            name: name.clone(),
            wait: None,
        };
        all.push(refused(
            &format!("EndGrant {shown}"),
            access.end_grant(end).await,
            code,
            field,
        ));
        let revoke = pb::RevokeGrantRequest { name, wait: None };
        all.push(refused(
            &format!("RevokeGrant {shown}"),
            access.revoke_grant(revoke).await,
            code,
            field,
        ));
    }
    for (id, code) in [
        ("", InvalidArgument),
        ("accessRequests/7", InvalidArgument),
        (&format!("grants/{NOBODY}"), InvalidArgument),
        (&format!("accessRequests/{NOBODY}"), NotFound),
    ] {
        let name = id.to_owned();
        let get = pb::GetAccessRequestRequest { name: name.clone() };
        all.push(refused(
            &format!("GetAccessRequest {id}"),
            access.get_access_request(get).await,
            code,
            "name",
        ));
        let watch = pb::WatchAccessRequestRequest { name: name.clone() };
        all.push(refused(
            &format!("WatchAccessRequest {id}"),
            access.watch_access_request(watch).await,
            code,
            "name",
        ));
        let cancel = pb::CancelAccessRequestRequest {
            name,
            machine: String::new(),
        };
        all.push(refused(
            &format!("CancelAccessRequest {id}"),
            access.cancel_access_request(cancel).await,
            code,
            "name",
        ));
    }
    for (id, code) in [
        ("", InvalidArgument),
        ("machines/", InvalidArgument),
        ("machines/a_b", InvalidArgument),
        ("machines/web-9", NotFound),
    ] {
        let get = pb::GetMachineRequest { name: id.to_owned() };
        all.push(refused(
            &format!("GetMachine {id}"),
            machines.get_machine(get).await,
            code,
            "name",
        ));
        let name = format!("{id}/policy");
        let get = pb::GetPolicyRequest { name: name.clone() };
        all.push(refused(
            &format!("GetPolicy {name}"),
            machines.get_policy(get).await,
            code,
            "name",
        ));
        let delete = pb::DeletePolicyRequest {
            name,
            etag: String::new(),
        };
        all.push(refused(
            &format!("DeletePolicy {id}/policy"),
            machines.delete_policy(delete).await,
            code,
            "name",
        ));
    }
    check(all);
}

#[tokio::test]
async fn a_list_is_refused_by_the_field_that_can_not_be_meant() {
    let world = World::begin().await;
    let Client {
        access,
        machines,
        audit,
        ..
    } = &mut world.client(&world.admin()).await;
    let mut all = Vec::new();
    let long = "A".repeat(70_000);
    for (page_size, page_token, field) in [
        (-1, "", "page_size"),
        (i32::MIN, "", "page_size"),
        (0, "made-up", "page_token"),
        (0, "bWFjaGluZXM6", "page_token"),
        (0, &*long, "page_token"),
    ] {
        let page_token = page_token.to_owned();
        let call = pb::ListMachinesRequest {
            page_size,
            page_token: page_token.clone(),
        };
        all.push(refused(
            "ListMachines",
            machines.list_machines(call).await,
            InvalidArgument,
            field,
        ));
        let call = pb::ListAccessRequestsRequest {
            page_size,
            page_token: page_token.clone(),
            ..Default::default()
        };
        all.push(refused(
            "ListAccessRequests",
            access.list_access_requests(call).await,
            InvalidArgument,
            field,
        ));
    }
    for (machine, code) in [
        ("web-1", InvalidArgument),
        ("machines/a_b", InvalidArgument),
        ("machines/web-9", NotFound),
    ] {
        let machine = machine.to_owned();
        let call = pb::ListGrantsRequest {
            machine: machine.clone(),
            ..Default::default()
        };
        all.push(refused(
            &format!("ListGrants {machine}"),
            access.list_grants(call).await,
            code,
            "machine",
        ));
        let call = pb::ListAccessRequestsRequest {
            machine: machine.clone(),
            ..Default::default()
        };
        all.push(refused(
            &format!("ListAccessRequests {machine}"),
            access.list_access_requests(call).await,
            code,
            "machine",
        ));
        let call = pb::ListEventsRequest {
            machine: machine.clone(),
            ..Default::default()
        };
        all.push(refused(
            &format!("ListEvents {machine}"),
            audit.list_events(call).await,
            code,
            "machine",
        ));
    }
    for (grant, subject, field) in [("grants/7", "", "grant"), ("", "a b", "subject")] {
        let call = pb::ListEventsRequest {
            grant: grant.to_owned(),
            subject: subject.to_owned(),
            ..Default::default()
        };
        all.push(refused(
            &format!("ListEvents by {field}"),
            audit.list_events(call).await,
            InvalidArgument,
            field,
        ));
    }
    check(all);
}

#[tokio::test]
async fn waits_policies_and_masks_that_can_not_be_meant_change_nothing() {
    let world = World::begin().await;
    let mut client = world.client(&world.admin()).await;
    Host::enrol(&world, "web-1").await;
    client.set_policy("web-1", vec![ssh_rule()]).await;
    let events = client.events().await.len();
    let mut all = Vec::new();
    let wait = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    for bad in [
        wait(-1, 0),
        wait(0, -1),
        wait(1, 2_000_000_000),
        wait(i64::MAX, 0),
    ] {
        let call = pb::CreateAccessRequestRequest {
            wait: bad,
            ..ask(&["web-1"], 0)
        };
        all.push(refused(
            &format!("CreateAccessRequest waiting {bad:?}"),
            client.access.create_access_request(call).await,
            InvalidArgument,
            "wait",
        ));
        let call = pb::RevokeGrantRequest {
            name: format!("grants/{NOBODY}"),
            wait: bad,
        };
        all.push(refused(
            &format!("RevokeGrant waiting {bad:?}"),
            client.access.revoke_grant(call).await,
            InvalidArgument,
            "wait",
        ));
    }
    let policy = pb::Policy {
        name: "machines/web-1/policy".to_owned(),
        rules: vec![ssh_rule()],
        ..Default::default()
    };
    let update = |change: &dyn Fn(&mut pb::Policy), paths: &[&str]| {
        let mut policy = policy.clone();
        change(&mut policy);
        pb::UpdatePolicyRequest {
            policy: Some(policy),
            update_mask: (!paths.is_empty()).then(|| prost_types::FieldMask {
                paths: paths.iter().map(ToString::to_string).collect(),
            }),
        }
    };
    for (what, call, code, field) in [
        (
            "no policy",
            pb::UpdatePolicyRequest::default(),
            InvalidArgument,
            "policy",
        ),
        (
            "no name",
            update(&|policy| policy.name.clear(), &[]),
            InvalidArgument,
            "policy.name",
        ),
        (
            "another's name",
            update(&|policy| policy.name = "machines/web-9/policy".to_owned(), &[]),
            NotFound,
            "policy.name",
        ),
        (
            "no rules",
            update(&|policy| policy.rules.clear(), &[]),
            InvalidArgument,
            "policy.rules",
        ),
        (
            "an unknown path",
            update(&|_| {}, &["colour"]),
            InvalidArgument,
            "update_mask",
        ),
        (
            "a path that is no field of its own",
            update(&|_| {}, &["rules.port"]),
            InvalidArgument,
            "update_mask",
        ),
        (
            "a path that only the server writes",
            update(&|_| {}, &["rules", "update_time"]),
            InvalidArgument,
            "update_mask",
        ),
        (
            "too many rules",
            update(&|policy| policy.rules = vec![ssh_rule(); 1025], &[]),
            InvalidArgument,
            "policy.rules",
        ),
    ] {
        all.push(refused(
            &format!("UpdatePolicy with {what}"),
            client.machines.update_policy(call).await,
            code,
            field,
        ));
    }
    check(all);
    assert_eq!(client.events().await.len(), events);
    let waiting = client.waiting().await;
    assert!(waiting.is_empty(), "{waiting:?}");
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_and_the_server_goes_on() {
    let world = World::begin().await;
    let mut client = world.client(&world.admin()).await;
    let call = pb::GetGrantRequest {
        name: "x".repeat(5_000_000),
    };
    let status = client.access.get_grant(call).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    client
        .machines
        .list_machines(pb::ListMachinesRequest::default())
        .await
        .unwrap();
}
