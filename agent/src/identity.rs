//! Who this host is: what enrolment has left in the state directory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nightlatch_core::id::{InstallationId, MachineId, MachineName};
use nightlatch_core::signing::{InvalidKey, PublicKey, SigningKey};
use nightlatch_core::time::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::server_tls::ClientIdentity;
use crate::state::StateDir;

pub const ENROLLMENT: &str = "enrollment.json";
pub const KEY: &str = "agent.key";
pub const CERTIFICATE: &str = "agent.pem";
pub const CA: &str = "ca.pem";
pub const RECEIPT_KEY: &str = "receipt.key";

const LONGEST_FILE: u64 = 1024 * 1024;

/// What was settled when this host joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrollment {
    pub machine_id: MachineId,
    pub machine_name: MachineName,
    pub installation_id: InstallationId,
    /// Pinned: only key lists that it signed count.
    pub root_key: PublicKey,
    /// `host:port` of the servers' listeners for agents.
    pub agent_addresses: Vec<String>,
    pub enrolled_at: Timestamp,
}

/// Everything that the running agent needs of it.
pub struct Identity {
    pub enrollment: Enrollment,
    pub ca: Vec<CertificateDer<'static>>,
    pub client: ClientIdentity,
    pub receipt_key: SigningKey,
}

/// Why this host doesn't know who it is.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentity {
    #[error("this host has not joined: {} is missing: run `nightlatch-agent enroll TOKEN`", .0.display())]
    NotEnrolled(PathBuf),
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} can be read by others than its owner: run `chmod 600` on it", .0.display())]
    Exposed(PathBuf),
    #[error("{} is damaged: restore it, or remove the state directory and enrol anew", path.display())]
    NotAnEnrollment {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{}: agent_addresses is empty, one at least is needed: restore it, or remove the state directory and enrol anew",
        .0.display()
    )]
    NoAddress(PathBuf),
    #[error("{} holds no usable PEM: restore it, or remove the state directory and enrol anew", .0.display())]
    NotPem(PathBuf),
    #[error("{}", path.display())]
    NotAKey {
        path: PathBuf,
        #[source]
        source: InvalidKey,
    },
}

impl Enrollment {
    /// # Errors
    /// A host that hasn't joined, or a file that was changed.
    pub fn read(state: &StateDir) -> Result<Self, NoIdentity> {
        let path = state.file(ENROLLMENT);
        let text = match read(&path, false) {
            Err(NoIdentity::Unreadable { path, source }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(NoIdentity::NotEnrolled(path));
            }
            other => other?,
        };
        serde_json::from_str(&text).map_err(|source| NoIdentity::NotAnEnrollment { path, source })
    }
}

impl Identity {
    /// # Errors
    /// As [`Enrollment::read`]; and key files that others may read.
    pub fn read(state: &StateDir) -> Result<Self, NoIdentity> {
        let enrollment = Enrollment::read(state)?;
        if enrollment.agent_addresses.is_empty() {
            return Err(NoIdentity::NoAddress(state.file(ENROLLMENT)));
        }
        let path = state.file(RECEIPT_KEY);
        let receipt_key =
            SigningKey::from_pem(&read(&path, true)?).map_err(|source| NoIdentity::NotAKey {
                path: path.clone(),
                source,
            })?;
        let path = state.file(KEY);
        let key = PrivateKeyDer::from_pem_slice(read(&path, true)?.as_bytes());
        let key = key.ok().ok_or(NoIdentity::NotPem(path))?;
        let client = ClientIdentity {
            chain: certificates(&state.file(CERTIFICATE))?,
            key,
        };
        Ok(Self {
            enrollment,
            ca: certificates(&state.file(CA))?,
            client,
            receipt_key,
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NoIdentity> {
    let text = read(path, false)?;
    let found: Option<Vec<_>> = CertificateDer::pem_slice_iter(text.as_bytes())
        .map(Result::ok)
        .collect();
    found
        .filter(|found| !found.is_empty())
        .ok_or_else(|| NoIdentity::NotPem(path.to_owned()))
}

fn read(path: &Path, secret: bool) -> Result<Zeroizing<String>, NoIdentity> {
    let unreadable = |source| NoIdentity::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    if secret && file.metadata().map_err(unreadable)?.mode() & 0o077 != 0 {
        return Err(NoIdentity::Exposed(path.to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(LONGEST_FILE)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn enrolled() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        let receipt = SigningKey::from_seed(&[1; 32]);
        let enrollment = Enrollment {
            machine_id: "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b11".parse().unwrap(),
            machine_name: "web-1".parse().unwrap(),
            installation_id: "019aa0b2-6a51-7c3e-9d6a-0f6d1f6f2b12".parse().unwrap(),
            root_key: receipt.public(),
            agent_addresses: vec!["192.0.2.1:7444".to_owned()],
            enrolled_at: "2026-11-22T09:30:00Z".parse().unwrap(),
        };
        let key = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
        for (name, text) in [
            (ENROLLMENT, serde_json::to_string(&enrollment).unwrap()),
            (RECEIPT_KEY, receipt.to_pem().unwrap()),
            (KEY, key.signing_key.serialize_pem()),
            (CERTIFICATE, key.cert.pem()),
            (CA, key.cert.pem()),
        ] {
            drop(crate::state::write_private(&state.file(name), text.as_bytes()).unwrap());
        }
        (folder, state)
    }

    #[test]
    fn what_enrolment_wrote_is_read() {
        let (_folder, state) = enrolled();
        let identity = Identity::read(&state).unwrap();
        assert_eq!(identity.enrollment.machine_name.as_str(), "web-1");
        assert_eq!(identity.ca, identity.client.chain);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_by_name() {
        for name in [KEY, RECEIPT_KEY] {
            let (_folder, state) = enrolled();
            std::fs::set_permissions(state.file(name), std::fs::Permissions::from_mode(0o640)).unwrap();
            let error = Identity::read(&state).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn an_enrolment_without_an_address_is_refused() {
        let (_folder, state) = enrolled();
        let path = state.file(ENROLLMENT);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("\"192.0.2.1:7444\"", "")).unwrap();
        let error = Identity::read(&state).err().unwrap().to_string();
        assert!(error.contains("agent_addresses is empty"), "{error}");
    }

    #[test]
    fn missing_and_damaged_files_are_named() {
        for name in [ENROLLMENT, KEY, CERTIFICATE, CA, RECEIPT_KEY] {
            let (_folder, state) = enrolled();
            std::fs::write(state.file(name), "x").unwrap();
            assert!(Identity::read(&state).err().unwrap().to_string().contains(name));
            std::fs::remove_file(state.file(name)).unwrap();
            assert!(Identity::read(&state).err().unwrap().to_string().contains(name));
        }
    }
}
