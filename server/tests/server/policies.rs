use nightlatch_proto::pb;
use tonic::Code;

use crate::host::Host;
use crate::world::{World, ask, problem, seconds, ssh_rule};

fn update(rules: Vec<pb::PortRule>, etag: &str) -> pb::UpdatePolicyRequest {
    let policy = pb::Policy {
        name: "machines/web-1/policy".to_owned(),
        rules,
        etag: etag.to_owned(),
        ..Default::default()
    };
    pb::UpdatePolicyRequest {
        policy: Some(policy),
        update_mask: None,
    }
}

#[tokio::test]
async fn an_edit_of_a_policy_that_has_changed_meanwhile_is_refused() {
    let world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    Host::enrol(&world, "web-1").await;
    let get = pb::GetPolicyRequest {
        name: "machines/web-1/policy".to_owned(),
    };
    assert_eq!(
        admin.machines.get_policy(get.clone()).await.unwrap_err().code(),
        Code::NotFound
    );
    let first = admin.set_policy("web-1", vec![ssh_rule()]).await;
    assert_eq!(first.rules[0].max_duration, Some(seconds(3 * 3600)));
    let second = admin
        .machines
        .update_policy(update(vec![ssh_rule()], &first.etag))
        .await
        .unwrap()
        .into_inner();
    assert_ne!(second.etag, first.etag);
    let stale = admin
        .machines
        .update_policy(update(vec![ssh_rule()], &first.etag))
        .await
        .unwrap_err();
    assert_eq!(
        (stale.code(), problem(&stale).reason.as_str()),
        (Code::Aborted, "ETAG_STALE")
    );
    let delete = pb::DeletePolicyRequest {
        name: second.name.clone(),
        etag: first.etag,
    };
    assert_eq!(
        admin.machines.delete_policy(delete).await.unwrap_err().code(),
        Code::Aborted
    );
    assert_eq!(admin.machines.get_policy(get).await.unwrap().into_inner(), second);
}

#[tokio::test]
async fn a_policy_that_cannot_be_meant_changes_nothing() {
    let world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    Host::enrol(&world, "web-1").await;
    let masked = |path: &str| pb::UpdatePolicyRequest {
        update_mask: Some(prost_types::FieldMask {
            paths: vec![path.to_owned()],
        }),
        ..update(vec![ssh_rule()], "")
    };
    for (call, field) in [
        (update(vec![], ""), "policy.rules"),
        (update(vec![ssh_rule(), ssh_rule()], ""), "policy.rules"),
        (
            update(
                vec![pb::PortRule {
                    protocol: 0,
                    ..ssh_rule()
                }],
                "",
            ),
            "policy.rules[0].protocol",
        ),
        (masked("etag"), "update_mask"),
        (pb::UpdatePolicyRequest::default(), "policy"),
    ] {
        let refused = problem(&admin.machines.update_policy(call).await.unwrap_err());
        assert_eq!(
            (refused.code, refused.field()),
            (Code::InvalidArgument, Some(field))
        );
    }
    admin.machines.update_policy(masked("rules")).await.unwrap();
    assert_eq!(admin.events_of("policy.set").await.len(), 1);
}

#[tokio::test]
async fn a_stricter_policy_leaves_running_grants_alone() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let _attending = host.attend(&world).await;
    crate::world::until(async || {
        let request = alice.clone().request(ask(&["web-1"], 10)).await.unwrap();
        request.outcomes[0].state() == pb::OutcomeState::Open
    })
    .await;
    let stricter = pb::PortRule {
        max_duration: Some(seconds(300)),
        ..ssh_rule()
    };
    admin.set_policy("web-1", vec![stricter]).await;
    assert!(alice.request(ask(&["web-1"], 0)).await.is_err());
    let live = pb::ListGrantsRequest {
        live_only: true,
        ..Default::default()
    };
    let live = alice.access.list_grants(live).await.unwrap().into_inner().grants;
    assert!(!live.is_empty() && live.iter().all(|grant| grant.state() == pb::GrantState::Open));
}
