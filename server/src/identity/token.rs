//! Enrolment tokens: one string that holds all a new machine needs.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nightlatch_core::signing;
use serde::{Deserialize, Serialize};

/// How long a token can be used, once.
pub const LIFE: Duration = Duration::from_secs(24 * 3600);

const PREFIX: &str = "nlt1_";

/// What a token says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub secret: String,
    /// `host:port` of the listener for people.
    pub server: String,
    /// Hex SHA-256 of the certificate authority's certificate, DER.
    pub ca_sha256: String,
}

impl Token {
    pub fn new(server: String, ca_certificate: &[u8]) -> Self {
        let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let ca_sha256 = signing::hex(&signing::sha256(ca_certificate));
        Self {
            secret,
            server,
            ca_sha256,
        }
    }

    /// The one string that is handed over.
    pub fn to_text(&self) -> String {
        // Strings only: writing them can't fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

/// What the store keeps of a secret.
pub fn hash(secret: &str) -> String {
    signing::hex(&signing::sha256(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_that_holds_everything() {
        let token = Token::new("control.example:7443".to_owned(), b"certificate");
        let text = token.to_text();
        let json = URL_SAFE_NO_PAD
            .decode(text.strip_prefix("nlt1_").unwrap())
            .unwrap();
        assert!(serde_json::from_slice::<Token>(&json).unwrap() == token);
        assert_ne!(Token::new(String::new(), b"").secret, token.secret);
    }
}
