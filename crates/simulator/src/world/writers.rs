//! The services: transactions that insert rows. A writer locks the aggregate before it inserts, so for
//! one key the order of commits is the order of ids; between keys it is not.

use std::collections::BTreeSet;

use super::binlog::Seen;
use super::database::{Change, DISCARDED, PARKED, PENDING, SENT, Stored};
use super::{Happening, Message, RowFault, World};
use crate::faults::Fault;
use crate::queue::{MILLI, SECOND};
use crate::rng::mix;

/// Who holds which key, and what is open.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    locked: BTreeSet<u64>,
    open: usize,
    /// A statement that needs the whole table waits: nothing new begins.
    pub(super) held: bool,
    /// Rows of [`RowFault::Fatal`] so far.
    fatal_rows: usize,
}

/// Each ends as many sessions as it has attempts: hundreds of them only make a long life.
const FATAL_ROWS_MAX: usize = 20;

impl Writers {
    pub(super) fn unlock(&mut self, keys: &[u64]) {
        for key in keys {
            self.locked.remove(key);
        }
    }

    /// No transaction is open.
    pub(super) fn is_idle(&self) -> bool {
        self.open == 0
    }
}

/// An open transaction.
#[derive(Debug)]
pub(crate) struct Open {
    server: usize,
    keys: Vec<u64>,
    rows: Vec<(u64, Stored)>,
    end: Ending,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
    Savepoint,
    Hidden,
    InsertDelete,
    Unlogged,
}

impl World {
    /// Rows that were there before the relay.
    pub(super) fn fill(&mut self) {
        let rows = if self.writing.percent(30) {
            self.writing.size(1, 400)
        } else {
            0
        };
        let mut ids = Vec::new();
        let mut changes = Vec::new();
        for _ in 0..rows {
            let key = self.writing.below(self.scenario.keys);
            let (id, row) = self.new_row(0, key);
            ids.push(id);
            changes.push(Change::Put(id, row));
        }
        self.commit(0, Seen::Rows(ids), changes);
    }

    /// The services begin a transaction.
    pub(super) fn write(&mut self) {
        let pace = self.scenario.pace;
        if self.queue.now() > self.scenario.troubled {
            return self.canaries();
        }
        let wait = self.writing.range(1, 2 * pace);
        self.queue.after(wait, Happening::Write);
        let server = self.primary;
        if self.writers.held || !self.servers[server].up || self.servers[server].read_only {
            return;
        }
        let mut keys = BTreeSet::new();
        for _ in 0..self.writing.range(1, 3) {
            keys.insert(self.writing.below(self.scenario.keys));
        }
        keys.retain(|key| !self.writers.locked.contains(key));
        if keys.is_empty() {
            return;
        }
        let mut order: Vec<u64> = Vec::new();
        for &key in &keys {
            let rows = self.writing.range(1, 3);
            order.extend((0..rows).map(|_| key));
        }
        self.writing.shuffle(&mut order);
        self.open(server, keys.into_iter().collect(), &order);
    }

    /// A message that is nacked for ever differs from a full queue by others of its route that are
    /// confirmed: as long as there is such a message, others follow.
    fn canaries(&mut self) {
        let server = self.primary;
        let at = &self.servers[server];
        let nacked = |id: &u64| {
            let row = at.rows[id];
            (self.messages[row.message as usize].fault == RowFault::Nacked).then_some(row.route)
        };
        let routes: BTreeSet<u64> = at.pending.iter().filter_map(nacked).collect();
        let waits = |route: &u64| self.servers[server].by_key.contains_key(&(50_000 + route));
        for route in routes
            .into_iter()
            .filter(|route| !waits(route))
            .collect::<Vec<u64>>()
        {
            let (id, row) = self.new_row(server, 50_000 + route);
            let row = Stored { route, ..row };
            self.commit(server, Seen::Rows(vec![id]), vec![Change::Put(id, row)]);
        }
        self.queue.after(SECOND / 2, Happening::Write);
    }

