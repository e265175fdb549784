//! Who we are and whom we trust, read from the files that the settings name.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use chrono::DateTime;
use nightlatch_core::time::Timestamp;
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::Identity;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::server_certificate::KindVerifier;
use crate::bounded_file;
use crate::settings::{Credential, InvalidSettings, Settings};

/// Far more than a chain of certificates takes.
const MOST_BYTES: u64 = 1 << 20;

pub(crate) struct Credentials {
    pub(crate) verifier: Arc<dyn ServerCertVerifier>,
    pub(crate) identity: Identity,
    /// The same two, for a connection of our own.
    pub(crate) tls: Arc<ClientConfig>,
    /// When our own certificate ends.
    pub(crate) end: Option<Timestamp>,
}

impl Credentials {
    /// # Errors
    /// A file that can't be read or isn't what it should be; a key of another certificate.
    pub(crate) fn read(settings: &Settings) -> Result<Self, InvalidSettings> {
        let Settings { ca, cert, key, .. } = settings;
        let not_pem = |credential, path: &Path| InvalidSettings::NotPem {
            credential,
            path: path.into(),
        };
        let authority = certificates(&read(Credential::Ca, ca)?);
        let verifier = authority.and_then(|authority| KindVerifier::new(&authority));
        let verifier: Arc<dyn ServerCertVerifier> =
            Arc::new(verifier.ok_or_else(|| not_pem(Credential::Ca, ca))?);

        let cert_pem = read(Credential::Cert, cert)?;
        let own = certificates(&cert_pem).ok_or_else(|| not_pem(Credential::Cert, cert))?;
        let end = own.first().and_then(end_of);
        let key_pem = read(Credential::Key, key)?;
        check_kept(key)?;
        let own_key = PrivateKeyDer::from_pem_slice(&key_pem)
            .ok()
            .ok_or_else(|| not_pem(Credential::Key, key))?;

        let mismatch = |error: rustls::Error| InvalidSettings::Mismatch {
            cert: cert.clone(),
            key: key.clone(),
            reason: match error {
                rustls::Error::InconsistentKeys(_) => "they do not belong to each other".to_string(),
                other => other.to_string(),
            },
        };
        let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(mismatch)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier))
            .with_client_auth_cert(own, own_key)
            .map_err(mismatch)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            verifier,
            identity: Identity::from_pem(cert_pem, key_pem),
            tls: Arc::new(tls),
            end,
        })
    }
}

fn read(credential: Credential, path: &Path) -> Result<Vec<u8>, InvalidSettings> {
    bounded_file::read(path, MOST_BYTES).map_err(|error| InvalidSettings::Unreadable {
        credential,
        path: path.into(),
        error,
    })
}

/// As ssh has it: a key of ours is ours alone, while what others own is for them to protect.
fn check_kept(key: &Path) -> Result<(), InvalidSettings> {
    match fs::metadata(key) {
        Ok(metadata) if metadata.uid() == nix::unistd::getuid().as_raw() && metadata.mode() & 0o077 != 0 => {
            Err(InvalidSettings::Exposed {
                path: key.into(),
                mode: metadata.mode() & 0o777,
            })
        }
        _ => Ok(()),
    }
}

/// At least one, or `None`.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

fn end_of(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    DateTime::from_timestamp(certificate.validity().not_after.timestamp(), 0).map(Into::into)
}
