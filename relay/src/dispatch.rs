//! What may go, what must wait, and what each answer means. No IO, no clock.
//!
//! The table is the only state: whatever can't go now is dropped here and found again by a pass.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use outbox::row::Row;

use crate::config::Order;
use crate::effects::{Effects, Failure, Mark, Sample};
use crate::fault::{self, Fault};
use crate::held::{Admit, Held, Route, Visit};
use crate::lane::Done;
use crate::metrics::{Reason, Source};
use crate::queue::{BatchLimit, Company, Item, Queue, RowId, key_hash};
use crate::schedule::{Next, Schedule};

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
    /// Payload bytes.
    pub bytes: usize,
    /// It has been tried, sent or delayed before: that the binlog did not bring it as a new row is
    /// no wonder.
    pub relived: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
    schedule: Schedule,
    /// Held keys and routes.
    pub held: Held,
    /// Rows waiting for a lane.
    pub queue: Queue,
    flights: HashMap<RowId, Stage>,
    /// Rows whose payload is being loaded: not in the queue yet, so a failure of an earlier row of
    /// their key has to find them here.
    loading: HashMap<RowId, (u64, Route)>,
    /// Rows that left `flights` since the page at hand was asked for: it may still show them.
    since_read: Option<HashMap<RowId, Stage>>,
    /// Rows of batches that the broker answered by closing, with how often each was alone then.
    suspects: HashMap<RowId, u32>,
    /// What the last pass of the catch-up sent: the tail, which starts before that pass, brings
    /// these again.
    already_sent: HashSet<RowId>,
    pass: u64,
}

/// Alone with the broker when it closed: this often, and the row is to blame.
const STRIKES_MAX: u32 = 2;

impl Dispatch {
    /// Nothing on its way.
    pub fn new(order: Order, schedule: Schedule, lanes: usize, limit: BatchLimit) -> Self {
        Self {
            order,
            schedule,
            held: Held::new(order, schedule),
            queue: Queue::new(order, lanes, limit),
            flights: HashMap::new(),
            loading: HashMap::new(),
            since_read: None,
            suspects: HashMap::new(),
            already_sent: HashSet::new(),
            pass: 0,
        }
    }

    /// Rows on their way: queued, unconfirmed or unmarked.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Suspects survive a new connection: what closed the last one must go alone on the next.
    pub fn take_suspects(&mut self) -> HashMap<RowId, u32> {
        std::mem::take(&mut self.suspects)
    }

    /// See [`Dispatch::take_suspects`].
    pub fn set_suspects(&mut self, suspects: HashMap<RowId, u32>) {
        self.suspects = suspects;
    }

