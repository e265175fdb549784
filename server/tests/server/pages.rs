use nightlatch_proto::pb;
use tonic::Code;

use crate::host::Host;
use crate::world::{World, ask, problem, ssh_rule};

#[tokio::test]
async fn pages_hold_everything_once_and_in_order() {
    let world = World::begin().await;
    let (mut alice, mut admin) = world.two_people().await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        Host::enrol(&world, name).await;
        admin.set_policy(name, vec![ssh_rule()]).await;
    }
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let call = pb::ListMachinesRequest {
            page_size: 2,
            page_token: token,
        };
        let page = admin.machines.list_machines(call).await.unwrap().into_inner();
        found.extend(page.machines.into_iter().map(|machine| machine.display_name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, names);

    alice.request(ask(&names, 0)).await.unwrap();
    let all = admin.events().await;
    assert!(
        all.iter()
            .map(|event| event.sequence)
            .eq(1..=u64::try_from(all.len()).unwrap())
    );
    let mut paged = Vec::new();
    let mut token = String::new();
    loop {
        let call = pb::ListEventsRequest {
            page_size: 3,
            page_token: token,
            ..Default::default()
        };
        let page = admin.audit.list_events(call).await.unwrap().into_inner();
        paged.extend(page.events);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all);
    let newest = pb::ListEventsRequest {
        page_size: 3,
        newest: true,
        ..Default::default()
    };
    let newest = admin.audit.list_events(newest).await.unwrap().into_inner();
    assert_eq!(newest.events, all[all.len() - 3..]);
    let of_machine = pb::ListEventsRequest {
        machine: "machines/c".to_owned(),
        ..Default::default()
    };
    let of_machine = admin
        .audit
        .list_events(of_machine)
        .await
        .unwrap()
        .into_inner()
        .events;
    assert_eq!(of_machine.len(), 4);
    let of_alice = pb::ListEventsRequest {
        subject: "alice".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        admin
            .audit
            .list_events(of_alice)
            .await
            .unwrap()
            .into_inner()
            .events
            .len(),
        11
    );
}

#[tokio::test]
async fn bad_pages_are_refused_by_their_field() {
    let world = World::begin().await;
    let mut admin = world.client(&world.admin()).await;
    let larger = pb::ListEventsRequest {
        page_size: i32::MAX,
        ..Default::default()
    };
    assert!(admin.audit.list_events(larger).await.is_ok());
    for (size, token, field) in [
        (-1, "", "page_size"),
        (0, "made-up", "page_token"),
        (0, "bWFjaGluZXM6", "page_token"),
        (0, "ZXZlbnRzOng", "page_token"),
    ] {
        let call = pb::ListEventsRequest {
            page_size: size,
            page_token: token.to_owned(),
            ..Default::default()
        };
        let refused = problem(&admin.audit.list_events(call).await.unwrap_err());
        assert_eq!(
            (refused.code, refused.field()),
            (Code::InvalidArgument, Some(field))
        );
        let call = pb::ListGrantsRequest {
            page_size: size,
            page_token: token.to_owned(),
            ..Default::default()
        };
        let refused = problem(&admin.access.list_grants(call).await.unwrap_err());
        assert_eq!(
            (refused.code, refused.field()),
            (Code::InvalidArgument, Some(field))
        );
    }
}
