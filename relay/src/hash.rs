//! Hashes that stand for texts of a row in memory.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Stands for a message id: after a TRUNCATE or a restore the same `outbox.id` is another message.
pub fn tag_of(message_id: &str) -> u64 {
    hash(message_id.as_bytes(), b"")
}

/// Stands for the ordering key of a row. Equal hashes of different keys only cost a little waiting.
pub fn key_hash(aggregate_type: &[u8], aggregate_id: &[u8]) -> u64 {
    hash(aggregate_type, aggregate_id)
}

fn hash(first: &[u8], second: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (first, second).hash(&mut hasher);
    hasher.finish()
}
