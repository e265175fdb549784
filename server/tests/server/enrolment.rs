use std::time::Duration;

use nightlatch_proto::error::Problem;
use nightlatch_proto::pb;
use tonic::{Code, Status};

use crate::host::{Host, Link, secret};
use crate::world::{SOON, World, ask, problem, ssh_rule, until};

fn refused(result: Result<Host, Status>) -> Problem {
    problem(&result.err().expect("it was let in"))
}

#[tokio::test]
async fn a_token_enrols_one_machine_once() {
    let world = World::begin().await;
    let secret = secret(&world, None, false).await;
    Host::enrol_with(&world, "web-1", &secret).await.unwrap();
    let again = refused(Host::enrol_with(&world, "web-2", &secret).await);
    assert_eq!(
        (again.code, again.reason.as_str()),
        (Code::PermissionDenied, "TOKEN_INVALID")
    );
    assert_eq!(again.metadata["token"], "used");
    let made_up = refused(Host::enrol_with(&world, "web-2", "made up").await);
    assert_eq!(made_up.reason, "TOKEN_INVALID");
    assert_eq!(made_up.metadata["token"], "unknown");
    let mut admin = world.client(&world.admin()).await;
    let machines = admin
        .machines
        .list_machines(pb::ListMachinesRequest::default())
        .await
        .unwrap();
    assert_eq!(machines.into_inner().machines.len(), 1);
    assert_eq!(admin.events_of("machine.enrolled").await.len(), 1);
}

#[tokio::test]
async fn a_token_expires_after_a_day() {
    let world = World::begin().await;
    let secret = secret(&world, None, false).await;
    world.clock.advance(Duration::from_secs(24 * 3600));
    assert!(
        refused(Host::enrol_with(&world, "web-1", &secret).await)
            .message
            .contains("has expired")
    );
}

#[tokio::test]
async fn a_token_for_one_name_enrols_no_other_and_is_not_spent_by_trying() {
    let world = World::begin().await;
    let secret = secret(&world, Some("web-1"), false).await;
    let other = refused(Host::enrol_with(&world, "web-2", &secret).await);
    assert_eq!(
        (other.reason.as_str(), other.field()),
        ("TOKEN_FOR_OTHER_NAME", Some("machine_name"))
    );
    Host::enrol_with(&world, "web-1", &secret).await.unwrap();
}

#[tokio::test]
async fn bad_enrolments_are_refused_by_their_field() {
    let world = World::begin().await;
    let secret = secret(&world, None, false).await;
    let channel = world.channel_to_people(None).await;
    let mut client = pb::enrollment_service_client::EnrollmentServiceClient::new(channel);
    let good = pb::EnrollRequest {
        secret,
        machine_name: "web-1".to_owned(),
        certificate_request_pem: "none".to_owned(),
        receipt_public_key: nightlatch_core::signing::SigningKey::from_seed(&[1; 32])
            .public()
            .to_spki(),
    };
    for (call, field) in [
        (good.clone(), "certificate_request_pem"),
        (
            pb::EnrollRequest {
                secret: String::new(),
                ..good.clone()
            },
            "secret",
        ),
        (
            pb::EnrollRequest {
                machine_name: "a b".to_owned(),
                ..good.clone()
            },
            "machine_name",
        ),
        (
            pb::EnrollRequest {
                receipt_public_key: vec![1],
                ..good
            },
            "receipt_public_key",
        ),
    ] {
        let refused = problem(&client.enroll(call).await.unwrap_err());
        assert_eq!(
            (refused.code, refused.field()),
            (Code::InvalidArgument, Some(field))
        );
    }
}

#[tokio::test]
async fn whoever_comes_without_a_token_that_counts_is_written_down_within_bounds() {
    let world = World::begin().await;
    for _ in 0..30 {
        let refusal = refused(Host::enrol_with(&world, "web-1", "not-a-token").await);
        assert_eq!(refusal.reason, "TOKEN_INVALID");
    }
    let mut admin = world.client(&world.admin()).await;
    let events = admin.events_of("machine.refused").await;
    assert_eq!(events.len(), 10);
    for event in &events {
        assert_eq!(
            (event.actor.as_str(), event.reason.as_str()),
            ("anonymous/127.0.0.1", "TOKEN_INVALID")
        );
        assert!(!format!("{event:?}").contains("not-a-token"));
    }
    world.clock.advance(Duration::from_secs(3600));
    refused(Host::enrol_with(&world, "web-1", "not-a-token").await);
    let events = admin.events_of("machine.refused").await;
    assert_eq!(events.last().unwrap().details["unwritten"], "20");
}

