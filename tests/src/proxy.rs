//! A bad network: relays TCP with delay, in small pieces, and breaks connections off.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Pieces on the way in one direction; more wait at the sender.
const ON_THE_WAY: usize = 1024;
const GLANCE: Duration = Duration::from_millis(20);

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// In each direction.
    pub delay: Duration,
    /// The most bytes that travel together.
    pub piece: usize,
    /// A connection breaks after this many bytes in one direction; the next one after twice as many.
    pub breaks_after: Option<u64>,
}

/// Ends, with all its connections, when it is dropped.
pub struct Proxy {
    over: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    service: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Relays what comes to `at` on to `to`, both in one namespace.
    pub fn serve(netns: &Netns, at: SocketAddr, to: SocketAddr, weather: Weather) -> Result<Self> {
        let listener = netns.inside(|| TcpListener::bind(at).with_context(|| format!("binding {at}")))?;
        listener
            .set_nonblocking(true)
            .context("making a listener impatient")?;
        let (over, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, counter, netns) = (Arc::clone(&over), Arc::clone(&accepted), netns.clone());
        let service = thread::spawn(move || {
            let mut relays = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let Ok((near, _)) = listener.accept() else {
                    thread::sleep(GLANCE);
                    continue;
                };
                let number = counter.fetch_add(1, Ordering::Relaxed);
                // A server that is away is for the caller to notice.
                let Ok(far) = netns.inside(|| TcpStream::connect(to).context("connecting onwards")) else {
                    continue;
                };
                let limit = weather
                    .breaks_after
                    .map(|bytes| bytes.saturating_mul(1 << number.min(32)));
                relays.extend(relay(near, far, weather, limit, &told).unwrap_or_default());
            }
            for relay in relays {
                // One that fell over has ended too.
                relay.join().ok();
            }
        });
        Ok(Self {
            over,
            accepted,
            service: Some(service),
        })
    }

    /// How many connections came so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(service) = self.service.take() {
            service.join().ok();
        }
    }
}

fn relay(
    near: TcpStream,
    far: TcpStream,
    weather: Weather,
    limit: Option<u64>,
    over: &Arc<AtomicBool>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    for stream in [&near, &far] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GLANCE))?;
    }
    for (from, to) in [
        (near.try_clone()?, far.try_clone()?),
        (far.try_clone()?, near.try_clone()?),
    ] {
        let (sender, receiver) = sync_channel(ON_THE_WAY);
        let (writer, ends) = (to.try_clone()?, [from.try_clone()?, to]);
        let told = Arc::clone(over);
        threads.push(thread::spawn(move || {
            take(from, &sender, weather, limit, &told);
            drop(sender);
        }));
        threads.push(thread::spawn(move || {
            deliver(writer, &receiver);
            for end in ends {
                // The other direction may have ended it already.
                end.shutdown(Shutdown::Both).ok();
            }
        }));
    }
    Ok(threads)
}

type Piece = (Instant, Vec<u8>);

/// Until the sender ends, the limit is reached or all is over.
fn take(
    mut from: TcpStream,
    to: &SyncSender<Piece>,
    weather: Weather,
    limit: Option<u64>,
    over: &AtomicBool,
) {
    let mut buffer = vec![0; weather.piece.max(1)];
    let mut passed = 0;
    while !over.load(Ordering::Relaxed) && limit.is_none_or(|limit| passed < limit) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                passed += u64::try_from(length).unwrap_or(u64::MAX);
                let piece = buffer.get(..length).unwrap_or_default().to_vec();
                if to.send((Instant::now() + weather.delay, piece)).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
}

fn deliver(mut to: TcpStream, from: &Receiver<Piece>) {
    while let Ok((due, piece)) = from.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
}
