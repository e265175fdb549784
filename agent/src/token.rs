//! The enrolment token: one string with the server's address, a secret, and the SHA-256 of its CA certificate.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use zeroize::Zeroizing;

const PREFIX: &str = "nlt1_";
const LONGEST: usize = 4096;

/// What stands in an enrolment token.
#[derive(Clone)]
pub struct Token {
    pub secret: Zeroizing<String>,
    /// `host:port` of the listener that enrols.
    pub server: String,
    /// SHA-256 of the certificate authority's certificate, DER.
    pub ca_sha256: [u8; 32],
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token is malformed: copy the whole `{PREFIX}…` text that `nightlatch-server token create` printed, \
     or make a new one"
)]
pub struct MalformedToken;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    secret: String,
    server: String,
    ca_sha256: String,
}

impl FromStr for Token {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let body = text
            .trim()
            .strip_prefix(PREFIX)
            .filter(|body| body.len() <= LONGEST)
            .ok_or(MalformedToken)?;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).ok().ok_or(MalformedToken)?);
        let RawToken {
            secret,
            server,
            ca_sha256,
        } = serde_json::from_slice(&json).ok().ok_or(MalformedToken)?;
        if secret.is_empty() || server.is_empty() {
            return Err(MalformedToken);
        }
        Ok(Self {
            secret: Zeroizing::new(secret),
            server,
            ca_sha256: parse_hex(&ca_sha256).ok_or(MalformedToken)?,
        })
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok()));
    let digits: Vec<u8> = digits.collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect();
    <[u8; 32]>::try_from(bytes).ok().filter(|_| digits.len() == 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nightlatch_core::signing::hex;

    fn token(json: &str) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    #[test]
    fn a_token_holds_secret_address_and_certificate() {
        let sha256 = hex(&[0xa7; 32]);
        let text = token(&format!(
            r#"{{"secret":"s","server":"192.0.2.1:7443","ca_sha256":"{sha256}"}}"#
        ));
        let token: Token = format!(" {text}\n").parse().unwrap();
        assert_eq!(
            (token.secret.as_str(), token.server.as_str()),
            ("s", "192.0.2.1:7443")
        );
        assert_eq!(token.ca_sha256, [0xa7; 32]);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let sha256 = hex(&[1; 32]);
        for text in [
            String::new(),
            "nlt1_".to_owned(),
            "nlt2_e30".to_owned(),
            "nlt1_e30".to_owned(),
            "nlt1_%%%".to_owned(),
            format!("nlt1_{}", "A".repeat(5000)),
            token(r#"{"secret":"s","server":"a:1","ca_sha256":"00"}"#),
            token(&format!(
                r#"{{"secret":"","server":"a:1","ca_sha256":"{sha256}"}}"#
            )),
            token(&format!(
                r#"{{"secret":"s","server":"a:1","ca_sha256":"{sha256}0"}}"#
            )),
            token(&format!(
                r#"{{"secret":"s","server":"a:1","ca_sha256":"{sha256}","more":1}}"#
            )),
        ] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
