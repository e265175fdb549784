//! The host that people sit at: the command line, ssh, and knocking at doors.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

use crate::lab::Lab;
use crate::netns::{Netns, ip_batch};
use crate::plan::Addresses;
use crate::session::Session;
use crate::wait::{self, Outcome};

const PATIENCE: Duration = Duration::from_secs(30);
/// discard(9): no machine of a lab listens there.
const NOBODYS_PORT: u16 = 9;
/// A shut door is silent. An open one answers within a millisecond here, so this is a long time.
pub const SILENCE: Duration = Duration::from_millis(600);

/// What became of a connection attempt.
#[derive(Debug)]
pub enum Answer {
    Connected(TcpStream),
    /// The host answered that nobody listens: the packet passed.
    Refused,
    /// No answer at all: what a shut port looks like.
    Silent,
}

/// The host that people sit at.
#[derive(Clone, Copy)]
pub struct Client<'l> {
    lab: &'l Lab,
}

impl<'l> Client<'l> {
    pub(crate) const fn of(lab: &'l Lab) -> Self {
        Self { lab }
    }

    pub fn netns(self) -> Netns {
        self.lab.name().client()
    }

    /// `nightlatch` as the administrator that `init` made.
    pub fn nightlatch(self, arguments: &[&str]) -> Command {
        let mut command = self.netns().exec(self.lab.binary("nightlatch"));
        command.args(arguments).envs(self.environment());
        command
    }

    /// Server and credentials for the command line, and no configuration of the machine's own users.
    pub fn environment(self) -> Vec<(&'static str, String)> {
        let state = self.lab.control().state();
        let file = |name: &str| state.join(name).display().to_string();
        vec![
            ("NIGHTLATCH_SERVER", self.lab.control().url()),
            ("NIGHTLATCH_CA", file("ca.pem")),
            ("NIGHTLATCH_CERT", file("admin.pem")),
            ("NIGHTLATCH_KEY", file("admin.key")),
            (
                "XDG_CONFIG_HOME",
                self.lab.dir().join("client").display().to_string(),
            ),
        ]
    }

    pub fn run(self, arguments: &[&str]) -> Result<Outcome> {
        wait::run(&mut self.nightlatch(arguments), PATIENCE)
    }

