//! Certificates for the tests, good ones and bad ones.

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Server,
    Person,
}

#[derive(Clone, Copy)]
pub(crate) struct Certificate {
    pub(crate) kind: Kind,
    pub(crate) names: &'static [&'static str],
    pub(crate) expired: bool,
}

impl Certificate {
    pub(crate) const fn server() -> Self {
        Self {
            kind: Kind::Server,
            names: &["127.0.0.1"],
            expired: false,
        }
    }

    pub(crate) const fn person() -> Self {
        Self {
            kind: Kind::Person,
            names: &[],
            expired: false,
        }
    }
}

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.clone()
    }

    /// Certificate and key in PEM. Both purposes are allowed, so that the kind alone tells.
    pub(crate) fn issue(&self, certificate: &Certificate) -> (String, String) {
        let mut params = CertificateParams::new(
            certificate
                .names
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
        )
        .unwrap();
        let kind = match certificate.kind {
            Kind::Server => "server",
            Kind::Person => "person",
        };
        let uri = Ia5String::try_from(format!(
            "nightlatch://019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11/{kind}/me"
        ))
        .unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        if certificate.expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        (pem, key.serialize_pem())
    }
}
