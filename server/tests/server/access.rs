use std::time::Duration;

use nightlatch_core::receipt::Done;
use nightlatch_proto::pb;
use nightlatch_server::clock::Clock;
use pb::OutcomeState::{Ended, Open, Opening, Refused, Waiting};
use pb::connect_response::Message as Answer;
use tonic::Code;

use crate::host::{Host, Link};
use crate::world::{SOON, World, ask, problem, seconds, ssh_rule, until};

pub(crate) async fn connected(world: &World, name: &str) -> tokio::task::JoinHandle<Host> {
    let attending = Host::enrol(world, name).await.attend(world).await;
    heard(world, name).await;
    attending
}

/// Waits until a machine has said what its ceiling is.
async fn heard(world: &World, name: &str) {
    let admin = world.client(&world.admin()).await;
    until(async || {
        let call = pb::GetMachineRequest {
            name: format!("machines/{name}"),
        };
        admin
            .clone()
            .machines
            .get_machine(call)
            .await
            .unwrap()
            .into_inner()
            .ceiling
            .is_some()
    })
    .await;
}

#[tokio::test]
async fn a_request_is_answered_when_the_host_has_opened() {
    let mut world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
    let outcome = &request.outcomes[0];
    assert_eq!((outcome.state(), outcome.address.as_str()), (Open, "127.0.0.1"));
    let grant = alice.grant(&outcome.grant).await;
    assert_eq!(grant.state(), pb::GrantState::Open);
    assert_eq!(grant.sources, ["127.0.0.1/32"]);
    assert_eq!(
        (grant.subject.as_str(), grant.justification.as_str()),
        ("alice", "disk full")
    );
    assert!(!grant.envelope.is_empty());
    let kinds: Vec<String> = admin.events().await.into_iter().map(|event| event.kind).collect();
    let path = ["access.requested", "grant.issued", "grant.opened"];
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| path.contains(&kind.as_str()))
            .collect::<Vec<_>>(),
        path
    );
    world.stop().await;
    let host = tokio::time::timeout(SOON, attending).await.unwrap().unwrap();
    assert_eq!(host.grants.len(), 1);
}

#[tokio::test]
async fn a_request_for_an_away_machine_waits_and_is_signed_when_it_connects() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
    assert_eq!(request.outcomes[0].state(), Waiting);
    assert!(
        request.outcomes[0].message.contains("never been connected"),
        "{}",
        request.outcomes[0].message
    );
    let watch = pb::WatchAccessRequestRequest {
        name: request.name.clone(),
    };
    let mut watched = alice
        .access
        .watch_access_request(watch)
        .await
        .unwrap()
        .into_inner();
    world.clock.advance(Duration::from_secs(3600));
    let _attending = host.attend(&world).await;
    let mut states = Vec::new();
    while let Some(request) = tokio::time::timeout(SOON, watched.message())
        .await
        .unwrap()
        .unwrap()
    {
        states.push(request.outcomes[0].state());
    }
    assert_eq!(states.first(), Some(&Waiting));
    assert_eq!(states.last(), Some(&Open));
    // Its time runs from the moment it was signed.
    let outcome = alice.outcome(&request.name).await;
    let left = outcome.end_time.unwrap().seconds - world.clock.now().micros() / 1_000_000;
    assert!((590..=600).contains(&left), "{left}");
}

#[tokio::test]
async fn what_waits_is_decided_again_by_the_policy_in_force_then() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let stricter = pb::PortRule {
        max_duration: Some(seconds(300)),
        ..ssh_rule()
    };
    admin.set_policy("web-1", vec![stricter]).await;
    let _attending = host.attend(&world).await;
    until(async || alice.outcome(&request.name).await.state() == Refused).await;
    assert_eq!(alice.outcome(&request.name).await.reason, "DURATION_TOO_LONG");
}

#[tokio::test]
async fn what_waits_can_be_withdrawn_and_lapses_after_a_day() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let withdrawn = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let cancel = pb::CancelAccessRequestRequest {
        name: withdrawn.name.clone(),
        machine: String::new(),
    };
    let mut bob = world
        .client(
            &world
                .person("bob", &[nightlatch_core::rights::Role::Requester])
                .await,
        )
        .await;
    let others = bob
        .access
        .cancel_access_request(cancel.clone())
        .await
        .unwrap_err();
    assert_eq!(problem(&others).reason, "ACCESS_REQUEST_UNKNOWN");
    assert_eq!(alice.waiting().await, [withdrawn.name.as_str()]);
    for _ in 0..2 {
        let cancelled = alice
            .access
            .cancel_access_request(cancel.clone())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (
                cancelled.outcomes[0].state(),
                cancelled.outcomes[0].reason.as_str()
            ),
            (Ended, "WITHDRAWN")
        );
    }
    assert!(alice.waiting().await.is_empty());
    assert!(admin.waiting().await.is_empty(), "others' are not one's own");
    assert_eq!(admin.events_of("access.withdrawn").await.len(), 1);
    let lapsed = alice.request(ask(&["web-1"], 0)).await.unwrap();
    world.clock.advance(Duration::from_secs(24 * 3600));
    assert!(alice.waiting().await.is_empty());
    let shown = alice.outcome(&lapsed.name).await;
    assert_eq!((shown.state(), shown.reason.as_str()), (Refused, "LAPSED"));
    let mut link = Link::connect(host, &world).await.unwrap();
    link.until(world.clock.now(), |answer| {
        matches!(answer, Answer::AssignmentPart(_)).then_some(())
    })
    .await;
    assert!(link.host.grants.is_empty());
}

