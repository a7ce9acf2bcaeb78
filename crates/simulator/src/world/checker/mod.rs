//! The rules, written from the contract (design.md, section 3) and apart from the engine.
//!
//! Each rule is checked at the command or event that could break it. What the world does is taken as
//! true: what is visible in the table, what the broker has stored and confirmed.
//!
//! Exemptions from the order of a key, and why:
//! * A row that somebody changed by hand (`touched`): its place in the order is the operator's.
//! * A row that the binlog does not know (`sql_log_bin=0`), against any other: it is only swept.
//! * A row that is parked, discarded or deleted is not pending any more and releases its key.
//! * A row that the broker has confirmed in an earlier session is delivered, though not marked.
//! * A row that was deleted after it was read: it belongs to no order any more.
//! * For 15 s after a TRUNCATE that starts ids again: an id that was reported or read before it may be a
//!   new row by now, whose predecessors have not been reported yet.
//! * A row whose id was another message's before a TRUNCATE, while that one was still with the broker or
//!   not marked: the new message waits for that, and the rows behind it do not.
//!
//! The end of a session does not wait for the slow probes (all probe publishers but the first): a probe may get no
//! answer at all, and its row stays pending.

pub(crate) mod describe;
mod liveness;

use std::collections::{BTreeMap, BTreeSet};

use outbox::row::Row;
use relay::engine::{
    Command, End, Event, LoadQuery, Order, Pauses, Read, Record, Snapshot, Then, Write,
};
use relay::publish::confirms::{Outcome, Verdict};

use crate::queue::{Micros, SECOND};
use crate::scenario::Scenario;
use crate::world::{DatabaseServer, Message, PENDING, RowFault, SessionId, message_number};

/// What an engine may use beyond its budget for index and payloads: the overflow bitmap (4 MiB once the
/// index has overflowed), open batches' row structs, 8,192 unwritten rows, 10,000 open route breakers, write
/// queues, the scan's page.
const MEMORY_CONSTANT: usize = (4 << 20) + (8_192 * 256) + (10_000 * 256) + (512 << 10);

/// So long after a TRUNCATE an id may have been reported or read before it (the table may be locked for 10 s)
/// and be a new row by now.
const TRUNCATED: Micros = 15 * SECOND;

/// A rule that was broken.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) text: String,
}

/// What the rules need to know of the world.
pub(crate) struct View<'a> {
    pub(crate) now: Micros,
    pub(crate) database_time: i64,
    pub(crate) server: &'a DatabaseServer,
    pub(crate) messages: &'a [Message],
    pub(crate) scenario: &'a Scenario,
}

/// What has become of a message.
#[derive(Clone, Copy, Debug, Default)]
struct Fact {
    /// Copies that the broker has stored.
    stored: u32,
    /// A publisher has reported a confirm, in any session.
    confirmed: bool,
    /// When its row last became pending.
    revived: Micros,
    status: u8,
}

/// A message that is with a publisher.
#[derive(Clone, Copy, Debug)]
struct Sent {
    id: u64,
    message: u32,
    key: u64,
}

/// What the checker has seen of a session.
#[derive(Debug, Default)]
struct Seen {
    /// Versions of each message that were read as pending, with their payload: route and version.
    read: BTreeMap<u32, BTreeSet<(Vec<u8>, u32)>>,
    /// The batch of each publisher that is busy.
    out: BTreeMap<usize, Vec<Sent>>,
    keys_out: BTreeSet<u64>,
    messages_out: BTreeSet<u32>,
    /// The message that was last published under an id.
    published: BTreeMap<u64, u32>,
    /// When a message was confirmed in this session.
    confirmed: BTreeMap<u32, Micros>,
    /// Confirmed and not yet given to the writer.
    to_mark: BTreeSet<(u64, u32)>,
    /// Confirmed and not yet written.
    unwritten: BTreeSet<u64>,
    pauses: Pauses,
    pauses_known: bool,
    blocked: bool,
    broker_lost: bool,
    reading: bool,
    loading: bool,
    over: bool,
}

/// Sees everything that an engine is given and does.
pub(crate) struct Checker {
    violation: Option<Violation>,
    facts: Vec<Fact>,
    sessions: BTreeMap<SessionId, Seen>,
    /// The last moment at which something delayed everybody.
    disturbed: Micros,
    /// The same for single routes.
    routes: BTreeMap<u64, Micros>,
    level_by: Option<Micros>,
    /// The most rows that were pending at once.
    peak: usize,
    memory_max: usize,
    order: Order,
    batch_rows: usize,
    batch_bytes: usize,
    publishers: usize,
    attempts_max: u32,
}

