//! A server of canned answers: a machine's name says what becomes of a request for it.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nightlatch_proto::error::Problem;
use nightlatch_proto::pb;
use nightlatch_proto::pb::access_service_server::{AccessService, AccessServiceServer};
use nightlatch_proto::pb::audit_service_server::{AuditService, AuditServiceServer};
use nightlatch_proto::pb::machine_service_server::{MachineService, MachineServiceServer};
use tempfile::TempDir;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

pub(crate) use crate::authority::{Authority, Certificate, Kind};

pub(crate) const ENVELOPE: &str = r#"{"payload":"e30=","payloadType":"t","signatures":[]}"#;

/// Runs until it is dropped.
pub(crate) struct Fake {
    pub(crate) authority: Authority,
    folder: TempDir,
    address: SocketAddr,
    answers: Answers,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub(crate) fn start() -> Self {
        Self::start_as(&Certificate::server())
    }

    pub(crate) fn start_as(certificate: &Certificate) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let authority = Authority::new();
        let (cert, key) = authority.issue(certificate);
        let answers = Answers::default();
        let incoming = {
            let _guard = runtime.enter();
            TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap()
        };
        let address = incoming.local_addr().unwrap();
        let tls = tonic::transport::ServerTlsConfig::new()
            .identity(tonic::transport::Identity::from_pem(cert, key))
            .client_ca_root(tonic::transport::Certificate::from_pem(authority.pem()));
        let server = {
            let _guard = runtime.enter();
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(AccessServiceServer::new(answers.clone()))
                .add_service(AuditServiceServer::new(answers.clone()))
                .add_service(MachineServiceServer::new(answers.clone()))
        };
        runtime.spawn(server.serve_with_incoming(incoming));
        let fake = Self {
            folder: tempfile::tempdir().unwrap(),
            authority,
            address,
            answers,
            _runtime: runtime,
        };
        let (cert, key) = fake.authority.issue(&Certificate::person());
        fake.keep("ca.pem", &fake.authority.pem());
        fake.keep("me.pem", &cert);
        fake.keep("me.key", &key);
        fake
    }

    /// Writes a file beside the others and gives its path.
    pub(crate) fn keep(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_string()
    }

    /// Options that come later in `words` win over the environment given here.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightlatch"));
        command
            .args(words)
            .env_clear()
            .env("HOME", self.folder.path())
            .env("NIGHTLATCH_SERVER", format!("https://{}", self.address))
            .env("NIGHTLATCH_CA", path("ca.pem"))
            .env("NIGHTLATCH_CERT", path("me.pem"))
            .env("NIGHTLATCH_KEY", path("me.key"))
            .stdin(std::process::Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// The ids that requests were asked for with.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.answers.asked.lock().unwrap().clone()
    }

    /// Passes connections on. The first is cut when its request has arrived.
    pub(crate) fn behind_a_breaking_network(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, server) = (listener.local_addr().unwrap(), self.address);
        let asked = self.answers.asked.clone();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (near, far) = (stream.unwrap(), TcpStream::connect(server).unwrap());
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
                if number == 0 {
                    let asked = asked.clone();
                    std::thread::spawn(move || {
                        while asked.lock().unwrap().is_empty() {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        near.shutdown(Shutdown::Both).unwrap();
                        far.shutdown(Shutdown::Both).unwrap();
                    });
                }
            }
        });
        address
    }

    pub(crate) fn wait_until_watched(&self) {
        let start = Instant::now();
        while self.answers.watched.load(Ordering::SeqCst) == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "nobody watched");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A machine with 250 grants and as many requests, in pages of 100.
const MANY: &str = "machines/many-1";

fn page_of_many(machine: &str, token: &str) -> (Range<u32>, String) {
    let start: u32 = token.parse().unwrap_or(0);
    match (machine == MANY, start) {
        (false, _) => (0..0, String::new()),
        (true, 200..) => (start..250, String::new()),
        (true, _) => (start..start + 100, (start + 100).to_string()),
    }
}

