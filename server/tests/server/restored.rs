use std::time::Duration;

use nightlatch_core::keys::{KeyList, ListNumber};
use nightlatch_core::receipt::Done;
use nightlatch_core::signing::SigningKey;
use nightlatch_proto::pb;
use nightlatch_server::clock::Clock;
use nightlatch_server::state::{DATABASE, KEY_LIST, ROOT_KEY, SIGNING_KEY};
use nightlatch_server::store::{Store, installation};
use pb::connect_response::Message as Answer;
use uuid::Uuid;

use crate::host::{Host, Link};
use crate::world::{SOON, World, ask, ssh_rule, until};

#[tokio::test]
async fn after_a_restart_agents_carry_on_where_they_were() {
    let mut world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let attending = host.attend(&world).await;
    until(async || {
        let request = alice.clone().request(ask(&["web-1"], 10)).await.unwrap();
        request.outcomes[0].state() == pb::OutcomeState::Open
    })
    .await;
    world.stop().await;
    let host = tokio::time::timeout(SOON, attending).await.unwrap().unwrap();
    let (generation, held) = (host.generation, host.grants.len());
    world.start().await;
    alice = world.two_people().await.0;
    let _attending = host.attend(&world).await;
    let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
    assert!(held > 0);
    let grant = alice.grant(&request.outcomes[0].grant).await;
    assert_eq!(grant.state(), pb::GrantState::Open);
    assert!(generation.0 > 0);
}

#[tokio::test]
async fn a_server_restored_from_an_old_copy_and_its_hosts_agree_again() {
    let mut world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let attending = host.attend(&world).await;
    until(async || {
        let request = alice.clone().request(ask(&["web-1"], 10)).await.unwrap();
        request.outcomes[0].state() == pb::OutcomeState::Open
    })
    .await;
    let copy = world.copy_database().await;
    let host = tokio::time::timeout(SOON, attending).await.unwrap().unwrap();
    let in_copy: Vec<_> = host.grants.keys().copied().collect();

    // Then the host gets a policy, and a grant, that the copy doesn't know.
    (alice, admin) = {
        let alice = world
            .person("alice", &[nightlatch_core::rights::Role::Requester])
            .await;
        (world.client(&alice).await, world.client(&world.admin()).await)
    };
    let attending = host.attend(&world).await;
    until(async || {
        let request = alice.clone().request(ask(&["web-1"], 10)).await.unwrap();
        request.outcomes[0].state() == pb::OutcomeState::Open
    })
    .await;
    admin
        .set_policy(
            "web-1",
            vec![
                ssh_rule(),
                pb::PortRule {
                    range: Some(pb::PortRange { first: 80, last: 80 }),
                    ..ssh_rule()
                },
            ],
        )
        .await;
    let with_two = async || {
        let call = pb::GetPolicyRequest {
            name: "machines/web-1/policy".to_owned(),
        };
        admin
            .clone()
            .machines
            .get_policy(call)
            .await
            .unwrap()
            .into_inner()
            .rules
            .len()
            == 2
    };
    until(with_two).await;

    world.restore_database(&copy).await;
    let mut host = tokio::time::timeout(SOON, attending).await.unwrap().unwrap();
    assert!(host.grants.len() > in_copy.len());
    let before = host.generation;
    let unknown = host
        .grants
        .keys()
        .find(|id| !in_copy.contains(id))
        .copied()
        .unwrap();
    let receipt = host.receipt(unknown, Done::Opened, "", world.clock.now());
    let mut link = Link::connect(host, &world).await.unwrap();
    let now = world.clock.now();
    link.until(now, |answer| {
        matches!(answer, Answer::AssignmentPart(_)).then_some(())
    })
    .await;
    assert!(link.host.generation > before);
    assert_eq!(link.host.grants.keys().copied().collect::<Vec<_>>(), in_copy);
    assert_eq!(link.host.policy.as_ref().unwrap().policy().guarded.len(), 1);
    // Receipts for what the copy doesn't know are kept as well.
    link.say(pb::connect_request::Message::Receipts(pb::Receipts {
        envelopes: vec![receipt],
    }))
    .await;
    link.until(now, |answer| {
        matches!(answer, Answer::ReceiptsStored(_)).then_some(())
    })
    .await;
    let mut admin = world.client(&world.admin()).await;
    let reported = admin.events_of("machine.reported").await;
    assert!(
        reported.iter().any(|event| event.reason == "RECEIPTS_MISSING"),
        "{reported:?}"
    );
}

#[tokio::test]
async fn receipts_are_stored_once_and_what_is_no_receipt_changes_nothing() {
    let world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    let host = Host::enrol(&world, "web-1").await;
    let mut other = Host::enrol(&world, "web-2").await;
    let mut link = Link::connect(host, &world).await.unwrap();
    let now = world.clock.now();
    let grant = nightlatch_core::id::GrantId::new(Uuid::from_u128(5));
    let first = link.host.receipt(grant, Done::Opened, "", now);
    let second = link.host.receipt(grant, Done::Closed, "EXPIRED", now);
    let foreign = other.receipt(grant, Done::Opened, "", now);
    for envelopes in [vec![first.clone()], vec![first, foreign, b"x".to_vec(), second]] {
        let newest = u64::try_from(envelopes.len().min(2)).unwrap();
        link.say(pb::connect_request::Message::Receipts(pb::Receipts { envelopes }))
            .await;
        let stored = link
            .until(now, |answer| match answer {
                Answer::ReceiptsStored(stored) => Some(stored.sequence),
                _ => None,
            })
            .await;
        assert_eq!(stored, newest);
    }
    let count = async |kind: &str| admin.clone().events_of(kind).await.len();
    assert_eq!((count("grant.opened").await, count("grant.closed").await), (1, 1));
    let reasons: Vec<String> = admin
        .events_of("machine.reported")
        .await
        .into_iter()
        .map(|event| event.reason)
        .collect();
    assert_eq!(reasons, ["KEY_UNKNOWN", "ENVELOPE_MALFORMED"]);
}

