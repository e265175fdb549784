//! Whom a certificate of ours names: one URI `nightlatch://<installation>/<kind>/<id>`, nothing else counts.

use nightlatch_core::identity::{Identity, InvalidIdentity};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The certificate names nobody of a Nightlatch installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    #[error("not an X.509 certificate")]
    NotACertificate,
    #[error(transparent)]
    NoName(#[from] InvalidIdentity),
}

/// # Errors
/// Anything but a certificate with just one such name.
pub fn holder_of(der: &[u8]) -> Result<Identity, NotOurs> {
    let (rest, certificate) = X509Certificate::from_der(der)
        .ok()
        .ok_or(NotOurs::NotACertificate)?;
    if !rest.is_empty() {
        return Err(NotOurs::NotACertificate);
    }
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .ok_or(InvalidIdentity)?;
    let uris = names.value.general_names.iter().filter_map(|name| {
        if let GeneralName::URI(uri) = name {
            Some(*uri)
        } else {
            None
        }
    });
    Ok(Identity::from_uris(uris)?)
}

/// The SubjectPublicKeyInfo of a certificate, DER.
///
/// # Errors
/// No certificate.
pub fn public_key_of(der: &[u8]) -> Result<Vec<u8>, NotOurs> {
    let (_, certificate) = X509Certificate::from_der(der)
        .ok()
        .ok_or(NotOurs::NotACertificate)?;
    Ok(certificate.public_key().raw.to_vec())
}

#[cfg(test)]
pub(crate) mod testing {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    };

    pub(crate) fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    pub(crate) fn leaf(
        authority: &CertifiedIssuer<'static, KeyPair>,
        host: &str,
        uris: &[&str],
    ) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params
            .subject_alt_names
            .extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, authority).unwrap(), key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::identity::Kind;

    const NAME: &str = "nightlatch://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/server/1";

    #[test]
    fn only_exactly_one_name_of_our_form_counts() {
        let authority = testing::authority();
        let check = |uris: &[&str]| holder_of(testing::leaf(&authority, "example.org", uris).0.der());
        let holder = check(&[NAME]).unwrap();
        assert_eq!((holder.kind, holder.id.as_str()), (Kind::Server, "1"));
        for uris in [vec![], vec![NAME, NAME], vec!["https://example.org/server/1"]] {
            assert_eq!(check(&uris), Err(NotOurs::NoName(InvalidIdentity)), "{uris:?}");
        }
        assert_eq!(holder_of(b"x"), Err(NotOurs::NotACertificate));
    }
}
