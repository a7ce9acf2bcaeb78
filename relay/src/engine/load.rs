//! Which rows are read next: those that were reported, and the payloads of those that may go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::admission::By;
use super::arrivals::Why;
use super::command::{Command, LoadQuery};
use super::event::{Read, Rows};
use super::index::Stage;
use super::state::State;
use super::{Engine, Order, ROW_MEMORY};

/// Rows in one query, of those that were reported and again of those that may go.
const LOAD_MAX: usize = 1000;
/// Rows that may wait for a publisher, however small a batch is: some queries' worth, so that the next
/// one is answered while these go.
const ROWS_AHEAD_MIN: usize = 4 * LOAD_MAX;

/// A query that is not answered yet.
#[derive(Debug)]
pub(super) struct Loading {
    /// How many of the first arrivals are in it.
    pub(super) arrivals: usize,
    ready: Vec<u64>,
    queried_at: Instant,
    /// Rows that have changed since: what is read of them may be older.
    pub(super) changed: BTreeSet<u64>,
}

impl Engine {
    /// Bytes of payloads that may still be loaded.
    pub(super) fn payload_room(&self) -> usize {
        let used = self.payload_bytes + self.loading_bytes + self.scans.memory();
        (self.settings.buffer_bytes / 2).saturating_sub(used)
    }

    pub(super) fn rows_room(&self) -> usize {
        let rows_max = (self.settings.batch_rows * 2).max(ROWS_AHEAD_MIN);
        let used = self.index.count(Stage::Loading) + self.index.count(Stage::Loaded);
        rows_max.saturating_sub(used)
    }

    /// May what was reported be read now? While a whole scan is being made its order is not known.
    fn resolves_arrivals(&self) -> bool {
        let scanning = matches!(self.state, State::CatchingUp { .. }) || self.scans.is_whole();
        !self.is_index_full() && (!scanning || self.settings.order == Order::None)
    }

    /// When the next query is due, if it waits for nothing but time.
    pub(super) fn load_deadline(&self) -> Option<Instant> {
        if self.loading.is_some() || !self.state.takes_in() || !self.resolves_arrivals() {
            return None;
        }
        let look_at = self.arrivals.look_at();
        self.arrivals.retry_at().into_iter().chain(look_at).min()
    }

    pub(super) fn next_load(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.loading.is_some() {
            return;
        }
        if self.resolves_arrivals() {
            self.arrivals.release_looks(now);
        }
        let due = self.arrivals.retry_at().is_some_and(|at| now >= at);
        let arrivals = match due && self.resolves_arrivals() {
            true => self.arrivals.len().min(LOAD_MAX),
            false => 0,
        };
        let room = match self.rows_room() {
            0 => 0,
            _ => self.payload_room(),
        };
        let mut known = BTreeSet::new();
        let reported = self.arrivals.first(arrivals).map(|arrival| arrival.id);
        let mut ids: Vec<u64> = reported.filter(|id| known.insert(*id)).collect();
        let ready = self.next_ready(LOAD_MAX);
        ids.extend(ready.iter().filter(|id| !known.contains(id)));
        if ids.is_empty() {
            return;
        }
        // One that is larger than all the room comes all the same.
        let bytes = match ready.is_empty() {
            true => room,
            false => room.max(1),
        };
        let queried_at = now;
        self.loading = Some(Loading {
            arrivals,
            ready,
            queried_at,
            changed: BTreeSet::new(),
        });
        out.push(Command::Load(LoadQuery { ids, bytes }));
    }

    /// Rows that may go, as many as there is room for; one that is larger than all the room goes when
    /// nothing else is here. New ones first.
    fn next_ready(&mut self, rows_max: usize) -> Vec<u64> {
        let mut ready = Vec::new();
        let rows_max = rows_max.min(self.rows_room());
        while ready.len() < rows_max {
            // Each line has its turns, so that neither starves the other.
            self.old_turn = !self.old_turn;
            let from_old = match (self.to_load.is_empty(), self.to_load_old.is_empty()) {
                (true, true) => break,
                (true, false) => true,
                (false, true) => false,
                (false, false) => self.old_turn,
            };
            let Some(&id) = self.line(from_old).front() else {
                break;
            };
            if !self.may_load(id) {
                self.line(from_old).pop_front();
                let stage = self.index.get(id).map(|entry| entry.stage);
                if stage == Some(Stage::Ready) {
                    self.move_to(id, Stage::Waiting);
                    self.place(id, None, self.now);
                }
                continue;
            }
            let bytes = self.index.get(id).map_or(0, |entry| entry.bytes) + ROW_MEMORY;
            let nothing_here = self.payload_bytes + self.loading_bytes == 0;
            if bytes > self.payload_room() && !nothing_here {
                break;
            }
            self.line(from_old).pop_front();
            self.move_to(id, Stage::Loading);
            ready.push(id);
        }
        ready
    }

