//! Which rows the index takes, and what each of them waits for.

use std::time::{Duration, Instant};

use outbox::row::Row;

use super::event::{Head, Read};
use super::index::{Entry, ROW_BYTES, Stage};
use super::ready_queue::{Isolation, Queued};
use super::state::State;
use super::{Engine, Order, ROW_MEMORY};

/// Two readings of one due time differ by the clocks' running.
const SAME_TIME: Duration = Duration::from_secs(1);

/// So many rows may always go, however full the index is of others.
const GOING_MIN: usize = 64;

/// Rows of a backlog that are in the index at once: far more than publishers and loader have, and 6 MiB.
const GOING_MAX: usize = 1 << 15;

/// Eighths of the index that rows may fill which wait for what can last: a time, a route. The last is for
/// rows that go.
const WAITING_EIGHTHS: usize = 6;
/// The same of rows behind one of their key that waits so: one key leaves room for the first rows of others.
const BEHIND_EIGHTHS: usize = 4;
/// The same of rows behind one that goes. Left in the table, a busy key would get one row of each scan.
const NEXT_EIGHTHS: usize = 7;

/// Who has found a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A scan that indexes what it meets.
    Scan,
    /// The binlog, with the time of the commit.
    Binlog(Instant),
    /// A sweep, or it was to be looked at again.
    Look,
}

/// What has become of a row that the index did not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is in the index.
    Admitted,
    /// It stays in the table alone: earlier rows of its key do, or it would wait and too many do.
    Left,
    /// It could go, and too many can.
    NoRoom,
}

impl Engine {
    /// The ordering key of a row; its own without an order.
    pub(super) fn key_of(&self, head: &Head) -> u64 {
        match self.settings.order {
            Order::Key => head.key,
            Order::None => head.id,
        }
    }

    fn index_bytes(&self) -> usize {
        self.index.len() * ROW_BYTES + self.routes.memory()
    }

    /// More rows could go than the index may have. Those that go make room.
    pub(super) fn is_index_full(&self) -> bool {
        let full = self.index_bytes() + ROW_BYTES > self.settings.index_bytes;
        full && self.index.len() - self.index.waiting() > GOING_MIN
    }

    /// A scan has found as many rows that could go as it may: the rest of the backlog waits in the table.
    fn is_backlog_full(&self) -> bool {
        self.is_index_full() || self.index.len() - self.index.waiting() > GOING_MAX
    }

    /// Do rows that wait fill so many eighths of the index?
    fn waiting_fills(&self, eighths: usize) -> bool {
        let waiting = self.index.waiting() * ROW_BYTES + self.routes.memory();
        waiting >= self.settings.index_bytes / 8 * eighths
    }

    /// Half of the rows that may wait could come.
    pub(super) fn has_room_for_waiting(&self) -> bool {
        !self.waiting_fills(WAITING_EIGHTHS / 2)
    }

    /// Is the row on its way, so that those behind it will not wait long?
    fn is_going(&self, id: u64) -> bool {
        let stage = self.index.get(id).map(|entry| entry.stage);
        let waits = matches!(stage, None | Some(Stage::Delayed | Stage::Blocked));
        !waits && !self.attribution.was_nacked(id)
    }

