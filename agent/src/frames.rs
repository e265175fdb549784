//! The form of the agent's files: a header line, then frames of {length, checksum, payload}.
//!
//! A file that a crash cut short differs from one that was damaged: the first ends in the midst of its last
//! frame, the second has sound frames behind the flaw, or one that ends too early.

use std::io::{self, Write};

use nightlatch_core::signing::sha256;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The longest payload, in bytes.
pub const LONGEST_PAYLOAD: usize = 64 * 1024 * 1024;
/// What is longer is put into JSON in pieces.
const LONG: usize = 16 * 1024;
const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 8;
const PREAMBLE: usize = LENGTH_BYTES + CHECKSUM_BYTES;

/// The payload doesn't fit into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {0} bytes is longer than {LONGEST_PAYLOAD}, the most one may have")]
pub struct PayloadTooLong(usize);

/// Adds one frame to `bytes`.
///
/// # Errors
/// A payload beyond [`LONGEST_PAYLOAD`]. `bytes` stays as it was.
pub fn write(bytes: &mut Vec<u8>, payload: &[u8]) -> Result<(), PayloadTooLong> {
    bytes.extend_from_slice(&preamble(payload.len(), sha256(payload))?);
    bytes.extend_from_slice(payload);
    Ok(())
}

fn preamble(length: usize, sha256: [u8; 32]) -> Result<[u8; PREAMBLE], PayloadTooLong> {
    let fitting = u32::try_from(length).ok().filter(|_| length <= LONGEST_PAYLOAD);
    let [a, b, c, d] = fitting.ok_or(PayloadTooLong(length))?.to_be_bytes();
    let [e, f, g, h, i, j, k, l] = checksum(sha256);
    Ok([a, b, c, d, e, f, g, h, i, j, k, l])
}

fn checksum(sha256: [u8; 32]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, e, f, g, h, ..] = sha256;
    [a, b, c, d, e, f, g, h]
}

/// Why an item has no frame.
#[derive(Debug, thiserror::Error)]
pub enum NoFrame {
    #[error(transparent)]
    TooLong(#[from] PayloadTooLong),
    #[error("it can't be put into JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("it can't be written")]
    Io(#[from] io::Error),
}

impl NoFrame {
    fn of(error: serde_json::Error) -> Self {
        if error.is_io() {
            Self::Io(error.into())
        } else {
            Self::NotJson(error)
        }
    }
}

/// Adds one frame. A long item is put into JSON twice, so that it never lies in memory whole. Gives the frame's
/// length.
///
/// # Errors
/// If it doesn't fit into a frame, nothing was written; else a part of it may be.
pub fn write_json(out: &mut impl Write, item: &impl Serialize) -> Result<u64, NoFrame> {
    let mut measured = Measured::default();
    serde_json::to_writer(&mut measured, item).map_err(NoFrame::of)?;
    let Measured { length, hash, start } = measured;
    out.write_all(&preamble(length, hash.finalize().into())?)?;
    if start.len() == length {
        out.write_all(&start)?;
    } else {
        serde_json::to_writer(out, item).map_err(NoFrame::of)?;
    }
    let length = length.saturating_add(PREAMBLE);
    Ok(u64::try_from(length).unwrap_or(u64::MAX))
}

#[derive(Default)]
struct Measured {
    length: usize,
    hash: Sha256,
    /// All of it if it isn't long.
    start: Vec<u8>,
}

impl Write for Measured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.length = self.length.saturating_add(bytes.len());
        self.hash.update(bytes);
        if self.length <= LONG {
            self.start.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long the frames of these would be.
///
/// # Errors
/// One has no JSON.
pub fn length_of(items: &[impl Serialize]) -> Result<u64, NoFrame> {
    let mut measured = Measured::default();
    for item in items {
        serde_json::to_writer(&mut measured, item).map_err(NoFrame::of)?;
        measured.length = measured.length.saturating_add(PREAMBLE);
    }
    Ok(u64::try_from(measured.length).unwrap_or(u64::MAX))
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents<'b> {
    /// The payloads of the sound frames in their order, also of those behind a damage.
    pub payloads: Vec<&'b [u8]>,
    pub ending: Ending,
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Whole,
    /// In the midst of a frame that was being written. Only the first `sound` bytes count.
    Torn {
        sound: usize,
    },
    /// At this byte there is what no crash leaves.
    Damaged {
        at: usize,
    },
}

/// Never panics, whatever the bytes are.
pub fn read<'b>(bytes: &'b [u8], header: &[u8]) -> Contents<'b> {
    let mut payloads = Vec::new();
    let Some(mut rest) = bytes.strip_prefix(header) else {
        // The header is written in one go with the file's creation; less of it means that nothing followed.
        let ending = if header.starts_with(bytes) {
            Ending::Torn { sound: 0 }
        } else {
            Ending::Damaged { at: 0 }
        };
        return Contents {
            payloads: sound_frames(bytes),
            ending,
        };
    };
    while !rest.is_empty() {
        let Some((payload, after)) = first_frame(rest) else {
            let at = bytes.len().saturating_sub(rest.len());
            let behind = sound_frames(rest);
            let is_torn = behind.is_empty() && could_be_torn(rest);
            payloads.extend(behind);
            let ending = if is_torn {
                Ending::Torn { sound: at }
            } else {
                Ending::Damaged { at }
            };
            return Contents { payloads, ending };
        };
        payloads.push(payload);
        rest = after;
    }
    Contents {
        payloads,
        ending: Ending::Whole,
    }
}

fn first_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*length))
        .ok()
        .filter(|length| *length <= LONGEST_PAYLOAD)?;
    let (expected, rest) = rest.split_first_chunk::<CHECKSUM_BYTES>()?;
    let (payload, rest) = rest.split_at_checked(length)?;
    (checksum(sha256(payload)) == *expected).then_some((payload, rest))
}

