//! The relay's decisions, all of them: a machine without IO, clock or randomness.
//!
//! One engine is one outbox while its lock is held. It is fed [`Event`]s and the time, and answers with
//! [`Command`]s; it never fails and never waits. `session.rs` executes the commands, and the
//! simulator (`make simulate`) does so in a world of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outbox::row::Row;
use rustc_hash::{FxHashMap, FxHashSet};

mod command;
mod event;
mod snapshot;
mod state;

mod arrivals;
mod load;
mod scan;

mod admission;
mod index;
mod overflow;

mod breaker;
mod ready_queue;

mod attribution;
mod retry;
mod write_ledger;

#[cfg(test)]
mod tests;

pub mod position;
pub mod route;

pub use command::{
    Command, End, LoadQuery, PageQuery, Reason, Record, Report, Source, Then, Write,
};
pub use event::{BinlogEnd, Event, Head, Page, Pauses, Read, Refused, Rows, Transaction, Written};
pub use snapshot::{Lag, ROUTES_SHOWN, Snapshot, StateName, WaitingRoute};

use self::arrivals::{ARRIVALS_MAX, Arrivals};
use self::attribution::Attribution;
pub use self::breaker::PROBE_MAX;
use self::breaker::Routes;
use self::index::{Index, ROW_BYTES, Stage};
use self::load::Loading;
use self::overflow::Overflow;
use self::ready_queue::{Batch, ReadyQueue};
use self::retry::{Jitter, Retry};
use self::scan::Scans;
use self::state::{Binlog, State, Stream};
pub use self::write_ledger::UNWRITTEN_MAX;
use self::write_ledger::WriteLedger;

/// Whose order is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Per ordering key: a message waits for the earlier ones of its key.
    Key,
    /// Nobody's: a message waits for nothing.
    None,
}

/// How new rows are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the binlog; the sweep is the safety net.
    Cdc,
    /// By reading the table at an interval.
    Poll,
}

/// What the engine is given at its start.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `RELAY_ORDER`.
    pub order: Order,
    /// `RELAY_MODE`.
    pub mode: Mode,
    /// `RELAY_LANES`: publishers for all rows but probes. [`PROBE_PUBLISHERS`] more are for probes.
    pub publishers: usize,
    /// `RELAY_BATCH_MAX`.
    pub batch_rows: usize,
    /// `RELAY_BATCH_BYTES`; a single larger row goes alone.
    pub batch_bytes: usize,
    /// `RELAY_BUFFER_BYTES`: payloads that wait for a publisher or are with one.
    pub buffer_bytes: usize,
    /// Bytes of the index of pending rows.
    pub index_bytes: usize,
    /// `RELAY_BACKOFF_MIN`: wait after the first failure.
    pub backoff_min: Duration,
    /// `RELAY_BACKOFF_MAX`: the longest wait.
    pub backoff_max: Duration,
    /// `RELAY_MAX_ATTEMPTS`: attempts after which a message is parked, at least 1.
    pub attempts_max: u32,
    /// `RELAY_SWEEP_INTERVAL`.
    pub sweep_interval: Duration,
    /// `RELAY_POLL_INTERVAL`.
    pub poll_interval: Duration,
}

/// Publishers for probes alone, behind [`Settings::publishers`].
pub const PROBE_PUBLISHERS: usize = 4;

/// What a row costs in memory besides its payload and headers, in bytes (measured, rounded up). The other
/// columns are short.
pub const ROW_MEMORY: usize = 512;

/// What a reported id costs, in bytes.
const ARRIVAL_BYTES: usize = 40;
/// What a confirmed row costs until it is marked, in bytes.
const MARK_BYTES: usize = 160;
/// Without anything to do the engine is looked at so often.
const IDLE: Duration = Duration::from_secs(1);

/// What outlives a session: which rows were with the broker when it closed. They go alone the next time.
#[derive(Debug, Default)]
pub struct Memory {
    suspects: FxHashMap<u64, (u64, u32)>,
}

/// See the module.
pub struct Engine {
    settings: Settings,
    retry: Retry,
    jitter: Jitter,

    state: State,
    since: Instant,
    why: String,
    stream: Stream,
    pauses: Pauses,

