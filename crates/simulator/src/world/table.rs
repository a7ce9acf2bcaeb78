//! What the relay reads from the table and writes to it.

use std::collections::VecDeque;
use std::time::Duration;

use relay::engine::{
    Event, Head, LoadQuery, Page, PageQuery, Read, Record, Refused, Rows, Then, Write, Written,
};
use relay::publish::confirms::Confirmed;

use super::SessionId;
use super::binlog::Seen;
use super::database::{Change, PARKED, PENDING, SENT, Stored};
use super::{Happening, Reading, World, key_hash, message_number, tag_of};
use crate::faults::Fault;
use crate::queue::{MILLI, Micros, SECOND};
use crate::rng::index;

/// A snapshot takes so long, at the most: a thread that takes one can be interrupted.
const TEAR: Micros = 20 * MILLI;

impl World {
    /// Reads a page, in steps: the lock of somebody else, the fence, the rows.
    pub(super) fn read_page(&mut self, id: SessionId, mut reading: Reading) {
        let Some(server) = self.session(id).map(|session| session.server) else {
            return;
        };
        if !self.can_read(id, server) {
            return;
        }
        if self.is(Fault::TableLocked) {
            if !std::mem::replace(&mut reading.refused, true) {
                self.refuse_read(id);
            }
            return self
                .queue
                .after(200 * MILLI, Happening::ReadPage(id, reading));
        }
        if !reading.fenced && !reading.unreadable {
            if self.servers[server].read_only {
                return self
                    .queue
                    .after(0, Happening::EndSession(id, "the server is read-only"));
            }
            reading.fenced = true;
            let visible = self.commit(server, Seen::Nothing, Vec::new());
            return self.queue.at(visible, Happening::ReadPage(id, reading));
        }
        let page = self.page(server, &reading);
        let now = self.queue.now();
        if let Some(session) = self.session(id) {
            session.read_at = now;
        }
        let wait = self.read_latency();
        self.queue
            .after(wait, Happening::Deliver(id, Box::new(Event::Page(page))));
    }

    fn can_read(&mut self, id: SessionId, server: usize) -> bool {
        let lost = self.is(Fault::LostRead) || !self.servers[server].up;
        if lost {
            self.coverage.fault(Fault::LostRead);
            let wait = self.rng.below(SECOND);
            self.queue
                .after(wait, Happening::EndSession(id, "a read is lost"));
        }
        !lost
    }

    fn refuse_read(&mut self, id: SessionId) {
        self.coverage.fault(Fault::TableLocked);
        let event = Event::TableRefused("lock wait timeout exceeded".to_owned());
        self.queue.after(0, Happening::Deliver(id, Box::new(event)));
    }

    fn page(&mut self, server: usize, reading: &Reading) -> Page {
        let query: PageQuery = reading.query.clone();
        let read_at = self.queue.instant();
        let limit = self
            .rng
            .size(1, self.scenario.page)
            .max(self.scenario.page / 2);
        let at = &self.servers[server];
        let upto = query.upto.unwrap_or_else(|| at.highest());
        let ids: Vec<u64> = at
            .pending
            .range(query.after + 1..)
            .take_while(|id| **id <= upto)
            .take(limit)
            .copied()
            .collect();
        let full = ids.len() == limit;
        let small = if query.payloads {
            self.scenario.small as u64
        } else {
            0
        };
        let read = |id: &u64| {
            let row = at.rows[id];
            self.read(*id, &row, row.bytes <= small)
        };
        let end = (query.positions && !reading.unreadable).then(|| at.log.end());
        Page {
            rows: ids.iter().map(read).collect(),
            upto,
            start: reading.start.clone(),
            end,
            unreadable: reading
                .unreadable
                .then(|| "lost connection during query".to_owned()),
            read_to: match ids.last() {
                Some(last) if full => *last,
                _ => upto,
            },
            read_at,
        }
    }

    fn read(&self, id: u64, row: &Stored, whole: bool) -> Read {
        let left = row.next.map(|next| next - self.database_time());
        let head = Head {
            id,
            tag: tag_of(row.message),
            key: key_hash(row.key),
            route: self.routes[index(row.route)].clone(),
            wait: left
                .and_then(|left| u64::try_from(left).ok())
                .filter(|left| *left > 0)
                .map(Duration::from_micros),
            bytes: index(row.bytes),
            attempts: row.attempts,
            has_history: row.attempts > 0 || row.sent || row.error || row.next.is_some(),
        };
        Read {
            head,
            pending: row.status == PENDING,
            row: whole.then(|| Box::new(self.row(id, row))),
        }
    }

