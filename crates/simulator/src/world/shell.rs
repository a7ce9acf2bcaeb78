//! The shell around an engine: it hands over events and executes commands.

use std::sync::Arc;

use relay::engine::position::Position;
use relay::engine::{Command, End, Event, Mode, Transaction};

use super::SessionId;
use super::binlog::{Seen, Stream};
use super::process::Session;
use super::{Happening, Reading, World};
use crate::faults::Fault;
use crate::queue::{MILLI, Micros, SECOND};
use crate::world::checker::describe;

/// Ticks in a row without time passing that are still no endless loop.
const SPINS_MAX: u32 = 100;
/// A deadline beyond this is none.
const FAR: Micros = 3_600 * SECOND;
/// Opening a stream is given up after this time.
const OPEN_TIMEOUT: Micros = 20 * SECOND;

impl World {
    /// Hands an event to the engine of a session, if the session is not over.
    pub(super) fn deliver(&mut self, id: SessionId, event: Event) {
        if self.session(id).is_none() {
            return;
        }
        let now = self.queue.now();
        let mut session = self.processes[id.process]
            .session
            .take()
            .expect("it was there");
        self.coverage.event(&event);
        if self.trace.is_on() {
            let text = describe::event(&event);
            self.trace
                .line(now, format_args!("p{} <- {text}", id.process));
        }
        self.checker.event(id, &event, now);
        match &event {
            Event::Page(_) => session.reading = false,
            Event::Rows(_) => session.loading = false,
            _ => {}
        }
        let mut commands = Vec::new();
        session
            .engine
            .handle(event, self.queue.instant(), &mut commands);
        for command in commands {
            self.execute(&mut session, command);
        }
        self.look(&session);
        let over = session.over;
        self.plan_tick(&mut session);
        self.plan_pump(&mut session);
        self.processes[id.process].session = Some(session);
        if let Some(why) = over {
            self.end_session(id, why);
        }
    }

    /// Looks at the engine from outside.
    ///
    /// With very many routes a snapshot is expensive: then at some steps only.
    fn look(&mut self, session: &Session) {
        let every = if self.scenario.routes > 100 { 64 } else { 1 };
        if !self.coverage.events.is_multiple_of(every) {
            return;
        }
        let snapshot = session.engine.snapshot();
        self.coverage.state(snapshot.state);
        let seen = [
            ("overflowed", snapshot.overflowed),
            ("delayed", snapshot.delayed > 0),
            ("stalled", snapshot.stalled),
            ("blocked", snapshot.blocked.is_some()),
            ("table refused", snapshot.table_refused.is_some()),
            (
                "writes refused",
                snapshot.refused.marks + snapshot.refused.failures > 0,
            ),
        ];
        for (name, _) in seen.iter().filter(|(_, shown)| *shown) {
            self.coverage.snapshot(name);
        }
        self.checker.snapshot(session.id, &snapshot);
    }

    fn execute(&mut self, session: &mut Session, command: Command) {
        let now = self.queue.now();
        let id = session.id;
        self.coverage.command(&command);
        if self.trace.is_on() {
            let text = describe::command(&command, self.queue.instant());
            self.trace
                .line(now, format_args!("p{} -> {text}", id.process));
        }
        let view = super::View {
            now,
            database_time: 0,
            server: &self.servers[session.server],
            messages: &self.messages,
            scenario: &self.scenario,
        };
        self.checker.command(id, &command, &view);
        match command {
            Command::OpenBinlog(position) => self.open_stream(session, position),
            Command::CloseBinlog => session.stream = None,
            Command::ReadPage(query) => {
                session.reading = true;
                self.begin_page(session, query);
            }
            Command::Load(query) => {
                session.loading = true;
                let wait = self.read_latency();
                self.queue.after(wait, Happening::Load(id, query));
            }
            Command::Publish { publisher, batch } => {
                let wait = self.rng.below(500);
                self.queue
                    .after(wait, Happening::Send(id, publisher, batch));
            }
            Command::Write(write) => {
                session.writes.push_back(write);
                if !std::mem::replace(&mut session.writing, true) {
                    self.plan_write(id);
                }
            }
            Command::Report(_) => {}
            Command::End(End::Drained) => session.over = Some("drained"),
            Command::End(End::BrokerLost(_)) => session.over = Some("the broker is lost"),
        }
    }

