//! The running server: built from its state, served until it is told to stop.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::grant::Authority;
use nightlatch_core::id::InstallationId;
use nightlatch_core::keys::VerifiedKeys;
use nightlatch_core::signing::PublicKey;
use nightlatch_proto::pb;
use nix::fcntl::Flock;
use pb::access_service_server::AccessServiceServer;
use pb::agent_service_server::AgentServiceServer;
use pb::audit_service_server::AuditServiceServer;
use pb::enrollment_service_server::EnrollmentServiceServer;
use pb::machine_service_server::MachineServiceServer;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tower::layer::util::{Identity as NoLayer, Stack};
use tracing::{info, warn};

use crate::agents::Agents;
use crate::api::LONGEST_MESSAGE;
use crate::api::access::Access;
use crate::api::agent::Link;
use crate::api::audit::Audit;
use crate::api::door::{Door, DoorLayer, Listener};
use crate::api::enrollment::Enrollment;
use crate::api::machine::Machines;
use crate::api::passing::Passing;
use crate::clock::Clock;
use crate::config::{Limits, ServerConfig};
use crate::enrolment::Enrolment;
use crate::fleet::Fleet;
use crate::id;
use crate::identity::ca::{CertificateAuthority, CertificateError};
use crate::identity::{Identity, Kind};
use crate::issuer::{Issuer, Patience};
use crate::listener::descriptors::within_reach;
use crate::listener::guests::{Guests, Places};
use crate::listener::{self, TlsError};
use crate::policies::Policies;
use crate::state::{DATABASE, SERVER_CERTIFICATE, SERVER_KEY, State, StateError};
use crate::store::installation::Installation;
use crate::store::{Store, StoreError};
use crate::turned_away::{self, TurnedAway};
use renewal::certificate;

mod renewal;

/// The longest that stopping takes.
const DRAIN: Duration = Duration::from_secs(5);
/// Of that, for what comes after the calls: agents' farewells and the database.
const AFTER_CALLS: Duration = Duration::from_secs(1);
/// Longer than the longest wait for hosts.
const CALL_WITHIN: Duration = Duration::from_secs(75);
const CALLS_PER_CONNECTION: u32 = 64;
/// A machine's newest stream counts alone.
const STREAMS_PER_AGENT: u32 = 4;
const CONNECTIONS_PER_MACHINE: usize = 4;
/// A command has one while it runs; nobody's may take up all places.
const CONNECTIONS_PER_PERSON: usize = 64;
/// Whose health can be asked for; empty: the server's as a whole.
const HEALTHY: [&str; 6] = [
    "",
    <AccessServiceServer<Access> as NamedService>::NAME,
    <MachineServiceServer<Machines> as NamedService>::NAME,
    <AuditServiceServer<Audit> as NamedService>::NAME,
    <EnrollmentServiceServer<Enrollment> as NamedService>::NAME,
    <AgentServiceServer<Link> as NamedService>::NAME,
];

