//! From a certificate that the handshake has accepted to an identity.

use nightlatch_core::time::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::{Identity, fingerprint};

/// Whoever holds the key of a certificate of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    pub fingerprint: String,
}

/// Why a certificate names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCertificate {
    #[error("not an X.509 certificate")]
    Malformed,
    #[error("the certificate does not have exactly one Nightlatch identity")]
    NoIdentity,
}

impl Peer {
    /// # Errors
    /// Anything but a certificate with exactly one URI name that is an identity.
    pub fn read(certificate: &[u8]) -> Result<Self, InvalidCertificate> {
        let parsed = parse(certificate)?;
        let names = parsed
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or(InvalidCertificate::NoIdentity)?;
        let uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        Ok(Self {
            identity: Identity::from_uris(uris)
                .ok()
                .ok_or(InvalidCertificate::NoIdentity)?,
            fingerprint: fingerprint(certificate),
        })
    }
}

/// From when a certificate is valid.
///
/// # Errors
/// Anything but an X.509 certificate.
pub fn valid_from(certificate: &[u8]) -> Result<Timestamp, InvalidCertificate> {
    moment(parse(certificate)?.validity().not_before)
}

/// Until when a certificate is valid.
///
/// # Errors
/// Anything but an X.509 certificate.
pub fn valid_until(certificate: &[u8]) -> Result<Timestamp, InvalidCertificate> {
    moment(parse(certificate)?.validity().not_after)
}

fn moment(at: ASN1Time) -> Result<Timestamp, InvalidCertificate> {
    let seconds = at.timestamp();
    Timestamp::from_micros(seconds.saturating_mul(1_000_000)).ok_or(InvalidCertificate::Malformed)
}

/// One certificate has one form: nothing comes after it.
pub(super) fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, InvalidCertificate> {
    match X509Certificate::from_der(certificate) {
        Ok((&[], parsed)) => Ok(parsed),
        _ => Err(InvalidCertificate::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Kind;
    use crate::identity::ca::CertificateAuthority;

    #[test]
    fn a_certificate_names_its_holder_and_how_long() {
        let now: Timestamp = "2026-11-22T09:30:00Z".parse().unwrap();
        let made = CertificateAuthority::create("test", now).unwrap();
        let ca = CertificateAuthority::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
        let installation = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".parse().unwrap();
        let identity = Identity {
            installation,
            kind: Kind::Person,
            id: "alice".to_owned(),
        };
        let issued = ca.issue(&identity, now).unwrap();
        assert_eq!(Peer::read(&issued.certificate).unwrap().identity, identity);
        assert_eq!(
            valid_until(&issued.certificate),
            Ok("2027-02-20T00:00:00Z".parse().unwrap())
        );

        let server = Identity {
            kind: Kind::Server,
            ..identity
        };
        let names = [
            "control.example".to_owned(),
            "192.0.2.1".to_owned(),
            "2001:db8::1".to_owned(),
        ];
        let issued = ca.issue_server(&server, &names, now).unwrap();
        assert_eq!(Peer::read(&issued.certificate).unwrap().identity, server);
        assert!(ca.issue_server(&server, &["a b".to_owned()], now).is_err());
        assert_eq!(Peer::read(ca.certificate()), Err(InvalidCertificate::NoIdentity));
        assert_eq!(Peer::read(b"x"), Err(InvalidCertificate::Malformed));
        let mut longer = issued.certificate.to_vec();
        longer.push(0);
        assert_eq!(Peer::read(&longer), Err(InvalidCertificate::Malformed));
    }

    #[test]
    fn of_a_certificate_request_only_the_key_is_used() {
        let now: Timestamp = "2026-11-22T09:30:00Z".parse().unwrap();
        let made = CertificateAuthority::create("test", now).unwrap();
        let ca = CertificateAuthority::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
        let installation = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".parse().unwrap();
        let identity = Identity {
            installation,
            kind: Kind::Machine,
            id: "7".to_owned(),
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let issued = ca.issue_for_request(&identity, &request, now).unwrap();
        let (_, parsed) = X509Certificate::from_der(issued.der()).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert!(!parsed.is_ca());
        assert!(ca.issue_for_request(&identity, "x", now).is_err());
    }
}