#[tokio::test]
async fn one_denial_denies_the_whole_and_names_machine_and_field() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    Host::enrol(&world, "web-1").await;
    Host::enrol(&world, "web-2").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let denied = alice.request(ask(&["web-1", "web-2"], 0)).await.unwrap_err();
    assert_eq!(
        (denied.code, denied.reason.as_str()),
        (Code::FailedPrecondition, "NO_POLICY")
    );
    assert_eq!(denied.field(), Some("machines[1]"));
    assert_eq!(denied.metadata["machine"], "web-2");
    let grants = alice
        .access
        .list_grants(pb::ListGrantsRequest::default())
        .await
        .unwrap();
    assert!(grants.into_inner().grants.is_empty());
    let events = admin.events_of("access.denied").await;
    assert_eq!((events.len(), events[0].reason.as_str()), (1, "NO_POLICY"));
}

#[tokio::test]
async fn each_refusal_has_its_code_and_field() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let mut host = Host::enrol(&world, "web-1").await;
    host.ceiling.as_mut().unwrap().widest_ipv4 = 24;
    let _link = Link::connect(host, &world).await.unwrap();
    let rule = pb::PortRule {
        allowed_sources: vec!["192.0.2.1/24".to_owned()],
        ..ssh_rule()
    };
    let policy = pb::Policy {
        name: "machines/web-1/policy".to_owned(),
        rules: vec![rule],
        ..Default::default()
    };
    let call = pb::UpdatePolicyRequest {
        policy: Some(policy),
        update_mask: None,
    };
    let refused = problem(&admin.machines.update_policy(call).await.unwrap_err());
    assert_eq!(refused.field(), Some("policy.rules[0].allowed_sources[0]"));
    let rule = pb::PortRule {
        allowed_sources: vec!["192.0.2.0/23".to_owned()],
        ..ssh_rule()
    };
    admin.set_policy("web-1", vec![rule]).await;
    heard(&world, "web-1").await;

    type Change = fn(&mut pb::CreateAccessRequestRequest);
    fn wish(call: &mut pb::CreateAccessRequestRequest) -> &mut pb::AccessRequest {
        call.access_request.as_mut().unwrap()
    }
    fn set_port(call: &mut pb::CreateAccessRequestRequest, number: u32) {
        wish(call).ports[0].range = Some(pb::PortRange {
            first: number,
            last: number,
        });
    }
    let cases: [(Change, Code, &str, &str); 12] = [
        (
            |call| wish(call).sources = vec!["me".into()],
            Code::PermissionDenied,
            "SOURCE_NOT_ALLOWED",
            "sources[0]",
        ),
        (
            |call| set_port(call, 23),
            Code::PermissionDenied,
            "PORT_NOT_IN_POLICY",
            "ports[0]",
        ),
        (
            |call| set_port(call, 0),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "ports[0].range.first",
        ),
        (
            |call| wish(call).span = Some(pb::access_request::Span::Duration(seconds(4 * 3600))),
            Code::PermissionDenied,
            "DURATION_TOO_LONG",
            "duration",
        ),
        (
            |call| wish(call).span = Some(pb::access_request::Span::Duration(seconds(0))),
            Code::InvalidArgument,
            "DURATION_TOO_SHORT",
            "duration",
        ),
        (
            |call| {
                let past = prost_types::Timestamp {
                    seconds: 1_000_000,
                    nanos: 0,
                };
                wish(call).span = Some(pb::access_request::Span::EndTime(past));
            },
            Code::InvalidArgument,
            "END_PASSED",
            "end_time",
        ),
        (
            |call| wish(call).sources = vec!["127.0.0.1".into()],
            Code::InvalidArgument,
            "SOURCE_CANNOT_SEND",
            "sources[0]",
        ),
        (
            |call| wish(call).sources = vec!["192.0.2.0/23".into()],
            Code::PermissionDenied,
            "CEILING_SOURCE",
            "sources[0]",
        ),
        (
            |call| wish(call).justification.clear(),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "justification",
        ),
        (
            |call| call.machines[0] = "machines/web-9".into(),
            Code::NotFound,
            "MACHINE_UNKNOWN",
            "machines[0]",
        ),
        (
            |call| call.machines.push("machines/web-1".into()),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "machines[1]",
        ),
        (
            |call| call.wait = Some(seconds(61)),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "wait",
        ),
    ];
    for (change, code, reason, field) in cases {
        let mut call = ask(&["web-1"], 0);
        wish(&mut call).sources = vec!["192.0.2.7".into()];
        change(&mut call);
        let refused = alice.request(call).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str(), refused.field()),
            (code, reason, Some(field))
        );
    }
}