    fn begin_page(&mut self, session: &Session, query: relay::engine::PageQuery) {
        let queries = query.positions || query.fence;
        let unreadable = queries && self.is(Fault::NoPosition) && self.rng.percent(70);
        if unreadable {
            self.coverage.fault(Fault::NoPosition);
        }
        let begins = query.upto.is_none() && query.positions && !unreadable;
        let start = begins.then(|| self.servers[session.server].log.end());
        let wait = self.read_latency();
        let fenced = !query.fence;
        let reading = Reading {
            query,
            start,
            unreadable,
            fenced,
            refused: false,
        };
        self.queue
            .after(wait, Happening::ReadPage(session.id, reading));
    }

    pub(super) fn read_latency(&mut self) -> Micros {
        if self.is(Fault::SlowReads) && self.rng.percent(30) {
            self.coverage.fault(Fault::SlowReads);
            return self.rng.below(300 * MILLI);
        }
        self.rng.range(100, 3 * MILLI)
    }

    fn plan_tick(&mut self, session: &mut Session) {
        let now = self.queue.now();
        let deadline = self.queue.micros_of(session.engine.deadline());
        if deadline > now + FAR {
            session.tick = None;
        } else if session.tick != Some(deadline) {
            session.tick = Some(deadline);
            self.queue
                .at(deadline, Happening::Tick(session.id, deadline));
        }
    }

    /// The engine's deadline has come.
    pub(super) fn tick(&mut self, id: SessionId, at: Micros) {
        let now = self.queue.now();
        let Some(session) = self.session(id).filter(|session| session.tick == Some(at)) else {
            return;
        };
        session.tick = None;
        self.deliver(id, Event::Tick);
        let Some(session) = self.session(id) else {
            return;
        };
        let again = session.tick.is_some_and(|next| next <= now);
        session.spins = if again { session.spins + 1 } else { 0 };
        if session.spins > 3 && self.scenario.spins {
            return self.put_off_tick(id);
        }
        let Some(session) = self.session(id) else {
            return;
        };
        if session.spins > SPINS_MAX {
            let snapshot = session.engine.snapshot();
            let (takes, awaits) = (
                session.engine.takes_transactions(),
                session.engine.awaits_position(),
            );
            let text = format!(
                "the engine wants ticks without time passing: takes {takes} awaits {awaits} {snapshot:?}"
            );
            self.checker.fail("endless loop", text);
        }
    }

    /// The engine is given its tick a little later than it wants.
    fn put_off_tick(&mut self, id: SessionId) {
        let at = self.queue.now() + MILLI;
        if let Some(session) = self.session(id) {
            session.tick = Some(at);
            self.queue.at(at, Happening::Tick(id, at));
        }
    }

    /// Streams of a server may have something new.
    pub(super) fn pump_all(&mut self, server: usize) {
        for process in 0..self.processes.len() {
            let Some(mut session) = self.processes[process].session.take() else {
                continue;
            };
            if session.server == server {
                self.plan_pump(&mut session);
            }
            self.processes[process].session = Some(session);
        }
    }

    /// When is there something to hand over?
    fn plan_pump(&mut self, session: &mut Session) {
        let now = self.queue.now();
        if !session.engine.awaits_position()
            && let Some(stream) = &mut session.stream
        {
            stream.said = None;
        }
        let Some(at) = self.next_pump(session) else {
            return;
        };
        let at = at.max(now);
        if session
            .pump
            .is_none_or(|planned| planned > at || planned < now)
        {
            session.pump = Some(at);
            self.queue.at(at, Happening::Pump(session.id, at));
        }
    }

    fn next_pump(&self, session: &Session) -> Option<Micros> {
        let stream = session.stream.as_ref()?;
        let log = &self.servers[session.server].log;
        if !stream.open || stream.frozen || stream.epoch != log.epoch {
            return None;
        }
        let next = log.get(stream.next).map(|(entry, _)| entry);
        let reads = next.filter(|entry| {
            matches!(entry.seen, Seen::Nothing) || session.engine.takes_transactions()
        });
        let said = || match &stream.said {
            Some((position, at)) if *position == stream.at => at + SECOND,
            _ => 0,
        };
        let says = session.engine.awaits_position().then(said);
        let reads = reads.map(|entry| entry.available);
        reads.into_iter().chain(says).min()
    }