#[tokio::test]
async fn the_newest_connection_of_a_machine_wins() {
    let world = World::begin().await;
    let host = Host::enrol(&world, "web-1").await;
    let mut first = Link::connect(host.clone(), &world).await.unwrap();
    let now = world.clock.now();
    first
        .until(now, |answer| {
            matches!(answer, Answer::ClockAnswer(_)).then_some(())
        })
        .await;
    let mut second = Link::connect(host, &world).await.unwrap();
    first
        .until(now, |answer| matches!(answer, Answer::GoingAway(_)).then_some(()))
        .await;
    assert!(first.next().await.is_none());
    second
        .until(now, |answer| {
            matches!(answer, Answer::ClockAnswer(_)).then_some(())
        })
        .await;
    let mut admin = world.client(&world.admin()).await;
    let call = pb::GetMachineRequest {
        name: "machines/web-1".to_owned(),
    };
    assert!(
        admin
            .machines
            .get_machine(call)
            .await
            .unwrap()
            .into_inner()
            .connected
    );
}

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_is_told_so() {
    let world = World::begin().await;
    let host = Host::enrol(&world, "web-1").await;
    let mut link = Link::connect(host, &world).await.unwrap();
    link.say(pb::connect_request::Message::Hello(pb::Hello::default()))
        .await;
    let wait = async { while link.next().await.is_some() {} };
    tokio::time::timeout(SOON, wait).await.unwrap();
}

#[tokio::test]
async fn a_server_whose_clock_was_days_ahead_and_its_hosts_agree_again() {
    const AHEAD: Duration = Duration::from_secs(3 * 24 * 3600);
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    world.clock.advance(AHEAD);
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let link = Link::connect(host.clone(), &world).await.unwrap();
    alice.request(ask(&["web-1"], 0)).await.unwrap();
    // It takes nothing of that.
    drop(link);
    world.clock.set_back(AHEAD);
    let mut link = Link::connect(host, &world).await.unwrap();
    link.until(world.clock.now(), |answer| {
        matches!(answer, Answer::AssignmentPart(_)).then_some(())
    })
    .await;
    let day = 24 * 3600 * 1_000_000;
    let generation = i64::try_from(link.host.generation.0).unwrap();
    assert!(generation < world.clock.now().micros() + day, "{generation}");
    let _attending = link.attend(&world);
    let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
    assert_eq!(request.outcomes[0].state(), pb::OutcomeState::Open);
    let reported = admin.events_of("machine.reported").await;
    assert_eq!(reported[0].reason, "GENERATION_SET_BACK");
}

#[tokio::test]
async fn a_policy_that_a_former_key_has_signed_is_signed_anew() {
    let mut world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    let host = Host::enrol(&world, "web-1").await;
    let etag = admin.set_policy("web-1", vec![ssh_rule()]).await.etag;
    world.stop().await;
    let (state, now) = (world.state(), world.clock.now());
    let store = Store::open(&state.path(DATABASE), false).await.unwrap();
    let id = installation::read(&mut store.read().await.unwrap())
        .await
        .unwrap()
        .id;
    store.close().await;
    let root = SigningKey::from_pem(&state.read(ROOT_KEY).unwrap()).unwrap();
    let key = SigningKey::from_seed(&rand::random());
    let list = KeyList::new(id, ListNumber { epoch: 1, number: 2 }, vec![key.public()], now);
    let list = String::from_utf8(list.seal(&root)).unwrap();
    state.replace(SIGNING_KEY, &key.to_pem().unwrap(), 0o600).unwrap();
    state.replace(KEY_LIST, &list, 0o644).unwrap();
    world.start().await;
    let mut link = Link::connect(host, &world).await.unwrap();
    link.until(now, |answer| {
        matches!(answer, Answer::AssignmentPart(_)).then_some(())
    })
    .await;
    let policy = link.host.policy.as_ref().unwrap();
    assert_eq!(policy.policy().guarded.len(), 1);
    assert_ne!(format!("{}.{}", policy.rank().0, policy.rank().1), etag);
}

#[tokio::test]
async fn whoever_sends_ever_more_that_is_no_receipt_fills_no_log_and_is_sent_away() {
    let world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    let host = Host::enrol(&world, "web-1").await;
    let mut link = Link::connect(host, &world).await.unwrap();
    let envelopes = vec![b"x".to_vec(); 100];
    link.say(pb::connect_request::Message::Receipts(pb::Receipts { envelopes }))
        .await;
    let wait = async { while link.next().await.is_some() {} };
    tokio::time::timeout(SOON, wait).await.unwrap();
    let reported = admin.events_of("machine.reported").await;
    assert_eq!(reported.len(), 4);
    assert!(
        reported
            .iter()
            .any(|event| event.reason == "RECEIPTS_REFUSED" && event.message.contains("97 more"))
    );
}