#[derive(Clone, Default)]
struct Answers {
    watched: Arc<AtomicU32>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn outcome(machine: &str, is_late_open: bool) -> pb::Outcome {
    let name = machine.trim_start_matches("machines/").to_string();
    let state = match name.split('-').next().unwrap() {
        "open" | "gone" => pb::OutcomeState::Open,
        "away" => pb::OutcomeState::Waiting,
        "late" if is_late_open => pb::OutcomeState::Open,
        "late" => pb::OutcomeState::Opening,
        _ => pb::OutcomeState::Refused,
    };
    let is_open = state == pb::OutcomeState::Open;
    pb::Outcome {
        machine: machine.to_string(),
        machine_display_name: name,
        state: state.into(),
        end_time: is_open.then_some(prost_types::Timestamp {
            seconds: 4_000_000_000,
            nanos: 0,
        }),
        reason: if state == pb::OutcomeState::Refused {
            "CEILING_PORT".to_string()
        } else {
            String::new()
        },
        grant: match state {
            pb::OutcomeState::Open if machine == GONE => grant(2).name,
            pb::OutcomeState::Open => grant(1).name,
            pb::OutcomeState::Opening => grant(3).name,
            _ => String::new(),
        },
        address: "::ffff:192.0.2.10".to_string(),
        ..pb::Outcome::default()
    }
}

fn access_request(machines: &[String], is_late_open: bool) -> pb::AccessRequest {
    pb::AccessRequest {
        // The id tells the watch which machines were asked for.
        name: format!("accessRequests/{}", machines.join("+").replace("machines/", "")),
        ports: vec![pb::PortPattern {
            range: Some(pb::PortRange { first: 22, last: 22 }),
            protocol: None,
        }],
        outcomes: machines
            .iter()
            .map(|machine| outcome(machine, is_late_open))
            .collect(),
        ..pb::AccessRequest::default()
    }
}

fn grant(number: u32) -> pb::Grant {
    let id = format!("00000000-0000-7000-8000-{number:012}");
    pb::Grant {
        name: format!("grants/{id}"),
        id,
        machine_display_name: match number {
            1 => "open-1",
            2 => "away-1",
            _ => "late-1",
        }
        .to_string(),
        state: pb::GrantState::Open.into(),
        ports: vec![pb::PortSpan {
            protocol: pb::Protocol::Tcp.into(),
            range: Some(pb::PortRange { first: 22, last: 22 }),
        }],
        sources: vec!["192.0.2.7/32".to_string()],
        envelope: ENVELOPE.into(),
        ..pb::Grant::default()
    }
}

fn known(name: &str, state: impl Fn(u32) -> pb::GrantState) -> Result<Response<pb::Grant>, Status> {
    let number = (1..=3).find(|number| grant(*number).name == name);
    let number = number.ok_or_else(|| Status::not_found("no such grant"))?;
    let message = match state(number) {
        pb::GrantState::Closing => "ended, but away-1 is away: on the host the grant runs to its end there",
        _ => "",
    };
    Ok(Response::new(pb::Grant {
        state: state(number).into(),
        message: message.to_string(),
        ..grant(number)
    }))
}

fn ended(number: u32) -> pb::GrantState {
    if number == 2 {
        pb::GrantState::Closing
    } else {
        pb::GrantState::Ended
    }
}

/// The machines of the requests that are known, by the last digit of their ids.
fn known_request(name: &str) -> Result<pb::AccessRequest, Status> {
    let machines: &[&str] = match name.chars().last() {
        Some('2') => &["gone-1"],
        Some('3') => &["raced-1"],
        Some('4') => &["denied-1"],
        Some('5') => &["away-1", "away-2"],
        Some('6') => &["open-1", "away-1"],
        Some('7') => &["away-1"],
        Some('8') => &["late-1"],
        _ => return Err(Status::not_found("no such request")),
    };
    let machines: Vec<String> = machines
        .iter()
        .map(|machine| format!("machines/{machine}"))
        .collect();
    let id = name.trim_start_matches("accessRequests/").to_string();
    let mut request = pb::AccessRequest {
        name: name.to_string(),
        id,
        ..access_request(&machines, false)
    };
    for outcome in &mut request.outcomes {
        if outcome.machine == RACED {
            outcome.state = pb::OutcomeState::Waiting.into();
            outcome.reason.clear();
        }
    }
    Ok(request)
}

/// Has opened, and is away since.
const GONE: &str = "machines/gone-1";
/// Connects after one has looked, before one withdraws what waits for it.
const RACED: &str = "machines/raced-1";
/// Of its requests no list can be had.
const UNLISTED: &str = "machines/unlisted-1";

fn withdrawn(outcome: pb::Outcome) -> pb::Outcome {
    match (outcome.state(), outcome.machine.as_str()) {
        (pb::OutcomeState::Waiting, RACED) => pb::Outcome {
            state: pb::OutcomeState::Open.into(),
            grant: grant(3).name,
            ..outcome
        },
        (pb::OutcomeState::Waiting, _) => pb::Outcome {
            state: pb::OutcomeState::Ended.into(),
            reason: "WITHDRAWN".to_string(),
            ..outcome
        },
        _ => outcome,
    }
}

#[tonic::async_trait]
impl AccessService for Answers {
    async fn create_access_request(
        &self,
        request: Request<pb::CreateAccessRequestRequest>,
    ) -> Result<Response<pb::AccessRequest>, Status> {
        let call = request.into_inner();
        let machines = call.machines;
        let sources = call.access_request.unwrap_or_default().sources;
        self.asked.lock().unwrap().push(call.request_id);
        if machines.contains(&"machines/cut-1".to_string()) && self.asked.lock().unwrap().len() == 1 {
            // The answer waits until the connection is gone.
            return std::future::pending().await;
        }
        if machines.contains(&"machines/moved-1".to_string()) && self.asked.lock().unwrap().len() == 1 {
            let problem = Problem::new(Code::AlreadyExists, "REQUEST_FROM_ELSEWHERE", "from elsewhere");
            return Err(problem.with("access_request", "accessRequests/1").into());
        }
        if machines.contains(&"machines/denied-1".to_string()) {
            let why = "port 22/tcp is not in the machine's policy";
            let message = format!("denied-1: ports[0]: {why}");
            let problem = Problem::new(Code::PermissionDenied, "PORT_NOT_IN_POLICY", message);
            return Err(problem.at("ports[0]", why).with("machine", "denied-1").into());
        }
        Ok(Response::new(pb::AccessRequest {
            sources,
            ..access_request(&machines, false)
        }))
    }