    /// Reads rows by id.
    pub(super) fn load(&mut self, id: SessionId, query: LoadQuery) {
        let Some(server) = self.session(id).map(|session| session.server) else {
            return;
        };
        if !self.can_read(id, server) {
            return;
        }
        if self.is(Fault::TableLocked) {
            self.refuse_read(id);
            return self.queue.after(300 * MILLI, Happening::Load(id, query));
        }
        let torn = self.torn(id, server, &query.ids);
        let mut left = query.bytes;
        let mut first = query.bytes > 0;
        let mut rows = Vec::new();
        for number in &query.ids {
            let Some(row) = self.servers[server].rows.get(number) else {
                continue;
            };
            if torn == Some(*number) {
                continue;
            }
            let bytes = index(row.bytes);
            let whole = row.status == PENDING && (first || bytes <= left);
            if row.status == PENDING {
                left = if whole { left.saturating_sub(bytes) } else { 0 };
                first = false;
            }
            rows.push(self.read(*number, row, whole));
        }
        self.rng.shuffle(&mut rows);
        let event = Event::Rows(Rows {
            rows,
            read_at: self.queue.instant(),
        });
        let wait = self.read_latency();
        self.queue
            .after(wait, Happening::Deliver(id, Box::new(event)));
    }

    /// A new row that a snapshot misses, though it may show what was committed just after: MariaDB copies
    /// the list of open transactions one by one while they commit. What was committed before the last
    /// snapshot was complete is in the next one.
    fn torn(&mut self, id: SessionId, server: usize, ids: &[u64]) -> Option<u64> {
        let now = self.queue.now();
        let tears = self.scenario.tears && self.tearing.percent(50);
        let session = self.session(id)?;
        let from = session.read_at.max(now.saturating_sub(TEAR));
        session.read_at = now;
        let rows = &self.servers[server].rows;
        let is_young = |id: &&u64| {
            let row = rows.get(id);
            row.is_some_and(|row| row.since > from && row.version == 0 && !row.touched)
        };
        let young: Vec<u64> = ids.iter().filter(is_young).copied().collect();
        (tears && !young.is_empty()).then(|| self.tearing.pick(&young))
    }

    /// The next write goes to the server.
    pub(super) fn plan_write(&mut self, id: SessionId) {
        let wait = match self.is(Fault::SlowWrites) && self.rng.percent(30) {
            true => {
                self.coverage.fault(Fault::SlowWrites);
                self.rng.below(500 * MILLI)
            }
            false => self.rng.range(300, 5 * MILLI),
        };
        self.queue.after(wait, Happening::WriteNow(id));
    }

    /// Executes the first write of a session.
    pub(super) fn write_now(&mut self, id: SessionId) {
        let Some(session) = self.session(id) else {
            return;
        };
        let server = session.server;
        let Some(write) = session.writes.pop_front() else {
            session.writing = false;
            return;
        };
        if !self.servers[server].up {
            return;
        }
        if self.servers[server].read_only {
            return self
                .queue
                .after(0, Happening::EndSession(id, "the server is read-only"));
        }
        let rows = rows_of(&write);
        if self.is(Fault::TableLocked) || self.servers[server].is_locked(&rows) {
            let again = if self.is(Fault::TableLocked) {
                100 * MILLI
            } else {
                MILLI
            };
            if let Some(session) = self.session(id) {
                session.writes.push_front(write);
            }
            return self.queue.after(again, Happening::WriteNow(id));
        }
        let (write, mut written) = self.put_off(id, write);
        let visible = match write {
            Some(write) => self.execute_write(server, write, &mut written),
            None => self.queue.now(),
        };
        written.refused = self.refused(id);
        let wait = visible - self.queue.now() + self.rng.range(50, MILLI);
        self.queue.after(
            wait,
            Happening::Deliver(id, Box::new(Event::Written(written))),
        );
        self.queue.after(wait, Happening::WriteNow(id));
    }

    fn is_refused(&self, message_id: &str) -> bool {
        let some = message_number(message_id).is_multiple_of(3);
        self.is(Fault::WritesRefused) || (self.is(Fault::RowLocks) && some)
    }

    /// Splits off what the database refuses now.
    fn put_off(&mut self, id: SessionId, write: Write) -> (Option<Write>, Written) {
        let mut written = Written::default();
        let (write, marks, record) = match write {
            Write::Sent(confirmed) => {
                let (refused, taken): (Vec<_>, Vec<_>) = confirmed
                    .into_iter()
                    .partition(|row| self.is_refused(row.message_id()));
                written.finished = taken.len();
                (Some(Write::Sent(taken)), refused, None)
            }
            Write::Record(record) if self.is(Fault::RecordsGivenUp) && self.rng.percent(50) => {
                self.coverage.fault(Fault::RecordsGivenUp);
                written.finished = 1;
                written.given_up.push(record.id);
                (None, Vec::new(), None)
            }
            Write::Record(record) => {
                written.finished = 1;
                if self.is_refused(&record.message_id) {
                    (None, Vec::new(), Some(record))
                } else {
                    (Some(Write::Record(record)), Vec::new(), None)
                }
            }
        };
        if !marks.is_empty() || record.is_some() {
            let fault = if self.is(Fault::WritesRefused) {
                Fault::WritesRefused
            } else {
                Fault::RowLocks
            };
            self.coverage.fault(fault);
            self.queue.after(SECOND, Happening::WriteAgain(id));
        }
        if let Some(session) = self.session(id) {
            session.put_off_marks.extend(marks);
            session.put_off_records.extend(record);
        }
        (write, written)
    }

