//! Keys beyond those that are held by name, as bits of their hashes: two keys of one bit wait for
//! each other. No IO, no clock.

/// Two megabytes. With a million waiting keys one key in twenty waits though it need not.
const BITS: usize = 1 << 24;

type Bits = Box<[u64]>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// A row of the key is in the table.
    held: Option<Bits>,
    /// It was left there by the pass at hand, or put there since that pass began.
    left: Option<Bits>,
}

impl Crowd {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    pub(super) fn holds(&self, key: u64) -> bool {
        has(self.held.as_deref(), key)
    }

    /// Has the pass at hand left a row of it, so that it has to leave what is behind?
    pub(super) fn is_left(&self, key: u64) -> bool {
        has(self.left.as_deref(), key)
    }

    pub(super) fn leave(&mut self, key: u64) {
        let (word, bit) = place(key);
        for bits in [&mut self.held, &mut self.left] {
            bits.get_or_insert_with(|| vec![0; BITS / 64].into())[word] |= bit;
        }
    }

    pub(super) fn pass_began(&mut self) {
        self.left = None;
    }

    /// A pass after a fence has read the whole table: what it has not left is level.
    pub(super) fn pass_ended(&mut self) {
        self.held = self.left.take();
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
