//! Why no conversation with the server came about, told apart by what to do next.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use nightlatch_core::time::Timestamp;
use rustls::{AlertDescription, CertificateError};

use super::server_certificate::NotAServer;
use crate::settings::{ServerAddress, Settings};
use crate::when;

/// What failed, and with which settings.
#[derive(Debug)]
pub(crate) struct Unreachable {
    server: ServerAddress,
    ca: PathBuf,
    cert: PathBuf,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    NothingListens,
    NoAnswer,
    UnknownHost,
    Network(String),
    /// The connection ended without a word; what is behind it isn't known.
    Broken,
    WrongAuthority,
    ServerExpired,
    ServerNotYetValid,
    WrongName(Vec<String>),
    NotAServer,
    ServerCertificate(String),
    CertificateRefused,
    CertificateExpired(Option<Timestamp>),
    NoTls,
    NoGrpc,
}

impl Unreachable {
    pub(crate) fn new(settings: &Settings, why: Why) -> Self {
        let Settings { server, ca, cert, .. } = settings;
        Self {
            server: server.clone(),
            ca: ca.clone(),
            cert: cert.clone(),
            why,
        }
    }

    pub(crate) fn hint(&self) -> String {
        let Self { server, ca, .. } = self;
        match &self.why {
            Why::NothingListens | Why::NoAnswer | Why::Network(_) => {
                "check that nightlatch-server runs there, the port (7443), and the network between"
                    .to_string()
            }
            Why::UnknownHost => "check the host name in --server".to_string(),
            Why::Broken => "check that the port is the one for people (7443), and try again".to_string(),
            Why::WrongAuthority => {
                format!(
                    "use the ca.pem of that server; if {} is that one, you are talking to someone else",
                    ca.display()
                )
            }
            Why::ServerExpired | Why::ServerNotYetValid => {
                "renew the server's certificate, or correct this computer's clock".to_string()
            }
            Why::WrongName(names) if names.is_empty() => {
                "call the server by a name in its certificate".to_string()
            }
            Why::WrongName(names) => format!("call it by one of its names: {}", names.join(", ")),
            Why::NotAServer | Why::ServerCertificate(_) => {
                format!("do not trust {server}: it has a certificate of your authority, yet not a server's")
            }
            Why::CertificateRefused => {
                "use a certificate that this server issued (`nightlatch-server user issue`)".to_string()
            }
            Why::CertificateExpired(_) => {
                "have a new one issued with `nightlatch-server user issue`".to_string()
            }
            Why::NoTls | Why::NoGrpc => {
                "name the server's port for people, 7443 unless configured otherwise".to_string()
            }
        }
    }
}

impl Error for Unreachable {}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, .. } = self;
        let cert = self.cert.display();
        match &self.why {
            Why::NothingListens => write!(f, "cannot reach {server}: nothing listens there"),
            Why::NoAnswer => write!(f, "cannot reach {server}: no answer within 5s"),
            Why::UnknownHost => write!(
                f,
                "cannot reach {server}: the host name {} is not known",
                server.host()
            ),
            Why::Network(reason) => write!(f, "cannot reach {server}: {reason}"),
            Why::Broken => write!(f, "the connection to {server} broke"),
            Why::WrongAuthority => {
                write!(
                    f,
                    "the certificate of {server} was not signed by the authority in {}",
                    self.ca.display()
                )
            }
            Why::ServerExpired => write!(f, "the certificate of {server} has expired"),
            Why::ServerNotYetValid => write!(f, "the certificate of {server} is not valid yet"),
            Why::WrongName(_) => write!(
                f,
                "the certificate of {server} is not for the name {}",
                server.host()
            ),
            Why::NotAServer => write!(f, "{server} is not a Nightlatch server: {NotAServer}"),
            Why::ServerCertificate(reason) => {
                write!(f, "the certificate of {server} cannot be accepted: {reason}")
            }
            Why::CertificateRefused => write!(f, "{server} does not accept the client certificate {cert}"),
            Why::CertificateExpired(None) => write!(f, "the client certificate {cert} has expired"),
            Why::CertificateExpired(Some(end)) => {
                write!(
                    f,
                    "the client certificate {cert} expired at {}",
                    when::local(*end)
                )
            }
            Why::NoTls => write!(f, "what answers at {server} does not speak TLS"),
            Why::NoGrpc => write!(f, "what answers at {server} is not a Nightlatch server"),
        }
    }
}

