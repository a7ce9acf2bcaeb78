//! What may go and what must wait. No IO, no clock. What the answers mean is in [`crate::answers`].
//!
//! The table is the only state: whatever can't go now is dropped here and found again by a pass.

use std::time::{Duration, Instant};

use outbox::row::Row;

use crate::config::Order;
use crate::hashed::{HashedMap, HashedSet};
use crate::held::{Admit, Held, Visit};
use crate::observe::metrics::Source;
use crate::queue::{BatchLimit, Company, Item, Pace, Queue, RowId, key_hash};
use crate::route::Route;
use crate::schedule::Schedule;

/// A pending row as a pass meets it: everything but the payload.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its identity.
    pub id: RowId,
    /// Hash of the ordering key.
    pub key: u64,
    /// Where it goes.
    pub route: Route,
    /// `next_attempt_at` as time still to wait at the moment of reading; `None` is due.
    pub wait: Option<Duration>,
    /// Bytes of payload and headers.
    pub bytes: usize,
    /// It has been tried, sent or delayed before: that the binlog did not bring it as a new row is
    /// no wonder.
    pub relived: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Queued, with the broker, or confirmed and not marked yet.
    Going,
    /// Its failure is being written.
    Failing,
}

/// What a pass does with a row it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Load and send it. `missed`: the binlog should have brought it.
    Send {
        /// Nothing explains why the tail did not bring it.
        missed: bool,
    },
    /// It is on its way already, or waits.
    Skip,
}

/// The relay's memory: never more than what is on its way, and the keys that wait.
pub struct Dispatch {
    order: Order,
    pub(crate) schedule: Schedule,
    /// Held keys and routes.
    pub held: Held,
    /// Rows waiting for a lane.
    pub queue: Queue,
    pub(crate) flights: HashedMap<RowId, Stage>,
    /// Rows whose payload is being loaded: not in the queue yet, so a failure of an earlier row of
    /// their key has to find them here.
    loading: HashedMap<RowId, (u64, Route)>,
    /// Rows that left `flights` since the page at hand was asked for: it may still show them.
    since_read: Option<HashedMap<RowId, Stage>>,
    /// Rows of batches that the broker answered by closing, with how often each was alone then.
    pub(crate) suspects: HashedMap<RowId, u32>,
    /// What the last pass of the catch-up sent: the tail, which starts before that pass, brings
    /// these again. True for a row that it has brought.
    already_sent: HashedMap<RowId, bool>,
    pass: u64,
}

/// Rows of one key that may wait in the queue before the table serves it. A batch takes one row of
/// a key, so without a bound one hot key fills the queue and every other key waits behind it. A pass
/// looks when it admits, not when the rows are loaded: at most a page comes on top.
pub const KEY_ROWS_MAX: usize = 256;

impl Dispatch {
    /// Nothing on its way.
    pub fn new(order: Order, schedule: Schedule, lanes: usize, limit: BatchLimit) -> Self {
        Self {
            order,
            schedule,
            held: Held::new(order, schedule),
            queue: Queue::new(order, lanes, limit),
            flights: HashedMap::default(),
            loading: HashedMap::default(),
            since_read: None,
            suspects: HashedMap::default(),
            already_sent: HashedMap::default(),
            pass: 0,
        }
    }

    /// Rows on their way: queued, unconfirmed or unmarked.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Suspects survive a new connection: what closed the last one must go alone on the next.
    pub fn take_suspects(&mut self) -> HashedMap<RowId, u32> {
        std::mem::take(&mut self.suspects)
    }

    /// See [`Dispatch::take_suspects`].
    pub fn set_suspects(&mut self, suspects: HashedMap<RowId, u32>) {
        self.suspects = suspects;
    }

    /// A row that the binlog brought.
    pub fn tail(&mut self, row: Row, committed: Instant, now: Instant) {
        let id = RowId::new(row.id, &row.message_id);
        if self.flights.contains_key(&id) {
            return;
        }
        let key = key_hash(&row.aggregate_type, &row.aggregate_id);
        if let Some(brought) = self.already_sent.get_mut(&id) {
            // Brought again it has been deleted and inserted anew: the table knows whether it is sent.
            if std::mem::replace(brought, true) {
                self.held.leave(key, &Route::of(&row), now);
            }
            return;
        }
        let hot = self.queue.behind(key) >= KEY_ROWS_MAX;
        if hot || !self.held.is_empty() {
            let route = Route::of(&row);
            if hot || self.held.holds(key, &route) {
                self.held.leave(key, &route, now);
                return;
            }
        }
        self.flights.insert(id, Stage::Going);
        let source = Source::Binlog;
        let committed = Some(committed);
        self.queue.push(Item {
            row,
            attempts: 0,
            key,
            source,
            committed,
            company: Company::Anyone,
        });
    }

    /// A row that the binlog brought but the table serves: it has attempts or is delayed.
    pub fn tail_deferred(&mut self, row: &Row, now: Instant) {
        let key = key_hash(&row.aggregate_type, &row.aggregate_id);
        self.held.leave(key, &Route::of(row), now);
    }