impl Checker {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let settings = scenario.settings;
        Self {
            violation: None,
            facts: Vec::new(),
            sessions: BTreeMap::new(),
            disturbed: 0,
            routes: BTreeMap::new(),
            level_by: None,
            peak: 0,
            memory_max: settings.index_bytes + 2 * settings.buffer_bytes + MEMORY_CONSTANT,
            order: settings.order,
            batch_rows: settings.batch_rows,
            batch_bytes: settings.batch_bytes,
            publishers: settings.publishers + relay::engine::PROBE_PUBLISHERS,
            attempts_max: settings.attempts_max,
        }
    }

    /// The first rule that was broken.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.violation.is_some()
    }

    /// A rule is broken.
    pub(crate) fn fail(&mut self, rule: &'static str, text: String) {
        self.violation.get_or_insert(Violation { rule, text });
    }

    /// A message exists from now on.
    pub(crate) fn new_message(&mut self) {
        self.facts.push(Fact::default());
    }

    /// The row of a message is visible with this status.
    pub(crate) fn visible(&mut self, message: u32, status: u8, now: Micros) {
        let fact = &mut self.facts[message as usize];
        if status == PENDING && fact.status != PENDING {
            fact.revived = now;
        }
        fact.status = status;
    }

    /// A publisher hands a batch to the broker, with a lease that ends then.
    pub(crate) fn publishes(&mut self, who: SessionId, lease: Micros, now: Micros) {
        if lease <= now {
            let late = now - lease;
            let text = format!(
                "process {} publishes {late} µs after its lease",
                who.process
            );
            self.fail("nothing is published outside the lease", text);
        }
    }

    /// The broker has stored a copy.
    pub(crate) fn stored(&mut self, message: u32) {
        self.facts[message as usize].stored += 1;
    }

    /// Something delays everybody now.
    pub(crate) fn disturbed(&mut self, now: Micros) {
        self.disturbed = self.disturbed.max(now);
    }

    /// Something delays a route now.
    pub(crate) fn route_disturbed(&mut self, route: u64, now: Micros) {
        self.routes.insert(route, now);
    }

    pub(crate) fn session_begins(&mut self, id: SessionId, now: Micros) {
        self.disturbed(now);
        self.sessions.insert(id, Seen::default());
    }

    pub(crate) fn session_ends(&mut self, id: SessionId, now: Micros) {
        self.disturbed(now);
        self.sessions.remove(&id);
    }

    /// An engine is given an event.
    pub(crate) fn event(&mut self, id: SessionId, event: &Event, now: Micros) {
        let seen = self.sessions.entry(id).or_default();
        match event {
            Event::Pauses(pauses) => {
                seen.pauses = pauses.clone();
                seen.pauses_known = true;
            }
            Event::BrokerBlocked(_) => seen.blocked = true,
            Event::BrokerUnblocked => seen.blocked = false,
            Event::BrokerLost(_) => seen.broker_lost = true,
            Event::Page(page) => {
                seen.reading = false;
                seen.remember(&page.rows);
            }
            Event::Rows(rows) => {
                seen.loading = false;
                seen.remember(&rows.rows);
            }
            Event::Written(written) => {
                for row in &written.rows {
                    seen.unwritten.remove(row);
                }
            }
            Event::Published { publisher, outcome } => self.outcome(id, *publisher, outcome, now),
            _ => {}
        }
    }

    fn outcome(&mut self, id: SessionId, publisher: usize, outcome: &Outcome, now: Micros) {
        let seen = self.sessions.entry(id).or_default();
        let batch = seen.out.remove(&publisher).unwrap_or_default();
        seen.broker_lost |= matches!(outcome, Outcome::Lost(_));
        for (
            place,
            Sent {
                id: row,
                message,
                key,
            },
        ) in batch.iter().enumerate()
        {
            seen.messages_out.remove(message);
            seen.keys_out.remove(key);
            let Outcome::Settled(verdicts) = outcome else {
                continue;
            };
            if let Verdict::Confirmed(_) = verdicts[place] {
                self.facts[*message as usize].confirmed = true;
                seen.confirmed.insert(*message, now);
                seen.to_mark.insert((*row, *message));
                seen.unwritten.insert(*row);
            }
        }
    }
}