/// Whether the frame at the start reaches the end of the file, or was never more than reserved space.
fn could_be_torn(bytes: &[u8]) -> bool {
    let reaches_end = bytes
        .split_first_chunk::<LENGTH_BYTES>()
        .is_none_or(|(length, _)| {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            length.saturating_add(PREAMBLE) >= bytes.len()
        });
    reaches_end || bytes.iter().all(|byte| *byte == 0)
}

/// Sound frames anywhere in the bytes. Payloads are JSON text, in which no four bytes are a possible length.
fn sound_frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((_, next)) = bytes.split_first() {
        match first_frame(bytes).filter(|(payload, _)| !payload.is_empty()) {
            Some((payload, after)) => {
                found.push(payload);
                bytes = after;
            }
            None => bytes = next,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &[u8] = b"nightlatch-test 1\n";

    fn sample() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = HEADER.to_vec();
        let mut ends = vec![bytes.len()];
        for payload in ["{\"a\":1}", "{\"bee\":[1,2,3]}", "{}", "{\"last\":\"one\"}"] {
            write(&mut bytes, payload.as_bytes()).unwrap();
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn an_item_has_the_same_frame_as_its_json() {
        let item = serde_json::json!({ "bee": ["1", 2, "\u{e4}"], "long": "x".repeat(70_000) });
        let (mut whole, mut streamed) = (Vec::new(), Vec::new());
        write(&mut whole, &serde_json::to_vec(&item).unwrap()).unwrap();
        let length = write_json(&mut streamed, &item).unwrap();
        assert_eq!(streamed, whole);
        assert_eq!(length, u64::try_from(whole.len()).unwrap());
        assert_eq!(length_of(&[&item, &item]).unwrap(), 2 * length);
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, _) = sample();
        let contents = read(&bytes, HEADER);
        assert_eq!((contents.payloads.len(), contents.ending), (4, Ending::Whole));
    }

    #[test]
    fn a_file_cut_anywhere_loses_only_what_was_cut() {
        let (bytes, ends) = sample();
        for length in 0..bytes.len() {
            let contents = read(&bytes[..length], HEADER);
            let whole = ends.iter().rposition(|end| *end <= length);
            assert_eq!(contents.payloads.len(), whole.unwrap_or(0), "{length}");
            let sound = whole.map_or(0, |position| ends[position]);
            let expected = if ends.contains(&length) {
                Ending::Whole
            } else {
                Ending::Torn { sound }
            };
            assert_eq!(contents.ending, expected, "{length}");
        }
    }

    #[test]
    fn a_flipped_bit_before_the_last_frame_is_damage() {
        let (bytes, ends) = sample();
        for position in 0..ends[3] {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                let ending = read(&flipped, HEADER).ending;
                assert!(
                    matches!(ending, Ending::Damaged { .. }),
                    "{position} {bit}: {ending:?}"
                );
            }
        }
    }

    #[test]
    fn space_that_was_reserved_and_never_written_is_cut() {
        let (mut bytes, _) = sample();
        let sound = bytes.len();
        bytes.extend_from_slice(&[0; 4096]);
        assert_eq!(read(&bytes, HEADER).ending, Ending::Torn { sound });
    }

    #[test]
    fn a_payload_beyond_the_limit_is_refused() {
        let mut bytes = Vec::new();
        assert!(write(&mut bytes, &vec![0; LONGEST_PAYLOAD + 1]).is_err());
        assert!(write_json(&mut bytes, &"x".repeat(LONGEST_PAYLOAD)).is_err());
        assert!(bytes.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let mut with_header = HEADER.to_vec();
            with_header.extend_from_slice(&bytes);
            read(&bytes, HEADER);
            read(&with_header, HEADER);
        }
    }
}
