//! Who made a table. No listing of nft shows it, so a table that was loaded from a saved one lacks it.

/// Of an entry in a table's user data; nft knows low ones and passes over others.
const KIND: u8 = 200;
const LENGTH: u8 = 18;
const NAME: &[u8] = b"nightlatch";

/// The number that one process of ours gives its tables. It ends with the kernel's memory, at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Mark {
    pub(crate) fn new() -> Self {
        Self(rand::random())
    }

    pub(super) fn encoded(self) -> Vec<u8> {
        [&[KIND, LENGTH][..], NAME, &self.0.to_be_bytes()].concat()
    }

    pub(super) fn parse(user_data: &[u8]) -> Option<Self> {
        let number = user_data.strip_prefix(&[KIND, LENGTH])?.strip_prefix(NAME)?;
        Some(Self(u64::from_be_bytes(number.try_into().ok()?)))
    }
}

/// Who made a table, as far as it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maker {
    /// The process that asks.
    This,
    /// Another process of ours, since the boot.
    Other,
    /// Somebody else, or nobody: what it lets in may be of another time.
    #[default]
    Stranger,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_nothing_else_is_one() {
        let mark = Mark(7);
        let bytes = mark.encoded();
        assert_eq!(bytes.len(), 2 + usize::from(LENGTH));
        assert_eq!(Mark::parse(&bytes), Some(mark));
        for other in [&[][..], &bytes[1..], &bytes[..bytes.len() - 1], b"\0\x05text\0"] {
            assert_eq!(Mark::parse(other), None);
        }
    }
}
