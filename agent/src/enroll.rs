//! Joining an installation: keys are made here and never leave, the token's certificate authority is pinned.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nightlatch_core::id::{InstallationId, InvalidId, MachineId, MachineName};
use nightlatch_core::identity::{Identity, Kind};
use nightlatch_core::signing::{InvalidKey, PublicKey, SigningKey, hex, sha256};
use nightlatch_core::time::Timestamp;
use nightlatch_proto::error::{Problem, TOKEN as TOKEN_STATE};
use nightlatch_proto::pb;
use nightlatch_proto::pb::enrollment_service_client::EnrollmentServiceClient;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::User;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::Status;
use tonic::transport::Channel;
use tracing::info;
use zeroize::Zeroizing;

use crate::certificate::{holder_of, public_key_of};
use crate::channel;
use crate::identity::{CA, CERTIFICATE, ENROLLMENT, Enrollment, KEY, RECEIPT_KEY};
use crate::ledger_file;
use crate::server_tls::{self, NoConnection, Pin};
use crate::state::{self, DEFAULT_FOLDER, LEDGER, StateDir, UNIT_USER};
use crate::token::{MalformedToken, Token};

const CALL_PATIENCE: Duration = Duration::from_secs(20);
const MOST_ADDRESSES: usize = 16;

/// The SHA-256 of the secret that a draft's keys were made for.
const TOKEN: &str = "token.sha256";
/// The name that was asked for with it.
const NAME: &str = "machine.name";