impl Why {
    /// The most telling cause in the chain of a failed connection or call; `None` if it tells nothing.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut told = None;
        let mut next = Some(error);
        while let Some(error) = next {
            // An io::Error's source is the source of what it wraps: what it wraps has to be asked for.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let tls = inner
                .and_then(|inner| inner.downcast_ref())
                .or_else(|| error.downcast_ref());
            if let Some(tls) = tls {
                return Some(Self::of_tls(tls));
            }
            // These two have no type of their own that could be asked for.
            let text = error.to_string();
            if text.contains("failed to lookup address") {
                return Some(Self::UnknownHost);
            }
            if text.starts_with("TLS handshake timeout") {
                return Some(Self::NoAnswer);
            }
            if let Some(io) = error.downcast_ref::<io::Error>() {
                told = Some(Self::of_io(io));
            }
            if error.downcast_ref::<tokio::time::error::Elapsed>().is_some()
                || error.downcast_ref::<tonic::TimeoutExpired>().is_some()
            {
                told = Some(Self::NoAnswer);
            }
            next = error.source();
        }
        told
    }

    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::NothingListens,
            io::ErrorKind::TimedOut => Self::NoAnswer,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            // HTTP/2 keeps of a TLS error no more than this.
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof => Self::Broken,
            _ => Self::Network(error.to_string()),
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(invalid) => Self::of_certificate(invalid),
            Tls::AlertReceived(AlertDescription::CertificateExpired) => Self::CertificateExpired(None),
            Tls::AlertReceived(AlertDescription::NoApplicationProtocol) | Tls::NoApplicationProtocol => {
                Self::NoGrpc
            }
            Tls::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError,
            ) => Self::CertificateRefused,
            Tls::InvalidMessage(_) => Self::NoTls,
            other => Self::Network(format!("no secure connection: {other}")),
        }
    }

    fn of_certificate(invalid: &CertificateError) -> Self {
        match invalid {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::WrongAuthority,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::ServerExpired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::ServerNotYetValid
            }
            CertificateError::NotValidForName => Self::WrongName(Vec::new()),
            CertificateError::NotValidForNameContext { presented, .. } => Self::WrongName(
                presented
                    .iter()
                    .map(|name| plain_name(name))
                    .filter(|name| !name.contains("://"))
                    .collect(),
            ),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::NotAServer
            }
            CertificateError::Other(other) if other.0.downcast_ref::<NotAServer>().is_some() => {
                Self::NotAServer
            }
            other => Self::ServerCertificate(other.to_string()),
        }
    }
}

/// rustls writes names as `DnsName("control")` and `IpAddress(0::1)`.
fn plain_name(presented: &str) -> String {
    let inner = presented
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    let name = inner.unwrap_or(presented).trim_matches('"');
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_string(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_apart() {
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let bad = |error: CertificateError| tls(error.into());
        let alert = |alert| tls(rustls::Error::AlertReceived(alert));
        for (error, why) in [
            (io::ErrorKind::ConnectionRefused.into(), Why::NothingListens),
            (io::ErrorKind::TimedOut.into(), Why::NoAnswer),
            (io::ErrorKind::ConnectionReset.into(), Why::Broken),
            (bad(CertificateError::UnknownIssuer), Why::WrongAuthority),
            (bad(CertificateError::Expired), Why::ServerExpired),
            (bad(CertificateError::NotValidYet), Why::ServerNotYetValid),
            (bad(CertificateError::NotValidForName), Why::WrongName(Vec::new())),
            (alert(AlertDescription::UnknownCA), Why::CertificateRefused),
            (
                alert(AlertDescription::CertificateExpired),
                Why::CertificateExpired(None),
            ),
        ] {
            assert_eq!(Why::of(&error), Some(why), "{error}");
        }
    }

    #[test]
    fn names_are_written_as_people_write_them() {
        for (presented, name) in [
            ("DnsName(\"control.example.org\")", "control.example.org"),
            ("IpAddress(0::1)", "::1"),
            ("IpAddress(192.0.2.1)", "192.0.2.1"),
            ("control", "control"),
        ] {
            assert_eq!(plain_name(presented), name);
        }
    }
}
