//! Shakes hands once more and listens, to learn why a connection broke.
//!
//! TLS 1.3 refuses a client's certificate after the client has finished. Whoever writes on, as HTTP/2 does,
//! may see the connection reset before the reason arrives; whoever only reads gets it.

use std::io::Read as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};

use super::unreachable::Why;
use crate::settings::ServerAddress;

const PATIENCE: Duration = Duration::from_secs(3);

/// `None` if nothing is wrong that this can see. Blocks for a few seconds at most.
pub(crate) fn reason(server: &ServerAddress, tls: Arc<ClientConfig>) -> Option<Why> {
    let told = |error: &(dyn std::error::Error + 'static)| Why::of(error);
    let address = match (server.host(), server.port()).to_socket_addrs() {
        Ok(mut addresses) => addresses.next()?,
        Err(error) => return told(&error),
    };
    let mut tcp = match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(tcp) => tcp,
        Err(error) => return told(&error),
    };
    tcp.set_read_timeout(Some(PATIENCE)).ok()?;
    tcp.set_write_timeout(Some(PATIENCE)).ok()?;
    let name = ServerName::try_from(server.host().to_string()).ok()?;
    let mut connection = ClientConnection::new(tls, name).ok()?;
    // A server that is content sends its settings.
    Stream::new(&mut connection, &mut tcp)
        .read_exact(&mut [0])
        .err()
        .and_then(|error| told(&error))
}