/// Why the server can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("can't listen at {address} (`{key}` in the configuration file)")]
    Listen {
        key: &'static str,
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the description of the API can't be served")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the server has failed")]
    Serve(#[from] tonic::transport::Error),
}

/// A server that listens and is not yet served.
pub struct Server {
    lock: Flock<File>,
    store: Store,
    people: (TcpListener, rustls::ServerConfig),
    agents: (TcpListener, rustls::ServerConfig),
    clock: Arc<dyn Clock>,
    installation: InstallationId,
    ca: Arc<CertificateAuthority>,
    authority: Arc<Authority>,
    keys: VerifiedKeys,
    root: PublicKey,
    host_names: Vec<String>,
    limits: Limits,
}

type Services = Router<Stack<DoorLayer, NoLayer>>;

impl Server {
    /// Reads the state and begins to listen. Renews the server's certificate if it ends soon.
    ///
    /// # Errors
    /// State that can't be used, addresses that are taken.
    pub async fn bind(config: &ServerConfig, clock: Arc<dyn Clock>) -> Result<Self, ServerError> {
        let state = State::at(config.state.clone());
        state.check()?;
        let lock = state.lock()?;
        let ca = state.authority()?;
        let (key, keys) = state.signing()?;
        let root = state.root_public_key()?;
        let belongs =
            |stored: &Installation| Ok::<_, ServerError>(state.check_together(&ca, &keys, stored.id)?);
        let (store, installation) = Store::open_if(&state.path(DATABASE), belongs).await?;
        let server = Identity {
            installation: installation.id,
            kind: Kind::Server,
            id: id::fresh(clock.now()).to_string(),
        };
        let names = &installation.host_names;
        let (certificate, key_pem) = certificate(&state, &ca, &server, names, clock.now())?;
        let tls = |which| listener::tls(which, &certificate, &key_pem, ca.certificate());
        Ok(Self {
            lock,
            people: (listen("listen", config.listen).await?, tls(Listener::People)?),
            agents: (
                listen("listen_agents", config.listen_agents).await?,
                tls(Listener::Agents)?,
            ),
            store,
            clock,
            installation: installation.id,
            ca: Arc::new(ca),
            authority: Arc::new(Authority::new(key)),
            keys,
            root,
            host_names: installation.host_names,
            limits: within_reach(config.limits),
        })
    }

    /// Finds what would keep [`Server::bind`] from using the state, and changes nothing.
    ///
    /// # Errors
    /// State that can't be used.
    pub async fn check(config: &ServerConfig) -> Result<(), ServerError> {
        let state = State::at(config.state.clone());
        state.check()?;
        let ca = state.authority()?;
        let (_, keys) = state.signing()?;
        state.read(SERVER_CERTIFICATE)?;
        state.read_secret(SERVER_KEY)?;
        let installation = Store::check(&state.path(DATABASE)).await?;
        Ok(state.check_together(&ca, &keys, installation.id)?)
    }

    /// Where people and programs connect.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.people.0.local_addr()
    }

    pub fn agents_address(&self) -> std::io::Result<SocketAddr> {
        self.agents.0.local_addr()
    }

    /// Serves until `stopping`. Agents are told; what is under way has five seconds.
    ///
    /// # Errors
    /// A listener that fails.
    pub async fn serve(self, stopping: CancellationToken) -> Result<(), ServerError> {
        let sessions = TaskTracker::new();
        let agents_port = self
            .agents_address()
            .map(|address| address.port())
            .unwrap_or_default();
        let issuer = Arc::new(Issuer {
            store: self.store.clone(),
            fleet: Arc::new(Fleet::default()),
            authority: self.authority.clone(),
            clock: self.clock.clone(),
            bounds: self.limits.grants,
            patience: Patience::default(),
            denied: TurnedAway::new(turned_away::OF_DENIED),
            stopping: stopping.clone(),
        });
        let giving_up = issuer.clone();
        sessions.spawn(async move { giving_up.give_up_in_time().await });
        let for_people = self.services_for_people(&issuer, agents_port).await?;
        let for_agents = self.services_for_agents(issuer, &sessions);
        let Self {
            lock,
            store,
            people,
            agents,
            limits,
            ..
        } = self;
        let [for_them, for_machines] =
            [Listener::People, Listener::Agents].map(|which| places(which, &limits));
        let people = listener::accept(people.0, people.1, for_them, stopping.clone());
        let agents = listener::accept(agents.0, agents.1, for_machines, stopping.clone());
        let serving = async {
            tokio::try_join!(
                for_people.serve_with_incoming_shutdown(people, stopping.clone().cancelled_owned()),
                for_agents.serve_with_incoming_shutdown(agents, stopping.clone().cancelled_owned()),
            )
        };
        let mut serving = std::pin::pin!(serving);
        let by = tokio::select! {
            served = &mut serving => {
                served?;
                Instant::now() + DRAIN
            }
            () = stopping.cancelled() => {
                let by = Instant::now() + DRAIN;
                match timeout_at(by - AFTER_CALLS, serving).await {
                    Ok(served) => { served?; }
                    Err(_elapsed) => warn!("stopped with calls under way"),
                }
                by
            }
        };
        sessions.close();
        if timeout_at(by, sessions.wait()).await.is_err() {
            warn!("stopped with agents that were not told");
        }
        if timeout_at(by, store.close()).await.is_err() {
            warn!("stopped with the database in use");
        }
        drop(lock);
        info!("stopped");
        Ok(())
    }

    async fn services_for_people(
        &self,
        issuer: &Arc<Issuer>,
        agents_port: u16,
    ) -> Result<Services, ServerError> {
        let epoch = self.keys.number().epoch;
        let policies = Arc::new(Policies {
            store: self.store.clone(),
            fleet: issuer.fleet.clone(),
            authority: self.authority.clone(),
            epoch,
        });
        let enrolment = Enrolment {
            store: self.store.clone(),
            fleet: issuer.fleet.clone(),
            authority: self.authority.clone(),
            ca: self.ca.clone(),
            installation: self.installation,
            epoch,
            strangers: TurnedAway::new(turned_away::OF_STRANGERS),
            token_holders: TurnedAway::new(turned_away::OF_KNOWN),
        };
        let enrollment = Enrollment {
            enrolment: Arc::new(enrolment),
            clock: self.clock.clone(),
            root: self.root.clone(),
            agent_addresses: self
                .host_names
                .iter()
                .map(|name| host_port(name, agents_port))
                .collect(),
        };
        let audit = Audit {
            store: self.store.clone(),
            keys: self.keys.clone(),
        };
        let access = AccessServiceServer::new(Access {
            issuer: issuer.clone(),
        });
        let machine = MachineServiceServer::new(Machines {
            issuer: issuer.clone(),
            policies,
        });
        let (mut health, health_service) = tonic_health::server::health_reporter();
        for name in HEALTHY {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let stopping = issuer.stopping.clone();
        tokio::spawn(async move {
            stopping.cancelled().await;
            // Ends the streams of whoever watches, which would hold up the stopping.
            for name in HEALTHY {
                health.clear_service_status(name).await;
            }
        });
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        Ok(self
            .builder(Listener::People, &issuer.stopping)
            .add_service(access.max_decoding_message_size(LONGEST_MESSAGE))
            .add_service(machine.max_decoding_message_size(LONGEST_MESSAGE))
            .add_service(AuditServiceServer::new(audit).max_decoding_message_size(LONGEST_MESSAGE))
            .add_service(EnrollmentServiceServer::new(enrollment).max_decoding_message_size(LONGEST_MESSAGE))
            .add_service(health_service)
            .add_service(reflection))
    }

    fn services_for_agents(&self, issuer: Arc<Issuer>, sessions: &TaskTracker) -> Services {
        let mut builder = self.builder(Listener::Agents, &issuer.stopping);
        let agents = Arc::new(Agents {
            issuer,
            keys: self.keys.clone(),
        });
        let link = AgentServiceServer::new(Link {
            agents,
            sessions: sessions.clone(),
        });
        builder.add_service(link.max_decoding_message_size(LONGEST_MESSAGE))
    }

    fn builder(
        &self,
        listener: Listener,
        stopping: &CancellationToken,
    ) -> tonic::transport::Server<Stack<DoorLayer, NoLayer>> {
        let door = Door {
            store: self.store.clone(),
            installation: self.installation,
            listener,
            passing: Passing::new(stopping.clone()),
            clock: self.clock.clone(),
            turned_away: TurnedAway::new(turned_away::OF_KNOWN),
        };
        let seconds = Duration::from_secs;
        let (alive_every, alive_within, calls) = match listener {
            Listener::People => (seconds(60), seconds(20), CALLS_PER_CONNECTION),
            // Whoever revokes relies on what is said of a host that has vanished.
            Listener::Agents => (seconds(10), seconds(5), STREAMS_PER_AGENT),
        };
        tonic::transport::Server::builder()
            .max_concurrent_streams(calls)
            .http2_keepalive_interval(Some(alive_every))
            .http2_keepalive_timeout(Some(alive_within))
            .timeout(CALL_WITHIN)
            .layer(DoorLayer(Arc::new(door)))
    }
}

fn places(listener: Listener, limits: &Limits) -> Arc<Guests> {
    Guests::new(match listener {
        Listener::People => Places {
            all: limits.connections,
            per_address: limits.connections_per_address,
            per_certificate: CONNECTIONS_PER_PERSON,
        },
        // All may be behind one address, and each shows its certificate.
        Listener::Agents => Places {
            all: limits.agent_connections,
            per_address: limits.agent_connections,
            per_certificate: CONNECTIONS_PER_MACHINE,
        },
    })
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServerError::Listen { key, address, source })
}

/// An IPv6 address needs brackets before its port.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
