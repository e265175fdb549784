//! Accepting connections: TLS handshakes in a bounded number and time, never in the way of the next.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::api::door::Listener;

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const MOST_HANDSHAKES: usize = 256;
/// Out of file descriptors, trying again at once would only burn the processor.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Why a listener's TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the server's certificate or key is not PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("the server's certificate and key can't be used")]
    Certificate(#[source] rustls::Error),
    #[error("the certificate authority's certificate can't be used")]
    Authority(#[source] rustls::Error),
    #[error("client certificates can't be verified")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Agents must have a certificate and TLS 1.3; people may come without, to enrol or to look at the health.
///
/// # Errors
/// Certificates or a key that can't be used.
pub fn tls(
    listener: Listener,
    certificate_pem: &str,
    key_pem: &str,
    ca: &CertificateDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(TlsError::Authority)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = match listener {
        Listener::People => verifier.allow_unauthenticated().build()?,
        Listener::Agents => verifier.build()?,
    };
    let versions: &[&SupportedProtocolVersion] = match listener {
        Listener::People => rustls::ALL_VERSIONS,
        Listener::Agents => &[&rustls::version::TLS13],
    };
    let mut chain = vec![CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(TlsError::Pem)?];
    // A machine that enrols knows the authority by its hash only.
    chain.push(ca.clone());
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(TlsError::Pem)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not show its certificate again.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// A connection whose handshake is done.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    remote: Remote,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Remote {
    /// An IPv4 address as such.
    pub address: IpAddr,
    /// DER, if one was shown.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Connected for Connection {
    type ConnectInfo = Remote;

    fn connect_info(&self) -> Remote {
        self.remote.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connections whose handshake is done, until `stopping`.
pub fn accept(
    listener: TcpListener,
    config: ServerConfig,
    stopping: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(MOST_HANDSHAKES);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
        loop {
            let next = async {
                let permit = handshakes.clone().acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = stopping.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (acceptor, sender) = (acceptor.clone(), sender.clone());
                    tokio::spawn(async move {
                        handshake(stream, acceptor, sender).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn handshake(stream: TcpStream, acceptor: TlsAcceptor, sender: mpsc::Sender<io::Result<Connection>>) {
    let peer = stream.peer_addr();
    let done = async {
        let address = stream.peer_addr()?.ip().to_canonical();
        stream.set_nodelay(true)?;
        let stream = acceptor.accept(stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates
            .and_then(|chain| chain.first())
            .map(|leaf| leaf.clone().into_owned());
        Ok(Connection {
            stream,
            remote: Remote { address, certificate },
        })
    };
    let done: Result<io::Result<_>, _> = timeout(HANDSHAKE_WITHIN, done).await;
    match done {
        // Nobody takes it when the server stops.
        Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await),
        Ok(Err(error)) => debug!(?peer, %error, "a handshake failed"),
        Err(_elapsed) => debug!(?peer, "a handshake took too long"),
    }
}
