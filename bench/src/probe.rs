//! Knocking at doors, from addresses and at moments of one's choice. All of it happens in the network namespace
//! of the thread that calls.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nightlatch_core::time::Timestamp;
use nightlatch_tests::netns::Netns;
use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
    shutdown, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::moment;

/// Somebody who answers behind a port, and hangs up at once.
pub struct Doorkeeper {
    listener: TcpListener,
    answering: Option<JoinHandle<()>>,
}

impl Doorkeeper {
    pub fn answer(netns: &Netns, at: SocketAddrV4) -> Result<Self> {
        let listener = listener(netns, at)?;
        let door = listener.try_clone().context("sharing a listener")?;
        let answering = thread::spawn(move || while door.accept().is_ok() {});
        Ok(Self {
            listener,
            answering: Some(answering),
        })
    }
}

impl Drop for Doorkeeper {
    fn drop(&mut self) {
        // Ends accept(2).
        if shutdown(self.listener.as_raw_fd(), Shutdown::Both).is_ok()
            && let Some(answering) = self.answering.take()
        {
            answering.join().ok();
        }
    }
}

/// A door that the kernel answers alone until someone clears up: nobody wakes up while connects are timed.
pub struct Porch(TcpListener);

impl Porch {
    pub fn open(netns: &Netns, at: SocketAddrV4) -> Result<Self> {
        let listener = listener(netns, at)?;
        listener
            .set_nonblocking(true)
            .context("making a listener not block")?;
        Ok(Self(listener))
    }

    /// Takes in whoever has come; room is for a few thousand.
    pub fn clear(&self) {
        while self.0.accept().is_ok() {}
    }
}

fn listener(netns: &Netns, at: SocketAddrV4) -> Result<TcpListener> {
    let listener = netns
        .inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, at.port())).context("listening"))
        .with_context(|| format!("port {} of {}", at.port(), netns.name()))?;
    // Knocking is faster than answering; a full queue would look like a shut door.
    listen(&listener, Backlog::new(4096).context("a backlog")?).context("lengthening the queue")?;
    Ok(listener)
}

/// One attempt to connect; the connection is reset at once, so that no port is kept for it.
pub fn connects(from: Ipv4Addr, to: SocketAddrV4, patience: Duration) -> Result<bool> {
    let door = bound(from, SockFlag::empty())?;
    // The time that connect(2) may take, as for sends (socket(7)).
    let limit = TimeVal::new(patience.as_secs().try_into()?, patience.subsec_micros().into());
    setsockopt(&door, sockopt::SendTimeout, &limit).context("setting a timeout")?;
    match connect(door.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(true),
        Err(Errno::EINPROGRESS | Errno::ETIMEDOUT) => Ok(false),
        Err(Errno::ECONNREFUSED) => bail!("{to} is neither shut nor served"),
        Err(error) => Err(error).with_context(|| format!("connecting from {from} to {to}")),
    }
}

/// Knocks until it opens, a new attempt each millisecond; says when an attempt was first seen to have got through,
/// which is looked for every 50 µs.
pub fn first_open(from: Ipv4Addr, to: SocketAddrV4, patience: Duration) -> Result<Instant> {
    let deadline = Instant::now() + patience;
    let mut attempts: Vec<(Instant, TcpStream)> = Vec::new();
    while Instant::now() < deadline {
        attempts.push((Instant::now(), begun(from, to)?));
        let answer_by = Instant::now() + Duration::from_millis(1);
        while Instant::now() < answer_by {
            let open = |(_, attempt): &&(Instant, TcpStream)| attempt.peer_addr().is_ok();
            if attempts.iter().rev().take(20).any(|attempt| open(&attempt)) {
                return Ok(Instant::now());
            }
            thread::sleep(Duration::from_micros(50));
        }
        // Older ones were dropped: TCP would try them again only after a second.
        if attempts.len() > 200 {
            attempts.drain(..100);
        }
    }
    bail!("{to} did not open for {from} within {patience:?}")
}

