//! The world around the engines: database, binlog, broker, services, operators and relay processes.
//!
//! Nothing in it knows how an engine works: it executes commands, reports events, and lets the
//! [`Checker`] see both.

mod binlog;
mod broker;
pub(crate) mod checker;
mod database;
mod faults;
mod leadership;
mod operators;
mod process;
mod publisher;
mod shell;
mod table;
mod writers;

use outbox::row::Row;
use relay::engine::route::Route;
use relay::engine::{Event, LoadQuery, PageQuery, Pauses};

use self::binlog::{Entry, Seen};
use self::broker::Broker;
use self::database::{Change, Server};
pub(crate) use self::database::{PENDING, Server as DatabaseServer, Stored};
use self::process::Process;
use self::writers::{Open, Writers};
use crate::coverage::Coverage;
use crate::faults::{Fault, Scope};
use crate::queue::{MILLI, Micros, Queue, SECOND};
use crate::rng::{Rng, index, mix};
use crate::scenario::Scenario;
use crate::trace::Trace;
use crate::world::checker::{Checker, View};

/// A session of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId {
    pub(crate) process: usize,
    pub(crate) number: u64,
}

/// What is wrong with a message by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFault {
    /// Nothing.
    None,
    /// It can't be a message.
    Invalid,
    /// 406.
    Large,
    /// The publisher panics over it.
    Panic,
    /// The broker closes the channel over it.
    Channel,
    /// The broker closes the connection over it.
    Fatal,
    /// It is nacked for ever.
    Nacked,
}

/// A message: what never changes about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) key: u64,
    pub(crate) fault: RowFault,
    /// The binlog knows nothing of it.
    pub(crate) unlogged: bool,
}

/// What is to happen.
pub(crate) enum Happening {
    Episode(usize, bool),
    Write,
    Finish(Box<Open>),
    Unlock(Vec<u64>),
    Truncate,
    Flood,
    Appear(usize),
    Standby(usize, u64),
    Connect(SessionId),
    Ping(SessionId),
    Deliver(SessionId, Box<Event>),
    Tick(SessionId, Micros),
    Pump(SessionId, Micros),
    StreamAnswer(SessionId, u64, Result<(), (String, bool)>),
    Send(SessionId, usize, Vec<Row>),
    Arrive(u64),
    Settle(u64),
    TimeOut(u64),
    ReadPage(SessionId, Reading),
    Load(SessionId, LoadQuery),
    WriteNow(SessionId),
    WriteAgain(SessionId),
    EndSession(SessionId, &'static str),
    Inspect,
}

/// A page that is being read.
#[derive(Debug)]
pub(crate) struct Reading {
    query: PageQuery,
    start: Option<relay::engine::position::Position>,
    unreadable: bool,
    fenced: bool,
    /// The refusal has been reported.
    refused: bool,
}

/// One run.
pub(crate) struct World {
    pub(crate) queue: Queue<Happening>,
    pub(crate) scenario: Scenario,
    active: Vec<u32>,
    rng: Rng,
    writing: Rng,
    tearing: Rng,
    servers: Vec<Server>,
    primary: usize,
    /// The old primary, still reachable by the same name.
    other: Option<usize>,
    /// The database's clock minus ours, in microseconds.
    clock: i64,
    semi_sync_until: Micros,
    pub(crate) messages: Vec<Message>,
    routes: Vec<Route>,
    writers: Writers,
    broker: Broker,
    processes: Vec<Process>,
    pauses: Pauses,
    pub(crate) checker: Checker,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    numbers: u64,
    level_since: Option<Micros>,
    finished: bool,
}

/// `message_id` of a message.
pub(crate) fn message_id(number: u32) -> String {
    format!("m{number:08}")
}

/// The message of a `message_id`.
pub(crate) fn message_number(message_id: &str) -> u32 {
    message_id
        .get(1..)
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(u32::MAX)
}

/// As the relay hashes an ordering key.
fn key_hash(key: u64) -> u64 {
    mix(key ^ 0x6b65_7900)
}

/// As the relay hashes a message id.
fn tag_of(message: u32) -> u64 {
    mix(u64::from(message) ^ 0x7461_6700_0000)
}

impl World {
    pub(crate) fn new(scenario: Scenario, trace: Trace) -> Self {
        let seed = scenario.seed;
        let route = |number: u64| {
            let exchange = format!("exchange-{}", number % 2);
            Route::new(exchange.as_bytes(), format!("key.{number}").as_bytes())
        };
        let mut world = Self {
            queue: Queue::new(),
            active: vec![0; Fault::ALL.len()],
            rng: Rng::new(seed, 10),
            writing: Rng::new(seed, 11),
            tearing: Rng::new(seed, 12),
            servers: vec![Server::new(1 + mix(seed) % 40)],
            primary: 0,
            other: None,
            clock: 0,
            semi_sync_until: 0,
            messages: Vec::new(),
            routes: (0..scenario.routes).map(route).collect(),
            writers: Writers::default(),
            broker: Broker::default(),
            processes: (0..scenario.processes)
                .map(|_| Process::default())
                .collect(),
            pauses: Pauses::default(),
            checker: Checker::new(&scenario),
            coverage: Coverage::new(),
            trace,
            numbers: 0,
            level_since: None,
            finished: false,
            scenario,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.fill();
        for number in 0..self.scenario.episodes.len() {
            let episode = self.scenario.episodes[number];
            self.queue
                .at(episode.start, Happening::Episode(number, true));
            self.queue
                .at(episode.end, Happening::Episode(number, false));
        }
        self.queue.after(MILLI, Happening::Write);
        self.queue.after(SECOND, Happening::Inspect);
        for process in 0..self.processes.len() {
            self.stand_by(process, process as u64 * 10 * MILLI);
        }
    }

    /// Goes on until the table is level after all faults, a rule is broken, or `steps` are done.
    pub(crate) fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            if self.finished || self.checker.is_broken() {
                return;
            }
            let Some(happening) = self.queue.pop() else {
                return;
            };
            self.happen(happening);
        }
    }

