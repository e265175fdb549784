//! The certificate authority.

use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use nightlatch_core::id::InstallationId;
use nightlatch_core::time::Timestamp;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Identity, Kind, peer};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// In the authority's common name.
const NAME_BEFORE_INSTALLATION: &str = "Nightlatch ";
const CA_LIFE: Duration = DAY.saturating_mul(3650);

/// How long a certificate of each kind lives.
const fn life(kind: Kind) -> Duration {
    match kind {
        Kind::Server | Kind::Machine => DAY.saturating_mul(365),
        Kind::Person | Kind::Program => DAY.saturating_mul(90),
    }
}

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate request is not PKCS #10 in PEM, or its signature does not fit")]
    Request(#[source] rcgen::Error),
    #[error("`{0}` is not a host name or address that a certificate can hold")]
    Name(String),
    #[error("ca.pem and ca.key can't be used")]
    Authority(#[source] rcgen::Error),
    #[error("the certificate authority's certificate is not PEM")]
    Pem,
    #[error("ca.key is not the key of ca.pem")]
    OtherKey,
    #[error("the certificate can't be made")]
    Make(#[source] rcgen::Error),
}

/// Signs certificates of all kinds.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    installation: Option<InstallationId>,
}

/// A new certificate authority's files.
pub struct NewAuthority {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// A certificate with its new key.
pub struct Credentials {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl CertificateAuthority {
    pub fn create(installation: &str, now: Timestamp) -> Result<NewAuthority, CertificateError> {
        let key = KeyPair::generate().map_err(CertificateError::Make)?;
        let mut params = params(&format!("{NAME_BEFORE_INSTALLATION}{installation}"), now, CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(CertificateError::Make)?;
        Ok(NewAuthority {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(key).map_err(CertificateError::Authority)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .ok()
            .ok_or(CertificateError::Pem)?;
        let (public, installation) = {
            let parsed = peer::parse(&der).ok().ok_or(CertificateError::Pem)?;
            let mut names = parsed.subject().iter_common_name();
            let name = names.next().and_then(|name| name.as_str().ok());
            let installation =
                name.and_then(|name| name.strip_prefix(NAME_BEFORE_INSTALLATION)?.parse().ok());
            (parsed.public_key().raw.to_vec(), installation)
        };
        if key.subject_public_key_info() != public {
            return Err(CertificateError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(CertificateError::Authority)?;
        Ok(Self {
            issuer,
            certificate: der,
            pem: certificate.to_owned(),
            installation,
        })
    }

    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The installation that the authority's certificate names.
    pub const fn installation(&self) -> Option<InstallationId> {
        self.installation
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The server's certificate, for the host names and addresses it is reached by.
    pub fn issue_server(
        &self,
        identity: &Identity,
        host_names: &[String],
        now: Timestamp,
    ) -> Result<Credentials, CertificateError> {
        let names = host_names
            .iter()
            .map(|name| host_name(name))
            .collect::<Result<Vec<_>, _>>()?;
        self.issue_with_key(identity, names, now)
    }

    /// A person's or program's certificate with a new key.
    pub fn issue(&self, identity: &Identity, now: Timestamp) -> Result<Credentials, CertificateError> {
        self.issue_with_key(identity, Vec::new(), now)
    }

    /// A certificate for the public key of a request. Nothing else of the request is used.
    pub fn issue_for_request(
        &self,
        identity: &Identity,
        request_pem: &str,
        now: Timestamp,
    ) -> Result<Certificate, CertificateError> {
        let request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(CertificateError::Request)?;
        self.sign(identity, Vec::new(), &request.public_key, now)
    }

    /// The public key of a request, SPKI DER.
    ///
    /// # Errors
    /// A request that is none, or whose signature is not that key's.
    pub fn requested_key(request_pem: &str) -> Result<Vec<u8>, CertificateError> {
        let request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(CertificateError::Request)?;
        Ok(request.public_key.subject_public_key_info())
    }

    fn issue_with_key(
        &self,
        identity: &Identity,
        names: Vec<SanType>,
        now: Timestamp,
    ) -> Result<Credentials, CertificateError> {
        let key = KeyPair::generate().map_err(CertificateError::Make)?;
        let certificate = self.sign(identity, names, &key, now)?;
        Ok(Credentials {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    fn sign(
        &self,
        identity: &Identity,
        names: Vec<SanType>,
        key: &impl PublicKeyData,
        now: Timestamp,
    ) -> Result<Certificate, CertificateError> {
        let mut params = params(&identity.id, now, life(identity.kind));
        let uri = Ia5String::try_from(identity.to_string()).map_err(CertificateError::Make)?;
        params.subject_alt_names = names;
        params.subject_alt_names.push(SanType::URI(uri));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match identity.kind {
            Kind::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Kind::Machine | Kind::Person | Kind::Program => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        params
            .signed_by(key, &self.issuer)
            .map_err(CertificateError::Make)
    }
}

/// A certificate's validity has whole days here: it begins yesterday, so that no clock that is a little
/// behind refuses it.
fn params(common_name: &str, now: Timestamp, life: Duration) -> CertificateParams {
    let day = |at: Timestamp| {
        let at = DateTime::<Utc>::from(at);
        date_time_ymd(
            at.year(),
            u8::try_from(at.month()).unwrap_or(1),
            u8::try_from(at.day()).unwrap_or(1),
        )
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = day(now.checked_sub(DAY).unwrap_or(now));
    params.not_after = day(now.checked_add(life).unwrap_or(now));
    params.serial_number = Some(SerialNumber::from(rand::random::<[u8; 16]>().to_vec()));
    params
}

fn host_name(name: &str) -> Result<SanType, CertificateError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let invalid = || CertificateError::Name(name.to_owned());
    // The rules of machine names are those of host names.
    let host = name
        .parse::<nightlatch_core::id::MachineName>()
        .ok()
        .ok_or_else(invalid)?;
    Ia5String::try_from(host.as_str())
        .map(SanType::DnsName)
        .ok()
        .ok_or_else(invalid)
}
