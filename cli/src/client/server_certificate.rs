//! Which certificates a server may show: signed by our authority alone, for the name we call, of kind `server`.

use std::sync::Arc;

use nightlatch_core::identity::{Identity, Kind};
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

fn is_server(certificate: &CertificateDer<'_>) -> bool {
    let Ok((&[], certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    Identity::from_uris(uris).is_ok_and(|identity| identity.kind == Kind::Server)
}