    /// A happening inside a process that is stopped waits until it wakes.
    fn happen(&mut self, happening: Happening) {
        let process = match &happening {
            Happening::Standby(process, _) => Some(*process),
            Happening::Connect(id)
            | Happening::Ping(id)
            | Happening::Deliver(id, _)
            | Happening::Tick(id, _)
            | Happening::Pump(id, _)
            | Happening::StreamAnswer(id, ..)
            | Happening::EndSession(id, _)
            | Happening::Send(id, ..) => Some(id.process),
            Happening::Settle(flight) | Happening::TimeOut(flight) => self
                .broker
                .flights
                .get(flight)
                .map(|flight| flight.session.process),
            _ => None,
        };
        let awake = process.map_or(0, |process| self.processes[process].stopped_until);
        if awake > self.queue.now() {
            self.queue.at(awake, happening);
        } else {
            self.proceed(happening);
        }
    }

    fn proceed(&mut self, happening: Happening) {
        match happening {
            Happening::Episode(number, true) => self.begin(number),
            Happening::Episode(number, false) => self.cease(number),
            Happening::Write => self.write(),
            Happening::Finish(open) => self.finish(*open),
            Happening::Unlock(keys) => self.writers.unlock(&keys),
            Happening::Truncate => self.truncate(),
            Happening::Flood => self.flood(),
            Happening::Appear(server) => self.appear(server),
            Happening::Standby(process, number) => self.try_lock(process, number),
            Happening::Connect(id) => self.connect(id),
            Happening::Ping(id) => self.ping(id),
            Happening::Deliver(id, event) => self.deliver(id, *event),
            Happening::Tick(id, at) => self.tick(id, at),
            Happening::Pump(id, at) => self.pump(id, at),
            Happening::StreamAnswer(id, number, answer) => self.stream_answer(id, number, answer),
            Happening::Send(id, publisher, batch) => self.send(id, publisher, &batch),
            Happening::Arrive(flight) => self.arrive(flight),
            Happening::Settle(flight) => self.settle(flight),
            Happening::TimeOut(flight) => self.time_out(flight),
            Happening::ReadPage(id, reading) => self.read_page(id, reading),
            Happening::Load(id, query) => self.load(id, query),
            Happening::WriteNow(id) => self.write_now(id),
            Happening::WriteAgain(id) => self.write_again(id),
            Happening::EndSession(id, why) => self.end_session(id, why),
            Happening::Inspect => self.inspect(),
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.active[fault as usize] > 0
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn database_time(&self) -> i64 {
        i64::try_from(self.queue.now()).unwrap_or(i64::MAX) + self.clock
    }

    /// Commits on a server, and lets streams know. Returns when it is visible.
    fn commit(&mut self, server: usize, seen: Seen, changes: Vec<Change>) -> Micros {
        let now = self.queue.now();
        let late = match self.is(Fault::BinlogLate) && self.rng.percent(50) {
            true => {
                self.coverage.fault(Fault::BinlogLate);
                self.rng.below(SECOND)
            }
            false => self.rng.below(MILLI),
        };
        let entry = Entry {
            seen,
            committed: now,
            available: now + late,
        };
        let delay = self.visibility();
        let visible = self.servers[server].commit(now, delay, entry, changes);
        self.queue.at(visible, Happening::Appear(server));
        self.pump_all(server);
        visible
    }

    /// The same without a trace in the binlog.
    fn commit_unlogged(&mut self, server: usize, changes: Vec<Change>) -> Micros {
        let delay = self.visibility();
        let visible = self.servers[server].commit_unlogged(self.queue.now(), delay, changes);
        self.queue.at(visible, Happening::Appear(server));
        visible
    }

    fn visibility(&mut self) -> Micros {
        let now = self.queue.now();
        if self.semi_sync_until > now {
            return self.semi_sync_until - now;
        }
        match self.rng.below(20) {
            0 => self.rng.below(40 * MILLI),
            1..=4 => self.rng.below(3 * MILLI),
            _ => self.rng.below(200),
        }
    }

    fn appear(&mut self, server: usize) {
        let now = self.queue.now();
        for change in self.servers[server].appear(now) {
            if let Change::Put(_, row) = change {
                self.checker.visible(row.message, row.status, now);
            }
        }
    }

    /// Looks at the whole table, and finds out whether the run is over.
    fn inspect(&mut self) {
        let now = self.queue.now();
        self.queue.after(SECOND / 2, Happening::Inspect);
        self.watch_disturbances();
        if self.trace.is_on() && now % (10 * SECOND) < SECOND / 2 {
            let server = &self.servers[self.primary];
            let (pending, keys) = (server.pending.len(), server.by_key.len());
            self.trace.line(
                now,
                format_args!("## {pending} rows of {keys} keys are pending"),
            );
        }
        let view = View {
            now,
            database_time: self.database_time(),
            server: &self.servers[self.primary],
            messages: &self.messages,
            scenario: &self.scenario,
        };
        self.checker.inspect(&view);
        let server = &self.servers[self.primary];
        let level = now > self.scenario.troubled + SECOND
            && server.pending.is_empty()
            && server.is_settled()
            && self.writers.is_idle()
            && self.processes.iter().all(Process::is_quiet);
        match (level, self.level_since) {
            (true, None) => self.level_since = Some(now),
            (true, Some(since)) if now > since + 3 * SECOND => self.finished = true,
            (true, Some(_)) => {}
            (false, _) => self.level_since = None,
        }
    }

    /// While nobody leads, or a fault that may delay everybody is under way, nobody is starved.
    fn watch_disturbances(&mut self) {
        let now = self.queue.now();
        let led = self.processes.iter().any(|process| {
            let session = process.session.as_ref();
            session.is_some_and(|session| {
                session.server == self.primary
                    && session.lease > now
                    && process.stopped_until <= now
            })
        });
        let disturbed = Fault::ALL
            .iter()
            .any(|fault| fault.scope() == Scope::All && self.active[*fault as usize] > 0);
        if !led || disturbed || self.broker.down_until > now || self.broker.blocked_until > now {
            self.checker.disturbed(now);
        }
        for route in self.broker.troubled() {
            self.checker.route_disturbed(route, now);
        }
        for (number, route) in self.routes.iter().enumerate() {
            if self.pauses.routes.contains(route) {
                self.checker.route_disturbed(number as u64, now);
            }
        }
    }

    fn row(&self, id: u64, row: &Stored) -> Row {
        let route = &self.routes[index(row.route)];
        let mut payload = vec![0; index(row.bytes)];
        let version = row.version.to_le_bytes();
        let length = version.len().min(payload.len());
        payload[..length].copy_from_slice(&version[..length]);
        Row {
            id,
            message_id: message_id(row.message),
            aggregate_type: b"order".to_vec(),
            aggregate_id: row.key.to_string().into_bytes(),
            event_type: b"placed".to_vec(),
            exchange: route.exchange.to_vec(),
            routing_key: route.routing_key.to_vec(),
            content_type: b"text/plain".to_vec(),
            headers: None,
            payload,
            created_at: None,
        }
    }

    fn route_number(row: &Row) -> u64 {
        let digits = row
            .routing_key
            .get(4..)
            .and_then(|bytes| std::str::from_utf8(bytes).ok());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }
}
