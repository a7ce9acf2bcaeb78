//! Random numbers from a seed: the same on every machine and in every version of the program.

/// Splitmix64. Good enough to draw faults, and a few instructions long.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

/// One step of splitmix64: also used as a hash of small numbers.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// An index from a 64-bit number.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).expect("the simulator runs on 64-bit machines")
}

impl Rng {
    /// A stream of its own for each use: what one part of the world draws does not change what
    /// another part draws, so that a fault can be switched off while the rest stays much the same.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(mix(
            mix(seed) ^ mix(stream.wrapping_mul(0xD6E8_FEB8_6659_FD93))
        ))
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A number in `low..=high`.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// The same for sizes.
    pub(crate) fn size(&mut self, low: usize, high: usize) -> usize {
        index(self.range(low as u64, high as u64))
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// True in `n` of 1,000 cases.
    pub(crate) fn per_mille(&mut self, n: u64) -> bool {
        self.below(1_000) < n
    }

    /// One of `choices`, which is not empty.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.size(0, choices.len() - 1)]
    }

    /// Shuffles in place.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.size(0, last);
            items.swap(last, other);
        }
    }
}