    scans: Scans,
    arrivals: Arrivals,
    loading: Option<Loading>,
    /// Why the table can't be read now.
    table_refused: Option<String>,
    /// Rows that the binlog should have reported, since that was last reported.
    missed: u64,

    index: Index,
    overflow: Overflow,
    routes: Routes,
    /// Rows whose breaker has closed.
    released: Vec<u64>,

    /// Rows that may go, their payload not loaded: what the binlog reported, and what scans found. Some
    /// may have changed their mind.
    to_load: VecDeque<u64>,
    to_load_old: VecDeque<u64>,
    old_turn: bool,
    /// Bytes of rows that are being loaded, as far as that is known.
    loading_bytes: usize,
    payloads: FxHashMap<u64, Box<Row>>,
    payload_bytes: usize,

    queue: ReadyQueue,
    out_since: Vec<Instant>,
    out_message_ids: FxHashMap<u64, String>,
    blocked: Option<String>,
    unblocked_at: Option<Instant>,
    /// Nothing is published until then.
    rests_until: Option<Instant>,

    attribution: Attribution,
    ledger: WriteLedger,
    /// The time of the event at hand.
    now: Instant,
    #[cfg(debug_assertions)]
    handled: u64,
}

impl Engine {
    /// A session begins: the lock is held, database and broker are connected, no binlog stream is open,
    /// no command is under way. `seed` is where jitter comes from.
    pub fn new(settings: Settings, memory: Memory, seed: u64, now: Instant) -> Self {
        let retry = Retry {
            min: settings.backoff_min,
            max: settings.backoff_max,
            attempts_max: settings.attempts_max,
        };
        let queue = ReadyQueue::new(&settings);
        Self {
            settings,
            retry,
            jitter: Jitter::new(seed),
            state: State::at_first(settings.mode),
            since: now,
            why: String::new(),
            stream: Stream::new(now),
            pauses: Pauses::default(),
            scans: Scans::new(now),
            arrivals: Arrivals::new(now),
            loading: None,
            table_refused: None,
            missed: 0,
            index: Index::default(),
            overflow: Overflow::default(),
            routes: Routes::new(retry),
            released: Vec::new(),
            to_load: VecDeque::new(),
            to_load_old: VecDeque::new(),
            old_turn: false,
            loading_bytes: 0,
            payloads: FxHashMap::default(),
            payload_bytes: 0,
            out_since: vec![now; queue.publishers()],
            queue,
            out_message_ids: FxHashMap::default(),
            blocked: None,
            unblocked_at: None,
            rests_until: None,
            attribution: Attribution::new(memory),
            ledger: WriteLedger::default(),
            now,
            #[cfg(debug_assertions)]
            handled: 0,
        }
    }

    /// Takes an event and appends what is to be done. After [`Command::End`] nothing more is to come.
    pub fn handle(&mut self, event: Event, now: Instant, out: &mut Vec<Command>) {
        self.now = now;
        match event {
            Event::Tick => {}
            Event::BinlogOpened => self.on_binlog_opened(now),
            Event::BinlogEnded(end) => self.on_binlog_ended(end, now, out),
            Event::Committed(transaction) => self.on_committed(&transaction, now, out),
            Event::Doubt => self.on_doubt(now, out),
            Event::BinlogAt(position) => self.on_position(&position),
            Event::Page(page) => self.on_page(page, now, out),
            Event::Rows(rows) => self.on_rows(rows, now),
            Event::TableRefused(why) => self.table_refused = Some(why),
            Event::Published { publisher, outcome } => {
                self.on_published(publisher, outcome, now, out);
            }
            Event::BrokerLost(why) => self.on_broker_lost(why, now, out),
            Event::BrokerBlocked(why) => self.blocked = Some(why),
            Event::BrokerUnblocked => {
                self.blocked = None;
                self.unblocked_at = Some(now);
            }
            Event::Written(written) => self.on_written(&written, now),
            Event::Pauses(pauses) => self.on_pauses(pauses, now, out),
            Event::Drain => self.on_drain(now, out),
        }
        self.advance(now, out);
        #[cfg(debug_assertions)]
        self.check();
    }

    /// Everything that follows from the state: scans, loads, batches, writes, the end.
    fn advance(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.state.takes_in() {
            self.release_due(now);
            self.advance_scan(now, out);
            self.report_missed(out);
            self.next_load(now, out);
        }
        self.next_batches(now, out);
        self.next_writes(now, out);
        if let Some(end) = self.end(now) {
            out.push(Command::End(end));
        }
    }

