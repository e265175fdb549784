//! TLS to the server: version 1.3, its certificate authority pinned, and a certificate of the kind `server`.

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use nightlatch_core::id::InstallationId;
use nightlatch_core::identity::Kind;
use nightlatch_core::signing::sha256;
use nightlatch_core::time::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificate::{NotOurs, holder_of};

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// The latest moment that is known to have passed, so that a wall clock that is behind locks nobody out.
#[derive(Clone, Debug, Default)]
pub struct KnownTime(Arc<AtomicI64>);

impl KnownTime {
    pub fn raise(&self, time: Timestamp) {
        self.0.fetch_max(time.micros(), Ordering::Relaxed);
    }

    fn unix(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_micros(
            u64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0),
        ))
    }
}

/// Whom to take for the server.
#[derive(Clone, Debug)]
pub enum Pin {
    /// Whoever shows the CA certificate with this SHA-256, and a certificate from it.
    Fingerprint([u8; 32]),
    /// The server of the installation that was joined.
    Installation {
        ca: Vec<CertificateDer<'static>>,
        installation: InstallationId,
        known: KnownTime,
    },
}

/// Why what answers isn't taken for the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerRejected {
    #[error(
        "its certificate authority is not the one that the token names: have a token made on that server"
    )]
    OtherAuthority,
    #[error("its certificate is no server's: {0}")]
    NotOurs(NotOurs),
    #[error("its certificate is of another kind or installation")]
    OtherKind,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NoConnection {
    #[error("`{0}` is no address: expected HOST:PORT, an IPv6 address in brackets")]
    Address(String),
    #[error("cannot reach {address}: check name, port and firewall on the way")]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{0} does not answer")]
    Silent(String),
    #[error("{address} is not the server: {rejected}")]
    Rejected {
        address: String,
        rejected: ServerRejected,
    },
    #[error("the certificate of {0} is not valid now: check the clocks of both hosts")]
    NotValidNow(String),
    #[error("TLS with {address} failed")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
}

/// The machine's own certificate chain and key.
pub struct ClientIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// # Errors
/// A key that doesn't fit its certificate.
pub fn client_config(pin: Pin, identity: Option<ClientIdentity>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedServer { pin, provider }));
    let mut config = match identity {
        Some(ClientIdentity { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Opens a connection and finishes the handshake.
///
/// # Errors
/// Whatever stands against it, each with its own variant where the next step differs.
pub async fn connect(address: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, NoConnection> {
    let no_address = || NoConnection::Address(address.to_owned());
    let (host, port) = split(address).ok_or_else(no_address)?;
    let name = ServerName::try_from(host.to_owned())
        .ok()
        .ok_or_else(no_address)?;
    let unreachable = |source| NoConnection::Unreachable {
        address: address.to_owned(),
        source,
    };
    let stream = timeout(CONNECT_PATIENCE, TcpStream::connect((host, port)))
        .await
        .map_err(|elapsed| unreachable(elapsed.into()))?
        .map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    match timeout(
        HANDSHAKE_PATIENCE,
        TlsConnector::from(config).connect(name, stream),
    )
    .await
    {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(explain(address, source)),
        Err(_elapsed) => Err(NoConnection::Silent(address.to_owned())),
    }
}

fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(|_| inner)?,
        None => Some(host).filter(|host| !host.is_empty() && !host.contains(':'))?,
    };
    Some((host, port))
}

fn explain(address: &str, source: io::Error) -> NoConnection {
    let address = address.to_owned();
    let certificate = match source
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>())
    {
        Some(rustls::Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    };
    if let Some(CertificateError::Other(OtherError(error))) = certificate
        && let Some(rejected) = error.downcast_ref::<ServerRejected>()
    {
        return NoConnection::Rejected {
            address,
            rejected: *rejected,
        };
    }
    if certificate.is_some_and(is_about_time) {
        NoConnection::NotValidNow(address)
    } else {
        NoConnection::Tls { address, source }
    }
}

fn is_about_time(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

#[derive(Debug)]
struct PinnedServer {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl PinnedServer {
    fn roots(&self, presented: &[CertificateDer<'_>]) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        match &self.pin {
            Pin::Fingerprint(expected) => {
                let found = presented
                    .iter()
                    .find(|certificate| sha256(certificate) == *expected);
                let found = found.ok_or_else(|| rejection(ServerRejected::OtherAuthority))?;
                roots.add(found.clone().into_owned())?;
            }
            Pin::Installation { ca, .. } => {
                for certificate in ca {
                    roots.add(certificate.clone())?;
                }
            }
        }
        Ok(roots)
    }
}

fn rejection(rejected: ServerRejected) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(rejected))))
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = Arc::new(self.roots(intermediates)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verify =
            |now| verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verified = match (verify(now), &self.pin) {
            (Err(rustls::Error::InvalidCertificate(error)), Pin::Installation { known, .. })
                if is_about_time(&error) =>
            {
                verify(known.unix())
            }
            (verified, _) => verified,
        }?;
        let holder = holder_of(end_entity).map_err(|error| rejection(ServerRejected::NotOurs(error)))?;
        let is_ours = match &self.pin {
            Pin::Fingerprint(_) => true,
            Pin::Installation { installation, .. } => holder.installation == *installation,
        };
        if is_ours && holder.kind == Kind::Server {
            Ok(verified)
        } else {
            Err(rejection(ServerRejected::OtherKind))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests;
