//! Who is taken for the server.

use super::*;
use crate::certificate::testing;

const INSTALLATION: &str = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11";

fn name(kind: &str) -> String {
    format!("nightlatch://{INSTALLATION}/{kind}/1")
}

fn server_name(host: &str) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap()
}

fn verify(
    pin: Pin,
    leaf: &rcgen::Certificate,
    ca: &CertificateDer<'static>,
    host: &str,
    now: u64,
) -> Result<(), rustls::Error> {
    let server = PinnedServer {
        pin,
        provider: Arc::new(aws_lc_rs::default_provider()),
    };
    let name = server_name(host);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    server
        .verify_server_cert(leaf.der(), std::slice::from_ref(ca), &name, &[], now)
        .map(|_| ())
}

const NOW: u64 = 1_795_339_800;

fn rejected(result: Result<(), rustls::Error>) -> Option<ServerRejected> {
    match result {
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error)))) => {
            error.downcast_ref().copied()
        }
        _ => None,
    }
}

#[test]
fn enrolment_takes_only_the_authority_that_the_token_names() {
    let authority = testing::authority();
    let (leaf, _) = testing::leaf(&authority, "nl.example.org", &[&name("server")]);
    let check =
        |sha256: [u8; 32], host: &str| verify(Pin::Fingerprint(sha256), &leaf, authority.der(), host, NOW);
    let right = sha256(authority.der());
    assert_eq!(check(right, "nl.example.org"), Ok(()));
    assert_eq!(
        rejected(check([0; 32], "nl.example.org")),
        Some(ServerRejected::OtherAuthority)
    );
    assert!(check(right, "other.example.org").is_err());

    // Another authority that shows the right one beside itself.
    let other = testing::authority();
    let (forged, _) = testing::leaf(&other, "nl.example.org", &[&name("server")]);
    assert!(
        verify(
            Pin::Fingerprint(right),
            &forged,
            authority.der(),
            "nl.example.org",
            NOW
        )
        .is_err()
    );
}

#[test]
fn the_link_takes_only_a_server_of_its_own_installation() {
    let authority = testing::authority();
    let check = |uri: &str, installation: &str| {
        let pin = Pin::Installation {
            ca: vec![authority.der().clone()],
            installation: installation.parse().unwrap(),
            known: KnownTime::default(),
        };
        let (leaf, _) = testing::leaf(&authority, "nl.example.org", &[uri]);
        verify(pin, &leaf, authority.der(), "nl.example.org", NOW)
    };
    assert_eq!(check(&name("server"), INSTALLATION), Ok(()));
    for kind in ["machine", "person", "program"] {
        assert_eq!(
            rejected(check(&name(kind), INSTALLATION)),
            Some(ServerRejected::OtherKind)
        );
    }
    let other = "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b12";
    assert_eq!(
        rejected(check(&name("server"), other)),
        Some(ServerRejected::OtherKind)
    );
}

#[test]
fn a_wall_clock_that_is_behind_does_not_lock_out() {
    let authority = testing::authority();
    let mut params = rcgen::CertificateParams::new(vec!["nl.example.org".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2028, 1, 1);
    params
        .subject_alt_names
        .push(rcgen::SanType::URI(name("server").as_str().try_into().unwrap()));
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &authority).unwrap();
    let known = KnownTime::default();
    let check = || {
        let pin = Pin::Installation {
            ca: vec![authority.der().clone()],
            installation: INSTALLATION.parse().unwrap(),
            known: known.clone(),
        };
        verify(pin, &leaf, authority.der(), "nl.example.org", 1000)
    };
    assert!(check().is_err());
    known.raise("2026-11-22T09:30:00Z".parse().unwrap());
    assert_eq!(check(), Ok(()));
}

#[test]
fn addresses_are_host_and_port() {
    assert_eq!(split("nl.example.org:7443"), Some(("nl.example.org", 7443)));
    assert_eq!(split("[2001:db8::1]:7443"), Some(("2001:db8::1", 7443)));
    for text in [
        "",
        "nl.example.org",
        ":1",
        "a:0",
        "a:70000",
        "2001:db8::1:7443",
        "[a]:1",
    ] {
        assert_eq!(split(text), None, "{text}");
    }
}
