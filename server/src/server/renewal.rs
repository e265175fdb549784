//! The server's own certificate, issued anew before it ends.

use std::time::Duration;

use nightlatch_core::time::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tracing::info;

use super::ServerError;
use crate::api::door::Listener;
use crate::identity::Identity;
use crate::identity::ca::CertificateAuthority;
use crate::identity::peer::valid_until;
use crate::listener;
use crate::state::{SERVER_CERTIFICATE, SERVER_KEY, State};

const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The server's certificate and key, new ones if the old end soon or don't belong together.
pub(super) fn certificate(
    state: &State,
    ca: &CertificateAuthority,
    server: &Identity,
    names: &[String],
    now: Timestamp,
) -> Result<(String, String), ServerError> {
    let (pem, key) = (state.read(SERVER_CERTIFICATE)?, state.read_secret(SERVER_KEY)?);
    let until = CertificateDer::from_pem_slice(pem.as_bytes())
        .ok()
        .and_then(|der| valid_until(&der).ok());
    let lasts = until.is_some_and(|until| until.since(now) > RENEW_BEFORE);
    if lasts && listener::tls(Listener::People, &pem, &key, ca.certificate()).is_ok() {
        return Ok((pem, key));
    }
    let renewed = ca.issue_server(server, names, now)?;
    state.replace(SERVER_KEY, &renewed.key_pem, 0o600)?;
    state.replace(SERVER_CERTIFICATE, &renewed.certificate_pem, 0o644)?;
    info!("the server's certificate was renewed");
    Ok((renewed.certificate_pem, renewed.key_pem))
}