    /// A row that the binlog brought.
    pub fn tail(&mut self, row: Row, committed: Instant, now: Instant) {
        let id = RowId::new(row.id, &row.message_id);
        if self.flights.contains_key(&id) || self.already_sent.contains(&id) {
            return;
        }
        let key = key_hash(&row.aggregate_type, &row.aggregate_id);
        if !self.held.is_empty() {
            let route = Route::of(&row);
            if self.held.holds(key, &route) {
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
    pub fn pass_began(&mut self, number: u64) {
        self.pass = number;
        self.held.pass_began();
    }

    /// A page of the pass is being asked for: remember what is settled from now on.
    pub fn page_asked(&mut self) {
        self.since_read = Some(HashMap::new());
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
            // What has failed before may close a channel again: not in others' company.
            let alone = attempts > 0 || self.suspects.contains_key(&id);
            let company = match (alone, self.held.is_probe(&route, id)) {
                (true, _) => Company::Nobody,
                (false, true) => Company::OtherLanes,
                (false, false) => Company::Anyone,
            };
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
                self.held.probe_gone(&route, head.id, now);
            }
        }
    }

    /// The tail starts before the pass that sent these.
    pub fn set_already_sent(&mut self, sent: HashSet<RowId>) {
        self.already_sent = sent;
    }

    /// The tail is past that pass.
    pub fn clear_already_sent(&mut self) {
        self.already_sent = HashSet::new();
    }

    /// A batch has come back.
    pub fn done(&mut self, done: &Done, dice: f64, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let mut shut = HashSet::new();
        let alone = done.items.len() == 1;
        for (at, item) in done.items.iter().enumerate() {
            match fault::find(&done.outcome, at, alone) {
                Fault::None => self.confirmed(item, &mut effects, now),
                Fault::Nobody => self.put_back(item, now),
                Fault::Suspect(text) => self.suspect(item, text, &mut effects, (dice, now)),
                Fault::Route(reason, text) => {
                    let route = Route::of(&item.row);
                    effects.refused.push(reason);
                    if self.held.shut_route(&route, item.id(), dice, now) {
                        effects.samples.push(Sample {
                            row: Mark::of(item),
                            reason,
                            text,
                        });
                    }
                    shut.insert(route);
                    self.put_back(item, now);
                }
                Fault::Message(reason, text) => {
                    self.failed(item, (reason, text), &mut effects, (dice, now));
                }
            }
        }
        if !shut.is_empty() {
            for item in self
                .queue
                .drop_matching(|item| shut.contains(&Route::of(&item.row)))
            {
                self.put_back(&item, now);
            }
        }
        self.queue.settled(done.lane, &done.items);
        effects
    }

    fn confirmed(&mut self, item: &Item, effects: &mut Effects, now: Instant) {
        if !self.held.is_empty() {
            self.held.confirmed(&Route::of(&item.row), item.id(), now);
        }
        if item.is_suspect() {
            self.suspects.remove(&item.id());
        }
        effects
            .sent
            .push((Mark::of(item), item.source, item.committed));
    }

    /// Back to the table, and everything of its key that waits behind it.
    fn put_back(&mut self, item: &Item, now: Instant) {
        self.forget(item, now);
        self.hold_key(item.key, None, now);
    }

    fn forget(&mut self, item: &Item, now: Instant) {
        self.flights.remove(&item.id());
        if !self.held.is_empty() {
            self.held.probe_gone(&Route::of(&item.row), item.id(), now);
        }
    }

    fn hold_key(&mut self, key: u64, until: Option<Instant>, now: Instant) {
        self.held.put_back(key, self.pass, until, now);
        if self.order == Order::Key {
            for behind in self.queue.drop_key(key) {
                self.forget(&behind, now);
            }
            for (id, (_, route)) in self.loading.extract_if(|_, (of, _)| *of == key) {
                self.flights.remove(&id);
                self.held.probe_gone(&route, id, now);
            }
        }
    }

    fn suspect(
        &mut self,
        item: &Item,
        text: String,
        effects: &mut Effects,
        (dice, now): (f64, Instant),
    ) {
        let strikes = self.suspects.entry(item.id()).or_insert(0);
        if item.is_suspect() {
            *strikes += 1;
        }
        if *strikes >= STRIKES_MAX {
            self.failed(item, (Reason::ChannelClosed, text), effects, (dice, now));
        } else {
            effects.refused.push(Reason::ChannelClosed);
            self.put_back(item, now);
        }
    }

    fn failed(
        &mut self,
        item: &Item,
        (reason, text): (Reason, String),
        effects: &mut Effects,
        (dice, now): (f64, Instant),
    ) {
        self.suspects.remove(&item.id());
        let attempts = item.attempts.saturating_add(1);
        let next = self.schedule.after_failure(attempts, dice);
        let until = match next {
            Next::Retry(after) => Some(now + after),
            Next::Park => None,
        };
        self.flights.insert(item.id(), Stage::Failing);
        if !self.held.is_empty() {
            self.held.probe_gone(&Route::of(&item.row), item.id(), now);
        }
        self.hold_key(item.key, until, now);
        effects.failed.push(Failure {
            row: Mark::of(item),
            attempts,
            reason,
            text,
            next,
        });
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
