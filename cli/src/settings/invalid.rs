//! What is wrong with the settings, and the next step.

use std::io;
use std::path::PathBuf;

/// The files that say who we are and whom we trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    Ca,
    Cert,
    Key,
}

impl Credential {
    const fn option(self) -> &'static str {
        match self {
            Self::Ca => "--ca",
            Self::Cert => "--cert",
            Self::Key => "--key",
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Ca => "certificate of an authority",
            Self::Cert => "certificate",
            Self::Key => "private key",
        }
    }
}

/// The option may not be what was written: all ways are named.
fn given_by(option: &str) -> String {
    let name = option.trim_start_matches("--");
    let variable = name.to_uppercase();
    format!("it is given by {option}, by NIGHTLATCH_{variable}, or as `{name}` in a settings file")
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidSettings {
    #[error("no {setting} is set")]
    Missing {
        setting: &'static str,
        example: &'static str,
        file: PathBuf,
    },
    #[error("server: `{0}` is not a server: write https://HOST:7443 or HOST[:7443]")]
    NotAServer(String),
    #[error("the settings cannot be read from {}: {error}", path.display())]
    UnreadableFile {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{} is not a settings file: {reason}", path.display())]
    NotSettings { path: PathBuf, reason: String },
    #[error("{}: the {} cannot be read from {}: {error}", credential.option(), credential.what(), path.display())]
    Unreadable {
        credential: Credential,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("--key: the private key {} can be read by others (its mode is {mode:04o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{}: {} holds no {} in PEM", credential.option(), path.display(), credential.what())]
    NotPem { credential: Credential, path: PathBuf },
    #[error(
        "--key: the certificate {} and the key {} cannot be used together: {reason}",
        cert.display(),
        key.display()
    )]
    Mismatch {
        cert: PathBuf,
        key: PathBuf,
        reason: String,
    },
}

impl InvalidSettings {
    /// The option that the setting can be given by.
    pub(crate) const fn option(&self) -> &'static str {
        match self {
            Self::Missing { setting, .. } => match setting.as_bytes() {
                b"server" => "--server",
                b"ca" => "--ca",
                b"cert" => "--cert",
                _ => "--key",
            },
            Self::NotAServer(_) => "--server",
            Self::Unreadable { credential, .. } | Self::NotPem { credential, .. } => credential.option(),
            Self::Exposed { .. } | Self::Mismatch { .. } => "--key",
            // No option names these files.
            Self::UnreadableFile { .. } | Self::NotSettings { .. } => "",
        }
    }

    /// The next step.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Missing {
                setting,
                example,
                file,
            } => {
                let variable = setting.to_uppercase();
                let file = file.display();
                format!(
                    "give --{setting}, set NIGHTLATCH_{variable}, or write {setting} = \"{example}\" into {file}"
                )
            }
            Self::NotAServer(_) => given_by("--server"),
            Self::Exposed { path, .. } => format!("keep it to yourself: chmod 600 {}", path.display()),
            Self::UnreadableFile { .. } => "check who may read it, and that it is text in UTF-8".to_string(),
            Self::Unreadable { credential, .. } => format!(
                "check the path and who may read it: {}",
                given_by(credential.option())
            ),
            Self::NotSettings { .. } => "it may set server, ca, cert and key, nothing else".to_string(),
            Self::NotPem { credential, .. } => {
                let origin = match credential {
                    Credential::Ca => "name the ca.pem of the server's state directory",
                    Credential::Cert | Credential::Key => {
                        "name the file that `nightlatch-server user issue` has made"
                    }
                };
                format!("{origin}: {}", given_by(credential.option()))
            }
            Self::Mismatch { .. } => "name the .pem and the .key that were issued together".to_string(),
        }
    }
}