    /// A pass begins.
    pub fn pass_began(&mut self, number: u64, whole: bool) {
        self.pass = number;
        self.held.pass_began(whole);
    }

    /// A page of the pass is being asked for: remember what is settled from now on.
    pub fn page_asked(&mut self) {
        self.since_read = Some(HashedMap::default());
    }

    /// The page has been worked through.
    pub fn page_done(&mut self) {
        self.since_read = None;
    }

    /// The pass met a pending row; `wait_until` is its due time when that is still to come.
    pub fn admit(&mut self, head: &Head, wait_until: Option<Instant>, now: Instant) -> Take {
        let visit = Visit {
            pass: self.pass,
            now,
        };
        let gone = self.since_read.as_ref().and_then(|gone| gone.get(&head.id));
        match self.flights.get(&head.id).or(gone) {
            Some(Stage::Going) => return Take::Skip,
            Some(Stage::Failing) => self.held.leave_failing(head.key, visit),
            None if self.queue.behind(head.key) >= KEY_ROWS_MAX => {
                self.held.leave_hot(head.key, visit);
            }
            None => {
                let explained = head.relived
                    || self.held.explains_any()
                    || self.held.holds(head.key, &head.route);
                let place = (head.key, &head.route);
                match self.held.admit(head.id, place, wait_until, visit) {
                    Admit::Go => {
                        self.flights.insert(head.id, Stage::Going);
                        let place = (head.key, head.route.clone());
                        self.loading.insert(head.id, place);
                        return Take::Send { missed: !explained };
                    }
                    Admit::Leave => {}
                }
            }
        }
        Take::Skip
    }

    /// The rows that [`Dispatch::admit`] asked for, with their attempts; `asked` that are not among
    /// them are no longer pending.
    pub fn loaded(&mut self, asked: &[Head], rows: Vec<(Row, u32)>, now: Instant) {
        for (row, attempts) in rows {
            let id = RowId::new(row.id, &row.message_id);
            // Not asked for: another message under the same id, or put back meanwhile.
            let Some((key, route)) = self.loading.remove(&id) else {
                continue;
            };
            if !route.is_of(&row) {
                // Somebody has sent it elsewhere meanwhile: what was decided was for its old route.
                self.flights.remove(&id);
                self.held.probe_gone(&route, id, None, now);
                self.hold_key(key, None, now);
                continue;
            }
            let company = self.company(id, attempts, &route);
            self.queue.push(Item {
                row,
                attempts,
                key,
                source: Source::Sweep,
                committed: None,
                company,
            });
        }
        for head in asked {
            if let Some((_, route)) = self.loading.remove(&head.id) {
                self.flights.remove(&head.id);
                self.held.probe_gone(&route, head.id, None, now);
            }
        }
    }

    fn company(&self, id: RowId, attempts: u32, route: &Route) -> Company {
        // What has failed before may close a channel again: not in others' company.
        let suspect = attempts > 0 || self.suspects.contains_key(&id);
        match self.held.probe(route, id) {
            // The broker took it without closing anything, and alone it would stop all others for as
            // long as its route does not answer.
            Some(Pace::Slow) => Company::Probe(Pace::Slow),
            _ if suspect => Company::Nobody,
            Some(Pace::Prompt) => Company::Probe(Pace::Prompt),
            None => Company::Anyone,
        }
    }

    /// The tail starts before the pass that sent these.
    pub fn set_already_sent(&mut self, sent: HashedSet<RowId>) {
        self.already_sent = sent.into_iter().map(|id| (id, false)).collect();
    }

    /// The tail is past that pass.
    pub fn clear_already_sent(&mut self) {
        self.already_sent = HashedMap::default();
    }

    /// Back to the table, and everything of its key that waits behind it.
    pub(crate) fn put_back(&mut self, item: &Item, now: Instant) {
        self.forget(item, now);
        self.hold_key(item.key, None, now);
    }

    fn forget(&mut self, item: &Item, now: Instant) {
        self.flights.remove(&item.id());
        if !self.held.is_empty() {
            self.held
                .probe_gone(&Route::of(&item.row), item.id(), None, now);
        }
    }

    pub(crate) fn hold_key(&mut self, key: u64, until: Option<Instant>, now: Instant) {
        self.held.put_back(key, self.pass, until, now);
        if self.order == Order::Key {
            for behind in self.queue.drop_key(key) {
                self.forget(&behind, now);
            }
            for (id, (_, route)) in self.loading.extract_if(|_, (of, _)| *of == key) {
                self.flights.remove(&id);
                self.held.probe_gone(&route, id, None, now);
            }
        }
    }

    /// Marks or failures have been committed.
    pub fn written(&mut self, rows: impl IntoIterator<Item = RowId>, now: Instant) {
        for id in rows {
            let stage = self.flights.remove(&id);
            if let (Some(gone), Some(stage)) = (&mut self.since_read, stage) {
                gone.insert(id, stage);
            }
            if stage == Some(Stage::Failing) {
                self.held.wake_now(now);
            }
        }
    }
}

mod pause;
#[cfg(test)]
mod tests;
