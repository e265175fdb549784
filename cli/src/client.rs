//! The connection to the server: one channel, both certificates checked, a deadline on every call.

mod answers;
pub(crate) mod calls;
mod credentials;
mod probe;
pub(crate) mod refusal;
mod server_certificate;
pub(crate) mod unreachable;

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::time::Timestamp;
use rustls::ClientConfig;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Response, Status};

use self::credentials::Credentials;
use self::refusal::Refusal;
use self::unreachable::{Unreachable, Why};
use crate::failure::Failure;
use crate::settings::{Connection, InvalidSettings, Settings};
use crate::when;

const CONNECT: Duration = Duration::from_secs(5);
/// For the answer to a call that waits for no host.
const ANSWER: Duration = Duration::from_secs(15);

/// A server that we have shaken hands with.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    attempt: Arc<Attempt>,
}

impl Client {
    /// # Errors
    /// Settings that are missing or don't fit, and everything that can keep us from the server.
    pub(crate) async fn connect(connection: &Connection) -> Result<Self, Failure> {
        let settings = connection.settings()?;
        let credentials = Credentials::read(&settings)?;
        let endpoint = endpoint(&settings, &credentials)?;
        let Credentials { tls, end, .. } = credentials;
        let attempt = Attempt {
            settings,
            tls,
            certificate_end: end,
        };
        match tokio::time::timeout(CONNECT.saturating_mul(2), endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(Self {
                channel,
                attempt: Arc::new(attempt),
            }),
            Ok(Err(error)) => Err(attempt.failed(Why::of(&error)).await.into()),
            Err(_) => Err(Unreachable::new(&attempt.settings, Why::NoAnswer).into()),
        }
    }

    /// Runs one call. `limit` covers the whole of it.
    ///
    /// # Errors
    /// No answer in time, the server's refusal, a broken connection.
    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if is_timeout(&status) => Err(Failure::NoAnswer(limit)),
            Ok(Err(status)) => Err(self.failure(&status).await),
            Err(_) => Err(Failure::NoAnswer(limit)),
        }
    }

    /// Tells the server's own refusals from what broke on the way to it.
    async fn failure(&self, status: &Status) -> Failure {
        match status.source().map(Why::of) {
            Some(told) => self.attempt.failed(told).await.into(),
            // What the gRPC library says of an answer by some other HTTP server.
            None if status.message().starts_with("grpc-status header missing") => {
                Unreachable::new(&self.attempt.settings, Why::NoGrpc).into()
            }
            None => Refusal::from(status).into(),
        }
    }
}

/// Ours or the server's: either of them watches the limit of a call.
fn is_timeout(status: &Status) -> bool {
    match status.source() {
        None => matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
        Some(source) => Why::of(source) == Some(Why::NoAnswer),
    }
}

/// Whether the connection ended before an answer: what became of the call isn't known.
fn has_broken(status: &Status) -> bool {
    let told = status.source().map(Why::of);
    matches!(told, Some(None | Some(Why::Broken | Why::Network(_))))
}

fn endpoint(settings: &Settings, credentials: &Credentials) -> Result<Endpoint, InvalidSettings> {
    let server = &settings.server;
    let tls = ClientTlsConfig::new()
        .identity(credentials.identity.clone())
        .timeout(CONNECT);
    let not_a_server = |_invalid| InvalidSettings::NotAServer(server.to_string());
    Endpoint::from_shared(server.url())
        .map_err(not_a_server)?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .tls_config_with_verifier(tls, Arc::clone(&credentials.verifier))
        .map_err(not_a_server)
}

/// What we went with.
struct Attempt {
    settings: Settings,
    tls: Arc<ClientConfig>,
    certificate_end: Option<Timestamp>,
}

impl Attempt {
    async fn failed(&self, told: Option<Why>) -> Unreachable {
        let why = match told {
            None | Some(Why::Broken) => self.probe().await.unwrap_or(Why::Broken),
            Some(why) => why,
        };
        let expired = self.certificate_end.filter(|end| *end < when::now());
        let why = match (why, expired) {
            (Why::CertificateRefused | Why::CertificateExpired(_), Some(end)) => {
                Why::CertificateExpired(Some(end))
            }
            (why, _) => why,
        };
        Unreachable::new(&self.settings, why)
    }

    async fn probe(&self) -> Option<Why> {
        let (server, tls) = (self.settings.server.clone(), Arc::clone(&self.tls));
        tokio::task::spawn_blocking(move || probe::reason(&server, tls))
            .await
            .ok()
            .flatten()
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
