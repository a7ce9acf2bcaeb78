//! A relay process: it takes the lock, leads for a session, and begins again.

use std::collections::VecDeque;

use relay::engine::{Engine, Event, Memory, Record, Write};
use relay::publish::confirms::Confirmed;

use super::binlog::Stream;
use super::leadership::{LEASE, PING_EVERY};
use super::{Happening, SessionId, World};
use crate::queue::{MILLI, Micros, SECOND};

/// A process.
#[derive(Default)]
pub(crate) struct Process {
    pub(crate) session: Option<Box<Session>>,
    connecting: Option<Connecting>,
    memory: Memory,
    /// SIGSTOP until then.
    pub(crate) stopped_until: Micros,
    /// Distinguishes the present wait for the lock from earlier ones.
    waiting: u64,
}

#[derive(Clone, Copy)]
struct Connecting {
    id: SessionId,
    server: usize,
    lease: Micros,
}

/// What a session has: everything of it is new when the next one begins.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) server: usize,
    pub(crate) engine: Engine,
    pub(crate) lease: Micros,
    pub(crate) stream: Option<Stream>,
    pub(crate) writes: VecDeque<Write>,
    /// A write is with the server.
    pub(crate) writing: bool,
    /// Refused marks and records, that are tried again.
    pub(crate) put_off_marks: Vec<Confirmed>,
    pub(crate) put_off_records: Vec<Record>,
    /// A page or rows are being read.
    pub(crate) reading: bool,
    pub(crate) loading: bool,
    /// When rows were read last.
    pub(crate) read_at: Micros,
    pub(crate) broker_lost: bool,
    pub(crate) tick: Option<Micros>,
    /// Ticks without time passing.
    pub(crate) spins: u32,
    pub(crate) pump: Option<Micros>,
    pub(crate) pauses_at: Micros,
    pub(crate) over: Option<&'static str>,
}

impl Process {
    /// Nothing is on its way to the database.
    pub(crate) fn is_quiet(&self) -> bool {
        self.session.as_ref().is_none_or(|session| {
            session.writes.is_empty()
                && !session.writing
                && session.put_off_marks.is_empty()
                && session.put_off_records.is_empty()
        })
    }
}

impl World {
    /// The sessions that there are.
    pub(super) fn sessions(&self) -> Vec<SessionId> {
        let id = |process: &Process| process.session.as_ref().map(|session| session.id);
        self.processes.iter().filter_map(id).collect()
    }

    /// The session, if it is not over.
    pub(super) fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        let session = self.processes[id.process].session.as_deref_mut();
        session.filter(|session| session.id == id)
    }

    /// The process waits for the lock.
    pub(super) fn stand_by(&mut self, process: usize, wait: Micros) {
        let number = self.number();
        self.processes[process].waiting = number;
        self.queue.after(wait, Happening::Standby(process, number));
    }

    /// The process tries to take the lock.
    pub(super) fn try_lock(&mut self, process: usize, number: u64) {
        if self.processes[process].waiting != number {
            return;
        }
        let now = self.queue.now();
        let server = match self.other {
            Some(other) if self.rng.percent(50) => other,
            _ => self.primary,
        };
        let id = SessionId { process, number };
        let able = self.servers[server].up
            && !self.servers[server].read_only
            && self.broker.down_until <= now;
        if !able || !self.servers[server].lock.take(id, now) {
            return self
                .queue
                .after(SECOND, Happening::Standby(process, number));
        }
        let lease = now + LEASE;
        self.processes[process].connecting = Some(Connecting { id, server, lease });
        let wait = self.rng.range(10 * MILLI, 200 * MILLI);
        self.queue.after(wait, Happening::Connect(id));
    }

    /// Database and broker are connected: the session begins.
    pub(super) fn connect(&mut self, id: SessionId) {
        let now = self.queue.now();
        let Some(connecting) = self.processes[id.process]
            .connecting
            .take_if(|connecting| connecting.id == id)
        else {
            return;
        };
        let Connecting { server, lease, .. } = connecting;
        let able = lease > now && self.servers[server].up && self.broker.down_until <= now;
        if !able {
            self.servers[server].lock.release(id);
            return self.stand_by(id.process, SECOND);
        }
        let memory = std::mem::take(&mut self.processes[id.process].memory);
        let seed = self.rng.next();
        let engine = Engine::new(self.scenario.settings, memory, seed, self.queue.instant());
        let session = Session {
            id,
            server,
            engine,
            lease,
            stream: None,
            writes: VecDeque::new(),
            writing: false,
            put_off_marks: Vec::new(),
            put_off_records: Vec::new(),
            reading: false,
            loading: false,
            read_at: now,
            broker_lost: false,
            tick: None,
            spins: 0,
            pump: None,
            pauses_at: now,
            over: None,
        };
        self.trace.line(
            now,
            format_args!(
                "p{} session {} begins on server {server}",
                id.process, id.number
            ),
        );
        self.checker.session_begins(id, now);
        self.processes[id.process].session = Some(Box::new(session));
        self.queue.after(PING_EVERY, Happening::Ping(id));
        self.deliver(id, Event::Pauses(self.pauses.clone()));
        if self.broker.blocked_until > now {
            self.deliver(id, Event::BrokerBlocked("low on memory".to_owned()));
        }
    }

    /// The process checks whether it still holds the lock.
    pub(super) fn ping(&mut self, id: SessionId) {
        let now = self.queue.now();
        let Some(session) = self.session(id) else {
            return;
        };
        let server = session.server;
        let old = session.lease;
        let answered = self.servers[server].up;
        let held =
            answered && self.servers[server].lock.ping(id, now) && !self.servers[server].read_only;
        if held {
            if let Some(session) = self.session(id) {
                session.lease = now + LEASE;
            }
            self.queue.after(PING_EVERY, Happening::Ping(id));
        } else if answered {
            let wait = self.rng.below(50 * MILLI);
            self.queue
                .after(wait, Happening::EndSession(id, "the lock is lost"));
        } else {
            self.queue
                .at(old, Happening::EndSession(id, "pings are not answered"));
        }
    }

    /// The session is over: what it had is dropped, and the process begins again.
    pub(super) fn end_session(&mut self, id: SessionId, why: &str) {
        if self.session(id).is_none() {
            return;
        }
        let now = self.queue.now();
        self.trace.line(
            now,
            format_args!("p{} session {} ends: {why}", id.process, id.number),
        );
        let session = self.processes[id.process]
            .session
            .take()
            .expect("it was there");
        let server = session.server;
        let Session {
            engine,
            writes,
            writing,
            ..
        } = *session;
        self.drop_flights(id);
        self.checker.session_ends(id, now);
        if writing && self.rng.percent(50) {
            self.execute_unanswered(server, writes);
        }
        if self.servers[server].up && self.rng.percent(70) {
            self.servers[server].lock.release(id);
        }
        self.processes[id.process].memory = engine.into_memory();
        let wait = self.rng.range(50 * MILLI, 2 * SECOND);
        self.stand_by(id.process, wait);
    }

    /// SIGKILL: nothing of it survives.
    pub(super) fn crash(&mut self, id: SessionId) {
        self.end_session(id, "the process is killed");
        self.processes[id.process].memory = Memory::default();
    }
}
