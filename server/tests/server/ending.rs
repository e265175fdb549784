use std::time::Duration;

use nightlatch_proto::pb;
use nightlatch_server::clock::Clock;
use nightlatch_server::state::DATABASE;
use nightlatch_server::store::{Store, grants, installation, machines};
use pb::GrantState::{Closing, Ended, Open};
use pb::connect_response::Message as Answer;
use tokio::sync::mpsc::WeakSender;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Code;

use crate::host::{Host, Link};
use crate::world::{Client, SOON, World, ask, seconds, ssh_rule, until};

struct Scene {
    world: World,
    alice: Client,
    admin: Client,
    attending: JoinHandle<Host>,
    say: WeakSender<pb::ConnectRequest>,
    grant: String,
}

/// Alice has an open grant on web-1.
async fn opened() -> Scene {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let link = Link::connect(host, &world).await.unwrap();
    let say = link.say.downgrade();
    let attending = link.attend(&world);
    let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
    until(async || {
        let grant = request_grant(&alice, &request.name).await;
        grant.is_some_and(|grant| grant.state() == Open)
    })
    .await;
    let grant = request_grant(&alice, &request.name).await.unwrap().name;
    Scene {
        world,
        alice,
        admin,
        attending,
        say,
        grant,
    }
}

/// Ends a grant in the store alone, as a server does that dies before it tells the host.
async fn end_untold(world: &World, grant: &str) {
    let store = Store::open(&world.config.state.join(DATABASE), false)
        .await
        .unwrap();
    let mut change = store.change().await.unwrap();
    let id = grant.strip_prefix("grants/").unwrap().parse().unwrap();
    let machine = grants::find(change.connection(), id)
        .await
        .unwrap()
        .unwrap()
        .machine;
    let now = world.clock.now();
    let machine = machines::by_id(change.connection(), machine).await.unwrap();
    let generation = machine.next_generation(now);
    let ended = grants::Ended {
        at: now,
        by: "person/admin".to_owned(),
        reason: "REVOKED".to_owned(),
    };
    grants::end(change.connection(), id, &ended, generation)
        .await
        .unwrap();
    machines::set_generation(change.connection(), machine.id, generation)
        .await
        .unwrap();
    change.commit().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_revoke_whose_caller_goes_away_is_carried_through() {
    let Scene {
        world,
        alice,
        mut admin,
        grant,
        ..
    } = opened().await;
    let store = Store::open(&world.config.state.join(DATABASE), false)
        .await
        .unwrap();
    // The revoke has to wait for this change, and its caller does not.
    let mut change = store.change().await.unwrap();
    installation::read(change.connection()).await.unwrap();
    let call = pb::RevokeGrantRequest {
        name: grant.clone(),
        wait: Some(seconds(10)),
    };
    let gone = timeout(Duration::from_millis(300), admin.access.revoke_grant(call)).await;
    assert!(gone.is_err());
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(change);
    until(async || alice.clone().grant(&grant).await.state() == Ended).await;
    assert_eq!(alice.clone().grant(&grant).await.reason, "REVOKED");
}

#[tokio::test]
async fn an_end_that_the_host_was_never_told_reaches_it_with_the_next_clock_answer() {
    let Scene {
        world,
        alice,
        say,
        grant,
        ..
    } = opened().await;
    end_untold(&world, &grant).await;
    assert_eq!(alice.clone().grant(&grant).await.state(), Closing);
    let question = pb::ClockQuestion { number: 2 };
    let question = pb::ConnectRequest {
        message: Some(pb::connect_request::Message::ClockQuestion(question)),
    };
    // Of a round of questions not each one makes the server look.
    until(async || {
        say.upgrade().unwrap().send(question.clone()).await.unwrap();
        alice.clone().grant(&grant).await.state() == Ended
    })
    .await;
}

#[tokio::test]
async fn a_revoke_that_is_repeated_tells_the_host_again() {
    let Scene {
        world,
        mut admin,
        grant,
        ..
    } = opened().await;
    end_untold(&world, &grant).await;
    let call = pb::RevokeGrantRequest {
        name: grant,
        wait: Some(seconds(10)),
    };
    let revoked = admin.access.revoke_grant(call).await.unwrap().into_inner();
    assert_eq!(revoked.state(), Ended);
}

#[tokio::test]
async fn a_revoke_that_a_connected_host_does_not_confirm_says_that_the_grant_runs_on() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut link = Link::connect(host, &world).await.unwrap();
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let name = request.name;
    while link.host.grants.is_empty() {
        let answer = timeout(SOON, link.next()).await.unwrap().unwrap();
        link.obey(answer, world.clock.now()).await;
    }
    until(async || alice.outcome(&name).await.state() == pb::OutcomeState::Open).await;
    let call = pb::RevokeGrantRequest {
        name: alice.outcome(&name).await.grant,
        wait: Some(seconds(0)),
    };
    let revoked = admin.access.revoke_grant(call).await.unwrap().into_inner();
    assert_eq!(revoked.state(), Closing);
    let says = "web-1 has not confirmed: until it does, the grant runs on there, to its end at 2";
    assert!(revoked.message.contains(says), "{}", revoked.message);
    assert!(!revoked.message.contains('.'), "{}", revoked.message);
}

