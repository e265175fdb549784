use nightlatch_core::rights::Role;
use nightlatch_proto::pb;
use pb::OutcomeState::{Ended, Open, Refused, Waiting};

use nightlatch_server::clock::Clock;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;

use crate::damage::{WISH, damage};
use crate::host::{Host, secret};
use crate::world::{SOON, World, ask, problem, ssh_rule, until};

#[tokio::test]
async fn what_waits_is_not_signed_for_whoever_may_no_longer_ask() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let _reader = world.person("alice", &[Role::Reader]).await;
    let _attending = host.attend(&world).await;
    until(async || admin.outcome(&request.name).await.state() == Refused).await;
    let outcome = admin.outcome(&request.name).await;
    assert_eq!(outcome.reason, "PERMISSION_MISSING");
    assert!(outcome.message.contains("access.request"), "{}", outcome.message);
    assert!(admin.events_of("grant.issued").await.is_empty());
}

#[tokio::test]
async fn whoever_may_revoke_grants_may_withdraw_what_waits() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let mut carol = world
        .client(&world.person("carol", &[Role::Approver]).await)
        .await;
    let call = pb::CancelAccessRequestRequest {
        name: request.name,
        machine: String::new(),
    };
    let withdrawn = carol
        .access
        .cancel_access_request(call)
        .await
        .unwrap()
        .into_inner();
    let outcome = &withdrawn.outcomes[0];
    assert_eq!((outcome.state(), outcome.reason.as_str()), (Ended, "WITHDRAWN"));
    assert_eq!(outcome.message, "withdrawn by carol");
    assert!(alice.waiting().await.is_empty());
    let event = admin.events_of("access.withdrawn").await.remove(0);
    assert_eq!(event.actor, "person/carol");
}

#[tokio::test]
async fn a_request_is_withdrawn_on_one_machine_alone_and_names_what_is_signed_elsewhere() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let mut hosts = Vec::new();
    for name in ["web-1", "web-2", "web-3"] {
        hosts.push(Host::enrol(&world, name).await);
        admin.set_policy(name, vec![ssh_rule()]).await;
    }
    let request = alice.request(ask(&["web-1", "web-2", "web-3"], 0)).await.unwrap();
    let cancel = |machine: &str| pb::CancelAccessRequestRequest {
        name: request.name.clone(),
        machine: machine.to_owned(),
    };
    for machine in ["machines/web-9", "web-1"] {
        let refused = alice.access.cancel_access_request(cancel(machine)).await;
        let problem = problem(&refused.unwrap_err());
        assert!(
            problem.code == Code::InvalidArgument && problem.field() == Some("machine"),
            "{problem:?}"
        );
    }
    assert_eq!(alice.waiting().await.len(), 1);
    let _attending = hosts.remove(0).attend(&world).await;
    until(async || alice.outcome(&request.name).await.state() == Open).await;
    let by_id = request.outcomes[1].machine.clone();
    for (machine, states) in [
        ("machines/web-1", [Open, Waiting, Waiting]),
        (by_id.as_str(), [Open, Ended, Waiting]),
        ("", [Open, Ended, Ended]),
    ] {
        let call = cancel(machine);
        let answer = alice.access.cancel_access_request(call).await.unwrap();
        let outcomes = answer.into_inner().outcomes;
        let found: Vec<_> = outcomes.iter().map(pb::Outcome::state).collect();
        assert_eq!(found, states, "{machine}");
        assert!(outcomes[0].grant.starts_with("grants/"), "{machine}");
    }
}

#[tokio::test]
async fn what_waits_for_a_machine_that_is_replaced_is_denied() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _former = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let asked = admin.events_of("access.requested").await.remove(0);
    assert_eq!(asked.message, "22 from 127.0.0.1/32 for PT10M: disk full");
    let secret = secret(&world, Some("web-1"), true).await;
    Host::enrol_with(&world, "web-1", &secret).await.unwrap();
    let outcome = alice.outcome(&request.name).await;
    assert_eq!(
        (outcome.state(), outcome.reason.as_str()),
        (Refused, "MACHINE_REPLACED")
    );
    assert!(alice.waiting().await.is_empty());
    let denied = admin.events_of("access.denied").await;
    assert_eq!(denied[0].reason, "MACHINE_REPLACED");
}

