use std::time::Duration;

use nightlatch_proto::pb;
use nightlatch_server::issuer::Bounds;
use pb::OutcomeState::{Open, Waiting};
use tokio::task::JoinSet;
use tonic::Code;

use crate::access::connected;
use crate::host::Host;
use crate::world::{Client, World, ask, ssh_rule, until};

async fn bounded(per_caller: u64, per_machine: u64) -> (World, Client, Client) {
    let mut world = World::begin().await;
    world.stop().await;
    world.config.limits.grants = Bounds {
        per_caller,
        per_machine,
    };
    world.start().await;
    let (alice, admin) = world.two_people().await;
    (world, alice, admin)
}

#[tokio::test]
async fn one_person_has_so_many_grants_on_a_machine_until_one_ends() {
    let (world, mut alice, mut admin) = bounded(2, 9).await;
    let _attending = connected(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut granted = Vec::new();
    for _ in 0..2 {
        let request = alice.request(ask(&["web-1"], 10)).await.unwrap();
        assert_eq!(request.outcomes[0].state(), Open);
        granted.push(request.outcomes[0].grant.clone());
    }
    let refused = alice.request(ask(&["web-1"], 0)).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str(), refused.field()),
        (
            Code::ResourceExhausted,
            "TOO_MANY_OWN_GRANTS",
            Some("machines[0]")
        )
    );
    assert!(refused.message.contains("2 live grants"), "{}", refused.message);
    let denied = admin.events_of("access.denied").await;
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0].reason, "TOO_MANY_OWN_GRANTS");
    // Others are not held up by it.
    admin.request(ask(&["web-1"], 0)).await.unwrap();
    let end = pb::EndGrantRequest {
        name: granted.remove(0),
        wait: None,
    };
    alice.access.end_grant(end).await.unwrap();
    alice.request(ask(&["web-1"], 0)).await.unwrap();
    assert!(alice.request(ask(&["web-1"], 0)).await.is_err());
    // What has run out no longer counts.
    world.clock.advance(Duration::from_secs(601));
    for _ in 0..2 {
        alice.request(ask(&["web-1"], 0)).await.unwrap();
    }
    assert!(alice.request(ask(&["web-1"], 0)).await.is_err());
}

#[tokio::test]
async fn a_machine_has_so_many_grants_whoever_asks() {
    let (world, mut alice, mut admin) = bounded(9, 2).await;
    let _attending = connected(&world, "web-1").await;
    let _other = connected(&world, "web-2").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    admin.set_policy("web-2", vec![ssh_rule()]).await;
    alice.request(ask(&["web-1"], 0)).await.unwrap();
    admin.request(ask(&["web-1"], 0)).await.unwrap();
    let refused = alice.request(ask(&["web-2", "web-1"], 0)).await.unwrap_err();
    assert_eq!(
        (refused.reason.as_str(), refused.field()),
        ("TOO_MANY_GRANTS", Some("machines[1]"))
    );
    // Refused for one, refused for all.
    let call = pb::ListGrantsRequest {
        machine: "machines/web-2".to_owned(),
        ..Default::default()
    };
    let listed = admin.access.list_grants(call).await.unwrap().into_inner();
    assert!(listed.grants.is_empty());
}

#[tokio::test]
async fn what_waits_counts_until_it_is_withdrawn_or_has_lapsed() {
    let (world, mut alice, mut admin) = bounded(1, 9).await;
    Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let waiting = alice.request(ask(&["web-1"], 0)).await.unwrap();
    assert_eq!(waiting.outcomes[0].state(), Waiting);
    let refused = alice.request(ask(&["web-1"], 0)).await.unwrap_err();
    assert_eq!(refused.reason, "TOO_MANY_OWN_GRANTS");
    let cancel = pb::CancelAccessRequestRequest {
        name: waiting.name,
        machine: String::new(),
    };
    alice.access.cancel_access_request(cancel).await.unwrap();
    let lapsing = alice.request(ask(&["web-1"], 0)).await.unwrap();
    world.clock.advance(Duration::from_secs(24 * 3600));
    alice.request(ask(&["web-1"], 0)).await.unwrap();
    assert_eq!(alice.outcome(&lapsing.name).await.reason, "LAPSED");
}

#[tokio::test]
async fn more_than_is_signed_in_one_change_opens_all_the_same() {
    const COUNT: u32 = 502;
    let (world, alice, mut admin) = bounded(COUNT.into(), COUNT.into()).await;
    let host = Host::enrol(&world, "web-1").await;
    admin.set_policy("web-1", vec![ssh_rule()]).await;
    let mut callers = JoinSet::new();
    for number in 0..COUNT {
        let mut alice = alice.clone();
        callers.spawn(async move { alice.request(ask(&["web-1"], 0)).await.map(|_| number) });
    }
    while let Some(asked) = callers.join_next().await {
        asked.unwrap().unwrap();
    }
    let _attending = host.attend(&world).await;
    let get = pb::GetMachineRequest {
        name: "machines/web-1".to_owned(),
    };
    let open = async || {
        let mut machines = admin.machines.clone();
        let machine = machines.get_machine(get.clone()).await.unwrap();
        machine.into_inner().open_grants
    };
    until(async || open().await == COUNT).await;
}

#[tokio::test]
async fn what_is_written_down_of_one_persons_denials_has_a_bound() {
    let (_world, mut alice, mut admin) = {
        let world = World::begin().await;
        for machine in ["web-1", "web-2", "web-3"] {
            Host::enrol(&world, machine).await;
        }
        let (alice, admin) = world.two_people().await;
        (world, alice, admin)
    };
    let allowed_sources: Vec<_> = (0..256).map(|part| format!("198.51.{part}.0/24")).collect();
    let rule = pb::PortRule {
        allowed_sources,
        ..ssh_rule()
    };
    admin.set_policy("web-1", vec![rule]).await;
    let mut call = ask(&["web-1"], 0);
    call.access_request.as_mut().unwrap().sources =
        (1..=32).map(|part| format!("192.0.2.{part}/32")).collect();
    assert!(alice.request(call).await.is_err());
    let denied = admin.events_of("access.denied").await.remove(0);
    assert!(denied.json.len() < 2500, "{denied:?}");
    assert_eq!(denied.reason, "SOURCE_NOT_ALLOWED");

    for _ in 0..110 {
        let denied = alice.request(ask(&["web-2", "web-3"], 0)).await.unwrap_err();
        assert_eq!(denied.reason, "NO_POLICY");
    }
    let denied = admin.events_of("access.denied").await;
    assert_eq!(denied.len(), 200);
    // Others' are written all the same.
    assert!(admin.request(ask(&["web-2"], 0)).await.is_err());
    let denied = admin.events_of("access.denied").await;
    assert_eq!(denied.len(), 201);
    assert_eq!(denied[200].details["unwritten"], "21");
}
