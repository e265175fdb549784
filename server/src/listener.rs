//! Accepting connections: so many at a time, handshakes in a bounded time and never in the way of the next, and
//! nobody stays who doesn't say who they are.

pub mod descriptors;
pub mod guests;

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nightlatch_core::signing::sha256;
use nix::errno::Errno;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use self::guests::{Guest, Guests};
use crate::api::door::Listener;

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that are about to be served.
const MOST_READY: usize = 1024;
/// From the handshake to the first call of someone who may.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// Then those are cut off of whom nobody is known, when the server stops.
const FAREWELL: Duration = Duration::from_millis(500);
/// Trouble that lasts is told so often.
const TOLD_EVERY: Duration = Duration::from_secs(60);
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
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// `None`: someone is known.
    probation: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Whether the connection may go on.
    fn stay(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "has to make room",
            ));
        }
        let Some(probation) = &mut self.probation else {
            return Ok(());
        };
        if self.remote.guest.is_known() {
            self.probation = None;
        } else if probation.as_mut().poll(context).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody is known to call"));
        }
        Ok(())
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Remote {
    /// An IPv4 address as such.
    pub address: IpAddr,
    /// DER, if one was shown.
    pub certificate: Option<CertificateDer<'static>>,
    pub guest: Arc<Guest>,
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
        self.stay(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stay(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stay(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stay(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connections whose handshake is done, until `stopping`. Soon after, those go of whom nobody is known.
pub fn accept(
    listener: TcpListener,
    config: ServerConfig,
    guests: Arc<Guests>,
    stopping: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(MOST_READY);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = accept_all(&listener, &acceptor, &guests, &sender) => {}
        }
        // Time to be told.
        sleep(FAREWELL).await;
        guests.dismiss_strangers();
    });
    ReceiverStream::new(receiver)
}

async fn accept_all(
    listener: &TcpListener,
    acceptor: &TlsAcceptor,
    guests: &Arc<Guests>,
    sender: &mpsc::Sender<io::Result<Connection>>,
) {
    let (mut out_of_descriptors, mut full) = (Seldom::default(), Seldom::default());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(guest) = guests.enter(peer.ip()) else {
                    debug!(%peer, "no place is left");
                    if full.is_due() {
                        let count = guests.count();
                        warn!(count, %peer, "connections are turned away: `[limits]` in the configuration sets how many there may be");
                    }
                    continue;
                };
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(handshake(stream, acceptor, guest, sender));
            }
            Err(error) if !is_of_the_system(&error) => debug!(%error, "a connection was lost"),
            Err(error) => {
                guests.dismiss_one();
                if out_of_descriptors.is_due() {
                    warn!(%error, "no connection can be accepted: the process may need more open files (LimitNOFILE)");
                }
                sleep(BACK_OFF).await;
            }
        }
    }
}

/// Where the system has no room; all else is trouble of one connection (accept(2)), and the next may succeed.
fn is_of_the_system(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

/// So that trouble doesn't fill the log.
#[derive(Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.0.is_none_or(|last| now.duration_since(last) >= TOLD_EVERY);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

async fn handshake(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    guest: Arc<Guest>,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let peer = stream.peer_addr();
    let cut = guest.cut.clone();
    let done = async {
        let address = stream.peer_addr()?.ip().to_canonical();
        stream.set_nodelay(true)?;
        let stream = acceptor.accept(stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates
            .and_then(|chain| chain.first())
            .map(|leaf| leaf.clone().into_owned());
        if let Some(certificate) = &certificate {
            guest.shows(sha256(certificate));
        }
        Ok(Connection {
            stream,
            cut: Box::pin(guest.cut.clone().cancelled_owned()),
            probation: Some(Box::pin(sleep(KNOWN_WITHIN))),
            remote: Remote {
                address,
                certificate,
                guest,
            },
        })
    };
    let done: Result<io::Result<_>, _> = tokio::select! {
        done = timeout(HANDSHAKE_WITHIN, done) => done,
        () = cut.cancelled() => {
            debug!(?peer, "a handshake had to make room");
            return;
        }
    };
    match done {
        // Nobody takes it when the server stops.
        Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await),
        Ok(Err(error)) => debug!(?peer, %error, "a handshake failed"),
        Err(_elapsed) => debug!(?peer, "a handshake took too long"),
    }
}