    /// Takes a row into the index.
    pub(super) fn admit(
        &mut self,
        head: &Head,
        by: By,
        read_at: Instant,
        now: Instant,
    ) -> Admission {
        let key = self.key_of(head);
        let is_left = match by {
            By::Scan => self.overflow.is_left(key),
            By::Binlog(_) | By::Look => self.overflow.holds(key),
        };
        if is_left {
            return Admission::Left;
        }
        let due = due_at(head, read_at, now);
        let first = self.index.head(key);
        // Before what the index has of its key: it has to come before it here as well.
        let overtaken = first.is_some_and(|first| head.id < first);
        let flows = self.routes.flows(&head.route);
        let waits = due.is_some() || !flows || first.is_some();
        let eighths = match first {
            None => WAITING_EIGHTHS,
            Some(first) if due.is_none() && flows && self.is_going(first) => NEXT_EIGHTHS,
            Some(_) => BEHIND_EIGHTHS,
        };
        if waits && !overtaken && self.waiting_fills(eighths) {
            let probes = first.is_none() && due.is_none() && self.routes.lacks_probe(&head.route);
            if !probes {
                return Admission::Left;
            }
        }
        if !waits && by == By::Scan && self.is_backlog_full() {
            return Admission::NoRoom;
        }
        let route = self.routes.enter(&head.route);
        let entry = Entry {
            seen: self.scans.number,
            committed: match by {
                By::Binlog(committed) => Some(committed),
                By::Scan | By::Look => None,
            },
            ..Entry::new(head, key, route, due)
        };
        self.index.insert(head.id, entry);
        Admission::Admitted
    }

    /// A row stays in the table alone, and all behind it of its key: of each key the index has the first
    /// rows.
    pub(super) fn overflow_row(&mut self, head: &Head, by_scan: bool) {
        let key = self.key_of(head);
        self.overflow.leave(key);
        self.routes.overflow(&head.route, by_scan);
        let mut last = head.id;
        while let Some(next) = self.index.behind(key, last) {
            let stage = self.index.get(next).map(|entry| entry.stage);
            if stage.is_some_and(Stage::is_removable) {
                self.take_out(next);
            }
            last = next;
        }
    }

    /// A row of the index was read anew while nothing depended on it. It is the same one.
    pub(super) fn refresh(&mut self, head: &Head, read_at: Instant, now: Instant) {
        let (id, key) = (head.id, self.key_of(head));
        let due = due_at(head, read_at, now);
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let same_due = match (entry.due.filter(|due| *due > now), due) {
            (None, None) => true,
            (Some(known), Some(due)) => known.max(due) - known.min(due) < SAME_TIME,
            _ => false,
        };
        if same_due && entry.attempts == head.attempts && self.routes.is(entry.route, &head.route) {
            return;
        }
        let (committed, seen) = (entry.committed, entry.seen);
        self.take_out(id);
        let route = self.routes.enter(&head.route);
        let entry = Entry {
            seen,
            committed,
            ..Entry::new(head, key, route, due)
        };
        self.index.insert(id, entry);
        self.place(id, None, now);
    }

    /// Has the index another row under this id? After a TRUNCATE it may, and when a key was changed by
    /// hand. What is known of the one says nothing of the other: earlier rows of its key may be in the
    /// table alone.
    pub(super) fn is_another(&self, head: &Head) -> bool {
        let key = self.key_of(head);
        let entry = self.index.get(head.id);
        entry.is_some_and(|entry| entry.tag != head.tag || entry.key != key)
    }

    /// Has everything been reported that was committed before what is read now?
    fn looks_in_order(&self) -> bool {
        self.settings.order == Order::None || self.state == State::Tailing
    }

    /// A row that was to be read has been.
    pub(super) fn take_read(&mut self, read: Read, by: By, read_at: Instant, now: Instant) {
        let id = read.head.id;
        let stage = self.index.get(id).map(|entry| entry.stage);
        match stage {
            Some(stage @ (Stage::Out | Stage::Confirmed | Stage::Failing { .. })) => {
                if let Some(entry) = self.index.get_mut(id) {
                    let may_be_set_back = stage != Stage::Out && read.pending;
                    entry.again |= may_be_set_back || entry.tag != read.head.tag;
                }
                return;
            }
            Some(_) if !read.pending => {
                self.remove(id, now);
                return;
            }
            None if !read.pending => return,
            Some(_) if self.is_another(&read.head) => self.remove(id, now),
            Some(Stage::Loading | Stage::Loaded) => self.move_to(id, Stage::Waiting),
            Some(_) | None => {}
        }
        if self.index.get(id).is_some() {
            self.refresh(&read.head, read_at, now);
        } else if by == By::Look && !self.looks_in_order() {
            // What comes before it in its key may not be known: the next scan meets it in its turn.
            return;
        } else if self.admit(&read.head, by, read_at, now) != Admission::Admitted {
            return self.overflow_row(&read.head, false);
        }
        self.place(id, read.row, now);
    }

