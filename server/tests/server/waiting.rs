use nightlatch_core::rights::Role;
use nightlatch_proto::pb;
use pb::OutcomeState::{Ended, Refused};

use crate::host::{Host, secret};
use crate::world::{World, ask, ssh_rule, until};

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
    let call = pb::CancelAccessRequestRequest { name: request.name };
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
