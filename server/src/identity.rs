//! Who is who: the certificate authority, certificates of one kind each, enrolment tokens.

pub mod ca;
pub mod peer;
pub mod token;

use nightlatch_core::signing;

pub use nightlatch_core::identity::{Identity, Kind};

/// Hex SHA-256 of a certificate's DER: the one that counts for its holder is in the store.
pub fn fingerprint(certificate: &[u8]) -> String {
    signing::hex(&signing::sha256(certificate))
}