    /// Decides what a row waits for, and queues it if that is nothing. `row`: itself, if it is at hand.
    pub(super) fn place(&mut self, id: u64, row: Option<Box<Row>>, now: Instant) {
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let (key, route, due) = (entry.key, entry.route, entry.due);
        debug_assert!(
            entry.stage.is_removable(),
            "a row of {:?} is placed",
            entry.stage
        );
        self.hold_back_behind(key, id);
        if self.index.head(key) != Some(id) {
            return self.move_to(id, Stage::Waiting);
        }
        if due.is_some_and(|due| due > now) {
            return self.move_to(id, Stage::Delayed);
        }
        if !self.routes.takes(route, id) {
            return self.move_to(id, Stage::Blocked);
        }
        match row.filter(|_| !self.index.is_out(key)) {
            Some(row) => self.take_payload(id, row),
            None => self.move_to(id, Stage::Ready),
        }
    }

    /// The payload of a row that may go is here.
    pub(super) fn take_payload(&mut self, id: u64, row: Box<Row>) {
        self.move_to(id, Stage::Loaded);
        self.payload_bytes += memory_of(&row);
        self.payloads.insert(id, row);
        self.queue_if_first(id);
    }

    /// A loaded row goes to the lines when it is the first of its key, and none of it is out.
    pub(super) fn queue_if_first(&mut self, id: u64) {
        let Some(entry) = self.index.get(id) else {
            return;
        };
        if self.index.head(entry.key) != Some(id) || self.index.is_out(entry.key) {
            return;
        }
        let old = entry.committed.is_none();
        let bytes = self.payloads.get(&id).map_or(0, |row| memory_of(row));
        let isolation = self.isolation_of(id);
        self.queue.push(Queued { id, bytes, old }, isolation);
    }

    pub(super) fn isolation_of(&self, id: u64) -> Isolation {
        let Some(entry) = self.index.get(id) else {
            return Isolation::Shared;
        };
        // What has failed before may close a channel again: not in others' company.
        let suspect = self.attribution.is_suspect(id, entry.tag);
        match self.routes.probe(entry.route, id) {
            // The broker took it without closing anything, and alone it would stop all others for as
            // long as its route does not answer.
            Some(pace @ super::breaker::Pace::Slow) => Isolation::Probe(pace),
            _ if suspect || entry.attempts > 0 => Isolation::Solo,
            Some(pace) => Isolation::Probe(pace),
            None => Isolation::Shared,
        }
    }

    /// The row behind this one may have been the first of the key until now, or was loaded as the next one
    /// behind one that is out.
    pub(super) fn hold_back_behind(&mut self, key: u64, id: u64) {
        let mut next = self.index.behind(key, id);
        let stage_of = |id| self.index.get(id).map(|entry| entry.stage);
        if let Some(out) = next.filter(|id| stage_of(*id) == Some(Stage::Out)) {
            next = self.index.behind(key, out);
        }
        let Some(next) = next else {
            return;
        };
        if stage_of(next).is_some_and(Stage::is_removable) {
            self.move_to(next, Stage::Waiting);
        }
    }

    /// The first row of a key may have changed.
    pub(super) fn promote(&mut self, key: u64, now: Instant) {
        let Some(id) = self.index.head(key) else {
            return;
        };
        match self.index.get(id).map(|entry| entry.stage) {
            Some(Stage::Waiting) => self.place(id, None, now),
            Some(Stage::Loaded) => self.queue_if_first(id),
            _ => {}
        }
    }