    fn open(&mut self, server: usize, keys: Vec<u64>, order: &[u64]) {
        let end = self.ending();
        let mut rows = Vec::new();
        for &key in order {
            let (id, mut row) = self.new_row(server, key);
            self.messages[row.message as usize].unlogged = end == Ending::Unlogged;
            self.vary(&mut row);
            rows.push((id, row));
        }
        self.writers.locked.extend(&keys);
        self.writers.open += 1;
        let long = self.is(Fault::LongTransaction) && self.writing.percent(30);
        if long {
            self.coverage.fault(Fault::LongTransaction);
        }
        let takes = if long {
            self.writing.below(3 * SECOND)
        } else {
            self.writing.below(20 * MILLI)
        };
        let open = Open {
            server,
            keys,
            rows,
            end,
        };
        self.queue.after(takes, Happening::Finish(Box::new(open)));
    }

    fn ending(&mut self) -> Ending {
        let choices = [
            (Fault::Rollback, Ending::Rollback),
            (Fault::Savepoint, Ending::Savepoint),
            (Fault::Xa, Ending::Hidden),
            (Fault::Hidden, Ending::Hidden),
            (Fault::InsertDelete, Ending::InsertDelete),
            (Fault::Unlogged, Ending::Unlogged),
        ];
        for (fault, end) in choices {
            if self.is(fault) && self.writing.percent(30) {
                self.coverage.fault(fault);
                return end;
            }
        }
        Ending::Commit
    }

    /// A new pending row with the next id.
    pub(super) fn new_row(&mut self, server: usize, key: u64) -> (u64, Stored) {
        let gap = if self.writing.percent(10) {
            self.writing.below(5)
        } else {
            0
        };
        let id = self.servers[server].next_id + gap;
        self.servers[server].next_id = id + 1;
        let fault = self.row_fault();
        let message = u32::try_from(self.messages.len()).expect("a run has fewer messages");
        let usual = mix(key) % self.scenario.routes;
        let route = if self.writing.percent(80) {
            usual
        } else {
            self.writing.below(self.scenario.routes)
        };
        let fault = match fault {
            RowFault::Nacked if self.is_nacked_often(server, route) => RowFault::None,
            other => other,
        };
        self.messages.push(Message {
            key,
            fault,
            unlogged: false,
        });
        self.checker.new_message();
        let row = Stored {
            message,
            key,
            route,
            status: PENDING,
            attempts: 0,
            next: None,
            sent: false,
            error: false,
            version: 0,
            bytes: self.writing.range(4, self.scenario.payload),
            since: self.queue.now(),
            touched: false,
        };
        (id, row)
    }

    /// Of a route with more than eight nacked rows none is to blame: so many look like a full queue.
    fn is_nacked_often(&self, server: usize, route: u64) -> bool {
        let at = &self.servers[server];
        let is_nacked = |id: &&u64| {
            let row = at.rows[id];
            row.route == route && self.messages[row.message as usize].fault == RowFault::Nacked
        };
        at.pending.iter().filter(is_nacked).nth(5).is_some()
    }

    fn row_fault(&mut self) -> RowFault {
        let choices = [
            (Fault::InvalidRow, RowFault::Invalid),
            (Fault::LargeRow, RowFault::Large),
            (Fault::PoisonRow, RowFault::Panic),
            (Fault::PoisonRow, RowFault::Channel),
            (Fault::FatalRow, RowFault::Fatal),
            (Fault::NackedRow, RowFault::Nacked),
        ];
        for (fault, own) in choices {
            if self.is(fault) && self.writing.per_mille(8) {
                if own == RowFault::Fatal {
                    if self.writers.fatal_rows == FATAL_ROWS_MAX {
                        continue;
                    }
                    self.writers.fatal_rows += 1;
                }
                self.coverage.fault(fault);
                return own;
            }
        }
        RowFault::None
    }

    fn vary(&mut self, row: &mut Stored) {
        if self.is(Fault::OtherStatus) && self.writing.percent(10) {
            self.coverage.fault(Fault::OtherStatus);
            row.status = self.writing.pick(&[SENT, PARKED, DISCARDED]);
        }
        if self.is(Fault::Delayed) && self.writing.percent(20) {
            self.coverage.fault(Fault::Delayed);
            row.next = Some(self.database_time() + self.delay(8));
        }
    }

    fn delay(&mut self, seconds: u64) -> i64 {
        i64::try_from(self.writing.range(MILLI, seconds * SECOND)).expect("it is small")
    }

