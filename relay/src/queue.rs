//! Rows that wait for a lane. No IO.
//!
//! With an order per key a key lives in one lane, and a batch takes at most one row of it: the next
//! one goes when that one is settled. Without, all lanes take from one line.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use outbox::row::Row;

use crate::config::Order;
use crate::metrics::Source;

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
    /// Batches of other lanes: a probe, whose route may never answer, must not take the answers of
    /// its batch along.
    OtherLanes,
    /// Nothing: it was in a batch that the broker answered by closing, or it has failed before.
    Nobody,
}

impl Item {
    /// Bytes that count against the buffer's bound.
    pub fn bytes(&self) -> usize {
        self.row.payload.len() + crate::binlog::open::ROW_OVERHEAD
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

/// A row's id together with a hash of its message id: after a TRUNCATE or a restore the same id is
/// another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
            tag: hash(message_id.as_bytes(), b""),
        }
    }
}

/// The ordering key of a row: a hash of both parts, since equal hashes of different keys only cost
/// a little waiting.
pub fn key_hash(aggregate_type: &[u8], aggregate_id: &[u8]) -> u64 {
    hash(aggregate_type, aggregate_id)
}

fn hash(first: &[u8], second: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (first, second).hash(&mut hasher);
    hasher.finish()
}

/// How much a batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimit {
    /// `RELAY_BATCH_MAX`.
    pub rows: usize,
    /// `RELAY_BATCH_BYTES`; a single larger row goes alone.
    pub bytes: usize,
}

#[derive(Default)]
struct Line {
    ready: VecDeque<Item>,
    /// The rows behind the one that is in `ready` or on its way, by key; keyed order only.
    behind: HashMap<u64, VecDeque<Item>>,
    busy: bool,
}

/// The rows waiting for each lane.
pub struct Queue {
    order: Order,
    limit: BatchLimit,
    /// One line per lane with an order per key, one shared line otherwise.
    lines: Vec<Line>,
    lanes_busy: usize,
    /// A suspect is on its way: nothing else goes.
    alone: bool,
    rows: usize,
    bytes: usize,
}

impl Queue {
    /// An empty queue for `lanes` lanes.
    pub fn new(order: Order, lanes: usize, limit: BatchLimit) -> Self {
        let lines = match order {
            Order::Key => lanes,
            Order::None => 1,
        };
        Self {
            order,
            limit,
            lines: (0..lines).map(|_| Line::default()).collect(),
            lanes_busy: 0,
            alone: false,
            rows: 0,
            bytes: 0,
        }
    }

    /// Rows waiting, those on their way not counted.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The commit of the oldest waiting row that the binlog brought.
    pub fn oldest_commit(&self) -> Option<Instant> {
        self.lines
            .iter()
            .flat_map(|line| line.ready.iter().chain(line.behind.values().flatten()))
            .filter_map(|item| item.committed)
            .min()
    }

    /// Adds a row behind all earlier ones of its key.
    pub fn push(&mut self, item: Item) {
        self.rows += 1;
        self.bytes += item.bytes();
        let line = self.line_of(item.key);
        let line = &mut self.lines[line];
        if self.order == Order::None {
            line.ready.push_back(item);
            return;
        }
        match line.behind.get_mut(&item.key) {
            Some(behind) => behind.push_back(item),
            None => {
                line.behind.insert(item.key, VecDeque::new());
                line.ready.push_back(item);
            }
        }
    }

    /// The next batch for an idle lane. Call [`Queue::settled`] when it is done with.
    pub fn next_batch(&mut self, lane: usize) -> Option<Vec<Item>> {
        if self.alone {
            return None;
        }
        // A suspect goes alone in the whole process: an error that closes the connection can then
        // be nobody else's.
        let suspect_waits = self
            .lines
            .iter()
            .any(|line| line.ready.front().is_some_and(Item::is_suspect));
        let line = self.line_for_lane(lane);
        let line = &mut self.lines[line];
        if self.order == Order::Key && line.busy {
            return None;
        }
        let suspect = line.ready.front()?.is_suspect();
        if suspect_waits && (!suspect || self.lanes_busy > 0) {
            return None;
        }
        self.alone = suspect;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = line.ready.front() {
            let full = batch.len() >= self.limit.rows || bytes + next.bytes() > self.limit.bytes;
            let apart = next.company != Company::Anyone;
            if !batch.is_empty() && (full || apart) {
                break;
            }
            bytes += next.bytes();
            batch.extend(line.ready.pop_front());
            if apart {
                break;
            }
        }
        line.busy = true;
        self.lanes_busy += 1;
        self.rows -= batch.len();
        self.bytes -= bytes;
        Some(batch)
    }

    /// A batch has come back from `lane`: its keys' next rows may go.
    pub fn settled(&mut self, lane: usize, batch: &[Item]) {
        self.alone = false;
        self.lanes_busy -= 1;
        let line = self.line_for_lane(lane);
        let line = &mut self.lines[line];
        line.busy = false;
        if self.order == Order::None {
            return;
        }
        for item in batch {
            match line.behind.get_mut(&item.key).and_then(VecDeque::pop_front) {
                Some(next) => line.ready.push_back(next),
                None => {
                    line.behind.remove(&item.key);
                }
            }
        }
    }

    /// Takes out every row behind the one of `key` that is on its way.
    pub fn drop_key(&mut self, key: u64) -> Vec<Item> {
        let line = self.line_of(key);
        let dropped = self.lines[line]
            .behind
            .get_mut(&key)
            .map(std::mem::take)
            .unwrap_or_default();
        self.count_out(dropped.into())
    }

    /// Takes out every row that `matches` and, with an order per key, all rows behind it.
    pub fn drop_matching(&mut self, matches: impl Fn(&Item) -> bool) -> Vec<Item> {
        let mut dropped = Vec::new();
        for line in &mut self.lines {
            let (out, ready): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut line.ready)
                .into_iter()
                .partition(|item| matches(item));
            line.ready = ready;
            let heads: HashSet<u64> = out.iter().map(|item| item.key).collect();
            dropped.extend(out);
            if self.order == Order::None {
                continue;
            }
            line.behind.retain(|key, behind| {
                if heads.contains(key) {
                    dropped.extend(behind.drain(..));
                    return false;
                }
                if let Some(first) = behind.iter().position(&matches) {
                    dropped.extend(behind.drain(first..));
                }
                true
            });
        }
        self.count_out(dropped)
    }

    /// Takes out everything that waits.
    pub fn clear(&mut self) -> Vec<Item> {
        self.drop_matching(|_| true)
    }

    fn count_out(&mut self, dropped: Vec<Item>) -> Vec<Item> {
        self.rows -= dropped.len();
        self.bytes -= dropped.iter().map(Item::bytes).sum::<usize>();
        dropped
    }

    fn line_of(&self, key: u64) -> usize {
        usize::try_from(key % self.lines.len() as u64).unwrap_or(0)
    }

    fn line_for_lane(&self, lane: usize) -> usize {
        match self.order {
            Order::Key => lane,
            Order::None => 0,
        }
    }
}

#[cfg(test)]
mod tests;
