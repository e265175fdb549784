//! A service that sends datagrams back, on a machine of the lab.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Ends when it is dropped.
pub struct Echo {
    over: Arc<AtomicBool>,
    service: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn serve(netns: &Netns, at: SocketAddr) -> Result<Self> {
        let socket = netns.inside(|| UdpSocket::bind(at).with_context(|| format!("binding {at}")))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context("setting a timeout")?;
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let service = thread::spawn(move || {
            let mut datagram = [0; 2048];
            while !told.load(Ordering::Relaxed) {
                match socket.recv_from(&mut datagram) {
                    Ok((length, from)) => {
                        // A lost answer is for whoever asked to notice.
                        socket
                            .send_to(datagram.get(..length).unwrap_or_default(), from)
                            .ok();
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => break,
                }
            }
        });
        Ok(Self {
            over,
            service: Some(service),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(service) = self.service.take() {
            // One that fell over has ended too.
            service.join().ok();
        }
    }
}