    fn refused(&mut self, id: SessionId) -> Refused {
        let Some(session) = self.session(id) else {
            return Refused::default();
        };
        let samples = session
            .put_off_records
            .iter()
            .filter(|record| is_sample(record))
            .count();
        Refused {
            marks: session.put_off_marks.len(),
            failures: session.put_off_records.len() - samples,
            samples,
            why: "1205: lock wait timeout exceeded".into(),
        }
    }

    /// Tries again what was refused.
    pub(super) fn write_again(&mut self, id: SessionId) {
        let Some(session) = self.session(id) else {
            return;
        };
        let server = session.server;
        let marks = std::mem::take(&mut session.put_off_marks);
        let records = std::mem::take(&mut session.put_off_records);
        if marks.is_empty() && records.is_empty() {
            return;
        }
        let rows: Vec<u64> = marks
            .iter()
            .map(Confirmed::id)
            .chain(records.iter().map(|record| record.id))
            .collect();
        let off = self.is(Fault::TableLocked)
            || self.servers[server].is_locked(&rows)
            || self.servers[server].read_only;
        let (marks_left, marks): (Vec<_>, Vec<_>) = marks
            .into_iter()
            .partition(|row| off || self.is_refused(row.message_id()));
        let (records_left, records): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| off || self.is_refused(&record.message_id));
        let again = !marks_left.is_empty() || !records_left.is_empty();
        if let Some(session) = self.session(id) {
            session.put_off_marks.extend(marks_left);
            session.put_off_records.extend(records_left);
        }
        let mut written = Written {
            finished: marks.len(),
            ..Written::default()
        };
        let mut visible = self.queue.now();
        if !marks.is_empty() {
            visible = self.execute_write(server, Write::Sent(marks), &mut written);
        }
        for record in records {
            visible = self.execute_write(server, Write::Record(record), &mut written);
        }
        written.refused = self.refused(id);
        let wait = visible - self.queue.now() + self.rng.range(50, MILLI);
        self.queue.after(
            wait,
            Happening::Deliver(id, Box::new(Event::Written(written))),
        );
        if again {
            self.queue.after(SECOND, Happening::WriteAgain(id));
        }
    }

    /// Executes a write and commits it. Returns when it is visible.
    fn execute_write(&mut self, server: usize, write: Write, written: &mut Written) -> Micros {
        let mut changes = Vec::new();
        match write {
            Write::Sent(confirmed) => {
                for mark in &confirmed {
                    written.rows.push(mark.id());
                    if let Some(row) = self.pending_row(server, mark.id(), mark.message_id()) {
                        changes.push(Change::Put(
                            mark.id(),
                            Stored {
                                status: SENT,
                                sent: true,
                                ..row
                            },
                        ));
                    }
                }
            }
            Write::Record(record) => {
                if record.then != Then::Explain {
                    written.rows.push(record.id);
                }
                if let Some(row) = self.pending_row(server, record.id, &record.message_id) {
                    changes.push(Change::Put(record.id, self.recorded(row, record.then)));
                }
            }
        }
        if changes.is_empty() {
            return self.queue.now();
        }
        self.commit(server, Seen::Nothing, changes)
    }

    fn pending_row(&self, server: usize, id: u64, message_id: &str) -> Option<Stored> {
        let row = self.servers[server].rows.get(&id).copied();
        row.filter(|row| row.status == PENDING && row.message == message_number(message_id))
    }

    fn recorded(&self, row: Stored, then: Then) -> Stored {
        let from_now = |wait: Duration| {
            let wait = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX / 2);
            Some(self.database_time() + wait)
        };
        let row = Stored { error: true, ..row };
        match then {
            Then::Retry { attempts, after } => Stored {
                attempts,
                next: from_now(after),
                ..row
            },
            Then::Park { attempts } => Stored {
                attempts,
                status: PARKED,
                ..row
            },
            Then::Wait(wait) => Stored {
                next: from_now(wait),
                ..row
            },
            Then::Explain => row,
        }
    }

    /// The session ended while its first write was with the server, which executes it all the same.
    pub(super) fn execute_unanswered(&mut self, server: usize, mut writes: VecDeque<Write>) {
        let Some(write) = writes.pop_front() else {
            return;
        };
        let rows = rows_of(&write);
        let able = self.servers[server].up
            && !self.servers[server].read_only
            && !self.is(Fault::TableLocked);
        if able && !self.servers[server].is_locked(&rows) {
            self.execute_write(server, write, &mut Written::default());
        }
    }
}

fn is_sample(record: &Record) -> bool {
    matches!(record.then, Then::Explain | Then::Wait(_))
}

fn rows_of(write: &Write) -> Vec<u64> {
    match write {
        Write::Sent(confirmed) => confirmed.iter().map(Confirmed::id).collect(),
        Write::Record(record) => vec![record.id],
    }
}