    /// Hands over the next of the stream.
    pub(super) fn pump(&mut self, id: SessionId, at: Micros) {
        let now = self.queue.now();
        let Some(session) = self.session(id).filter(|session| session.pump == Some(at)) else {
            return;
        };
        session.pump = None;
        let mut session = self.processes[id.process]
            .session
            .take()
            .expect("it was there");
        let event = self.next_of_stream(&mut session, now);
        if event.is_none() {
            self.plan_pump(&mut session);
        }
        self.processes[id.process].session = Some(session);
        if let Some(event) = event {
            self.deliver(id, event);
        }
    }

    fn next_of_stream(&mut self, session: &mut Session, now: Micros) -> Option<Event> {
        let stream = session.stream.as_mut()?;
        let log = &self.servers[session.server].log;
        if !stream.open || stream.frozen || stream.epoch != log.epoch {
            return None;
        }
        while let Some((entry, end)) = log
            .get(stream.next)
            .filter(|(entry, _)| entry.available <= now)
        {
            let event = match &entry.seen {
                Seen::Nothing => None,
                _ if !session.engine.takes_transactions() => break,
                Seen::Doubt => Some(Event::Doubt),
                Seen::Rows(ids) => Some(Event::Committed(Transaction {
                    ids: ids.clone(),
                    committed: self.queue.instant_of(entry.committed),
                })),
            };
            stream.next += 1;
            stream.at = end.clone();
            if event.is_some() {
                return event;
            }
        }
        let news = match &stream.said {
            Some((position, at)) => *position != stream.at || at + SECOND <= now,
            None => true,
        };
        if news && session.engine.awaits_position() {
            stream.said = Some((stream.at.clone(), now));
            return Some(Event::BinlogAt(stream.at.clone()));
        }
        None
    }

    fn open_stream(&mut self, session: &mut Session, position: Position) {
        if self.scenario.settings.mode == Mode::Poll {
            self.checker
                .fail("poll mode reads no binlog", String::new());
        }
        let number = self.number();
        let hangs = self.is(Fault::BinlogHangs);
        let refused = self.is(Fault::BinlogRefused);
        let (wait, answer) = if hangs {
            self.coverage.fault(Fault::BinlogHangs);
            (OPEN_TIMEOUT, Err(("no answer in time".to_owned(), true)))
        } else if refused {
            self.coverage.fault(Fault::BinlogRefused);
            (
                self.rng.below(50 * MILLI),
                Err(("connection refused".to_owned(), false)),
            )
        } else {
            (self.rng.below(50 * MILLI), Ok(()))
        };
        session.stream = Some(Stream {
            number,
            open: false,
            epoch: self.servers[session.server].log.epoch,
            next: 0,
            at: Position::new(Arc::clone(&position.file), position.offset),
            frozen: false,
            said: None,
        });
        self.queue
            .after(wait, Happening::StreamAnswer(session.id, number, answer));
    }

    /// A stream is open, could not be opened, or has ended.
    pub(super) fn stream_answer(
        &mut self,
        id: SessionId,
        number: u64,
        answer: Result<(), (String, bool)>,
    ) {
        let Some(session) = self.session(id) else {
            return;
        };
        let server = session.server;
        let Some(stream) = session
            .stream
            .as_ref()
            .filter(|stream| stream.number == number)
        else {
            return;
        };
        let from = stream.at.clone();
        let log = &self.servers[server].log;
        let place = answer.and_then(|()| log.seek(&from).map_err(|why| (why.to_owned(), false)));
        let epoch = log.epoch;
        let session = self.session(id).expect("it was there");
        match place {
            Ok(next) => {
                let stream = session.stream.as_mut().expect("it was there");
                stream.open = true;
                stream.next = next;
                stream.epoch = epoch;
                self.deliver(id, Event::BinlogOpened);
            }
            Err((why, timed_out)) => {
                session.stream = None;
                self.deliver(id, Self::binlog_end(why, timed_out));
            }
        }
    }
}
