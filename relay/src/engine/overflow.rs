//! Keys with pending rows that are in the table alone, since the index is full, as bits of their hashes:
//! two keys of one bit wait for each other.

/// Two megabytes. With a million such keys one key in twenty waits though it need not.
const BITS: usize = 1 << 24;

type Bits = Box<[u64]>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    /// A row of the key is in the table alone.
    held: Option<Bits>,
    /// The scan at hand has left a row of it there, or the binlog has since that scan began.
    left: Option<Bits>,
}

impl Overflow {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    pub(super) fn holds(&self, key: u64) -> bool {
        has(self.held.as_deref(), key)
    }

    /// Has the scan at hand left a row of it, so that it has to leave what is behind?
    pub(super) fn is_left(&self, key: u64) -> bool {
        has(self.left.as_deref(), key)
    }

    pub(super) fn leave(&mut self, key: u64) {
        let (word, bit) = place(key);
        for bits in [&mut self.held, &mut self.left] {
            bits.get_or_insert_with(|| vec![0; BITS / 64].into())[word] |= bit;
        }
    }

    pub(super) fn scan_began(&mut self) {
        self.left = None;
    }

    /// A scan after a fence has read the whole table: the index has all rows of the keys that it has not
    /// left.
    pub(super) fn scan_ended(&mut self) {
        self.held = self.left.take();
    }

    /// Bytes.
    pub(super) fn memory(&self) -> usize {
        [&self.held, &self.left].into_iter().flatten().count() * (BITS / 8)
    }
}

fn has(bits: Option<&[u64]>, key: u64) -> bool {
    let (word, bit) = place(key);
    bits.is_some_and(|bits| bits[word] & bit != 0)
}

/// Word and bit of a key.
fn place(key: u64) -> (usize, u64) {
    let bit = usize::try_from(key % BITS as u64).unwrap_or(0);
    (bit / 64, 1 << (bit % 64))
}