async fn request_grant(client: &Client, name: &str) -> Option<pb::Grant> {
    let mut client = client.clone();
    let get = pb::GetAccessRequestRequest {
        name: name.to_owned(),
    };
    let request = client.access.get_access_request(get).await.unwrap().into_inner();
    let name = request.outcomes[0].grant.clone();
    if name.is_empty() {
        None
    } else {
        Some(client.grant(&name).await)
    }
}

#[tokio::test]
async fn ending_one_s_own_grant_is_answered_when_the_host_has_closed() {
    let Scene {
        world,
        mut alice,
        mut admin,
        grant,
        ..
    } = opened().await;
    let call = pb::EndGrantRequest {
        name: grant.clone(),
        wait: Some(seconds(10)),
    };
    let not_hers = admin.access.end_grant(call.clone()).await.unwrap_err();
    assert_eq!(not_hers.code(), Code::PermissionDenied);
    for _ in 0..2 {
        let ended = alice.access.end_grant(call.clone()).await.unwrap().into_inner();
        assert_eq!((ended.state(), ended.reason.as_str()), (Ended, "DONE"));
        assert!(ended.close_time.is_some());
    }
    assert_eq!(admin.events_of("grant.revoked").await.len(), 1);
    assert_eq!(admin.events_of("grant.closed").await.len(), 1);
    drop(world);
}

#[tokio::test]
async fn revoking_on_an_away_host_says_that_the_grant_runs_there_until_it_connects() {
    let Scene {
        world,
        mut alice,
        mut admin,
        attending,
        grant,
        ..
    } = opened().await;
    attending.abort();
    assert!(attending.await.is_err());
    until(async || {
        let call = pb::GetMachineRequest {
            name: "machines/web-1".to_owned(),
        };
        !admin
            .clone()
            .machines
            .get_machine(call)
            .await
            .unwrap()
            .into_inner()
            .connected
    })
    .await;
    let call = pb::RevokeGrantRequest {
        name: grant.clone(),
        wait: Some(seconds(10)),
    };
    let revoked = admin.access.revoke_grant(call).await.unwrap().into_inner();
    assert_eq!(
        (revoked.state(), revoked.ended_by.as_str()),
        (Closing, "person/admin")
    );
    assert!(
        revoked.message.contains("runs to its end at"),
        "{}",
        revoked.message
    );
    world.clock.advance(Duration::from_secs(600));
    assert_eq!(alice.grant(&grant).await.state(), Ended);
}

#[tokio::test]
async fn a_grant_whose_time_is_over_has_ended_without_any_word_of_the_host() {
    let Scene {
        world,
        mut alice,
        grant,
        ..
    } = opened().await;
    world.clock.advance(Duration::from_secs(601));
    assert_eq!(alice.grant(&grant).await.state(), Ended);
    let live = pb::ListGrantsRequest {
        live_only: true,
        ..Default::default()
    };
    assert!(
        alice
            .access
            .list_grants(live)
            .await
            .unwrap()
            .into_inner()
            .grants
            .is_empty()
    );
}

