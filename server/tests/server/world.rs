//! A server of its own for each test, and the clients to call it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use nightlatch_core::rights::Role;
use nightlatch_core::time::Timestamp;
use nightlatch_proto::error::Problem;
use nightlatch_proto::pb;
use nightlatch_server::clock::{Clock, SystemClock};
use nightlatch_server::config::ServerConfig;
use nightlatch_server::server::Server;
use nightlatch_server::state::{DATABASE, State};
use nightlatch_server::{console, init};
use pb::access_service_client::AccessServiceClient;
use pb::audit_service_client::AuditServiceClient;
use pb::machine_service_client::MachineServiceClient;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Runs with the machine's clock, and can be set ahead.
#[derive(Default)]
pub(crate) struct HandClock(AtomicI64);

impl HandClock {
    pub(crate) fn advance(&self, length: Duration) {
        self.0
            .fetch_add(i64::try_from(length.as_micros()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn set_back(&self, length: Duration) {
        self.0
            .fetch_sub(i64::try_from(length.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(SystemClock.now().micros() + self.0.load(Ordering::SeqCst)).unwrap()
    }
}

pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) config: ServerConfig,
    pub(crate) clock: Arc<HandClock>,
    running: Option<Running>,
}

struct Running {
    people: SocketAddr,
    agents: SocketAddr,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

/// A client certificate with its key, PEM.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl World {
    pub(crate) async fn begin() -> Self {
        // Another test may have been first.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let directory = tempfile::tempdir().unwrap();
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ServerConfig {
            state: directory.path().join("state"),
            listen: loopback,
            listen_agents: loopback,
            ..ServerConfig::default()
        };
        let clock = Arc::new(HandClock::default());
        init::init(&config.state, &["localhost".to_owned()], clock.now())
            .await
            .unwrap();
        let mut world = Self {
            directory,
            config,
            clock,
            running: None,
        };
        world.start().await;
        world
    }

    pub(crate) async fn start(&mut self) {
        let server = Server::bind(&self.config, self.clock.clone()).await.unwrap();
        let (people, agents) = (server.address().unwrap(), server.agents_address().unwrap());
        let stopping = CancellationToken::new();
        let serving = server.serve(stopping.clone());
        let task = tokio::spawn(async move { serving.await.unwrap() });
        self.running = Some(Running {
            people,
            agents,
            stopping,
            task,
        });
    }

    pub(crate) async fn stop(&mut self) {
        let Running { stopping, task, .. } = self.running.take().unwrap();
        stopping.cancel();
        tokio::time::timeout(SOON, task).await.unwrap().unwrap();
    }

    /// A copy of the database as it is now.
    pub(crate) async fn copy_database(&mut self) -> PathBuf {
        self.stop().await;
        let copy = self.directory.path().join("copy.db");
        std::fs::copy(self.config.state.join(DATABASE), &copy).unwrap();
        self.start().await;
        copy
    }

    /// Puts an old copy in the place of the database.
    pub(crate) async fn restore_database(&mut self, copy: &PathBuf) {
        self.stop().await;
        std::fs::copy(copy, self.config.state.join(DATABASE)).unwrap();
        self.start().await;
    }

    pub(crate) fn state(&self) -> State {
        State::at(self.config.state.clone())
    }

    pub(crate) fn admin(&self) -> Credentials {
        let state = self.state();
        Credentials {
            certificate: state.read("admin.pem").unwrap(),
            key: state.read("admin.key").unwrap(),
        }
    }

    pub(crate) async fn person(&self, name: &str, roles: &[Role]) -> Credentials {
        self.person_since(name, roles, self.clock.now()).await
    }

    /// With a certificate that was issued then.
    pub(crate) async fn person_since(&self, name: &str, roles: &[Role], then: Timestamp) -> Credentials {
        let prefix = self
            .directory
            .path()
            .join(format!("{name}-{:08x}", rand::random::<u32>()));
        let roles = roles.iter().copied().collect::<BTreeSet<_>>();
        let subject = name.parse().unwrap();
        let (certificate, key) = console::issue_user(&self.config, &subject, roles, &prefix, then)
            .await
            .unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        Credentials {
            certificate: read(certificate),
            key: read(key),
        }
    }

    pub(crate) async fn try_client(
        &self,
        credentials: &Credentials,
    ) -> Result<Client, tonic::transport::Error> {
        let channel = self.try_channel(self.people(), Some(credentials), LOOPBACK);
        channel.await.map(Client::over)
    }

    pub(crate) async fn channel_to_people(&self, credentials: Option<&Credentials>) -> Channel {
        self.try_channel(self.people(), credentials, LOOPBACK)
            .await
            .unwrap()
    }

    pub(crate) async fn try_channel_to_agents(
        &self,
        credentials: Option<&Credentials>,
    ) -> Result<Channel, tonic::transport::Error> {
        self.try_channel(self.running.as_ref().unwrap().agents, credentials, LOOPBACK)
            .await
    }

    async fn try_channel(
        &self,
        address: SocketAddr,
        credentials: Option<&Credentials>,
        from: IpAddr,
    ) -> Result<Channel, tonic::transport::Error> {
        let ca = Certificate::from_pem(self.state().read("ca.pem").unwrap());
        let mut tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        if let Some(Credentials { certificate, key }) = credentials {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}"))
            .unwrap()
            .tls_config(tls)?;
        endpoint
            .connect_timeout(SOON)
            .local_address(Some(from))
            .timeout(Duration::from_secs(70))
            .connect()
            .await
    }

    pub(crate) async fn client(&self, credentials: &Credentials) -> Client {
        self.client_at(self.people(), credentials).await
    }

    /// Where people connect.
    pub(crate) fn people(&self) -> SocketAddr {
        self.running.as_ref().unwrap().people
    }

    pub(crate) fn agents(&self) -> SocketAddr {
        self.running.as_ref().unwrap().agents
    }

    pub(crate) async fn client_at(&self, address: SocketAddr, credentials: &Credentials) -> Client {
        let channel = self.try_channel(address, Some(credentials), LOOPBACK).await;
        Client::over(channel.unwrap())
    }

    /// Seen at another address.
    pub(crate) async fn client_from(&self, from: IpAddr, credentials: &Credentials) -> Client {
        let channel = self.try_channel(self.people(), Some(credentials), from).await;
        Client::over(channel.unwrap())
    }

    /// A requester, and an administrator.
    pub(crate) async fn two_people(&self) -> (Client, Client) {
        (self.requester("alice").await, self.client(&self.admin()).await)
    }

    pub(crate) async fn requester(&self, name: &str) -> Client {
        let person = self.person(name, &[Role::Requester]).await;
        self.client(&person).await
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) access: AccessServiceClient<Channel>,
    pub(crate) machines: MachineServiceClient<Channel>,
    pub(crate) audit: AuditServiceClient<Channel>,
}

impl Client {
    fn over(channel: Channel) -> Self {
        Self {
            access: AccessServiceClient::new(channel.clone()),
            machines: MachineServiceClient::new(channel.clone()),
            audit: AuditServiceClient::new(channel),
        }
    }

    pub(crate) async fn set_policy(&mut self, machine: &str, rules: Vec<pb::PortRule>) -> pb::Policy {
        let policy = pb::Policy {
            name: format!("machines/{machine}/policy"),
            rules,
            ..Default::default()
        };
        let call = pb::UpdatePolicyRequest {
            policy: Some(policy),
            update_mask: None,
        };
        self.machines.update_policy(call).await.unwrap().into_inner()
    }

    pub(crate) async fn request(
        &mut self,
        call: pb::CreateAccessRequestRequest,
    ) -> Result<pb::AccessRequest, Problem> {
        let answer = self.access.create_access_request(call).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| Problem::from_status(&status))
    }

    /// The names of the caller's requests that wait for a machine.
    pub(crate) async fn waiting(&mut self) -> Vec<String> {
        let call = pb::ListAccessRequestsRequest {
            waiting_only: true,
            own_only: true,
            ..Default::default()
        };
        let listed = self.access.list_access_requests(call).await.unwrap().into_inner();
        listed
            .access_requests
            .into_iter()
            .map(|request| request.name)
            .collect()
    }

    /// What became of a request on its first machine.
    pub(crate) async fn outcome(&self, name: &str) -> pb::Outcome {
        let call = pb::GetAccessRequestRequest {
            name: name.to_owned(),
        };
        let mut access = self.access.clone();
        let request = access.get_access_request(call).await.unwrap().into_inner();
        request.outcomes.into_iter().next().unwrap()
    }

    pub(crate) async fn grant(&mut self, name: &str) -> pb::Grant {
        self.access
            .get_grant(pb::GetGrantRequest {
                name: name.to_owned(),
            })
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn events(&mut self) -> Vec<pb::Event> {
        let call = pb::ListEventsRequest {
            page_size: 1000,
            ..Default::default()
        };
        self.audit.list_events(call).await.unwrap().into_inner().events
    }

    pub(crate) async fn events_of(&mut self, kind: &str) -> Vec<pb::Event> {
        self.events()
            .await
            .into_iter()
            .filter(|event| event.kind == kind)
            .collect()
    }
}

pub(crate) fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// 22/tcp from anywhere, three hours at most.
pub(crate) fn ssh_rule() -> pb::PortRule {
    pb::PortRule {
        range: Some(pb::PortRange { first: 22, last: 22 }),
        protocol: pb::Protocol::Tcp.into(),
        allowed_sources: vec!["*".to_owned()],
        max_duration: None,
    }
}

/// Asks for 22 on machines for ten minutes.
pub(crate) fn ask(machines: &[&str], wait: i64) -> pb::CreateAccessRequestRequest {
    pb::CreateAccessRequestRequest {
        machines: machines
            .iter()
            .map(|machine| format!("machines/{machine}"))
            .collect(),
        access_request: Some(pb::AccessRequest {
            ports: vec![pb::PortPattern {
                range: Some(pb::PortRange { first: 22, last: 22 }),
                protocol: None,
            }],
            sources: vec!["me".to_owned()],
            span: Some(pb::access_request::Span::Duration(seconds(600))),
            justification: "disk full".to_owned(),
            ..Default::default()
        }),
        wait: Some(seconds(wait)),
        request_id: String::new(),
    }
}

pub(crate) fn problem(status: &Status) -> Problem {
    Problem::from_status(status)
}

/// Waits until a condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, wait)
        .await
        .expect("the condition did not come to hold");
}