    fn line(&mut self, old: bool) -> &mut VecDeque<u64> {
        match old {
            true => &mut self.to_load_old,
            false => &mut self.to_load,
        }
    }

    /// Is the row ready, and the first of its key or the one behind it while that one is out?
    fn may_load(&self, id: u64) -> bool {
        let Some(entry) = self.index.get(id) else {
            return false;
        };
        let first = self.index.head(entry.key);
        let second = || first.and_then(|first| self.index.behind(entry.key, first));
        let in_turn = first == Some(id) || (self.index.is_out(entry.key) && second() == Some(id));
        entry.stage == Stage::Ready && in_turn && self.routes.takes(entry.route, id)
    }

    pub(super) fn on_rows(&mut self, rows: Rows, now: Instant) {
        self.table_refused = None;
        let Some(loading) = self.loading.take() else {
            return;
        };
        let read_at = rows.read_at;
        let mut reads: BTreeMap<u64, Read> = BTreeMap::new();
        reads.extend(rows.rows.into_iter().map(|read| (read.head.id, read)));
        let there: BTreeSet<u64> = reads.keys().copied().collect();
        for id in loading.ready {
            let is_loading = self
                .index
                .get(id)
                .is_some_and(|entry| entry.stage == Stage::Loading);
            match (is_loading, reads.remove(&id)) {
                (true, Some(read)) => self.on_ready_read(read, read_at, now),
                (true, None) => self.remove(id, now),
                // It waits for something else by now, and is read again when it may go.
                (false, _) => {}
            }
        }
        let in_order = self.settings.order == Order::Key;
        let is_there = |id| there.contains(&id);
        let found = self.arrivals.read(
            loading.arrivals,
            loading.queried_at,
            now,
            (in_order, is_there),
        );
        for arrival in found {
            let Some(read) = reads.remove(&arrival.id) else {
                continue;
            };
            if loading.changed.contains(&arrival.id) {
                self.arrivals.again(arrival.id, now);
                continue;
            }
            if !read.pending {
                self.arrivals.is_not_pending(&arrival, now);
            }
            let by = match arrival.why {
                Why::Committed(at) => By::Binlog(at),
                Why::Swept | Why::Again => By::Look,
            };
            let known = self.index.get(arrival.id).is_some();
            if arrival.why == Why::Swept && read.pending && !read.head.has_history && !known {
                self.missed += 1;
            }
            self.take_read(read, by, read_at, now);
        }
    }

    /// The payload of a row that may go was loaded.
    fn on_ready_read(&mut self, read: Read, read_at: Instant, now: Instant) {
        let id = read.head.id;
        if !read.pending {
            return self.remove(id, now);
        }
        if self.is_another(&read.head) {
            self.remove(id, now);
            return self.arrivals.again(id, now);
        }
        let is_prefetched = self.index.get(id).is_some_and(|entry| {
            self.index.is_out(entry.key) && self.index.head(entry.key) != Some(id)
        });
        let is_same = |entry: &super::index::Entry| self.routes.is(entry.route, &read.head.route);
        let is_same = self.index.get(id).is_some_and(is_same);
        match read.row {
            Some(row) if is_prefetched && is_same && read.head.wait.is_none() => {
                self.take_payload(id, row);
            }
            row => self.take_loaded(Read { row, ..read }, read_at, now),
        }
    }

    fn take_loaded(&mut self, read: Read, read_at: Instant, now: Instant) {
        let id = read.head.id;
        let was_probe = self
            .index
            .get(id)
            .and_then(|entry| self.routes.probe(entry.route, id));
        if was_probe.is_none() {
            self.move_to(id, Stage::Waiting);
        }
        self.refresh(&read.head, read_at, now);
        if self.index.get(id).is_some() {
            self.place(id, read.row, now);
        }
    }
}
