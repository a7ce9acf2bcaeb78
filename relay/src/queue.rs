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
const PROMPT_LANES: usize = 1;
/// Lanes for slow probes, behind those for prompt ones.
const SLOW_LANES: usize = 3;
/// Lanes for probes alone.
pub const PROBE_LANES: usize = PROMPT_LANES + SLOW_LANES;

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

/// What a lane is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// The rows of this line.
    Line(usize),
    Probes(Pace),
}

/// The rows waiting for each lane.
pub struct Queue {
    order: Order,
    limit: BatchLimit,
    lanes: usize,
    /// One line per lane with an order per key, one shared line otherwise.
    lines: Vec<Line>,
    /// A probe is ready here; what waits behind it is in the line of its key.
    prompt: VecDeque<Item>,
    slow: VecDeque<Item>,
    /// Slow probes not counted: nobody waits for them.
    lanes_busy: usize,
    /// A suspect is on its way: nothing else goes.
    alone: bool,
    rows: usize,
    bytes: usize,
}

impl Queue {
    /// An empty queue for `lanes` lanes and [`PROBE_LANES`] more.
    pub fn new(order: Order, lanes: usize, limit: BatchLimit) -> Self {
        let lines = match order {
            Order::Key => lanes,
            Order::None => 1,
        };
        Self {
            order,
            limit,
            lanes,
            lines: (0..lines).map(|_| Line::default()).collect(),
            prompt: VecDeque::new(),
            slow: VecDeque::new(),
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
        if self.order == Order::Key {
            let line = self.line_of(item.key);
            let line = &mut self.lines[line];
            if let Some(behind) = line.behind.get_mut(&item.key) {
                behind.push_back(item);
                return;
            }
            line.behind.insert(item.key, VecDeque::new());
        }
        self.ready(item);
    }

    /// Nothing of its key is before it.
    fn ready(&mut self, item: Item) {
        let line = self.line_of(item.key);
        match item.company {
            Company::Anyone | Company::Nobody => self.lines[line].ready.push_back(item),
            Company::Probe(Pace::Prompt) => self.prompt.push_back(item),
            Company::Probe(Pace::Slow) => self.slow.push_back(item),
        }
    }

    /// The next batch for an idle lane. Call [`Queue::settled`] when it is done with.
    pub fn next_batch(&mut self, lane: usize) -> Option<Vec<Item>> {
        if self.alone {
            return None;
        }
        // A suspect goes alone in the whole process: an error that closes the connection can then
        // be nobody else's. A slow probe does not count: the broker has taken that message before.
        let suspect_waits = self
            .lines
            .iter()
            .any(|line| line.ready.front().is_some_and(Item::is_suspect));
        let batch = match self.seat(lane) {
            Seat::Probes(Pace::Slow) => vec![self.slow.pop_front()?],
            Seat::Probes(Pace::Prompt) if suspect_waits => return None,
            Seat::Probes(Pace::Prompt) => vec![self.prompt.pop_front()?],
            Seat::Line(line) => self.batch_of(line, suspect_waits)?,
        };
        self.lanes_busy += usize::from(self.seat(lane) != Seat::Probes(Pace::Slow));
        Some(self.count_out(batch))
    }

    fn batch_of(&mut self, line: usize, suspect_waits: bool) -> Option<Vec<Item>> {
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
            if !batch.is_empty() && (full || next.is_suspect()) {
                break;
            }
            bytes += next.bytes();
            batch.extend(line.ready.pop_front());
            if suspect {
                break;
            }
        }
        line.busy = true;
        Some(batch)
    }

    /// A batch has come back from `lane`: its keys' next rows may go.
    pub fn settled(&mut self, lane: usize, batch: &[Item]) {
        if batch.iter().any(Item::is_suspect) {
            self.alone = false;
        }
        let seat = self.seat(lane);
        self.lanes_busy -= usize::from(seat != Seat::Probes(Pace::Slow));
        if let Seat::Line(line) = seat {
            self.lines[line].busy = false;
        }
        if self.order == Order::None {
            return;
        }
        for item in batch {
            let line = self.line_of(item.key);
            let line = &mut self.lines[line];
            match line.behind.get_mut(&item.key).and_then(VecDeque::pop_front) {
                Some(next) => self.ready(next),
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
        let ready = self.lines.iter_mut().map(|line| &mut line.ready);
        for ready in ready.chain([&mut self.prompt, &mut self.slow]) {
            let (out, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(ready)
                .into_iter()
                .partition(|item| matches(item));
            dropped.extend(out);
            *ready = kept;
        }
        if self.order == Order::Key {
            let heads: HashSet<u64> = dropped.iter().map(|item| item.key).collect();
            for line in &mut self.lines {
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

    fn seat(&self, lane: usize) -> Seat {
        if lane >= self.lanes + PROMPT_LANES {
            Seat::Probes(Pace::Slow)
        } else if lane >= self.lanes {
            Seat::Probes(Pace::Prompt)
        } else {
            Seat::Line(match self.order {
                Order::Key => lane,
                Order::None => 0,
            })
        }
    }

    /// Is this lane for probes that may get no answer?
    pub fn is_slow(&self, lane: usize) -> bool {
        self.seat(lane) == Seat::Probes(Pace::Slow)
    }
}

#[cfg(test)]
mod tests;