fn ask_until(world: &World, length: Duration) -> pb::CreateAccessRequestRequest {
    let mut call = ask(&["web-1"], 0);
    let end = world.clock.now().checked_add(length).unwrap();
    let end = nightlatch_proto::convert::time::timestamp(end);
    call.access_request.as_mut().unwrap().span = Some(pb::access_request::Span::EndTime(end));
    call
}

#[tokio::test]
async fn what_waits_is_refused_at_its_end_with_the_machine_still_away() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let later = alice
        .request(ask_until(&world, Duration::from_secs(3600)))
        .await
        .unwrap();
    let call = ask_until(&world, Duration::from_secs(2));
    let request = alice.request(call).await.unwrap();
    assert_eq!(request.outcomes[0].state(), Waiting);
    let watch = pb::WatchAccessRequestRequest {
        name: request.name.clone(),
    };
    let mut told = alice
        .access
        .watch_access_request(watch)
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(standing) = timeout(SOON, told.message()).await.unwrap().unwrap() {
        last = Some(standing.outcomes[0].clone());
    }
    let last = last.unwrap();
    assert_eq!(
        (last.state(), last.reason.as_str()),
        (Refused, "END_PASSED"),
        "{}",
        last.message
    );
    until(async || admin.clone().events_of("access.denied").await.len() == 1).await;
    let denied = admin.events_of("access.denied").await.remove(0);
    assert_eq!(
        (denied.actor.as_str(), denied.reason.as_str()),
        ("server", "END_PASSED")
    );
    assert_eq!(denied.access_request, request.name);
    assert_eq!(alice.waiting().await, [later.name.as_str()]);
    let _attending = host.attend(&world).await;
    until(async || alice.outcome(&later.name).await.state() == Open).await;
    assert_eq!(alice.outcome(&request.name).await.state(), Refused);
    assert_eq!(admin.events_of("access.denied").await.len(), 1);
}

#[tokio::test]
async fn what_has_waited_too_long_is_given_up_by_a_server_that_was_started_later() {
    let mut world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let ending = alice
        .request(ask_until(&world, Duration::from_secs(3600)))
        .await
        .unwrap();
    let lapsing = alice.request(ask(&["web-1"], 0)).await.unwrap();
    world.stop().await;
    world.clock.advance(Duration::from_secs(24 * 3600));
    world.start().await;
    let mut admin = world.client(&world.admin()).await;
    until(async || admin.clone().events_of("access.denied").await.len() == 2).await;
    for (request, reason) in [(ending, "END_PASSED"), (lapsing, "LAPSED")] {
        let outcome = admin.outcome(&request.name).await;
        assert_eq!((outcome.state(), outcome.reason.as_str()), (Refused, reason));
    }
    let reasons: Vec<_> = admin
        .events_of("access.denied")
        .await
        .into_iter()
        .map(|event| event.reason)
        .collect();
    assert!(reasons.contains(&"END_PASSED".to_owned()) && reasons.contains(&"LAPSED".to_owned()));
}

#[tokio::test]
async fn what_can_not_be_read_keeps_no_other_request_from_its_machine() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let damaged = alice.request(ask(&["web-1"], 0)).await.unwrap();
    damage(&world, WISH, &damaged.id).await;
    // Long after, when it would be settled before anything else is asked for.
    world.clock.advance(Duration::from_secs(25 * 3600));
    let waiting = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let _attending = host.attend(&world).await;
    until(async || alice.outcome(&waiting.name).await.state() == Open).await;
}

#[tokio::test]
async fn what_can_not_be_read_keeps_nothing_else_from_being_given_up() {
    let mut world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let soon = |world: &World| ask_until(world, Duration::from_secs(3));
    let damaged = alice.request(soon(&world)).await.unwrap();
    damage(&world, WISH, &damaged.id).await;
    let running = alice.request(soon(&world)).await.unwrap();
    until(async || alice.outcome(&running.name).await.reason == "END_PASSED").await;
    until(async || admin.clone().events_of("access.denied").await.len() == 1).await;

    // Nor for a server that is started later, whichever comes first.
    let before = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let between = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let after = alice.request(ask(&["web-1"], 0)).await.unwrap();
    damage(&world, WISH, &between.id).await;
    world.stop().await;
    world.clock.advance(Duration::from_secs(24 * 3600));
    world.start().await;
    let mut admin = world.client(&world.admin()).await;
    until(async || admin.clone().events_of("access.denied").await.len() == 3).await;
    let about: Vec<_> = admin.events_of("access.denied").await;
    for request in [&running, &before, &after] {
        assert!(about.iter().any(|event| event.access_request == request.name));
    }
}
