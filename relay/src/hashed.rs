//! Maps by what is a hash already.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map by such keys. They say their hash by one `write_u64`.
pub type HashedMap<K, V> = HashMap<K, V, BuildHasherDefault<AsItIs>>;
/// A set of such keys.
pub type HashedSet<K> = HashSet<K, BuildHasherDefault<AsItIs>>;

/// Takes a key for its hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 ^= hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}
