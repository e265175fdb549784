//! Whether the files of a state directory belong together: one installation, and of each key both halves.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nightlatch_core::id::InstallationId;
use nightlatch_core::keys::VerifiedKeys;
use nightlatch_core::signing::{InvalidKey, SigningKey};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use super::{
    CA_CERTIFICATE, DATABASE, KEY_LIST, ROOT_KEY, ROOT_PUBLIC_KEY, SERVER_CERTIFICATE, State, StateError,
};
use crate::identity::Kind;
use crate::identity::ca::CertificateAuthority;
use crate::identity::peer::{Peer, valid_from};

/// Why files don't belong together.
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    #[error(
        "{} is of another installation ({found}) than the rest here ({rest}): put it and what belongs to it back \
         from a copy of this state directory",
        path.display()
    )]
    Installation {
        path: PathBuf,
        found: String,
        rest: InstallationId,
    },
    #[error(
        "{} is not a certificate that ca.pem has issued for a server: put it back from a copy of this state \
         directory",
        .0.display()
    )]
    Certificate(PathBuf),
    #[error("{} is not the key of {}: put both back from a copy of this state directory", key.display(), public.display())]
    Key { key: PathBuf, public: PathBuf },
}

impl State {
    /// `stored` is the installation that the database is of.
    ///
    /// # Errors
    /// The first file that doesn't belong to the others.
    pub fn check_together(
        &self,
        ca: &CertificateAuthority,
        keys: &VerifiedKeys,
        stored: InstallationId,
    ) -> Result<(), StateError> {
        self.check_authority(ca, stored)?;
        let listed = keys.list().installation;
        if listed != stored {
            return Err(self.stranger(KEY_LIST, listed.to_string(), stored));
        }
        self.check_root_key()?;
        self.check_server_certificate(ca, stored)
    }

    /// # Errors
    /// Another installation's.
    pub fn check_authority(
        &self,
        ca: &CertificateAuthority,
        stored: InstallationId,
    ) -> Result<(), StateError> {
        match ca.installation() {
            Some(installation) if installation == stored => Ok(()),
            // With the database alone against the others, it is the one that came from elsewhere.
            Some(rest)
                if self
                    .signing()
                    .is_ok_and(|(_, keys)| keys.list().installation == rest) =>
            {
                Err(self.stranger(DATABASE, stored.to_string(), rest))
            }
            Some(other) => Err(self.stranger(CA_CERTIFICATE, other.to_string(), stored)),
            None => Err(self.stranger(CA_CERTIFICATE, "none is named".to_owned(), stored)),
        }
    }

    fn stranger(&self, file: &str, found: String, rest: InstallationId) -> StateError {
        let path = self.path(file);
        Stranger::Installation { path, found, rest }.into()
    }

    /// It may have been removed.
    fn check_root_key(&self) -> Result<(), StateError> {
        let key = self.path(ROOT_KEY);
        if !key.exists() {
            return Ok(());
        }
        let invalid = |source: InvalidKey| StateError::Key {
            path: key.clone(),
            source,
        };
        let text = match self.read_secret(ROOT_KEY) {
            // The server does without it; whoever put it back may be another user.
            Err(StateError::Read { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                return Ok(());
            }
            text => text?,
        };
        let root = SigningKey::from_pem(&text).map_err(invalid)?;
        if root.public() == self.root_public_key()? {
            Ok(())
        } else {
            let public = self.path(ROOT_PUBLIC_KEY);
            Err(Stranger::Key { key, public }.into())
        }
    }

    /// One that can't be read, or doesn't fit its key, is issued anew when the server starts.
    fn check_server_certificate(
        &self,
        ca: &CertificateAuthority,
        stored: InstallationId,
    ) -> Result<(), StateError> {
        let pem = self.read(SERVER_CERTIFICATE)?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok();
        let Some(certificate) = certificate.filter(|der| valid_from(der).is_ok()) else {
            return Ok(());
        };
        let unfit = || StateError::from(Stranger::Certificate(self.path(SERVER_CERTIFICATE)));
        let identity = Peer::read(&certificate).map_err(|_no_member| unfit())?.identity;
        if identity.installation != stored {
            return Err(self.stranger(SERVER_CERTIFICATE, identity.installation.to_string(), stored));
        }
        if identity.kind == Kind::Server && is_issued_by(ca, &certificate) {
            Ok(())
        } else {
            Err(unfit())
        }
    }
}

/// Judged at the moment from which it is valid: one that has ended is issued anew.
fn is_issued_by(ca: &CertificateAuthority, certificate: &CertificateDer<'_>) -> bool {
    let mut roots = RootCertStore::empty();
    let Ok(from) = valid_from(certificate) else {
        return false;
    };
    let from = Duration::from_micros(u64::try_from(from.micros()).unwrap_or_default());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    roots.add(ca.certificate().clone()).is_ok()
        && ParsedCertificate::try_from(certificate).is_ok_and(|parsed| {
            let algorithms = provider.signature_verification_algorithms.all;
            let at = UnixTime::since_unix_epoch(from);
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, algorithms).is_ok()
        })
}