impl Checker {
    /// An engine gives a command.
    pub(crate) fn command(&mut self, id: SessionId, command: &Command, view: &View<'_>) {
        if self.sessions.get(&id).is_some_and(|seen| seen.over) {
            self.fail(
                "nothing after End",
                describe::command_name(command).to_owned(),
            );
        }
        match command {
            Command::Publish { publisher, batch } => self.publish(id, *publisher, batch, view),
            Command::Write(Write::Sent(confirmed)) => {
                if confirmed.is_empty() {
                    self.fail("a write writes something", String::new());
                }
                for mark in confirmed {
                    self.mark(id, mark.id(), message_number(mark.message_id()));
                }
            }
            Command::Write(Write::Record(record)) => self.record(id, record, view),
            Command::ReadPage(_) => {
                let seen = self.sessions.entry(id).or_default();
                if std::mem::replace(&mut seen.reading, true) {
                    self.fail("one page at a time", String::new());
                }
            }
            Command::Load(query) => self.load(id, query),
            Command::End(end) => self.end(id, end),
            Command::OpenBinlog(_) | Command::CloseBinlog | Command::Report(_) => {}
        }
    }

    fn publish(&mut self, id: SessionId, publisher: usize, batch: &[Row], view: &View<'_>) {
        let seen = self.sessions.entry(id).or_default();
        let bytes: usize = batch.iter().map(|row| row.payload.len()).sum();
        let rule = match () {
            () if batch.is_empty() => Some("a batch is not empty"),
            () if publisher >= self.publishers => Some("there is such a publisher"),
            () if seen.out.contains_key(&publisher) => Some("a publisher has one batch at a time"),
            () if !seen.pauses_known || seen.pauses.whole => {
                Some("nothing is published while paused")
            }
            () if seen.blocked => Some("nothing is published while the broker blocks"),
            () if seen.broker_lost => Some("nothing is published without a connection"),
            () if batch.len() > self.batch_rows => Some("a batch has at most RELAY_BATCH_MAX rows"),
            () if bytes > self.batch_bytes && batch.len() > 1 => {
                Some("a batch has at most RELAY_BATCH_BYTES")
            }
            () => None,
        };
        if let Some(rule) = rule {
            self.fail(
                rule,
                format!("publisher {publisher}, {} rows, {bytes} bytes", batch.len()),
            );
        }
        let mut sent = Vec::with_capacity(batch.len());
        for row in batch {
            let message = message_number(&row.message_id);
            let Some(known) = view.messages.get(message as usize) else {
                return self.fail(
                    "no phantom",
                    format!("message {} never existed", row.message_id),
                );
            };
            self.publish_row(id, row, message, view);
            if self.order == Order::Key {
                self.publish_in_order(id, row, known.key, view);
            }
            let seen = self.sessions.entry(id).or_default();
            seen.published.insert(row.id, message);
            sent.push(Sent {
                id: row.id,
                message,
                key: known.key,
            });
        }
        let seen = self.sessions.entry(id).or_default();
        seen.out.insert(publisher, sent);
    }

    fn publish_row(&mut self, id: SessionId, row: &Row, message: u32, view: &View<'_>) {
        let fact = self.facts[message as usize];
        let seen = self.sessions.entry(id).or_default();
        let read = seen.read.get(&message);
        let known = read
            .is_some_and(|versions| versions.contains(&(row.routing_key.clone(), version(row))));
        let route = seen.pauses.routes.iter().any(|route| route.is_of(row));
        let confirmed = seen.confirmed.get(&message).copied();
        let again = confirmed.is_some_and(|at| fact.revived <= at);
        let out = !seen.messages_out.insert(message);
        let text = || {
            format!(
                "row {} {} at {:.6}",
                row.id,
                row.message_id,
                view.now as f64 / 1e6
            )
        };
        if !known {
            self.fail("only rows that were read as pending are published", text());
        }
        if route {
            self.fail("nothing is published to a paused route", text());
        }
        if out {
            self.fail("a row is out once at a time", text());
        }
        if again {
            let seen = confirmed.unwrap_or(0) as f64 / 1e6;
            self.fail(
                "no duplicate within a session",
                format!("{}, confirmed at {seen:.6}", text()),
            );
        }
    }