    fn on_committed(&mut self, transaction: &Transaction, now: Instant, out: &mut Vec<Command>) {
        let State::CatchingUp { binlog } = &mut self.state else {
            if self.state.is_streaming() {
                for &id in &transaction.ids {
                    self.arrivals.committed(id, transaction.committed, now);
                }
            }
            return;
        };
        if *binlog != Binlog::Open {
            return;
        }
        if self.arrivals.len() + transaction.ids.len() > ARRIVALS_MAX
            && self.settings.order == Order::Key
        {
            // The scan takes too long to remember all that is new: another one follows.
            *binlog = Binlog::Closed;
            self.clear_arrivals();
            out.push(Command::CloseBinlog);
            return;
        }
        for &id in &transaction.ids {
            self.arrivals.committed(id, transaction.committed, now);
        }
    }

    fn next_batches(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.blocked.is_some() || !self.state.takes_in() || self.ledger.is_full() {
            return;
        }
        self.rests_until = self.rests_until.filter(|until| now < *until);
        if self.rests_until.is_some() {
            return;
        }
        for publisher in 0..self.queue.publishers() {
            let (mut chosen, mut stale) = (FxHashSet::default(), Vec::new());
            let (index, routes) = (&self.index, &self.routes);
            let batch = self.queue.next_batch(publisher, |id| {
                // One that was held back and has come again is in the line twice.
                if chosen.contains(&id) {
                    return false;
                }
                let may_go = index.get(id).is_some_and(|entry| {
                    entry.stage == Stage::Loaded
                        && index.head(entry.key) == Some(id)
                        && !index.is_out(entry.key)
                        && routes.takes(entry.route, id)
                });
                match may_go {
                    true => drop(chosen.insert(id)),
                    false => stale.push(id),
                }
                may_go
            });
            for id in stale {
                if self
                    .index
                    .get(id)
                    .is_some_and(|entry| entry.stage == Stage::Loaded)
                {
                    self.move_to(id, Stage::Waiting);
                    self.place(id, None, now);
                }
            }
            if let Some(batch) = batch {
                self.publish(publisher, &batch, now, out);
            }
        }
    }

    fn publish(&mut self, publisher: usize, batch: &Batch, now: Instant, out: &mut Vec<Command>) {
        self.out_since[publisher] = now;
        let mut rows = Vec::with_capacity(batch.rows.len());
        for queued in &batch.rows {
            let Some(row) = self.payloads.remove(&queued.id) else {
                debug_assert!(false, "row {} is loaded", queued.id);
                continue;
            };
            self.payload_bytes -= admission::memory_of(&row);
            self.out_message_ids
                .insert(queued.id, row.message_id.clone());
            rows.push(*row);
            self.move_to(queued.id, Stage::Out);
            self.prefetch(queued.id);
        }
        for (old, source) in [(false, Source::Binlog), (true, Source::Sweep)] {
            let rows = batch.rows.iter().filter(|row| row.old == old).count();
            if rows > 0 {
                out.push(Command::Report(Report::Published { source, rows }));
            }
        }
        out.push(Command::Publish {
            publisher,
            batch: rows,
        });
    }

    /// The row behind one that is out is loaded meanwhile.
    fn prefetch(&mut self, id: u64) {
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let Some(second) = self.index.behind(entry.key, id) else {
            return;
        };
        let Some(entry) = self.index.get(second) else {
            return;
        };
        let flows = self.routes.takes(entry.route, second);
        if entry.stage == Stage::Waiting && entry.due.is_none() && flows {
            self.move_to(second, Stage::Ready);
        }
    }

    fn next_writes(&mut self, now: Instant, out: &mut Vec<Command>) {
        let flush = !self.state.takes_in();
        while let Some(write) = self.ledger.next(flush, now) {
            out.push(Command::Write(write));
        }
        if let Some(stalled) = self.ledger.look(now) {
            out.push(Command::Report(Report::WriteStall(stalled)));
        }
    }

