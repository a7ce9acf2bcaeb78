//! Rows that wait for a lane. No IO.
//!
//! Any idle lane takes what is next: a new row should find one and not wait for the answers of others.
//! With an order per key at most one row of a key is on its way, and the next one goes when that one is
//! settled. Without, there are two lines: what the binlog brought goes first, so that new rows are not
//! late for a backlog.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use crate::config::Order;
use crate::hashed::HashedMap;
use crate::observe::metrics::Source;

mod item;
use item::PROMPT_LANES;
pub use item::{Company, Item, PROBE_LANES, Pace, RowId, key_hash};

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
    behind: HashedMap<u64, VecDeque<Item>>,
}

impl Line {
    fn suspect_is_next(&self) -> bool {
        self.ready.front().is_some_and(Item::is_suspect)
    }
}

/// What a lane is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// All rows but probes.
    Shared,
    Probes(Pace),
}

/// Rows on their way at once, in full batches and in however many lanes: one with the broker while the
/// answers of the other come in. More of them make the broker no faster, and cost the relay more
/// processor time a row.
const BATCHES_OUT_MAX: usize = 2;
/// Bytes on their way at once, in full batches: a few messages that are large must not keep all others
/// from going.
const BATCH_BYTES_OUT_MAX: usize = 4;
/// The one line of keyed order; without an order, rows of the binlog.
const FRESH: usize = 0;
/// Without an order: rows of the table.
const OLD: usize = 1;
/// Lanes that may be busy with these at once. Two hide each other's round trip; with more of a
/// backlog at the broker a new row only waits longer there.
const OLD_LANES_MAX: usize = 2;
/// And for the same reason only this part of a batch is of a backlog.
const OLD_SHARE: usize = 4;

/// The rows waiting for the lanes.
pub struct Queue {
    order: Order,
    limit: BatchLimit,
    lanes: usize,
    /// [`FRESH`] and [`OLD`].
    lines: [Line; 2],
    /// A probe is ready here; what waits behind it is in the line of its key.
    prompt: VecDeque<Item>,
    slow: VecDeque<Item>,
    /// Slow probes not counted: nobody waits for them.
    lanes_busy: usize,
    /// Lanes of [`Seat::Shared`] that have rows of [`OLD`].
    lanes_old: usize,
    /// A suspect is on its way: nothing else goes.
    alone: bool,
    /// What waits, by [`Source`].
    loads: [Load; 2],
    /// What lanes of [`Seat::Shared`] have.
    out: Load,
}

/// Rows and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Rows.
    pub rows: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Load {
    fn add(&mut self, items: &[Item]) {
        self.rows += items.len();
        self.bytes += items.iter().map(Item::bytes).sum::<usize>();
    }

    fn take(&mut self, items: &[Item]) {
        self.rows -= items.len();
        self.bytes -= items.iter().map(Item::bytes).sum::<usize>();
    }
}

impl Queue {
    /// An empty queue for `lanes` lanes and [`PROBE_LANES`] more.
    pub fn new(order: Order, lanes: usize, limit: BatchLimit) -> Self {
        Self {
            order,
            limit,
            lanes,
            lines: Default::default(),
            prompt: VecDeque::new(),
            slow: VecDeque::new(),
            lanes_busy: 0,
            lanes_old: 0,
            alone: false,
            loads: [Load::default(); 2],
            out: Load::default(),
        }
    }