    fn publish_in_order(&mut self, id: SessionId, row: &Row, key: u64, view: &View<'_>) {
        let seen = self.sessions.entry(id).or_default();
        if !seen.keys_out.insert(key) {
            return self.fail(
                "one of a key at a time",
                format!("row {} {}, key {key}", row.id, row.message_id),
            );
        }
        let lately = |at: Micros| view.now < at + TRUNCATED;
        if view.server.truncated.is_some_and(lately) {
            return;
        }
        let own = message_number(&row.message_id);
        if view
            .server
            .rows
            .get(&row.id)
            .is_none_or(|stored| stored.message != own)
        {
            return;
        }
        let before = view.server.by_key.get(&key).into_iter().flatten();
        for earlier in before.take_while(|earlier| **earlier < row.id) {
            let stored = view.server.rows[earlier];
            let delivered = self.facts[stored.message as usize].confirmed;
            let unlogged = |message: u32| view.messages[message as usize].unlogged;
            let reused = seen
                .published
                .get(earlier)
                .is_some_and(|message| *message != stored.message);
            let exempt = stored.touched || unlogged(stored.message) || unlogged(own) || reused;
            if !delivered && !exempt {
                let text = format!(
                    "row {} {} of key {key} before row {earlier}",
                    row.id, row.message_id
                );
                return self.fail("first deliveries of a key in order", text);
            }
        }
    }

    fn mark(&mut self, id: SessionId, row: u64, message: u32) {
        let seen = self.sessions.entry(id).or_default();
        let confirmed = seen.to_mark.remove(&(row, message));
        let stored = self
            .facts
            .get(message as usize)
            .is_some_and(|fact| fact.stored > 0);
        if !confirmed || !stored {
            self.fail(
                "nothing is marked before its confirm",
                format!("row {row} message {message}"),
            );
        }
    }

    fn record(&mut self, id: SessionId, record: &Record, view: &View<'_>) {
        let seen = self.sessions.entry(id).or_default();
        let message = message_number(&record.message_id);
        let out = seen.messages_out.contains(&message);
        let own = view
            .messages
            .get(message as usize)
            .is_some_and(|message| message.fault != RowFault::None);
        let text = || format!("{record:?}");
        match record.then {
            Then::Retry { attempts, .. } if attempts >= self.attempts_max => {
                self.fail("the last attempt parks", text());
            }
            Then::Park { attempts } if attempts < self.attempts_max => {
                self.fail("nothing is parked before its last attempt", text());
            }
            Then::Park { .. } if !own => self.fail("nothing is parked for another's fault", text()),
            Then::Retry { .. } if !own => {
                self.fail("no attempt is spent on another's fault", text());
            }
            _ => {}
        }
        if out {
            self.fail("nothing is recorded of a row that is out", text());
        }
    }

    fn load(&mut self, id: SessionId, query: &LoadQuery) {
        let seen = self.sessions.entry(id).or_default();
        if std::mem::replace(&mut seen.loading, true) {
            self.fail("one load at a time", String::new());
        }
        let distinct: BTreeSet<u64> = query.ids.iter().copied().collect();
        if query.ids.is_empty() || distinct.len() != query.ids.len() {
            self.fail("a load has ids, without repetition", format!("{query:?}"));
        }
    }

    fn end(&mut self, id: SessionId, end: &End) {
        let seen = self.sessions.entry(id).or_default();
        seen.over = true;
        let out: Vec<&usize> = seen.out.keys().collect();
        let text = format!(
            "publishers {out:?} are out, {} rows unwritten",
            seen.unwritten.len()
        );
        let waited = self.publishers - relay::engine::PROBE_PUBLISHERS + 1;
        let settled = match end {
            End::Drained => seen.out.range(..waited).next().is_none() && seen.unwritten.is_empty(),
            End::BrokerLost(_) => seen.out.range(..waited).next().is_none() && seen.broker_lost,
        };
        if !settled {
            self.fail("a session ends when everything on its way is settled", text);
        }
    }

    /// What an engine shows of itself.
    pub(crate) fn snapshot(&mut self, id: SessionId, snapshot: &Snapshot) {
        if snapshot.memory > self.memory_max {
            let text = format!(
                "{} of {} bytes: {snapshot:?}",
                snapshot.memory, self.memory_max
            );
            self.fail("memory stays within its bound", text);
        }
        let seen = self.sessions.entry(id).or_default();
        let unwritten = seen.unwritten.len();
        if snapshot.unwritten < unwritten {
            let text = format!("{} shown, {unwritten} known", snapshot.unwritten);
            self.fail("unwritten rows are shown", text);
        }
    }
}

impl Seen {
    fn remember(&mut self, rows: &[Read]) {
        for read in rows {
            if let Some(row) = read.row.as_ref().filter(|_| read.pending) {
                let versions = self
                    .read
                    .entry(message_number(&row.message_id))
                    .or_default();
                versions.insert((row.routing_key.clone(), version(row)));
            }
        }
    }
}

/// The version of a row, from its payload.
fn version(row: &Row) -> u32 {
    let bytes = row.payload.get(..4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}