    async fn get_access_request(
        &self,
        request: Request<pb::GetAccessRequestRequest>,
    ) -> Result<Response<pb::AccessRequest>, Status> {
        known_request(&request.into_inner().name).map(Response::new)
    }

    type WatchAccessRequestStream = Pin<Box<dyn Stream<Item = Result<pb::AccessRequest, Status>> + Send>>;

    /// The first two streams break; from the third on what is late has opened.
    async fn watch_access_request(
        &self,
        request: Request<pb::WatchAccessRequestRequest>,
    ) -> Result<Response<Self::WatchAccessRequestStream>, Status> {
        let time = self.watched.fetch_add(1, Ordering::SeqCst);
        let name = request.into_inner().name;
        let machines: Vec<String> = name
            .trim_start_matches("accessRequests/")
            .split('+')
            .map(ToString::to_string)
            .collect();
        if time == 0 && name.contains("late") {
            return Err(Status::unavailable("starting"));
        }
        let first = tokio_stream::once(Ok(access_request(&machines, time >= 2)));
        if time == 1 && name.contains("late") {
            return Ok(Response::new(Box::pin(first)));
        }
        Ok(Response::new(Box::pin(first.chain(tokio_stream::pending()))))
    }

    async fn get_grant(&self, request: Request<pb::GetGrantRequest>) -> Result<Response<pb::Grant>, Status> {
        known(&request.into_inner().name, |_| pb::GrantState::Open)
    }

    async fn list_access_requests(
        &self,
        request: Request<pb::ListAccessRequestsRequest>,
    ) -> Result<Response<pb::ListAccessRequestsResponse>, Status> {
        let message = request.into_inner();
        let (numbers, next) = page_of_many(&message.machine, &message.page_token);
        if message.machine == UNLISTED {
            return Err(Status::unavailable("the store is not available"));
        }
        if message.machine == RACED {
            let waiting = known_request("accessRequests/00000000-0000-7000-8000-000000000003")?;
            return Ok(Response::new(pb::ListAccessRequestsResponse {
                access_requests: vec![waiting],
                next_page_token: String::new(),
            }));
        }
        Ok(Response::new(pb::ListAccessRequestsResponse {
            access_requests: numbers.map(|_| access_request(&[], false)).collect(),
            next_page_token: next,
        }))
    }

