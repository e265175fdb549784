use std::time::Duration;

use nightlatch_core::rights::Role;
use nightlatch_proto::pb;
use nightlatch_server::clock::Clock as _;
use tonic::{Code, Status};

use crate::host::{Host, Link};
use crate::world::{SOON, World, problem};

fn reason<T>(result: Result<T, Status>) -> (Code, String) {
    let problem = problem(&result.err().expect("it was let in"));
    (problem.code, problem.reason)
}

#[tokio::test]
async fn certificates_of_the_wrong_kind_are_refused_on_each_listener() {
    let world = World::begin().await;
    let host = Host::enrol(&world, "web-1").await;
    let mut as_machine = world.client(&host.credentials).await;
    let listed = as_machine
        .machines
        .list_machines(pb::ListMachinesRequest::default())
        .await;
    assert_eq!(
        reason(listed),
        (Code::Unauthenticated, "CERTIFICATE_KIND".to_owned())
    );
    let as_person = Host {
        credentials: world.admin(),
        ..host
    };
    let connected = Link::connect(as_person.clone(), &world).await;
    assert_eq!(
        reason(connected),
        (Code::Unauthenticated, "CERTIFICATE_KIND".to_owned())
    );
    // The server's own certificate is for servers only.
    let state = world.state();
    let server = crate::world::Credentials {
        certificate: state.read("server.pem").unwrap(),
        key: state.read("server.key").unwrap(),
    };
    assert!(
        Link::connect(
            Host {
                credentials: server,
                ..as_person
            },
            &world
        )
        .await
        .is_err()
    );
}

#[tokio::test]
async fn without_a_certificate_only_enrolment_health_and_reflection_answer() {
    let world = World::begin().await;
    let channel = world.channel_to_people(None).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let healthy = health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(healthy.status, 1);
    let mut machines = pb::machine_service_client::MachineServiceClient::new(channel.clone());
    let listed = machines.list_machines(pb::ListMachinesRequest::default()).await;
    assert_eq!(
        reason(listed),
        (Code::Unauthenticated, "CERTIFICATE_MISSING".to_owned())
    );
    use tonic_reflection::pb::v1 as reflection;
    let ask = reflection::ServerReflectionRequest {
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
        ..Default::default()
    };
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    assert!(format!("{:?}", answers.message().await.unwrap()).contains("nightlatch.v1.AccessService"));
    // Agents need one for the handshake already.
    let channel = world.try_channel_to_agents(None).await;
    let refused = match channel {
        Err(_) => true,
        Ok(channel) => {
            let mut client = pb::agent_service_client::AgentServiceClient::new(channel);
            client.connect(tokio_stream::empty()).await.is_err()
        }
    };
    assert!(refused);
}

#[tokio::test]
async fn a_method_of_one_listener_is_not_on_the_other() {
    let world = World::begin().await;
    let channel = world.channel_to_people(Some(&world.admin())).await;
    let unknown = (Code::Unimplemented, "METHOD_UNKNOWN".to_owned());
    let mut agents = pb::agent_service_client::AgentServiceClient::new(channel.clone());
    let told = agents.connect(tokio_stream::empty()).await;
    assert!(told.as_ref().unwrap_err().message().contains("7444"));
    assert_eq!(reason(told), unknown);
    let host = Host::enrol(&world, "web-1").await;
    let of_agents = world
        .try_channel_to_agents(Some(&host.credentials))
        .await
        .unwrap();
    let mut enrolment = pb::enrollment_service_client::EnrollmentServiceClient::new(of_agents);
    let told = enrolment.enroll(pb::EnrollRequest::default()).await;
    assert!(told.as_ref().unwrap_err().message().contains("7443"));
    assert_eq!(reason(told), unknown);
    // A version of reflection that isn't served.
    let mut other =
        tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let told = other.server_reflection_info(tokio_stream::empty()).await;
    assert_eq!(reason(told), unknown);
}

