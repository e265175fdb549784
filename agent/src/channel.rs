//! A gRPC channel over a connection that has been made and checked already.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Error};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(10);

/// The channel ends with the connection: connecting again is the caller's, who checks again.
///
/// # Errors
/// The other side doesn't speak HTTP/2.
pub(crate) async fn over(stream: TlsStream<TcpStream>, address: &str) -> Result<Channel, Error> {
    // TLS is done below, so the scheme only tells tonic not to begin its own.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_PATIENCE)
        .keep_alive_while_idle(true)
        .connect_timeout(KEEPALIVE_PATIENCE);
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    endpoint.connect_with_connector(connector).await
}
