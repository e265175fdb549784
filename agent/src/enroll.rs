//! Joining an installation: keys are made here and never leave, the token's certificate authority is pinned.

mod draft;
mod not_enrolled;

use std::fs;
use std::io;
use std::time::Duration;

use nightlatch_core::id::{InstallationId, MachineId, MachineName};
use nightlatch_core::identity::{Identity, Kind};
use nightlatch_core::signing::{PublicKey, sha256};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::error::Problem;
use nightlatch_proto::pb;
use nightlatch_proto::pb::enrollment_service_client::EnrollmentServiceClient;
use rcgen::PublicKeyData;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::Status;
use tonic::transport::Channel;

use crate::certificate::{holder_of, public_key_of};
use crate::channel;
use crate::identity::{CA, CERTIFICATE, ENROLLMENT, Enrollment};
use crate::ledger_file;
use crate::server_tls::{self, Pin};
use crate::state::{LEDGER, StateDir};
use crate::token::Token;
use draft::{Draft, Keys};
pub use not_enrolled::NotEnrolled;

const CALL_PATIENCE: Duration = Duration::from_secs(20);
const MOST_ADDRESSES: usize = 16;

/// Joins, and gives what was written.
///
/// # Errors
/// Whatever stands against it. The state directory appears whole or not at all.
pub async fn enroll(
    token: &str,
    name: Option<&str>,
    state: &StateDir,
    now: Timestamp,
) -> Result<Enrollment, NotEnrolled> {
    let token: Token = token.parse()?;
    let name = machine_name(name)?;
    check_free(state)?;
    let mut draft = Draft::open(state.path())?;
    let keys = draft.keys(&token, &name)?;
    let was_kept = draft.is_kept;
    let channel = connect(&token).await?;
    // From here on the server may have taken the machine in, whatever comes of it here.
    draft.is_kept = true;
    let joined = match join(channel, &token, &name, &keys, now, &draft).await {
        Ok(joined) => joined,
        Err(error) if error.says_that_nobody_joins() || (error.is_final() && !was_kept) => {
            draft.is_kept = false;
            return Err(error);
        }
        Err(error) if error.is_final() => {
            return Err(NotEnrolled::StillKept {
                kept: draft.folder().to_owned(),
                reason: Box::new(error),
            });
        }
        Err(error) => {
            return Err(NotEnrolled::Unfinished {
                kept: draft.folder().to_owned(),
                reason: Box::new(error),
            });
        }
    };
    draft.put_in_place()?;
    Ok(joined)
}

/// Asks the server, and writes down what it answers.
async fn join(
    channel: Channel,
    token: &Token,
    name: &MachineName,
    keys: &Keys,
    now: Timestamp,
    draft: &Draft,
) -> Result<Enrollment, NotEnrolled> {
    let answer = ask(channel, token, name, keys).await?;
    let joined = Joined::read(answer, token, keys, now)?;
    draft.write(CERTIFICATE, joined.certificate_pem.as_bytes())?;
    draft.write(CA, joined.ca_pem.as_bytes())?;
    let json = serde_json::to_vec_pretty(&joined.enrollment);
    let json = json
        .ok()
        .ok_or(NotEnrolled::BadAnswer("its fields are no JSON"))?;
    ledger_file::write_blank(LEDGER.as_ref(), |name, bytes| draft.write(name, bytes))?;
    draft.write(ENROLLMENT, &json)?;
    Ok(joined.enrollment)
}

fn machine_name(given: Option<&str>) -> Result<MachineName, NotEnrolled> {
    match given {
        Some(name) => name.parse().map_err(NotEnrolled::Name),
        None => {
            let host = nix::unistd::gethostname().map_err(NotEnrolled::NoHostName)?;
            host.to_string_lossy().parse().map_err(NotEnrolled::HostName)
        }
    }
}

