//! What is damaged in the database keeps nothing else from being seen, ended or opened.

use nightlatch_core::rights::Role;
use nightlatch_proto::pb;
use pb::OutcomeState::{Open, Refused};
use sqlx::Connection;

use crate::access::connected;
use crate::host::{Host, Link};
use crate::world::{Client, SOON, World, ask, ssh_rule, until};

/// Changes one row behind the server's back.
pub(crate) async fn damage(world: &World, statement: &'static str, id: &str) {
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}", world.state().path("nightlatch.db").display());
    let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
    let damaged = sqlx::query(statement)
        .bind(id.to_owned())
        .execute(&mut connection)
        .await
        .unwrap();
    assert_eq!(damaged.rows_affected(), 1);
}

pub(crate) const WISH: &str = "UPDATE requests SET wish = 'damaged' WHERE id = $1";

async fn listed_one_by_one(client: &mut Client) -> Vec<String> {
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let call = pb::ListAccessRequestsRequest {
            page_size: 1,
            page_token,
            ..Default::default()
        };
        let page = client
            .access
            .list_access_requests(call)
            .await
            .unwrap()
            .into_inner();
        names.extend(page.access_requests.into_iter().map(|request| request.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return names;
        }
    }
}

#[tokio::test]
async fn requests_are_listed_page_by_page_past_one_that_is_damaged() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut requests = Vec::new();
    for _ in 0..3 {
        requests.push(alice.request(ask(&["web-1"], 0)).await.unwrap());
    }
    damage(&world, WISH, &requests[1].id).await;
    let expected = [requests[2].name.clone(), requests[0].name.clone()];
    assert_eq!(listed_one_by_one(&mut alice).await, expected);
    assert_eq!(alice.waiting().await, expected);
}

#[tokio::test]
async fn grants_are_listed_and_ended_whatever_of_them_or_their_requests_is_damaged() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut grants = Vec::new();
    for _ in 0..3 {
        let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
        assert_eq!(request.outcomes[0].state(), Open);
        grants.push((request.id, request.outcomes[0].grant.clone()));
    }
    damage(&world, WISH, &grants[0].0).await;
    let id = grants[1].1.strip_prefix("grants/").unwrap();
    damage(&world, "UPDATE grants SET sources = 'damaged' WHERE id = $1", id).await;
    let listed = alice.access.list_grants(pb::ListGrantsRequest::default()).await;
    let listed = listed.unwrap().into_inner().grants;
    let told: Vec<_> = listed
        .iter()
        .map(|grant| (grant.name.as_str(), grant.justification.as_str()))
        .collect();
    let expected = [
        (grants[2].1.as_str(), "disk full"),
        (grants[1].1.as_str(), "disk full"),
        (grants[0].1.as_str(), ""),
    ];
    assert_eq!(told, expected);
    for (_, name) in grants {
        let end = pb::EndGrantRequest {
            name: name.clone(),
            wait: None,
        };
        alice.access.end_grant(end).await.unwrap();
        until(async || alice.clone().grant(&name).await.state() == pb::GrantState::Ended).await;
    }
}

#[tokio::test]
async fn what_of_one_machines_grant_is_damaged_keeps_no_request_from_the_list() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let _attending = [connected(&world, "web-1").await, connected(&world, "web-2").await];
    for machine in ["web-1", "web-2"] {
        admin.set_policy(machine, vec![ssh_rule()]).await;
    }
    let request = alice.request(ask(&["web-1", "web-2"], 10)).await.unwrap();
    let id = request.outcomes[0].grant.strip_prefix("grants/").unwrap();
    damage(
        &world,
        "UPDATE grants SET not_before = -99999999999999999 WHERE id = $1",
        id,
    )
    .await;
    let listed = alice
        .access
        .list_access_requests(pb::ListAccessRequestsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .access_requests;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].outcomes, request.outcomes[1..]);
    let listed = alice.access.list_grants(pb::ListGrantsRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().grants.len(), 1);
}

#[tokio::test]
async fn a_person_whose_roles_are_damaged_keeps_no_machine_away() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let lost = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let bob = world.person("bob", &[Role::Requester]).await;
    let mut bob = world.client(&bob).await;
    let waiting = bob.request(ask(&["web-1"], 0)).await.unwrap();
    damage(
        &world,
        "UPDATE users SET roles = 'damaged' WHERE subject = $1",
        "alice",
    )
    .await;
    let _attending = host.attend(&world).await;
    until(async || bob.outcome(&waiting.name).await.state() == Open).await;
    let outcome = admin.outcome(&lost.name).await;
    assert_eq!(
        (outcome.state(), outcome.reason.as_str()),
        (Refused, "PERMISSION_MISSING")
    );
}

#[tokio::test]
async fn messages_of_a_newer_agent_end_no_session() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let link = Link::connect(host, &world).await.unwrap();
    for _ in 0..10 {
        link.say.send(pb::ConnectRequest { message: None }).await.unwrap();
    }
    let attending = link.attend(&world);
    let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
    assert_eq!(request.outcomes[0].state(), Open);
    let end = pb::EndGrantRequest {
        name: request.outcomes[0].grant.clone(),
        wait: Some(crate::world::seconds(10)),
    };
    let ended = alice.access.end_grant(end).await.unwrap().into_inner();
    assert_eq!(ended.state(), pb::GrantState::Ended);
    let over = tokio::time::timeout(SOON / 20, attending).await;
    assert!(over.is_err(), "the session has ended");
}