    /// Rows waiting, those on their way not counted.
    pub fn rows(&self) -> usize {
        self.loads.iter().map(|load| load.rows).sum()
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> usize {
        self.loads.iter().map(|load| load.bytes).sum()
    }

    /// Rows of one source that wait.
    pub fn load(&self, source: Source) -> Load {
        self.loads[source as usize]
    }

    /// Rows of `key` that wait behind the one that goes next; none without an order.
    pub fn behind(&self, key: u64) -> usize {
        self.lines[FRESH].behind.get(&key).map_or(0, VecDeque::len)
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
        self.loads[item.source as usize].add(std::slice::from_ref(&item));
        if self.order == Order::Key {
            let behind = &mut self.lines[FRESH].behind;
            if let Some(behind) = behind.get_mut(&item.key) {
                behind.push_back(item);
                return;
            }
            behind.insert(item.key, VecDeque::new());
        }
        self.ready(item);
    }

    /// Nothing of its key is before it.
    fn ready(&mut self, item: Item) {
        let line = match (self.order, item.source) {
            (Order::Key, _) | (Order::None, Source::Binlog) => FRESH,
            (Order::None, Source::Sweep) => OLD,
        };
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
        let suspect_waits = self.lines.iter().any(Line::suspect_is_next);
        let seat = self.seat(lane);
        let batch = match seat {
            Seat::Probes(Pace::Slow) => vec![self.slow.pop_front()?],
            Seat::Probes(Pace::Prompt) if suspect_waits => return None,
            Seat::Probes(Pace::Prompt) => vec![self.prompt.pop_front()?],
            Seat::Shared if !self.may_more_go() => return None,
            Seat::Shared => self.batch_of(self.shared_lines(), suspect_waits)?,
        };
        if seat == Seat::Shared {
            self.out.add(&batch);
        }
        self.lanes_busy += usize::from(seat != Seat::Probes(Pace::Slow));
        self.lanes_old += usize::from(seat == Seat::Shared && has_old(&batch));
        Some(self.count_out(batch))
    }

    /// A lane waits until there is room for a full batch: with any room taken at once, a backlog would
    /// go in ever smaller batches.
    fn may_more_go(&self) -> bool {
        let rows = self.limit.rows.saturating_mul(BATCHES_OUT_MAX - 1);
        let bytes = self.limit.bytes.saturating_mul(BATCH_BYTES_OUT_MAX - 1);
        // However small a batch is, the backlog does not take all there is.
        self.out.rows <= rows.max(OLD_LANES_MAX) && self.out.bytes <= bytes
    }

    /// One lane has something of the backlog, however many new rows there are; what is to be sent
    /// again is there as well.
    fn shared_lines(&self) -> &'static [usize] {
        match self.lanes_old {
            0 => &[OLD, FRESH],
            1..OLD_LANES_MAX => &[FRESH, OLD],
            _ => &[FRESH],
        }
    }

    fn batch_of(&mut self, lines: &[usize], suspect_waits: bool) -> Option<Vec<Item>> {
        if suspect_waits {
            let mut lines = lines.iter();
            let suspect = lines.find(|line| self.lines[**line].suspect_is_next());
            let suspect = *suspect.filter(|_| self.lanes_busy == 0)?;
            self.alone = true;
            return self.lines[suspect].ready.pop_front().map(|item| vec![item]);
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        for &line in lines {
            let rows = match line {
                OLD => self.limit.rows.div_ceil(OLD_SHARE),
                _ => self.limit.rows,
            };
            let line = &mut self.lines[line];
            while let Some(next) = line.ready.front() {
                let full = batch.len() >= rows || bytes + next.bytes() > self.limit.bytes;
                if !batch.is_empty() && (full || next.is_suspect()) {
                    break;
                }
                bytes += next.bytes();
                batch.extend(line.ready.pop_front());
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// A batch has come back from `lane`: its keys' next rows may go.
    pub fn settled(&mut self, lane: usize, batch: &[Item]) {
        if batch.iter().any(Item::is_suspect) {
            self.alone = false;
        }
        let seat = self.seat(lane);
        self.lanes_busy -= usize::from(seat != Seat::Probes(Pace::Slow));
        self.lanes_old -= usize::from(seat == Seat::Shared && has_old(batch));
        if seat == Seat::Shared {
            self.out.take(batch);
        }
        if self.order == Order::None {
            return;
        }
        for item in batch {
            let behind = &mut self.lines[FRESH].behind;
            match behind.get_mut(&item.key).and_then(VecDeque::pop_front) {
                Some(next) => self.ready(next),
                None => {
                    behind.remove(&item.key);
                }
            }
        }
    }

    /// Takes out every row behind the one of `key` that is on its way.
    pub fn drop_key(&mut self, key: u64) -> Vec<Item> {
        let dropped = self.lines[FRESH]
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
        for item in &dropped {
            self.loads[item.source as usize].take(std::slice::from_ref(item));
        }
        dropped
    }

    fn seat(&self, lane: usize) -> Seat {
        if lane >= self.lanes + PROMPT_LANES {
            Seat::Probes(Pace::Slow)
        } else if lane >= self.lanes {
            Seat::Probes(Pace::Prompt)
        } else {
            Seat::Shared
        }
    }

    /// Is this lane for probes that may get no answer?
    pub fn is_slow(&self, lane: usize) -> bool {
        self.seat(lane) == Seat::Probes(Pace::Slow)
    }
}

fn has_old(batch: &[Item]) -> bool {
    batch.iter().any(|item| item.source == Source::Sweep)
}

#[cfg(test)]
mod tests;
