//! A row on its way.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use outbox::row::Row;

use crate::observe::metrics::Source;

/// A row on its way, with what the relay needs to know beside the message itself.
#[derive(Debug)]
pub struct Item {
    /// The row as it will be encoded.
    pub row: Row,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Hash of the ordering key.
    pub key: u64,
    /// Who brought it.
    pub source: Source,
    /// The commit by this process' clock; `None` when the row came from the table.
    pub committed: Option<Instant>,
    /// What may be with the broker at the same time.
    pub company: Company,
}

/// What may be with the broker together with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Anything.
    Anyone,
    /// Batches of other lanes: it probes a shut route, in a batch and a lane of its own. A route that
    /// never answers would take the answers of its batch along, and the lane's time.
    Probe(Pace),
    /// Nothing: it was in a batch that the broker answered by closing, or it has failed before.
    Nobody,
}

/// How the last probe of a route ended, and so which lanes its next one may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// With an answer.
    Prompt,
    /// With none within `RELAY_CONFIRM_TIMEOUT`.
    Slow,
}

impl Pace {
    /// Probes on their way at once. A prompt one is back in a millisecond; a slow one keeps its lane
    /// for the time-out, so none waits in the queue, where it would take the room of others.
    pub const fn probes_max(self) -> usize {
        match self {
            Self::Prompt => 64,
            Self::Slow => SLOW_LANES,
        }
    }
}

/// Lanes for prompt probes, behind those for everything else.
pub(super) const PROMPT_LANES: usize = 1;
/// Lanes for slow probes, behind those for prompt ones.
const SLOW_LANES: usize = 3;
/// Lanes for probes alone.
pub const PROBE_LANES: usize = PROMPT_LANES + SLOW_LANES;

impl Item {
    /// Bytes that count against the buffer's bound.
    pub fn bytes(&self) -> usize {
        crate::source::binlog::open_transaction::memory_of(&self.row)
    }

    /// It goes alone in the whole process.
    pub fn is_suspect(&self) -> bool {
        self.company == Company::Nobody
    }

    /// The row's identity while it is on its way.
    pub fn id(&self) -> RowId {
        RowId::new(self.row.id, &self.row.message_id)
    }
}

/// A row's id together with a hash of it and its message id: after a TRUNCATE or a restore the same id is
/// another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowId {
    /// `outbox.id`.
    pub id: u64,
    tag: u64,
}

impl RowId {
    /// The identity of a row.
    pub fn new(id: u64, message_id: &str) -> Self {
        Self {
            id,
            tag: hash(message_id.as_bytes(), &id.to_ne_bytes()),
        }
    }
}

impl Hash for RowId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.tag);
    }
}

/// The ordering key of a row: a hash of both parts, since equal hashes of different keys only cost
/// a little waiting.
pub fn key_hash(aggregate_type: &[u8], aggregate_id: &[u8]) -> u64 {
    hash(aggregate_type, aggregate_id)
}

fn hash(first: &[u8], second: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (first, second).hash(&mut hasher);
    hasher.finish()
}
