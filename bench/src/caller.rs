//! A program that keeps its gRPC connection and asks by it, as the administrator of the lab.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::pb;
use nightlatch_tests::lab::Lab;
use pb::access_service_client::AccessServiceClient;
use pb::audit_service_client::AuditServiceClient;
use pb::machine_service_client::MachineServiceClient;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::PATIENCE;

/// Calls under way at once where many are made.
pub const AT_ONCE: usize = 64;

/// See the module's documentation. Its sockets are in the network namespace of the thread that made it.
pub struct Caller {
    runtime: Runtime,
    access: AccessServiceClient<Channel>,
    machines: MachineServiceClient<Channel>,
    audit: AuditServiceClient<Channel>,
}

/// What is asked for: one port, from one address.
#[derive(Clone, Debug)]
pub struct Wish {
    pub machine: String,
    pub port: u16,
    pub source: Ipv4Addr,
    pub length: Duration,
    /// How long the answer waits for the host.
    pub wait: Duration,
}

impl Caller {
    pub fn connect(lab: &Lab) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let state = lab.control().state();
        let read = |name: &str| fs::read(state.join(name)).with_context(|| format!("reading {name}"));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")?))
            .identity(Identity::from_pem(read("admin.pem")?, read("admin.key")?));
        let endpoint = Endpoint::from_shared(lab.control().url())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .context("describing the server")?
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .tcp_nodelay(true);
        let channel = runtime
            .block_on(endpoint.connect())
            .context("connecting to the server")?;
        Ok(Self {
            runtime,
            access: AccessServiceClient::new(channel.clone()),
            machines: MachineServiceClient::new(channel.clone()),
            audit: AuditServiceClient::new(channel),
        })
    }

    /// Asks, and returns when the host has confirmed; gives the end of the grant.
    pub fn open(&mut self, wish: &Wish) -> Result<Timestamp> {
        let answer = self
            .runtime
            .block_on(self.access.create_access_request(asked(wish)));
        let outcome = only_outcome(answer.context("asking for access")?.into_inner())?;
        ensure!(
            outcome.state() == pb::OutcomeState::Open,
            "not open: {}",
            outcome.message
        );
        let end = outcome.end_time.context("an opening without an end")?;
        Timestamp::from_micros(end.seconds * 1_000_000 + i64::from(end.nanos) / 1000)
            .context("an end that is no moment")
    }

    /// Asks for `count` grants over the one connection, [`AT_ONCE`] calls at a time; `wish` is told the number of each.
    pub fn ask_many(&self, count: usize, wish: impl Fn(usize) -> Wish + Send + Sync + 'static) -> Result<()> {
        let (next, wish) = (Arc::new(AtomicUsize::new(0)), Arc::new(wish));
        let access = self.access.clone();
        self.runtime.block_on(async move {
            let mut callers = JoinSet::new();
            for _ in 0..AT_ONCE.min(count) {
                let (mut access, next, wish) = (access.clone(), Arc::clone(&next), Arc::clone(&wish));
                callers.spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return Ok(());
                        }
                        let answer = access.create_access_request(asked(&wish(number))).await;
                        let outcome = only_outcome(answer.context("asking for access")?.into_inner())?;
                        let state = outcome.state();
                        ensure!(
                            matches!(state, pb::OutcomeState::Open | pb::OutcomeState::Waiting),
                            "neither open nor waiting: {}",
                            outcome.message
                        );
                    }
                });
            }
            while let Some(done) = callers.join_next().await {
                done.context("a caller broke down")??;
            }
            Ok(())
        })
    }

    /// The number of the newest event.
    pub fn last_event(&mut self) -> Result<u64> {
        let newest = pb::ListEventsRequest {
            page_size: 1,
            newest: true,
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.audit.list_events(newest));
        let events = answer.context("listing events")?.into_inner().events;
        Ok(events.last().context("no events")?.sequence)
    }

    pub fn open_grants(&mut self, machine: &str) -> Result<usize> {
        Ok(usize::try_from(self.machine(machine)?.open_grants)?)
    }

    pub fn machine(&mut self, machine: &str) -> Result<pb::Machine> {
        let name = format!("machines/{machine}");
        let answer = self
            .runtime
            .block_on(self.machines.get_machine(pb::GetMachineRequest { name }));
        Ok(answer.context("looking at the machine")?.into_inner())
    }

    pub fn delete_policy(&mut self, machine: &str) -> Result<()> {
        let request = pb::DeletePolicyRequest {
            name: format!("machines/{machine}/policy"),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.machines.delete_policy(request));
        answer.context("deleting the policy").map(drop)
    }
}

fn asked(wish: &Wish) -> pb::CreateAccessRequestRequest {
    let port = pb::PortPattern {
        range: Some(pb::PortRange {
            first: wish.port.into(),
            last: wish.port.into(),
        }),
        protocol: Some(pb::Protocol::Tcp.into()),
    };
    let access_request = pb::AccessRequest {
        ports: vec![port],
        sources: vec![wish.source.to_string()],
        span: Some(pb::access_request::Span::Duration(length(wish.length))),
        justification: "bench".to_owned(),
        ..Default::default()
    };
    pb::CreateAccessRequestRequest {
        machines: vec![format!("machines/{}", wish.machine)],
        access_request: Some(access_request),
        wait: Some(length(wish.wait)),
        request_id: String::new(),
    }
}

fn length(length: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    }
}

fn only_outcome(request: pb::AccessRequest) -> Result<pb::Outcome> {
    request
        .outcomes
        .into_iter()
        .next()
        .context("a request without an outcome")
}