/// Why this host did not join. Nothing is left behind, except where it may be taken in already.
#[derive(Debug, thiserror::Error)]
pub enum NotEnrolled {
    #[error(transparent)]
    Token(#[from] MalformedToken),
    #[error("this host has joined already ({}): remove that directory to join anew, or use another with --state", .0.display())]
    Already(PathBuf),
    #[error("{} is not empty: empty it or use another directory with --state", .0.display())]
    NotEmpty(PathBuf),
    #[error("this host's own name does not do: give one with --name")]
    HostName(#[source] InvalidId),
    #[error("--name: {0}")]
    Name(InvalidId),
    #[error("cannot read this host's name: give one with --name")]
    NoHostName(#[source] nix::Error),
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("cannot make a receipt key")]
    ReceiptKey(#[source] InvalidKey),
    #[error("the operating system gives no random numbers")]
    NoRandom(#[source] rand::rngs::SysError),
    #[error("cannot prepare TLS")]
    Tls(#[source] rustls::Error),
    #[error(transparent)]
    Connection(#[from] NoConnection),
    #[error("the connection failed before the server answered: try again")]
    Transport(#[source] tonic::transport::Error),
    #[error("the server did not answer within {} s", CALL_PATIENCE.as_secs())]
    Silent,
    #[error("the connection broke before the answer")]
    AnswerLost(#[source] Box<Status>),
    #[error(
        "the server may have taken this machine in: enrol again with the same token within its 24 hours, which \
         continues this enrolment with the keys kept in {}", kept.display()
    )]
    Unfinished {
        kept: PathBuf,
        #[source]
        reason: Box<Self>,
    },
    #[error(
        "an earlier try with another token may have had this machine taken in, with the keys kept in {}: enrol \
         with that token to continue it, or remove that directory to begin anew", .0.display()
    )]
    OtherToken(PathBuf),
    #[error(
        "--name: an earlier try with this token may have had this machine taken in as {name}, with the keys kept in \
         {}: enrol with --name {name} to continue it, or remove that directory to begin anew", kept.display()
    )]
    OtherName { name: MachineName, kept: PathBuf },
    #[error(
        "the keys of an earlier try, with which this machine may have been taken in, stay in {}: remove that \
         directory to begin anew", kept.display()
    )]
    StillKept {
        kept: PathBuf,
        #[source]
        reason: Box<Self>,
    },
    #[error("another enrolment is under way in {}: wait for its end", .0.display())]
    UnderWay(PathBuf),
    #[error("the server refused ({}): {}", .0.reason, .0.message)]
    Refused(Problem),
    #[error("the server's answer does not fit ({0}): update agent and server to the same version")]
    BadAnswer(&'static str),
    #[error(
        "cannot read {}, which an earlier try has left: remove its directory to begin anew", path.display()
    )]
    Kept {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

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
                kept: draft.folder.clone(),
                reason: Box::new(error),
            });
        }
        Err(error) => {
            return Err(NotEnrolled::Unfinished {
                kept: draft.folder.clone(),
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
    draft.write(LEDGER, ledger_file::HEADER)?;
    draft.write(ENROLLMENT, &json)?;
    Ok(joined.enrollment)
}

impl NotEnrolled {
    /// Whether the server has said that it takes nobody in.
    const fn is_final(&self) -> bool {
        use tonic::Code;
        let Self::Refused(problem) = self else {
            return false;
        };
        matches!(
            problem.code,
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::AlreadyExists
                | Code::NotFound
                | Code::FailedPrecondition
                | Code::ResourceExhausted
                | Code::Unauthenticated
                | Code::Unimplemented
        )
    }
}

impl NotEnrolled {
    /// Whether no try with this token can bring anything any more.
    fn says_that_nobody_joins(&self) -> bool {
        let Self::Refused(problem) = self else {
            return false;
        };
        let token = problem.metadata.get(TOKEN_STATE).map(String::as_str);
        matches!(token, Some("unknown" | "expired"))
    }
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

struct Keys {
    tls: KeyPair,
    receipt: SigningKey,
}

impl Keys {
    fn generate() -> Result<Self, NotEnrolled> {
        let tls = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(NotEnrolled::Key)?;
        let mut seed = Zeroizing::new([0; 32]);
        rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut *seed).map_err(NotEnrolled::NoRandom)?;
        Ok(Self {
            tls,
            receipt: SigningKey::from_seed(&seed),
        })
    }

    /// Only its public key is used: the server names the machine.
    fn certificate_request(&self) -> Result<String, NotEnrolled> {
        let params = CertificateParams::new(Vec::new()).map_err(NotEnrolled::Key)?;
        let request = params.serialize_request(&self.tls).map_err(NotEnrolled::Key)?;
        request.pem().map_err(NotEnrolled::Key)
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

/// The state directory as it will be, beside its place. Taken away again unless it is put there or kept.
struct Draft {
    folder: PathBuf,
    place: PathBuf,
    /// The server may have taken the machine in with the keys in here.
    is_kept: bool,
    /// One enrolment at a time.
    _lock: Flock<File>,
    done: bool,
}

/// User and group that the state directory belongs to: the agent runs as this user, whoever enrols.
fn owner_of(place: &Path) -> io::Result<Option<(u32, u32)>> {
    match fs::metadata(place) {
        Ok(found) => Ok(Some((found.uid(), found.gid()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(owner_by_default(place)),
        Err(error) => Err(error),
    }
}

/// What an earlier try has left is taken up, unless someone else has put it there.
fn make_or_find(folder: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(folder)?;
            let user = nix::unistd::geteuid().as_raw();
            let is_ours = found.uid() == user || owner.is_some_and(|(owner, _)| owner == found.uid());
            if found.is_dir() && is_ours {
                Ok(())
            } else {
                Err(error)
            }
        }
        made => made,
    }
}

fn owner_by_default(place: &Path) -> Option<(u32, u32)> {
    if place != Path::new(DEFAULT_FOLDER) || !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = User::from_name(UNIT_USER).ok().flatten();
    if user.is_none() {
        tracing::warn!(
            "there is no user {UNIT_USER}, so {DEFAULT_FOLDER} belongs to root: run the agent as root, or install \
             the package and enrol anew"
        );
    }
    user.map(|user| (user.uid.as_raw(), user.gid.as_raw()))
}

impl Draft {
    /// Makes the draft, or opens the one that an earlier try has left.
    fn open(place: &Path) -> Result<Self, NotEnrolled> {
        let disk = |path: &Path, source| NotEnrolled::Disk {
            path: path.to_owned(),
            source,
        };
        let place = std::path::absolute(place).map_err(|source| disk(place, source))?;
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(|source| disk(parent, source))?;
        }
        let mut folder = place.clone().into_os_string();
        folder.push(".joining");
        let folder = PathBuf::from(folder);
        let owner = owner_of(&place).map_err(|source| disk(&place, source))?;
        make_or_find(&folder, owner).map_err(|source| disk(&folder, source))?;
        let opened = File::open(&folder).map_err(|source| disk(&folder, source))?;
        let lock = match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(NotEnrolled::UnderWay(folder)),
            Err((_, errno)) => return Err(disk(&folder, errno.into())),
        };
        let is_kept = folder.join(TOKEN).exists();
        let draft = Self {
            folder,
            place,
            is_kept,
            _lock: lock,
            done: false,
        };
        if let Some((user, group)) = owner {
            let given = chown(&draft.folder, Some(user), Some(group));
            given.map_err(|source| disk(&draft.folder, source))?;
        }
        Ok(draft)
    }

    /// The keys that an earlier try with this token and name has left, or new ones.
    fn keys(&mut self, token: &Token, name: &MachineName) -> Result<Keys, NotEnrolled> {
        let secret = hex(&sha256(token.secret.as_bytes()));
        if let Some(keys) = self.kept_keys(&secret, name)? {
            info!(folder = %self.folder.display(), "continuing an enrolment whose answer was lost, with its keys");
            return Ok(keys);
        }
        self.is_kept = false;
        let keys = Keys::generate()?;
        self.write(KEY, keys.tls.serialize_pem().as_bytes())?;
        let pem = Zeroizing::new(keys.receipt.to_pem().map_err(NotEnrolled::ReceiptKey)?);
        self.write(RECEIPT_KEY, pem.as_bytes())?;
        self.write(NAME, name.as_str().as_bytes())?;
        // Last: with it the keys count as kept.
        self.write(TOKEN, secret.as_bytes())?;
        Ok(keys)
    }

    /// `None`: there are none. Those of another token or name are left alone.
    fn kept_keys(&self, secret: &str, name: &MachineName) -> Result<Option<Keys>, NotEnrolled> {
        if !self.is_kept {
            return Ok(None);
        }
        if self.kept(TOKEN)?.as_str() != secret {
            return Err(NotEnrolled::OtherToken(self.folder.clone()));
        }
        let unusable = |file| NotEnrolled::Kept {
            path: self.folder.join(file),
            source: io::ErrorKind::InvalidData.into(),
        };
        let kept_name: MachineName = self.kept(NAME)?.parse().ok().ok_or_else(|| unusable(NAME))?;
        if kept_name != *name {
            return Err(NotEnrolled::OtherName {
                name: kept_name,
                kept: self.folder.clone(),
            });
        }
        let tls = KeyPair::from_pem(&self.kept(KEY)?);
        let receipt = SigningKey::from_pem(&self.kept(RECEIPT_KEY)?);
        Ok(Some(Keys {
            tls: tls.ok().ok_or_else(|| unusable(KEY))?,
            receipt: receipt.ok().ok_or_else(|| unusable(RECEIPT_KEY))?,
        }))
    }

    fn kept(&self, file: &str) -> Result<Zeroizing<String>, NotEnrolled> {
        let path = self.folder.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Zeroizing::new(text)),
            Err(source) => Err(NotEnrolled::Kept { path, source }),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), NotEnrolled> {
        let path = self.folder.join(name);
        match state::write_private(&path, bytes) {
            Ok(_file) => Ok(()),
            Err(source) => Err(NotEnrolled::Disk { path, source }),
        }
    }

    fn put_in_place(mut self) -> Result<(), NotEnrolled> {
        let disk = |source| NotEnrolled::Disk {
            path: self.place.clone(),
            source,
        };
        // An empty directory gives way to a rename (rename(2)).
        fs::rename(&self.folder, &self.place).map_err(disk)?;
        self.done = true;
        // Without it nothing is missing.
        for file in [TOKEN, NAME] {
            drop(fs::remove_file(self.place.join(file)));
        }
        state::sync_folder_of(&self.place).map_err(|source| NotEnrolled::Disk {
            path: self.place.clone(),
            source,
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.done && !self.is_kept {
            drop(fs::remove_dir_all(&self.folder));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state");
        let draft = Draft::open(&place).unwrap();
        draft.write("file", b"x").unwrap();
        drop(draft);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        fs::create_dir(&place).unwrap();
        let draft = Draft::open(&place).unwrap();
        draft.write("file", b"x").unwrap();
        draft.put_in_place().unwrap();
        assert_eq!(fs::read(place.join("file")).unwrap(), b"x");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn kept_keys_are_for_the_same_token_and_name_and_survive_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state");
        std::os::unix::fs::symlink("/nonexistent", folder.path().join("state.joining")).unwrap();
        assert!(matches!(Draft::open(&place), Err(NotEnrolled::Disk { .. })));
        fs::remove_file(folder.path().join("state.joining")).unwrap();
        let token = |secret: &str| Token {
            secret: Zeroizing::new(secret.to_owned()),
            server: "127.0.0.1:1".to_owned(),
            ca_sha256: [0; 32],
        };
        let public = |keys: &Keys| (keys.tls.subject_public_key_info(), keys.receipt.public());
        let mut draft = Draft::open(&place).unwrap();
        let (web, db): (MachineName, MachineName) = ("web-1".parse().unwrap(), "db-1".parse().unwrap());
        let first = public(&draft.keys(&token("one"), &web).unwrap());
        assert!(matches!(Draft::open(&place), Err(NotEnrolled::UnderWay(_))));
        draft.is_kept = true;
        drop(draft);
        let mut draft = Draft::open(&place).unwrap();
        assert_eq!(public(&draft.keys(&token("one"), &web).unwrap()), first);
        drop(draft);
        let mut draft = Draft::open(&place).unwrap();
        let error = draft.keys(&token("two"), &web).err().unwrap();
        assert!(matches!(error, NotEnrolled::OtherToken(_)), "{error}");
        let error = draft.keys(&token("one"), &db).err().unwrap();
        assert!(error.to_string().contains("--name web-1"), "{error}");
        assert_eq!(public(&draft.keys(&token("one"), &web).unwrap()), first);
        draft.is_kept = false;
        drop(draft);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_enrolment_writes_belongs_to_the_owner_of_the_directory_that_is_there() {
        // Only root can give files away.
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state");
        fs::create_dir(&place).unwrap();
        chown(&place, Some(64_001), Some(64_002)).unwrap();
        let draft = Draft::open(&place).unwrap();
        draft.write("file", b"x").unwrap();
        draft.put_in_place().unwrap();
        for path in [place.clone(), place.join("file")] {
            let found = fs::metadata(path).unwrap();
            assert_eq!((found.uid(), found.gid()), (64_001, 64_002));
        }
    }

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