#[tokio::test]
async fn a_host_without_a_ceiling_is_not_asked() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let mut host = Host::enrol(&world, "web-1").await;
    host.ceiling = None;
    let mut link = Link::connect(host, &world).await.unwrap();
    link.until(world.clock.now(), |answer| {
        matches!(answer, Answer::AssignmentPart(_)).then_some(())
    })
    .await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let denied = alice.request(ask(&["web-1"], 0)).await.unwrap_err();
    assert_eq!(
        (denied.code, denied.reason.as_str()),
        (Code::FailedPrecondition, "NO_CEILING")
    );
}

#[tokio::test]
async fn a_host_that_refuses_says_why_and_one_that_is_silent_keeps_nobody_waiting() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut link = Link::connect(host, &world).await.unwrap();
    link.until(world.clock.now(), |answer| {
        matches!(answer, Answer::AssignmentPart(_)).then_some(())
    })
    .await;
    let silent = alice.request(ask(&["web-1"], 0)).await.unwrap();
    assert_eq!(silent.outcomes[0].state(), Opening);
    let grant = silent.outcomes[0]
        .grant
        .strip_prefix("grants/")
        .unwrap()
        .parse()
        .unwrap();
    let refusal = link
        .host
        .receipt(grant, Done::Refused, "TIME_UNKNOWN", world.clock.now());
    let receipts = pb::Receipts {
        envelopes: vec![refusal],
    };
    link.say(pb::connect_request::Message::Receipts(receipts)).await;
    link.until(world.clock.now(), |answer| {
        matches!(answer, Answer::ReceiptsStored(_)).then_some(())
    })
    .await;
    let outcome = alice.outcome(&silent.name).await;
    // The host took it after all when it was sent, which came later than the refusal was written here.
    assert!(matches!(outcome.state(), Refused | Open));
    assert_eq!(admin.events_of("grant.refused").await[0].reason, "TIME_UNKNOWN");
}

#[tokio::test]
async fn requests_and_grants_of_others_are_shown_to_readers_only() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let mut bob = world.requester("bob").await;
    let _attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
    let get = pb::GetAccessRequestRequest {
        name: request.name.clone(),
    };
    assert_eq!(
        bob.access
            .get_access_request(get.clone())
            .await
            .unwrap_err()
            .code(),
        Code::PermissionDenied
    );
    admin.access.get_access_request(get).await.unwrap();
    let get = pb::GetGrantRequest {
        name: request.outcomes[0].grant.clone(),
    };
    assert_eq!(
        bob.access.get_grant(get).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let count = async |client: &mut crate::world::Client| {
        client
            .access
            .list_grants(pb::ListGrantsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .grants
            .len()
    };
    assert_eq!(
        (
            count(&mut alice).await,
            count(&mut bob).await,
            count(&mut admin).await
        ),
        (1, 0, 1)
    );
}

#[tokio::test]
async fn calls_that_their_caller_may_not_make_are_written_down_within_bounds() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let mut bob = world.requester("bob").await;
    let _host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    // What is found out inside, and what at the door.
    let get = pb::GetAccessRequestRequest { name: request.name };
    assert!(bob.access.get_access_request(get).await.is_err());
    let events = bob.audit.list_events(pb::ListEventsRequest::default()).await;
    assert_eq!(events.unwrap_err().code(), Code::PermissionDenied);
    let refused = admin.events_of("call.refused").await;
    let told: Vec<_> = refused
        .iter()
        .map(|event| {
            assert_eq!(
                (
                    event.actor.as_str(),
                    event.address.as_str(),
                    event.reason.as_str()
                ),
                ("person/bob", "127.0.0.1", "PERMISSION_MISSING")
            );
            assert!(!event.details["permission"].is_empty());
            event.details["method"].rsplit('/').next().unwrap()
        })
        .collect();
    assert_eq!(told, ["GetAccessRequest", "ListEvents"]);
    for _ in 0..20 {
        let events = bob.audit.list_events(pb::ListEventsRequest::default()).await;
        assert!(events.is_err());
    }
    assert_eq!(admin.events_of("call.refused").await.len(), 11);
    // Harmless ones hide no others.
    let revoke = pb::RevokeGrantRequest {
        name: "grants/00000000-0000-0000-0000-000000000000".to_owned(),
        ..Default::default()
    };
    for _ in 0..20 {
        assert!(bob.access.revoke_grant(revoke.clone()).await.is_err());
    }
    let refused = admin.events_of("call.refused").await;
    let revokes = refused
        .iter()
        .filter(|event| event.details["method"].ends_with("RevokeGrant"));
    assert_eq!(revokes.count(), 10);
}
