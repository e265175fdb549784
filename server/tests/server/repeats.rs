use nightlatch_core::rights::Role;
use nightlatch_proto::pb;
use pb::OutcomeState::{Ended, Open};
use tonic::Code;

use crate::access::connected;
use crate::world::{World, ask, ssh_rule};

const ID: &str = "3f0a6c1e-8d52-4b7a-9c61-2e5d8f9b7a10";

fn named(machines: &[&str], wait: i64) -> pb::CreateAccessRequestRequest {
    pb::CreateAccessRequestRequest {
        request_id: ID.to_owned(),
        ..ask(machines, wait)
    }
}

#[tokio::test]
async fn a_repeated_request_is_made_once_also_after_its_grant_has_ended() {
    let mut world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let first = alice.request(named(&["web-1"], 10)).await.unwrap();
    assert_eq!(first.outcomes[0].state(), Open);
    // How long it waits is not what is asked for.
    let again = alice.request(named(&["web-1"], 9)).await.unwrap();
    assert_eq!(again, first);
    let end = pb::EndGrantRequest {
        name: first.outcomes[0].grant.clone(),
        wait: None,
    };
    alice.access.end_grant(end).await.unwrap();
    world.stop().await;
    world.start().await;
    let mut alice = world
        .client(&world.person("alice", &[Role::Requester]).await)
        .await;
    let ended = alice.request(named(&["web-1"], 0)).await.unwrap();
    assert_eq!((&ended.name, ended.outcomes[0].state()), (&first.name, Ended));
    let mut admin = world.client(&world.admin()).await;
    assert_eq!(admin.events_of("access.requested").await.len(), 1);
}

#[tokio::test]
async fn an_id_stands_for_one_request_of_one_person() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let first = alice.request(named(&["web-1"], 0)).await.unwrap();
    let mut other = named(&["web-1"], 0);
    other.access_request.as_mut().unwrap().justification = "something else".to_owned();
    let refused = alice.request(other).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str(), refused.field()),
        (Code::AlreadyExists, "REQUEST_ID_REUSED", Some("request_id"))
    );
    let bad = pb::CreateAccessRequestRequest {
        request_id: "one".to_owned(),
        ..named(&["web-1"], 0)
    };
    assert_eq!(alice.request(bad).await.unwrap_err().field(), Some("request_id"));
    let theirs = admin.request(named(&["web-1"], 0)).await.unwrap();
    assert_ne!(theirs.name, first.name);
    let without = alice.request(ask(&["web-1"], 0)).await.unwrap();
    assert_ne!(without.name, first.name);
}

#[tokio::test]
async fn calls_that_race_under_one_id_make_one_request() {
    let world = World::begin().await;
    let (alice, mut admin) = world.two_people().await;
    let _attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let mut alice = alice.clone();
            tokio::spawn(async move { alice.request(named(&["web-1"], 10)).await.unwrap() })
        })
        .collect();
    let mut names = std::collections::BTreeSet::new();
    for call in calls {
        let answer = call.await.unwrap();
        assert_eq!(answer.outcomes.len(), 1);
        assert_eq!(answer.outcomes[0].state(), Open);
        names.insert(answer.name);
    }
    assert_eq!(names.len(), 1);
}

#[tokio::test]
async fn from_another_address_a_repeated_request_is_refused_by_name() {
    let world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    let _attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let first = admin.request(named(&["web-1"], 0)).await.unwrap();
    let elsewhere = "127.0.0.2".parse().unwrap();
    let mut admin = world.client_from(elsewhere, &world.admin()).await;
    let refused = admin.request(named(&["web-1"], 0)).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str(), refused.field()),
        (Code::AlreadyExists, "REQUEST_FROM_ELSEWHERE", Some("request_id"))
    );
    assert_eq!(refused.metadata["access_request"], first.name);
    assert!(refused.message.contains("127.0.0.1"), "{}", refused.message);
    // Where the addresses are spelled out, it is the same from everywhere.
    let spelled_out = |id: &str| {
        let mut call = named(&["web-1"], 0);
        call.request_id = id.to_owned();
        call.access_request.as_mut().unwrap().sources = vec!["192.0.2.7".to_owned()];
        call
    };
    let id = "3f0a6c1e-8d52-4b7a-9c61-2e5d8f9b7a11";
    let here = admin.request(spelled_out(id)).await.unwrap();
    let mut admin = world.client(&world.admin()).await;
    assert_eq!(admin.request(spelled_out(id)).await.unwrap().name, here.name);
}
