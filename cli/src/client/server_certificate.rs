//! Which certificates a server may show: signed by our authority alone, for the name we call, of kind `server`.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The certificate belongs to someone who is no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its certificate is not that of a server")]
pub(crate) struct NotAServer;

#[derive(Debug)]
pub(crate) struct KindVerifier {
    chain: Arc<WebPkiServerVerifier>,
}

impl KindVerifier {
    /// `None` if `authority` holds no certificate that can be a root.
    pub(crate) fn new(authority: &[CertificateDer<'static>]) -> Option<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authority.iter().cloned());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .ok()?;
        Some(Self { chain })
    }
}

impl ServerCertVerifier for KindVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.chain
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        if is_server(end_entity) {
            Ok(verified)
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(NotAServer))).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Exactly one URI among the names, `nightlatch://INSTALLATION/server/ID`.
fn is_server(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    matches!(uris.collect::<Vec<_>>().as_slice(), [uri] if is_server_uri(uri))
}

fn is_server_uri(uri: &str) -> bool {
    let Some(rest) = uri.strip_prefix("nightlatch://") else {
        return false;
    };
    let parts: Vec<&str> = rest.split('/').collect();
    matches!(parts.as_slice(), [installation, "server", id] if !installation.is_empty() && !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_has_a_servers_uri() {
        assert!(is_server_uri("nightlatch://019aa0b2/server/019aa0b3"));
        for uri in [
            "nightlatch://019aa0b2/person/alice",
            "nightlatch://019aa0b2/machine/server",
            "nightlatch://019aa0b2/server/a/b",
            "nightlatch://019aa0b2/server/",
            "nightlatch:///server/a",
            "https://019aa0b2/server/a",
        ] {
            assert!(!is_server_uri(uri), "{uri}");
        }
    }
}
