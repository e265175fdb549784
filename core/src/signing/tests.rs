//! Envelopes, and whatever is not quite one.

use super::*;

const TYPE: &str = "application/vnd.nightlatch.grant.v1+json";

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32])
}

fn open_with(key: &PublicKey, envelope: &[u8]) -> Result<Vec<u8>, EnvelopeRejected> {
    open(envelope, TYPE, LONGEST_ENVELOPE, |id| {
        (*id == key.id()).then_some(key)
    })
}

#[test]
fn the_pre_authentication_encoding_is_that_of_the_specification() {
    assert_eq!(
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
}

#[test]
fn what_was_sealed_opens() {
    let envelope = key().seal(TYPE, b"{}");
    assert_eq!(open_with(&key().public(), &envelope), Ok(b"{}".to_vec()));
}

#[test]
fn an_envelope_is_made_again_of_its_payload_or_kept_whole() {
    let sealed = key().seal(TYPE, b"{}");
    let seal = Seal::of(&sealed, TYPE, b"{}").unwrap();
    assert_eq!(seal.envelope(TYPE, b"{}"), sealed);
    let text = String::from_utf8(sealed).unwrap();
    for other in [
        alloc::format!("{text} "),
        text.replace("\"payload\"", " \"payload\""),
        text.replace("\"keyid\":\"", "\"keyid\":\"0"),
        String::new(),
    ] {
        assert_eq!(Seal::of(other.as_bytes(), TYPE, b"{}"), None, "{other}");
    }
    assert_eq!(Seal::of(text.as_bytes(), TYPE, b"{ }"), None);
}

#[test]
fn any_flipped_bit_is_refused() {
    let public = key().public();
    let envelope = key().seal(TYPE, b"{\"version\":1}");
    for position in 0..envelope.len() {
        for bit in 0..8 {
            let mut tampered = envelope.clone();
            tampered[position] ^= 1 << bit;
            assert!(
                open_with(&public, &tampered).is_err(),
                "byte {position}, bit {bit}"
            );
        }
    }
}

#[test]
fn every_other_form_is_refused() {
    let public = key().public();
    let text = String::from_utf8(key().seal(TYPE, b"{}")).unwrap();
    let signatures = text
        .split_once("\"signatures\":[")
        .unwrap()
        .1
        .trim_end_matches("]}")
        .to_owned();
    for (other, code) in [
        (
            text.replace("\"payload\"", "\"extra\":1,\"payload\""),
            "ENVELOPE_MALFORMED",
        ),
        (text.replace(&signatures, ""), "ENVELOPE_MALFORMED"),
        (
            text.replace(&signatures, &alloc::format!("{signatures},{signatures}")),
            "ENVELOPE_MALFORMED",
        ),
        (text.replace("\"e30=\"", "\"e30\""), "ENVELOPE_MALFORMED"),
        (text.replace("\"e30=\"", "\"e31=\""), "ENVELOPE_MALFORMED"),
        (text.replace("grant.v1", "grant.v2"), "PAYLOAD_TYPE_WRONG"),
        (text.replace("\"keyid\":\"", "\"keyid\":\"0"), "KEY_UNKNOWN"),
        (text.replace("\"e30=\"", "\"W10=\""), "SIGNATURE_INVALID"),
        (
            alloc::format!("{text}{}", " ".repeat(LONGEST_ENVELOPE)),
            "ENVELOPE_TOO_LONG",
        ),
    ] {
        assert_ne!(other, text);
        assert_eq!(
            open_with(&public, other.as_bytes()).unwrap_err().code(),
            code,
            "{other}"
        );
    }
}

#[test]
fn a_field_that_this_version_does_not_know_is_told_from_other_faults() {
    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Known {
        known: u8,
    }
    let public = key().public();
    let read = |payload: &str| {
        let envelope = key().seal(TYPE, payload.as_bytes());
        open_json::<Known>(&envelope, TYPE, LONGEST_ENVELOPE, |_| Some(&public))
            .map_err(|rejected| rejected.code())
    };
    assert_eq!(read(r#"{"known":1}"#), Ok(Known { known: 1 }));
    // What the JSON library writes tells the two apart.
    assert_eq!(
        read(r#"{"known":1,"only_interface":"eth0"}"#),
        Err("FIELD_UNKNOWN")
    );
    for payload in [
        r#"{"known":"unknown field"}"#,
        r#"{"known":1,"known":1}"#,
        "{}",
        "[",
    ] {
        assert_eq!(read(payload), Err("PAYLOAD_MALFORMED"), "{payload}");
    }
}

#[test]
fn keys_survive_their_pem_form() {
    let pem = key().to_pem().unwrap();
    assert_eq!(SigningKey::from_pem(&pem).unwrap().public(), key().public());
    let public = key().public();
    assert_eq!(PublicKey::from_pem(&public.to_pem().unwrap()), Ok(public.clone()));
    assert_eq!(PublicKey::from_spki(&public.to_spki()), Ok(public));
}