    /// Runs the command line, which must succeed, and reads its JSON.
    pub fn json(self, arguments: &[&str]) -> Result<Value> {
        let outcome = self.run(&[arguments, &["--output", "json"]].concat())?;
        let text = outcome.expect_success(&format!("nightlatch {}", arguments.join(" ")))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    pub fn machines(self) -> Result<Vec<Value>> {
        list(self.json(&["list", "machines"])?, "machines")
    }

    /// All grants, ended ones included.
    pub fn grants(self) -> Result<Vec<Value>> {
        list(self.json(&["list", "grants", "--all"])?, "grants")
    }

    /// All events, oldest first.
    pub fn events(self) -> Result<Vec<Value>> {
        list(self.json(&["events", "--all"])?, "events")
    }

    /// Asks for access to one machine, which must be open when this returns; gives the id of the grant.
    pub fn open(self, machine: &str, arguments: &[&str]) -> Result<String> {
        let asked = [&["request", machine, "--reason", "test"], arguments].concat();
        let answer = self.json(&asked)?;
        let grant = answer["access_request"]["outcomes"][0]["grant"].as_str();
        let id = grant.and_then(|grant| grant.strip_prefix("grants/"));
        id.map(str::to_owned)
            .with_context(|| format!("no grant in {answer}"))
    }

    /// Gives the client a further address, such as `198.51.100.7/24`, which the machines have learnt when this returns.
    pub fn add_address(self, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        ip_batch(
            Some(&self.netns()),
            &[format!("addr add {address} dev eth0{nodad}")],
        )?;
        let from = address.split('/').next().unwrap_or_default().parse()?;
        self.lab
            .machines()
            .try_for_each(|machine| self.wait_path(Some(from), machine.addresses()))
    }

    /// Waits until packets come and go, by the refusal of a port that nobody guards. An address's first neighbour
    /// solicitation may get lost, and the next one follows only after a second.
    pub(crate) fn wait_path(self, from: Option<IpAddr>, to: Addresses) -> Result<()> {
        let both = [IpAddr::from(to.ipv4), IpAddr::from(to.ipv6)];
        let mut fitting = both
            .into_iter()
            .filter(|to| from.is_none_or(|from| from.is_ipv4() == to.is_ipv4()));
        fitting.try_for_each(|to| {
            let door = SocketAddr::from((to, NOBODYS_PORT));
            wait::until_true("no packet comes back", PATIENCE, || {
                let answer = self.knock(from, door, SILENCE)?;
                Ok(matches!(answer, Answer::Refused))
            })
            .with_context(|| format!("from {from:?} to {door}"))
        })
    }

    /// One attempt to connect, from a given address of the client or any.
    pub fn knock(self, from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<Answer> {
        self.netns().inside(|| knock(from, to, patience))
    }

    /// Whether a connection can be made now.
    pub fn reaches(self, to: SocketAddr) -> Result<bool> {
        self.reaches_from(None, to)
    }

    pub fn reaches_from(self, from: Option<IpAddr>, to: SocketAddr) -> Result<bool> {
        match self.knock(from, to, SILENCE)? {
            Answer::Connected(_) => Ok(true),
            Answer::Silent => Ok(false),
            Answer::Refused => bail!("{to} is neither shut nor served"),
        }
    }

    /// Sends one datagram and waits for an echo.
    pub fn echoes(self, socket: &UdpSocket, to: SocketAddr) -> Result<bool> {
        let word = b"is anybody there?";
        socket.send_to(word, to).context("sending a datagram")?;
        socket
            .set_read_timeout(Some(SILENCE))
            .context("setting a timeout")?;
        let mut answer = [0; 64];
        match socket.recv_from(&mut answer) {
            Ok((length, from)) => Ok(from == to && answer.get(..length) == Some(word)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error).context("receiving a datagram"),
        }
    }

    /// `ssh` with the lab's key and the machines' host keys.
    pub fn ssh(self, arguments: &[&str]) -> Command {
        let mut command = self.netns().exec("ssh");
        command
            .arg("-F")
            .arg(self.lab.dir().join("ssh_config"))
            .args(arguments);
        command
    }

    /// Runs one command on a machine over ssh.
    pub fn run_ssh(self, arguments: &[&str]) -> Result<Outcome> {
        wait::run(&mut self.ssh(arguments), PATIENCE)
    }

    /// A place to type commands as a person would: `nightlatch` finds server and credentials, `ssh web-1` finds
    /// key, host key and address. The command's words follow.
    pub fn desk(self) -> Command {
        let script = "mount --bind \"$1/hosts\" /etc/hosts; mount --bind \"$1/ssh_config\" /etc/ssh/ssh_config; \
                      if [ -d /root/.ssh ]; then mount -t tmpfs tmpfs /root/.ssh; fi; \
                      PATH=\"$2:$PATH\"; shift 2; exec \"$@\"";
        let mut command = self.netns().exec("sh");
        command
            .args(["-ec", script, "sh"])
            .arg(self.lab.dir())
            .arg(self.lab.binaries());
        command.envs(self.environment());
        command
    }

    /// Opens a session and keeps it; `to` is a machine's name or address.
    pub fn session(self, to: &str) -> Result<Session> {
        Session::open(self.ssh(&["-T", to, "sh"]))
    }
}

fn list(answer: Value, member: &str) -> Result<Vec<Value>> {
    match answer {
        Value::Object(mut members) => match members.remove(member) {
            Some(Value::Array(items)) => Ok(items),
            _ => bail!("no list `{member}` in {members:?}"),
        },
        other => bail!("not an object: {other}"),
    }
}

pub(crate) fn knock(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<Answer> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let door = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("making a socket")?;
    if let Some(from) = from {
        bind(
            door.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::from((from, 0))),
        )
        .with_context(|| format!("binding {from}"))?;
    }
    // The time that connect(2) may take, as for sends (socket(7)).
    let limit = TimeVal::new(patience.as_secs().try_into()?, patience.subsec_micros().into());
    setsockopt(&door, sockopt::SendTimeout, &limit).context("setting a timeout")?;
    match connect(door.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(Answer::Connected(TcpStream::from(door))),
        Err(Errno::ECONNREFUSED) => Ok(Answer::Refused),
        Err(Errno::EINPROGRESS | Errno::ETIMEDOUT | Errno::EHOSTUNREACH) => Ok(Answer::Silent),
        Err(error) => Err(error).with_context(|| format!("connecting to {to}")),
    }
}
