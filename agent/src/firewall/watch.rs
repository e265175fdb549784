//! What others do to our table, as the kernel tells it right after each transaction.

use std::io;
use std::time::Duration;

use netlink_packet_core::{DecodeError, NetlinkBuffer, NlasIterator};
use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::sleep;

use super::FirewallError;
use super::netlink::{READ, is, prepare};
use super::table::TABLE;
use super::touch::{Change, Object, Process, Touch, Verb, tidy};
use crate::causes::causes;

/// The multicast group of nf_tables (NFNLGRP_NFTABLES).
const GROUP: u32 = 7;
/// What comes while nobody reads. Beyond it the kernel drops, and says so.
const BUFFER: usize = 8 << 20;
/// After a socket that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Of one transaction. What a person should know is in the first ones.
const MOST_CHANGES: usize = 8;

/// Tells of each transaction that touches our table and isn't from the socket `own`, and whenever some may have been
/// missed. Ends when nobody listens. Changes of other tables go no further than here.
pub async fn watch(own: u32, touches: mpsc::Sender<Touch>) {
    let mut is_said = false;
    while !touches.is_closed() {
        let ended = match Watch::open(own) {
            Ok(mut watch) => {
                is_said = false;
                watch.tell(&touches).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended
            && !std::mem::replace(&mut is_said, true)
        {
            tracing::warn!(
                error = %causes(&error),
                "changes by others are noticed a few seconds later: the kernel doesn't tell of them"
            );
        }
        sleep(PAUSE).await;
    }
}

struct Watch {
    socket: TokioSocket,
    course: Course,
}

impl Watch {
    fn open(own: u32) -> Result<Self, FirewallError> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(FirewallError::Socket)?;
        prepare(socket.socket_mut(), BUFFER)?;
        let joined = socket.socket_mut().add_membership(GROUP);
        joined.map_err(FirewallError::Socket)?;
        Ok(Self {
            socket,
            course: Course::beside(own),
        })
    }

    /// Until nobody listens.
    async fn tell(&mut self, touches: &mpsc::Sender<Touch>) -> Result<(), FirewallError> {
        // What came before the socket was there.
        if !send(touches, Touch::missed()) {
            return Ok(());
        }
        let mut buffer = Vec::with_capacity(READ);
        loop {
            buffer.clear();
            let touched = match self.socket.recv(&mut buffer).await {
                Ok(_) => self.course.read(&buffer),
                Err(error) if is(&error, Errno::ENOBUFS) => Err(DecodeError::from("overrun")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(FirewallError::Socket(error)),
            };
            let touched = touched.unwrap_or_else(|_missed| {
                self.course.forget();
                vec![Touch::missed()]
            });
            for touch in touched {
                if !send(touches, touch) {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether somebody listens. One that finds no room isn't needed: those before it make the listener look after it.
fn send(touches: &mpsc::Sender<Touch>, touch: Touch) -> bool {
    !matches!(touches.try_send(touch), Err(TrySendError::Closed(_)))
}

/// What was heard of a transaction that isn't whole yet. The kernel tells of one after the other.
struct Course {
    own: u32,
    changes: Vec<Change>,
}

impl Course {
    const fn beside(own: u32) -> Self {
        Self {
            own,
            changes: Vec::new(),
        }
    }

    fn forget(&mut self) {
        self.changes.clear();
    }

    /// The transactions that touch our table and end here.
    fn read(&mut self, mut bytes: &[u8]) -> Result<Vec<Touch>, DecodeError> {
        let mut touched = Vec::new();
        while !bytes.is_empty() {
            let message = NetlinkBuffer::new_checked(bytes)?;
            // What is read at once is of one transaction.
            if message.port_number() == self.own {
                break;
            }
            touched.extend(self.message(message.message_type(), message.payload())?);
            let length = usize::try_from(message.length())
                .unwrap_or(usize::MAX)
                .checked_next_multiple_of(4);
            bytes = length.and_then(|length| bytes.get(length..)).unwrap_or_default();
        }
        Ok(touched)
    }

    fn message(&mut self, kind: u16, payload: &[u8]) -> Result<Option<Touch>, DecodeError> {
        const NFNL_SUBSYS_NFTABLES: u8 = 10;
        const NFT_MSG_NEWGEN: u8 = 15;
        const HEADER: usize = 4;
        let [subsystem, kind] = kind.to_be_bytes();
        let Some((header, attributes)) = payload.split_at_checked(HEADER) else {
            return Err(DecodeError::from("no header"));
        };
        if subsystem != NFNL_SUBSYS_NFTABLES {
            return Ok(None);
        }
        if kind == NFT_MSG_NEWGEN {
            let changes = std::mem::take(&mut self.changes);
            if changes.is_empty() {
                return Ok(None);
            }
            return Ok(Some(Touch::of(process(attributes)?, changes)));
        }
        if self.changes.len() < MOST_CHANGES
            && let Some(change) = change(header, kind, attributes)?
            && !self.changes.contains(&change)
        {
            self.changes.push(change);
        }
        Ok(None)
    }
}

/// Of our table; `None` for another.
fn change(header: &[u8], kind: u8, attributes: &[u8]) -> Result<Option<Change>, DecodeError> {
    const NFPROTO_INET: u8 = 1;
    /// The first attribute of all messages names the table, of most the second names the object.
    const TABLE_NAME: u16 = 1;
    const NAME: u16 = 2;
    if header.first() != Some(&NFPROTO_INET) {
        return Ok(None);
    }
    let (mut is_ours, mut name) = (false, String::new());
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            TABLE_NAME => is_ours = attribute.value().strip_suffix(&[0]) == Some(TABLE.as_bytes()),
            NAME => name = tidy(attribute.value()),
            _ => {}
        }
        if attribute.kind() >= NAME || !is_ours {
            break;
        }
    }
    Ok(is_ours.then(|| named(kind, name)))
}

fn named(kind: u8, name: String) -> Change {
    let (verb, object) = match kind {
        0 => (Verb::Added, Object::Table),
        2 => (Verb::Deleted, Object::Table),
        3 => (Verb::Added, Object::Chain),
        5 => (Verb::Deleted, Object::Chain),
        6 => (Verb::Added, Object::Rule),
        8 => (Verb::Deleted, Object::Rule),
        9 => (Verb::Added, Object::Set),
        11 => (Verb::Deleted, Object::Set),
        12 => (Verb::Added, Object::Element),
        14 => (Verb::Deleted, Object::Element),
        _ => (Verb::Changed, Object::Other),
    };
    Change { verb, object, name }
}

fn process(attributes: &[u8]) -> Result<Option<Process>, DecodeError> {
    const NFTA_GEN_PROC_PID: u16 = 2;
    const NFTA_GEN_PROC_NAME: u16 = 3;
    let (mut id, mut name) = (None, String::new());
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            NFTA_GEN_PROC_PID => id = attribute.value().first_chunk().copied().map(u32::from_be_bytes),
            NFTA_GEN_PROC_NAME => name = tidy(attribute.value()),
            _ => {}
        }
    }
    Ok(id.map(|id| Process { id, name }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{DefaultNla, Emitable};
    use nightlatch_core::port::{PortKey, Protocol};
    use nightlatch_core::prefix::Prefix;
    use nightlatch_core::ruleset::{End, OpeningKey, Ruleset};
    use nightlatch_core::time::BootTime;
    use nix::sched::{CloneFlags, unshare};
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::Firewall;

    const OWN: u32 = 77;
    const OTHER: u32 = 4242;
    const DELRULE: u8 = 8;
    const NEWSETELEM: u8 = 12;
    const NEWGEN: u8 = 15;

    fn message(port: u32, family: u8, kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let attributes: Vec<_> = attributes
            .iter()
            .map(|(kind, value)| DefaultNla::new(*kind, value.to_vec()))
            .collect();
        let mut payload = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut payload);
        let length = u32::try_from(20 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(u16::from_be_bytes([10, kind]).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    fn generation(port: u32) -> Vec<u8> {
        let pid = 4711_u32.to_be_bytes();
        message(
            port,
            0,
            NEWGEN,
            &[(1, &[0, 0, 0, 9]), (2, &pid), (3, b"nf\x1bt\0")],
        )
    }

    fn rule(port: u32, family: u8, table: &[u8]) -> Vec<u8> {
        message(port, family, DELRULE, &[(1, table), (2, b"gate\0")])
    }

    #[test]
    fn others_changes_of_our_table_are_told_with_who_made_them() {
        let mut course = Course::beside(OWN);
        assert!(course.read(&rule(OTHER, 1, b"nightlatch\0")).unwrap().is_empty());
        let element = message(OTHER, 1, NEWSETELEM, &[(1, b"nightlatch\0"), (2, b"open4_32\0")]);
        let rest = [element.clone(), element, generation(OTHER)].concat();
        let told = course.read(&rest).unwrap();
        let [touch] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(
            touch.to_string(),
            "nf?t (process 4711) deleted a rule in gate, added an element in open4_32"
        );
        assert!(course.read(&generation(OTHER)).unwrap().is_empty());
    }

    #[test]
    fn own_changes_and_those_of_other_tables_are_not_told() {
        let mut course = Course::beside(OWN);
        for bytes in [
            [rule(OWN, 1, b"nightlatch\0"), generation(OWN)].concat(),
            [rule(OTHER, 1, b"nightlatch2\0"), generation(OTHER)].concat(),
            [rule(OTHER, 1, b"night\0"), generation(OTHER)].concat(),
            [rule(OTHER, 2, b"nightlatch\0"), generation(OTHER)].concat(),
            generation(OTHER),
        ] {
            assert!(course.read(&bytes).unwrap().is_empty());
        }
    }

    #[test]
    fn one_transaction_is_told_once_and_within_bounds() {
        let mut course = Course::beside(OWN);
        let elements = (0..10_000).flat_map(|number: u32| {
            let name = format!("set{number}\0");
            message(
                OTHER,
                1,
                NEWSETELEM,
                &[(1, b"nightlatch\0"), (2, name.as_bytes())],
            )
        });
        let bytes: Vec<u8> = elements.chain(generation(OTHER)).collect();
        let told = course.read(&bytes).unwrap();
        assert_eq!(told.len(), 1);
        assert!(told.iter().all(|touch| touch.to_string().len() < 512));
    }

    #[test]
    fn what_the_kernel_could_not_tell_is_known_to_be_missed() {
        let alone = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut watch = Watch::open(OWN).unwrap();
                let now = BootTime::new(Duration::ZERO);
                let key = PortKey {
                    protocol: Protocol::Tcp,
                    port: 22,
                };
                let mut many = Ruleset::new([key].into(), BTreeSet::new(), Duration::ZERO);
                for number in 0..150_000 {
                    let source = IpAddr::from(Ipv4Addr::from(number));
                    let source = Prefix::around(source, 32).unwrap();
                    many.open(OpeningKey { source, key }, End::Never);
                }
                Firewall::open().unwrap().apply(&many, now).unwrap();
                let (touches, mut heard) = mpsc::channel(1_000);
                let tell = tokio::time::timeout(Duration::from_secs(2), watch.tell(&touches));
                assert!(tell.await.is_err(), "somebody still listens");
                let heard = std::iter::from_fn(|| heard.try_recv().ok());
                let missed = heard.filter(|touch| *touch == Touch::missed()).count();
                assert_eq!(missed, 2, "once at first, once for the overrun");
            });
        });
        alone.join().unwrap();
    }

    #[test]
    fn no_bytes_make_it_panic_and_cut_ones_are_an_error() {
        let whole = [rule(OTHER, 1, b"nightlatch\0"), generation(OTHER)].concat();
        let first = rule(OTHER, 1, b"nightlatch\0").len();
        for length in 1..whole.len() {
            let read = Course::beside(OWN).read(&whole[..length]);
            assert_eq!(read.is_ok(), length == first, "{length}");
        }
        for place in 0..whole.len() {
            for bits in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[place] ^= bits;
                drop(Course::beside(OWN).read(&bytes));
            }
        }
    }
}