/// For which of these addresses a door is open, in their order; all knock at once, a few hundred at a time.
pub fn open_for(sources: &[Ipv4Addr], to: SocketAddrV4, patience: Duration) -> Result<Vec<bool>> {
    let mut open = Vec::with_capacity(sources.len());
    for some in sources.chunks(500) {
        let attempts: Vec<TcpStream> = some.iter().map(|from| begun(*from, to)).collect::<Result<_>>()?;
        let through = || attempts.iter().map(|attempt| attempt.peer_addr().is_ok());
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && !through().all(|open| open) {
            thread::sleep(Duration::from_millis(1));
        }
        open.extend(through());
    }
    Ok(open)
}

/// When and how often to knock at a door that is about to be shut.
#[derive(Clone, Copy)]
pub struct Watch {
    pub begin: Timestamp,
    pub end: Timestamp,
    /// From one attempt to the next.
    pub pace: Duration,
    /// Once it was open, so much silence means that it has been shut.
    pub quiet: Duration,
}

/// What a door did round an expected end.
#[derive(Default)]
pub struct Watched {
    /// The beginning of the last attempt that got through.
    pub last_open_at: Option<Timestamp>,
    /// The beginning of the first attempt after it, none of which got through.
    pub first_shut_at: Option<Timestamp>,
}

impl Watched {
    /// Forgets the attempts up to the last that has got through.
    fn take_in(&mut self, attempts: &mut Vec<(Timestamp, TcpStream)>) {
        let open = |(_, attempt): &(Timestamp, TcpStream)| attempt.peer_addr().is_ok();
        if let Some(last) = attempts.iter().rposition(open) {
            self.last_open_at = attempts.drain(..=last).next_back().map(|(at, _)| at);
        }
    }
}

/// Knocks as `watch` says.
pub fn watch(from: Ipv4Addr, to: SocketAddrV4, watch: Watch) -> Result<Watched> {
    const LOOK: Duration = Duration::from_millis(100);
    thread::sleep(watch.begin.since(moment::now()?));
    let mut watched = Watched::default();
    let mut attempts = Vec::new();
    let mut next = Instant::now();
    let mut look_at = next + LOOK;
    loop {
        let now = moment::now()?;
        if now > watch.end {
            break;
        }
        attempts.push((now, begun(from, to)?));
        next += watch.pace;
        if next > look_at {
            look_at = next + LOOK;
            watched.take_in(&mut attempts);
            let silent = |(since, _): &(Timestamp, TcpStream)| now.since(*since) > watch.quiet;
            if watched.last_open_at.is_some() && attempts.first().is_some_and(silent) {
                break;
            }
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // For the answers to the last ones.
    thread::sleep(Duration::from_millis(30));
    watched.take_in(&mut attempts);
    watched.first_shut_at = attempts.first().map(|(at, _)| *at);
    Ok(watched)
}

fn begun(from: Ipv4Addr, to: SocketAddrV4) -> Result<TcpStream> {
    let door = bound(from, SockFlag::SOCK_NONBLOCK)?;
    match connect(door.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(door)),
        Err(error) => Err(error).with_context(|| format!("knocking from {from} at {to}")),
    }
}

fn bound(from: Ipv4Addr, flags: SockFlag) -> Result<OwnedFd> {
    let door = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | flags,
        None,
    )
    .context("making a socket")?;
    let reset = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&door, sockopt::Linger, &reset).context("setting SO_LINGER")?;
    setsockopt(&door, sockopt::IpBindAddressNoPort, &true).context("setting IP_BIND_ADDRESS_NO_PORT")?;
    let source = SocketAddr::from((from, 0));
    bind(door.as_raw_fd(), &SockaddrStorage::from(source)).with_context(|| format!("binding {from}"))?;
    Ok(door)
}