fn check_free(state: &StateDir) -> Result<(), NotEnrolled> {
    if state.file(ENROLLMENT).exists() {
        return Err(NotEnrolled::Already(state.path().to_owned()));
    }
    match fs::read_dir(state.path()) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(NotEnrolled::NotEmpty(state.path().to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(NotEnrolled::Disk {
            path: state.path().to_owned(),
            source,
        }),
    }
}

async fn connect(token: &Token) -> Result<Channel, NotEnrolled> {
    let config =
        server_tls::client_config(Pin::Fingerprint(token.ca_sha256), None).map_err(NotEnrolled::Tls)?;
    let stream = server_tls::connect(&token.server, config).await?;
    channel::over(stream, &token.server)
        .await
        .map_err(NotEnrolled::Transport)
}

async fn ask(
    channel: Channel,
    token: &Token,
    name: &MachineName,
    keys: &Keys,
) -> Result<pb::EnrollResponse, NotEnrolled> {
    let request = pb::EnrollRequest {
        secret: token.secret.to_string(),
        machine_name: name.to_string(),
        certificate_request_pem: keys.certificate_request()?,
        receipt_public_key: keys.receipt.public().to_spki(),
    };
    let mut client = EnrollmentServiceClient::new(channel);
    match tokio::time::timeout(CALL_PATIENCE, client.enroll(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if std::error::Error::source(&status).is_some() => {
            Err(NotEnrolled::AnswerLost(Box::new(status)))
        }
        Ok(Err(status)) => Err(refused(&status)),
        Err(_elapsed) => Err(NotEnrolled::Silent),
    }
}

fn refused(status: &Status) -> NotEnrolled {
    let mut problem = Problem::from_status(status);
    if problem.reason.is_empty() {
        problem.reason = format!("{:?}", problem.code);
    }
    NotEnrolled::Refused(problem)
}

struct Joined {
    enrollment: Enrollment,
    certificate_pem: String,
    ca_pem: String,
}

impl Joined {
    fn read(
        answer: pb::EnrollResponse,
        token: &Token,
        keys: &Keys,
        now: Timestamp,
    ) -> Result<Self, NotEnrolled> {
        let bad = NotEnrolled::BadAnswer;
        let pb::EnrollResponse {
            machine_id,
            machine_name,
            certificate_pem,
            ca_certificate_pem,
            root_public_key,
            installation_id,
            agent_addresses,
        } = answer;
        let machine_id: MachineId = machine_id.parse().ok().ok_or_else(|| bad("machine_id"))?;
        let installation_id: InstallationId = installation_id
            .parse()
            .ok()
            .ok_or_else(|| bad("installation_id"))?;
        let ca = CertificateDer::from_pem_slice(ca_certificate_pem.as_bytes());
        let ca = ca.ok().ok_or_else(|| bad("ca_certificate_pem"))?;
        if sha256(&ca) != token.ca_sha256 {
            return Err(bad("ca_certificate_pem is not the one that the token names"));
        }
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes());
        let certificate = certificate.ok().ok_or_else(|| bad("certificate_pem"))?;
        let names = Identity {
            installation: installation_id,
            kind: Kind::Machine,
            id: machine_id.to_string(),
        };
        if holder_of(&certificate) != Ok(names)
            || public_key_of(&certificate) != Ok(keys.tls.subject_public_key_info())
        {
            return Err(bad("certificate_pem names another machine or key"));
        }
        if agent_addresses.is_empty() || agent_addresses.len() > MOST_ADDRESSES {
            return Err(bad("agent_addresses"));
        }
        let enrollment = Enrollment {
            machine_id,
            machine_name: machine_name.parse().ok().ok_or_else(|| bad("machine_name"))?,
            installation_id,
            root_key: PublicKey::from_spki(&root_public_key)
                .ok()
                .ok_or_else(|| bad("root_public_key"))?,
            agent_addresses,
            enrolled_at: now,
        };
        Ok(Self {
            enrollment,
            certificate_pem,
            ca_pem: ca_certificate_pem,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server_tls::NoConnection;

    #[test]
    fn a_directory_in_use_is_refused_before_anything_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        check_free(&state).unwrap();
        fs::write(folder.path().join("other"), "x").unwrap();
        assert!(matches!(check_free(&state), Err(NotEnrolled::NotEmpty(_))));
        fs::write(folder.path().join(ENROLLMENT), "{}").unwrap();
        assert!(matches!(check_free(&state), Err(NotEnrolled::Already(_))));
    }

    #[tokio::test]
    async fn an_unreachable_server_leaves_nothing_behind() {
        use base64::Engine;
        let folder = tempfile::tempdir().unwrap();
        let json = format!(
            r#"{{"secret":"s","server":"127.0.0.1:1","ca_sha256":"{}"}}"#,
            "0".repeat(64)
        );
        let token = format!(
            "nlt1_{}",
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
        );
        let state = StateDir::new(folder.path().join("state"));
        let now = "2026-11-22T09:30:00Z".parse().unwrap();
        let error = enroll(&token, Some("web-1"), &state, now).await.unwrap_err();
        assert!(
            matches!(error, NotEnrolled::Connection(NoConnection::Unreachable { .. })),
            "{error}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = enroll(&token, Some("web 1"), &state, now).await.unwrap_err();
        assert!(error.to_string().contains("--name"), "{error}");
    }
}