    /// The services end a transaction.
    pub(super) fn finish(&mut self, open: Open) {
        let Open {
            server,
            keys,
            mut rows,
            end,
        } = open;
        self.writers.open -= 1;
        let gone =
            server != self.primary || !self.servers[server].up || self.servers[server].read_only;
        if gone || end == Ending::Rollback {
            return self.writers.unlock(&keys);
        }
        if matches!(end, Ending::Savepoint | Ending::InsertDelete) {
            rows.retain(|_| self.writing.percent(60));
        }
        let pending = |(id, row): &(u64, Stored)| (row.status == PENDING).then_some(*id);
        let ids: Vec<u64> = rows.iter().filter_map(pending).collect();
        let changes: Vec<Change> = rows
            .iter()
            .map(|(id, row)| Change::Put(*id, *row))
            .collect();
        let seen = match end {
            Ending::Hidden | Ending::InsertDelete => Seen::Doubt,
            Ending::Savepoint if self.writing.percent(50) => Seen::Doubt,
            _ if ids.is_empty() => Seen::Nothing,
            _ => Seen::Rows(ids),
        };
        let visible = if end == Ending::Unlogged {
            self.commit_unlogged(server, changes)
        } else {
            self.commit(server, seen, changes)
        };
        self.queue.at(visible, Happening::Unlock(keys));
    }

    /// Many rows of one key in one transaction.
    pub(super) fn burst(&mut self) {
        let key = self.scenario.keys + 100;
        let rows = self.writing.size(50, 300);
        let order = vec![key; rows];
        if !self.writers.held && !self.writers.locked.contains(&key) {
            self.coverage.fault(Fault::Burst);
            self.open(self.primary, vec![key], &order);
        }
    }

    /// Very many delayed rows, with keys of their own.
    pub(super) fn crowd(&mut self) {
        let server = self.primary;
        if self.writers.held || self.servers[server].read_only || !self.servers[server].up {
            return;
        }
        self.coverage.fault(Fault::DelayedCrowd);
        let rows = self.writing.size(200, 3_000);
        let keys = self.writing.pick(&[1, 20, 500]);
        let (mut ids, mut changes) = (Vec::new(), Vec::new());
        for number in 0..rows as u64 {
            let (id, mut row) = self.new_row(server, 10_000 + number % keys);
            row.next = Some(self.database_time() + self.delay(20));
            ids.push(id);
            changes.push(Change::Put(id, row));
        }
        self.commit(server, Seen::Rows(ids), changes);
    }

    /// Rows of as many routes as there are, each with a key of its own.
    pub(super) fn route_crowd(&mut self) {
        let rows = self.scenario.routes.clamp(100, 12_000);
        self.many(rows, 20_000, |number| number);
        self.coverage.fault(Fault::RouteCrowd);
    }

    /// More rows than can be sent, of many keys, again and again.
    pub(super) fn flood(&mut self) {
        if self.is(Fault::Flood) {
            self.coverage.fault(Fault::Flood);
            if self.servers[self.primary].pending.len() < 12_000 {
                self.many(100, 30_000, |number| number % 3);
            }
            self.queue.after(50 * MILLI, Happening::Flood);
        }
    }

    fn many(&mut self, rows: u64, keys: u64, route: impl Fn(u64) -> u64) {
        let server = self.primary;
        if self.writers.held || self.servers[server].read_only || !self.servers[server].up {
            return;
        }
        let (mut ids, mut changes) = (Vec::new(), Vec::new());
        for number in 0..rows {
            let (id, row) = self.new_row(server, keys + number);
            let route = route(number) % self.scenario.routes;
            ids.push(id);
            changes.push(Change::Put(id, Stored { route, ..row }));
        }
        self.commit(server, Seen::Rows(ids), changes);
    }

    /// TRUNCATE waits until no transaction is open, and keeps new ones from beginning.
    pub(super) fn truncate(&mut self) {
        self.writers.held = true;
        let server = self.primary;
        let free = self.writers.open == 0 && self.servers[server].is_settled();
        if !free {
            return self.queue.after(5 * MILLI, Happening::Truncate);
        }
        self.writers.held = false;
        if self.servers[server].up && !self.servers[server].read_only {
            self.coverage.fault(Fault::Truncate);
            self.commit(server, Seen::Doubt, vec![Change::Truncate]);
            let at = self.servers[server].settled_at();
            self.servers[server].appear(at);
            self.writers.locked.clear();
        }
    }
}