#[tokio::test]
async fn those_without_a_token_keep_no_refusal_of_a_tokens_holder_out_of_the_log() {
    let world = World::begin().await;
    Host::enrol(&world, "web-1").await;
    for _ in 0..20 {
        refused(Host::enrol_with(&world, "web-1", "not-a-token").await);
    }
    let (first, second) = (
        secret(&world, None, false).await,
        secret(&world, None, false).await,
    );
    for _ in 0..20 {
        refused(Host::enrol_with(&world, "web-1", &first).await);
    }
    refused(Host::enrol_with(&world, "web-1", &second).await);
    let mut admin = world.client(&world.admin()).await;
    let events = admin.events_of("machine.refused").await;
    let count = |reason: &str| events.iter().filter(|event| event.reason == reason).count();
    assert_eq!(
        (count("TOKEN_INVALID"), count("NAME_TAKEN")),
        (10, 11),
        "of strangers, and of each token"
    );
    assert_eq!(events.last().unwrap().details["unwritten"], "10");
}

#[tokio::test]
async fn a_taken_name_is_refused_unless_the_token_may_replace_the_machine() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let old = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let attending = old.clone().attend(&world).await;
    until(async || {
        alice.clone().request(ask(&["web-1"], 5)).await.unwrap().outcomes[0].state() == pb::OutcomeState::Open
    })
    .await;
    let grant = alice.request(ask(&["web-1"], 5)).await.unwrap().outcomes[0]
        .grant
        .clone();

    let plain = secret(&world, Some("web-1"), false).await;
    let taken = refused(Host::enrol_with(&world, "web-1", &plain).await);
    assert_eq!(
        (taken.code, taken.reason.as_str()),
        (Code::AlreadyExists, "NAME_TAKEN")
    );
    let refusals = admin.events_of("machine.refused").await;
    let [refusal] = refusals.as_slice() else {
        panic!("{refusals:?}")
    };
    // A name that someone claims is not who they are.
    assert_eq!(refusal.actor, "anonymous/127.0.0.1");
    assert_eq!(refusal.details["asked_for"], "web-1");

    let replacing = secret(&world, Some("web-1"), true).await;
    let new = Host::enrol_with(&world, "web-1", &replacing).await.unwrap();
    assert_ne!(new.id, old.id);
    // The old stream is cut, its certificate counts no longer, its grants have ended.
    let old = tokio::time::timeout(SOON, attending).await.unwrap().unwrap();
    let refused = Link::connect(old, &world)
        .await
        .err()
        .map(|status| problem(&status).reason);
    assert_eq!(refused.as_deref(), Some("CERTIFICATE_SUPERSEDED"));
    assert_eq!(alice.grant(&grant).await.reason, "MACHINE_REPLACED");
    // The new one is guarded as the old one was.
    let mut link = Link::connect(new, &world).await.unwrap();
    let now = nightlatch_server::clock::Clock::now(&*world.clock);
    link.until(now, |answer| {
        matches!(answer, pb::connect_response::Message::AssignmentPart(_)).then_some(())
    })
    .await;
    assert_eq!(link.host.policy.unwrap().policy().guarded.len(), 1);
}

#[tokio::test]
async fn an_enrolment_whose_answer_was_lost_is_repeated_with_the_same_keys() {
    let world = World::begin().await;
    let (_, mut admin) = world.two_people().await;
    let secret = secret(&world, None, false).await;
    let (key, seed) = (rcgen::KeyPair::generate().unwrap(), [7; 32]);
    let first = Host::enrol_as(&world, "web-1", &secret, &key, seed)
        .await
        .unwrap();
    let again = Host::enrol_as(&world, "web-1", &secret, &key, seed)
        .await
        .unwrap();
    assert_eq!(again.id, first.id);
    assert_ne!(again.credentials.certificate, first.credentials.certificate);
    let superseded = Link::connect(first, &world).await.err();
    let reason = superseded.map(|status| problem(&status).reason);
    assert_eq!(reason.as_deref(), Some("CERTIFICATE_SUPERSEDED"));
    Link::connect(again, &world).await.unwrap();
    let events = admin.events_of("machine.enrolled").await;
    assert_eq!((events.len(), events[1].reason.as_str()), (2, "ENROLLED_AGAIN"));

    let other = rcgen::KeyPair::generate().unwrap();
    for (name, key, seed) in [
        ("web-1", &other, seed),
        ("web-1", &key, [8; 32]),
        ("web-2", &key, seed),
    ] {
        let refused = refused(Host::enrol_as(&world, name, &secret, key, seed).await);
        assert_eq!(refused.reason, "TOKEN_INVALID");
        assert!(refused.message.contains("was used before"), "{}", refused.message);
    }
    world.clock.advance(Duration::from_secs(24 * 3600));
    let late = refused(Host::enrol_as(&world, "web-1", &secret, &key, seed).await);
    assert!(late.message.contains("has expired"), "{}", late.message);
}

#[tokio::test]
async fn a_replaced_machine_does_not_come_back_by_its_old_token() {
    let world = World::begin().await;
    let first = secret(&world, None, false).await;
    let (key, seed) = (rcgen::KeyPair::generate().unwrap(), [7; 32]);
    Host::enrol_as(&world, "web-1", &first, &key, seed).await.unwrap();
    let replacing = secret(&world, Some("web-1"), true).await;
    Host::enrol_with(&world, "web-1", &replacing).await.unwrap();
    let back = refused(Host::enrol_as(&world, "web-1", &first, &key, seed).await);
    assert_eq!(back.reason, "TOKEN_INVALID");
}