#[tokio::test]
async fn a_grant_that_the_host_never_opened_is_closed_when_it_has_taken_the_end() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut link = Link::connect(host, &world).await.unwrap();
    let now = world.clock.now();
    link.until(now, |answer| {
        matches!(answer, Answer::AssignmentPart(_)).then_some(())
    })
    .await;
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let host = link.host.clone();
    drop(link);
    let call = pb::EndGrantRequest {
        name: request.outcomes[0].grant.clone(),
        wait: Some(seconds(0)),
    };
    assert_eq!(
        alice
            .access
            .end_grant(call.clone())
            .await
            .unwrap()
            .into_inner()
            .state(),
        Closing
    );
    // As if it had crashed before it took the grant; then another change comes.
    let _attending = host.attend(&world).await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let grant = request.outcomes[0].grant.clone();
    until(async || alice.clone().grant(&grant).await.state() == Ended).await;
}

#[tokio::test]
async fn an_ended_grant_is_not_called_never_opened_while_its_host_has_receipts_to_send() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut link = Link::connect(host, &world).await.unwrap();
    link.kept = Some(Vec::new());
    let request = alice.request(ask(&["web-1"], 0)).await.unwrap();
    let now = world.clock.now();
    while link.host.grants.is_empty() {
        let answer = timeout(SOON, link.next()).await.unwrap().unwrap();
        link.obey(answer, now).await;
    }
    let grant = alice.outcome(&request.name).await.grant;
    let call = pb::EndGrantRequest {
        name: grant.clone(),
        wait: Some(seconds(0)),
    };
    alice.access.end_grant(call).await.unwrap();
    while !link.host.grants.is_empty() {
        let answer = timeout(SOON, link.next()).await.unwrap().unwrap();
        link.obey(answer, now).await;
    }
    let (host, envelopes) = (link.host.clone(), link.kept.take().unwrap());
    assert_eq!(envelopes.len(), 2);
    drop(link);

    // The server knows that the host has taken the end, and that it was open it hears only now.
    let mut link = Link::connect(host, &world).await.unwrap();
    link.until(now, |answer| {
        matches!(answer, Answer::ClockAnswer(_)).then_some(())
    })
    .await;
    assert_eq!(alice.grant(&grant).await.state(), Closing);
    let receipts = pb::Receipts { envelopes };
    link.say(pb::connect_request::Message::Receipts(receipts)).await;
    let _attending = link.attend(&world);
    until(async || alice.clone().grant(&grant).await.state() == Ended).await;
    assert_eq!(admin.events_of("grant.opened").await.len(), 1);
    let closed = admin.events_of("grant.closed").await;
    let reasons: Vec<&str> = closed.iter().map(|event| event.reason.as_str()).collect();
    assert_eq!(reasons, ["REMOVED"]);
}

#[tokio::test]
async fn deleting_a_policy_ends_the_machine_s_grants_and_unguards_it() {
    let Scene {
        mut world,
        alice,
        mut admin,
        attending,
        grant,
        ..
    } = opened().await;
    let call = pb::DeletePolicyRequest {
        name: "machines/web-1/policy".to_owned(),
        etag: String::new(),
    };
    admin.machines.delete_policy(call.clone()).await.unwrap();
    assert_eq!(
        admin.machines.delete_policy(call).await.unwrap_err().code(),
        Code::NotFound
    );
    until(async || alice.clone().grant(&grant).await.state() == Ended).await;
    assert_eq!(alice.clone().grant(&grant).await.reason, "POLICY_DELETED");
    world.stop().await;
    let host = timeout(SOON, attending).await.unwrap().unwrap();
    assert!(host.policy.unwrap().policy().guarded.is_empty());
    assert!(host.grants.is_empty());
}

#[tokio::test]
async fn ends_that_race_are_each_answered_from_what_is_on_disk() {
    let Scene {
        world: _world,
        alice,
        attending: _attending,
        grant,
        ..
    } = opened().await;
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let (mut alice, name) = (alice.clone(), grant.clone());
            tokio::spawn(async move {
                let wait = Some(seconds(0));
                let end = pb::EndGrantRequest { name, wait };
                alice.access.end_grant(end).await.unwrap().into_inner()
            })
        })
        .collect();
    for call in calls {
        let grant = call.await.unwrap();
        assert!(matches!(grant.state(), Closing | Ended), "{:?}", grant.state());
    }
}
