//! A guarded host and a client, and how one talks to the other.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nightlatch_agent::firewall::Firewall;
use nightlatch_core::ruleset::Ruleset;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{Netns, PATIENCE, SILENCE, now, wait_until};

/// The one source that most tests grant.
pub(crate) const FRIEND: &str = "192.0.2.2";
pub(crate) const STRANGER: &str = "192.0.2.3";
pub(crate) const FRIEND6: &str = "2001:db8::2";
pub(crate) const STRANGER6: &str = "2001:db8::3";
pub(crate) const HOST: &str = "192.0.2.1";
pub(crate) const HOST6: &str = "2001:db8::1";

/// A guarded host and a client with many addresses, joined by one wire.
pub(crate) struct Scene {
    pub(crate) firewall: Firewall,
    pub(crate) host: Netns,
    pub(crate) client: Netns,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let host = Netns::new("host");
        let client = Netns::new("client");
        host.wire("outside", &client, "uplink");
        host.ip(&format!(
            "addr add {HOST}/24 brd + dev outside\n\
             addr add {HOST6}/64 dev outside nodad\n\
             route add 198.51.100.0/24 dev outside\n\
             route add 203.0.113.0/24 dev outside\n\
             route add 2001:db8:1::/64 dev outside\n\
             route add 2001:db8:2::/64 dev outside"
        ));
        let addresses = [
            FRIEND,
            STRANGER,
            "198.51.100.7",
            "198.51.100.8",
            "198.51.100.200",
            "203.0.113.5",
        ];
        let addresses6 = [
            FRIEND6,
            STRANGER6,
            "2001:db8:1::7",
            "2001:db8:1::8",
            "2001:db8:2::5",
        ];
        let lines: Vec<String> = addresses
            .into_iter()
            .map(|address| format!("addr add {address}/24 dev uplink"))
            .chain(
                addresses6
                    .into_iter()
                    .map(|address| format!("addr add {address}/64 dev uplink nodad")),
            )
            .collect();
        client.ip(&lines.join("\n"));
        // IPv6 begins a moment after the wire carries; a refusal shows that it does.
        let echo = format!("[{HOST6}]:9").parse().unwrap();
        wait_until("IPv6", || {
            let outcome = client.run(|| connect(FRIEND6.parse().unwrap(), echo, PATIENCE));
            outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
        let firewall = host.run(Firewall::open).unwrap();
        Self {
            firewall,
            host,
            client,
        }
    }

    pub(crate) fn apply(&mut self, ruleset: &Ruleset) -> nightlatch_agent::firewall::Applied {
        self.firewall.apply(ruleset, now()).unwrap()
    }

    /// Connects from one of the client's addresses, if the host answers within `patience`.
    pub(crate) fn connect_within(&self, patience: Duration, from: &str, to: &str) -> io::Result<TcpStream> {
        let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        self.client.run(|| connect(from, to, patience))
    }

    pub(crate) fn connect(&self, from: &str, to: &str) -> TcpStream {
        self.connect_within(PATIENCE, from, to)
            .unwrap_or_else(|error| panic!("{from} -> {to}: {error}"))
    }

    #[track_caller]
    pub(crate) fn assert_shut(&self, from: &str, to: &str) {
        let outcome = self.connect_within(SILENCE, from, to);
        assert!(
            outcome.as_ref().is_err_and(is_silence),
            "{from} -> {to}: {outcome:?}"
        );
    }

    /// A UDP socket on one of the client's addresses, connected to the host.
    pub(crate) fn udp(&self, from: &str, to: &str) -> UdpFlow {
        let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        self.client.run(|| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.connect(to).unwrap();
            UdpFlow { socket, sent: 0 }
        })
    }

    /// Echoes whatever comes, on TCP and UDP, at all addresses of the host.
    pub(crate) fn serve(&self, ports: &[u16]) {
        for port in ports {
            serve(&self.host, *port);
        }
    }
}

pub(crate) fn serve(host: &Netns, port: u16) {
    let bind = || {
        Some((
            TcpListener::bind(("::", port)).ok()?,
            UdpSocket::bind(("::", port)).ok()?,
        ))
    };
    let mut bound = None;
    // A process being started by another test may hold a copy of a closed socket for a moment.
    wait_until("a free port", || {
        bound = host.run(bind);
        bound.is_some()
    });
    let (listener, socket) = bound.unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                io::copy(&mut stream, &mut copy)
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            // A client that has gone away is not the server's trouble.
            socket.send_to(&buffer[..length], from).ok();
        }
    });
}

pub(crate) fn connect(from: IpAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(
        &socket,
        sockopt::SendTimeout,
        &TimeVal::new(
            i64::try_from(patience.as_secs()).unwrap(),
            patience.subsec_micros().into(),
        ),
    )?;
    socket::bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

/// No answer at all, as opposed to a refusal, which would show the port.
pub(crate) fn is_silence(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32)
}

/// The session answers what the client says first.
#[track_caller]
pub(crate) fn assert_lives(session: &mut TcpStream) {
    session.set_read_timeout(Some(PATIENCE)).unwrap();
    session.write_all(b"still there?").unwrap();
    let mut answer = [0; 12];
    session.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still there?");
}

pub(crate) struct UdpFlow {
    pub(crate) socket: UdpSocket,
    sent: u32,
}

impl UdpFlow {
    /// Whether a datagram is answered within `patience`.
    pub(crate) fn is_answered_within(&mut self, patience: Duration) -> bool {
        self.sent += 1;
        let question = self.sent.to_be_bytes();
        self.socket.send(&question).unwrap();
        let deadline = Instant::now() + patience;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return false;
            }
            self.socket.set_read_timeout(Some(remaining)).unwrap();
            let mut answer = [0; 64];
            match self.socket.recv(&mut answer) {
                Ok(length) if answer[..length] == question => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn is_answered(&mut self) -> bool {
        self.is_answered_within(PATIENCE)
    }

    pub(crate) fn is_ignored(&mut self) -> bool {
        !self.is_answered_within(SILENCE)
    }
}