    /// Moves a row to another stage, with all that depends on it.
    pub(super) fn move_to(&mut self, id: u64, stage: Stage) {
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let (before, route, old) = (entry.stage, entry.route, entry.committed.is_none());
        if before == stage {
            return;
        }
        match before {
            Stage::Blocked => self.routes.unblock(route, id),
            Stage::Loaded => {
                if let Some(row) = self.payloads.remove(&id) {
                    self.payload_bytes -= memory_of(&row);
                }
            }
            Stage::Loading => self.loading_bytes -= entry.bytes + ROW_MEMORY,
            _ => {}
        }
        if stage.is_idle() && stage != Stage::Ready {
            // A probe that does not go is none.
            self.routes.probe_gone(route, id, None);
        }
        match stage {
            Stage::Blocked => self.routes.block(route, id),
            // A probe does not wait behind what its route is not the cause of.
            Stage::Ready if self.routes.probe(route, id).is_some() => self.to_load.push_front(id),
            Stage::Ready if old => self.to_load_old.push_back(id),
            Stage::Ready => self.to_load.push_back(id),
            Stage::Loading => self.loading_bytes += entry_bytes(self, id),
            _ => {}
        }
        self.index.set_stage(id, stage);
    }

    /// Takes a row out of the index without a word to those behind it.
    fn take_out(&mut self, id: u64) -> Option<Entry> {
        self.move_to(id, Stage::Waiting);
        let entry = self.index.remove(id)?;
        self.routes.leave(entry.route, id);
        Some(entry)
    }

    /// A row is no longer pending, or no longer ours: the next of its key may go.
    pub(super) fn remove(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.take_out(id) else {
            return;
        };
        self.attribution.forget(id);
        self.has_changed(id);
        if entry.again {
            self.arrivals.again(id, now);
        }
        self.promote(entry.key, now);
    }

    /// A row is not what it was: what was queried before and is answered later says nothing of it.
    pub(super) fn has_changed(&mut self, id: u64) {
        self.scans.row_has_changed(id);
        if let Some(loading) = &mut self.loading {
            loading.changed.insert(id);
        }
    }

    /// Breakers have closed: the rows that waited for them go.
    pub(super) fn place_released(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.released) {
            if self
                .index
                .get(id)
                .is_some_and(|entry| entry.stage == Stage::Blocked)
            {
                self.place(id, None, now);
            }
        }
    }

    /// Rows whose time has come, and routes that are to be probed.
    pub(super) fn release_due(&mut self, now: Instant) {
        while let Some(id) = self.index.due(now) {
            self.move_to(id, Stage::Waiting);
            if let Some(entry) = self.index.get_mut(id) {
                entry.due = None;
            }
            self.place(id, None, now);
        }
        while let Some(probe) = self.routes.let_through(now) {
            self.place(probe, None, now);
        }
    }

    /// Intake has ended: what is not on its way stays in the table alone.
    pub(super) fn forget_idle(&mut self) {
        let on_its_way =
            |stage| matches!(stage, Stage::Out | Stage::Confirmed | Stage::Failing { .. });
        let idle = self
            .index
            .iter()
            .filter(|(_, entry)| !on_its_way(entry.stage));
        for id in idle.map(|(id, _)| id).collect::<Vec<_>>() {
            self.move_to(id, Stage::Waiting);
            if let Some(entry) = self.index.remove(id) {
                self.routes.leave(entry.route, id);
            }
        }
        self.queue.clear();
        self.to_load.clear();
        self.to_load_old.clear();
    }
}

/// The time of a row, if that is still to come.
fn due_at(head: &Head, read_at: Instant, now: Instant) -> Option<Instant> {
    let due = head.wait.map(|wait| read_at + wait);
    due.filter(|due| *due > now)
}

fn entry_bytes(engine: &Engine, id: u64) -> usize {
    let bytes = engine.index.get(id).map_or(0, |entry| entry.bytes);
    bytes + ROW_MEMORY
}

/// What a row costs in memory, in bytes.
pub(super) fn memory_of(row: &Row) -> usize {
    row.payload.len() + row.headers.as_ref().map_or(0, Vec::len) + ROW_MEMORY
}