    async fn list_grants(
        &self,
        request: Request<pb::ListGrantsRequest>,
    ) -> Result<Response<pb::ListGrantsResponse>, Status> {
        let message = request.into_inner();
        // Two pages of one, unless there are many.
        let (numbers, next) = match (message.machine.as_str(), message.page_token.as_str()) {
            (MANY, token) => page_of_many(MANY, token),
            (RACED, _) => (0..0, String::new()),
            (_, "") => (1..2, "2".to_string()),
            _ => (2..3, String::new()),
        };
        Ok(Response::new(pb::ListGrantsResponse {
            grants: numbers.map(grant).collect(),
            next_page_token: next,
        }))
    }

    async fn end_grant(&self, request: Request<pb::EndGrantRequest>) -> Result<Response<pb::Grant>, Status> {
        known(&request.into_inner().name, ended)
    }

    async fn revoke_grant(
        &self,
        request: Request<pb::RevokeGrantRequest>,
    ) -> Result<Response<pb::Grant>, Status> {
        known(&request.into_inner().name, ended)
    }

    async fn cancel_access_request(
        &self,
        request: Request<pb::CancelAccessRequestRequest>,
    ) -> Result<Response<pb::AccessRequest>, Status> {
        let pb::CancelAccessRequestRequest { name, machine } = request.into_inner();
        let mut request = known_request(&name)?;
        let outcomes = request.outcomes.into_iter();
        let outcomes = outcomes.map(|outcome| {
            if machine.is_empty() || machine == outcome.machine {
                withdrawn(outcome)
            } else {
                outcome
            }
        });
        request.outcomes = outcomes.collect();
        Ok(Response::new(request))
    }
}

#[tonic::async_trait]
impl AuditService for Answers {
    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let pb::ListEventsRequest {
            page_size,
            page_token,
            newest,
            ..
        } = request.into_inner();
        let count = u64::try_from(page_size).unwrap();
        let start: u64 = if newest {
            400 - count
        } else {
            page_token.parse().unwrap_or(0)
        };
        let event = |sequence| pb::Event {
            sequence,
            kind: "grant.opened".to_string(),
            ..pb::Event::default()
        };
        let next = if newest || start + count >= 400 {
            String::new()
        } else {
            (start + count).to_string()
        };
        let events = (start..start + count).map(event).collect();
        Ok(Response::new(pb::ListEventsResponse {
            events,
            next_page_token: next,
        }))
    }

    async fn list_signing_keys(
        &self,
        _: Request<pb::ListSigningKeysRequest>,
    ) -> Result<Response<pb::ListSigningKeysResponse>, Status> {
        Ok(Response::new(pb::ListSigningKeysResponse::default()))
    }
}

#[tonic::async_trait]
impl MachineService for Answers {
    async fn get_machine(
        &self,
        request: Request<pb::GetMachineRequest>,
    ) -> Result<Response<pb::Machine>, Status> {
        let machine = request.into_inner().name.replace("machines/", "");
        if machine.starts_with("lost") {
            return Err(Status::unavailable("the store is not available"));
        }
        Ok(Response::new(pb::Machine {
            connected: !machine.starts_with("away"),
            display_name: machine,
            ceiling: Some(pb::Ceiling {
                ports: vec![pb::PortPattern {
                    range: Some(pb::PortRange { first: 22, last: 22 }),
                    protocol: None,
                }],
                ..pb::Ceiling::default()
            }),
            ..pb::Machine::default()
        }))
    }

    async fn list_machines(
        &self,
        _: Request<pb::ListMachinesRequest>,
    ) -> Result<Response<pb::ListMachinesResponse>, Status> {
        Ok(Response::new(pb::ListMachinesResponse::default()))
    }

    async fn get_policy(
        &self,
        request: Request<pb::GetPolicyRequest>,
    ) -> Result<Response<pb::Policy>, Status> {
        let name = request.into_inner().name;
        if !name.contains("was-1") {
            return Err(Problem::new(Code::FailedPrecondition, "NO_POLICY", "it has no policy").into());
        }
        let rule = pb::PortRule {
            range: Some(pb::PortRange { first: 22, last: 22 }),
            protocol: pb::Protocol::Tcp.into(),
            allowed_sources: vec!["*".to_string()],
            max_duration: None,
        };
        Ok(Response::new(pb::Policy {
            name,
            rules: vec![rule],
            ..pb::Policy::default()
        }))
    }

    async fn update_policy(
        &self,
        request: Request<pb::UpdatePolicyRequest>,
    ) -> Result<Response<pb::Policy>, Status> {
        Ok(Response::new(request.into_inner().policy.unwrap()))
    }

    async fn delete_policy(&self, _: Request<pb::DeletePolicyRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}