    /// When it wants [`Event::Tick`], at the latest. It may lie in the past.
    pub fn deadline(&self) -> Instant {
        let mut deadlines = vec![self.ledger.deadline()];
        match &self.state {
            State::Closing { deadline, .. } => deadlines.push(Some(*deadline)),
            state if state.takes_in() => deadlines.extend([
                self.index.next_due(),
                self.routes.next_probe(),
                self.scan_deadline(),
                self.load_deadline(),
                self.rests_until,
            ]),
            _ => {}
        }
        let idle = self.now + IDLE;
        deadlines.into_iter().flatten().fold(idle, Instant::min)
    }

    /// May transactions be handed over now? Otherwise they are to wait in the stream.
    pub fn takes_transactions(&self) -> bool {
        let waits_for_scan =
            matches!(self.state, State::CatchingUp { .. }) && self.settings.order == Order::Key;
        self.state.is_streaming() && (waits_for_scan || self.arrivals.len() < ARRIVALS_MAX)
    }

    /// Is [`Event::BinlogAt`] wanted now?
    pub fn awaits_position(&self) -> bool {
        self.scans.awaits_position()
    }

    /// The state by name.
    pub fn state(&self) -> StateName {
        self.state.name()
    }

    /// Rows read and not yet marked sent.
    pub fn in_flight(&self) -> usize {
        self.index.in_flight()
    }

    /// What it is like now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.state.name(),
            since: self.since,
            why: self.why.clone(),
            is_streaming: self.state.is_streaming(),
            lag: self.lag(),
            in_flight: self.index.in_flight(),
            rows: self.index.len(),
            delayed: self.index.count(Stage::Delayed),
            overflowed: !self.overflow.is_empty(),
            routes: self.routes.waiting(),
            unwritten: self.ledger.unwritten(),
            stalled: self.ledger.is_stalled(),
            refused: self.ledger.refused().clone(),
            table_refused: self.table_refused.clone(),
            blocked: self.blocked.clone(),
            memory: self.memory(),
        }
    }

    fn lag(&self) -> Lag {
        // Rows that wait in the table, or for a route, are late as well: the table knows since when.
        let in_table = !self.overflow.is_empty() || self.routes.any_waits();
        if in_table || self.state != State::Tailing {
            return Lag::InTable;
        }
        let queued = self.queue.lines().chain(self.queue.out()).map(|row| row.id);
        let ids = queued.chain(self.to_load.iter().copied());
        let going = ids.filter_map(|id| {
            let entry = self.index.get(id)?;
            entry.committed.filter(|_| entry.stage != Stage::Confirmed)
        });
        Lag::Reported(going.chain(self.arrivals.oldest_commit()).min())
    }

    fn memory(&self) -> usize {
        let out: usize = self.queue.out().map(|row| row.bytes).sum();
        self.index.len() * ROW_BYTES
            + self.routes.memory()
            + self.overflow.memory()
            + self.arrivals.len() * ARRIVAL_BYTES
            + self.payload_bytes
            + self.scans.memory()
            + out
            + self.ledger.unwritten() * MARK_BYTES
    }

    /// For the next session.
    pub fn into_memory(self) -> Memory {
        self.attribution.into_memory()
    }

    /// What always holds. The whole index is looked at while it is small, and now and then.
    #[cfg(debug_assertions)]
    fn check(&mut self) {
        self.handled += 1;
        let every = match self.index.len() {
            0..=64 => 1,
            65..=4096 => 64,
            _ => 1 << 16,
        };
        if !self.handled.is_multiple_of(every) {
            return;
        }
        self.index.check();
        self.routes.check();
        assert_eq!(self.payloads.len(), self.index.count(Stage::Loaded));
        let bytes: usize = self
            .payloads
            .values()
            .map(|row| admission::memory_of(row))
            .sum();
        assert_eq!(bytes, self.payload_bytes);
        assert_eq!(self.queue.out().count(), self.index.count(Stage::Out));
        for (id, entry) in self.index.iter() {
            let is_first = self.index.head(entry.key) == Some(id);
            match entry.stage {
                Stage::Delayed | Stage::Blocked => {
                    assert!(is_first, "row {id} waits behind another");
                }
                Stage::Waiting => assert!(!is_first, "row {id} waits for nothing"),
                Stage::Loaded if !is_first => {
                    let is_next = self.index.is_out(entry.key);
                    assert!(is_next, "row {id} is loaded and does not go next");
                }
                _ => {}
            }
        }
    }
}
