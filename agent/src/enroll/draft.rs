//! The state directory while a host joins: beside its place, put there whole once the server has answered.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use nightlatch_core::id::MachineName;
use nightlatch_core::signing::{SigningKey, hex, sha256};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::User;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tracing::info;
use zeroize::Zeroizing;

use super::NotEnrolled;
use crate::identity::{KEY, RECEIPT_KEY};
use crate::state::{self, DEFAULT_FOLDER, UNIT_USER};
use crate::token::Token;

/// The SHA-256 of the secret that a draft's keys were made for.
const TOKEN: &str = "token.sha256";
/// The name that was asked for with it.
const NAME: &str = "machine.name";
/// What is put in the state directory's place, to see that it can be.
const EMPTY: &str = "empty";

pub(super) struct Keys {
    pub(super) tls: KeyPair,
    pub(super) receipt: SigningKey,
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
    pub(super) fn certificate_request(&self) -> Result<String, NotEnrolled> {
        let params = CertificateParams::new(Vec::new()).map_err(NotEnrolled::Key)?;
        let request = params.serialize_request(&self.tls).map_err(NotEnrolled::Key)?;
        request.pem().map_err(NotEnrolled::Key)
    }
}

/// The state directory as it will be, beside its place. Taken away again unless it is put there or kept.
pub(super) struct Draft {
    folder: PathBuf,
    place: PathBuf,
    /// The server may have taken the machine in with the keys in here.
    pub(super) is_kept: bool,
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
    pub(super) fn open(place: &Path) -> Result<Self, NotEnrolled> {
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
        draft.rehearse(owner).map_err(|source| NotEnrolled::Place {
            path: draft.place.clone(),
            source,
        })?;
        Ok(draft)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts an empty directory in the place of the empty one that is there: what can't be done once the server has
    /// answered costs the token and the name.
    fn rehearse(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        if fs::symlink_metadata(&self.place).is_err() {
            return Ok(());
        }
        let empty = self.folder.join(EMPTY);
        match fs::remove_dir(&empty) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&empty)?;
        if let Some((user, group)) = owner {
            chown(&empty, Some(user), Some(group))?;
        }
        let replaced = fs::rename(&empty, &self.place);
        if replaced.is_err() {
            drop(fs::remove_dir(&empty));
        }
        replaced
    }

    /// The keys that an earlier try with this token and name has left, or new ones.
    pub(super) fn keys(&mut self, token: &Token, name: &MachineName) -> Result<Keys, NotEnrolled> {
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

    pub(super) fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<(), NotEnrolled> {
        let path = self.folder.join(name);
        match state::write_private(&path, bytes) {
            Ok(_file) => Ok(()),
            Err(source) => Err(NotEnrolled::Disk { path, source }),
        }
    }

    pub(super) fn put_in_place(mut self) -> Result<(), NotEnrolled> {
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
    use rcgen::PublicKeyData;

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
    fn a_place_that_nothing_can_be_put_in_is_refused_before_anything_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state");
        fs::create_dir(folder.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &place).unwrap();
        assert!(matches!(Draft::open(&place), Err(NotEnrolled::Place { .. })));
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), b"x").unwrap();
        assert!(matches!(Draft::open(&place), Err(NotEnrolled::Place { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
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
}