#[tokio::test]
async fn only_the_newest_certificate_of_a_person_counts() {
    let world = World::begin().await;
    let first = world.person("alice", &[Role::Administrator]).await;
    let second = world.person("alice", &[Role::Reader]).await;
    let listed = world
        .client(&first)
        .await
        .machines
        .list_machines(pb::ListMachinesRequest::default())
        .await;
    assert_eq!(
        reason(listed),
        (Code::Unauthenticated, "CERTIFICATE_SUPERSEDED".to_owned())
    );
    world
        .client(&second)
        .await
        .machines
        .list_machines(pb::ListMachinesRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_that_has_ended_lets_nobody_in() {
    const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let world = World::begin().await;
    let now = world.clock.now();
    // Validity has whole days.
    for (age, counts) in [(LIFE + DAY, false), (LIFE - DAY, true)] {
        let then = now.checked_sub(age).unwrap();
        let credentials = world.person_since("alice", &[Role::Reader], then).await;
        let listed = async {
            let mut client = world
                .try_client(&credentials)
                .await
                .map_err(|error| format!("{error:?}"))?;
            let listed = client
                .machines
                .list_machines(pb::ListMachinesRequest::default())
                .await;
            listed.map_err(|status| format!("{status:?}"))
        };
        match listed.await {
            Ok(_) => assert!(counts),
            Err(why) => assert!(!counts && why.contains("CertificateExpired"), "{why}"),
        }
    }
}

#[tokio::test]
async fn each_role_gets_past_the_door_for_its_own_methods_only() {
    let world = World::begin().await;
    for role in Role::ALL {
        let credentials = world.person(&format!("one-{role}"), &[role]).await;
        let mut client = world.client(&credentials).await;
        let denied =
            |status: Option<Status>| status.is_some_and(|s| problem(&s).reason == "PERMISSION_MISSING");
        let access = &mut client.access;
        let found = [
            denied(
                access
                    .create_access_request(pb::CreateAccessRequestRequest::default())
                    .await
                    .err(),
            ),
            denied(
                access
                    .get_access_request(pb::GetAccessRequestRequest::default())
                    .await
                    .err(),
            ),
            denied(
                access
                    .watch_access_request(pb::WatchAccessRequestRequest::default())
                    .await
                    .err(),
            ),
            denied(
                access
                    .cancel_access_request(pb::CancelAccessRequestRequest::default())
                    .await
                    .err(),
            ),
            denied(access.get_grant(pb::GetGrantRequest::default()).await.err()),
            denied(access.list_grants(pb::ListGrantsRequest::default()).await.err()),
            denied(access.end_grant(pb::EndGrantRequest::default()).await.err()),
            denied(access.revoke_grant(pb::RevokeGrantRequest::default()).await.err()),
            denied(
                client
                    .machines
                    .get_machine(pb::GetMachineRequest::default())
                    .await
                    .err(),
            ),
            denied(
                client
                    .machines
                    .list_machines(pb::ListMachinesRequest::default())
                    .await
                    .err(),
            ),
            denied(
                client
                    .machines
                    .get_policy(pb::GetPolicyRequest::default())
                    .await
                    .err(),
            ),
            denied(
                client
                    .machines
                    .update_policy(pb::UpdatePolicyRequest::default())
                    .await
                    .err(),
            ),
            denied(
                client
                    .machines
                    .delete_policy(pb::DeletePolicyRequest::default())
                    .await
                    .err(),
            ),
            denied(
                client
                    .audit
                    .list_events(pb::ListEventsRequest::default())
                    .await
                    .err(),
            ),
            denied(
                client
                    .audit
                    .list_signing_keys(pb::ListSigningKeysRequest {})
                    .await
                    .err(),
            ),
        ];
        let found: String = found
            .iter()
            .map(|denied| if *denied { '-' } else { 'y' })
            .collect();
        let expected = match role {
            Role::Reader => "-yy-yy--yyy---y",
            Role::Requester => "yyyyyyy-yyy---y",
            Role::Approver => "-yyyyy-yyyy---y",
            Role::PolicyEditor => "-yy-yy--yyyyy-y",
            Role::Auditor => "-yy-yy--yyy--yy",
            Role::Administrator => "yyyyyyyyyyyyyyy",
        };
        assert_eq!(found, expected, "{role}");
    }
}

#[tokio::test]
async fn stopping_does_not_wait_for_streams_that_others_hold_open() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1 as reflection;
    let mut world = World::begin().await;
    let channel = world.channel_to_people(None).await;
    let mut health = HealthClient::new(channel)
        .watch(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, 1);
    world.stop().await;
    // Told, not cut off.
    let end = tokio::time::timeout(SOON, health.message()).await.unwrap();
    assert_eq!(end.unwrap(), None);

    world.start().await;
    let channel = world.channel_to_people(None).await;
    let (questions, requests) = tokio::sync::mpsc::channel(1);
    let mut answers = reflection::server_reflection_client::ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::wrappers::ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    let ask = || reflection::ServerReflectionRequest {
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
        ..Default::default()
    };
    questions.send(ask()).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    world.stop().await;
    // The state is free for the next server.
    world.start().await;
}
