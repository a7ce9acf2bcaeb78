//! Whose fault it is that a message was not confirmed: nobody's, its route's or its own.
//!
//! Nobody's: the connection is lost, the broker blocks, the lease is over. The route's: returned, nacked,
//! 403, 404, no confirm in time; no attempt is spent, and one row probes until the route takes rows again.
//! The message's: too large, invalid, twice alone with a broker that closed, or nacked again and again
//! while others of its route are confirmed; attempts, back-off, parking.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::breaker::{OPEN_MAX, Opened, Pace};
use super::command::{Command, Reason, Record, Report, Source, Then};
use super::event::Written;
use super::index::Stage;
use super::ready_queue::{Batch, Isolation};
use super::{Engine, Memory};
use crate::publish::confirms::{Confirmed, Outcome, Verdict};

/// Alone with the broker when it closed: this often, and the row is to blame.
const STRIKES_MAX: u32 = 2;
/// Nacked, and others of its route confirmed in between: this often, and the row is to blame.
const NACKS_MAX: u32 = 4;
/// Nothing is published for so long after a batch that met the end of the lease.
const LEASE_OVER_REST: Duration = Duration::from_millis(100);
/// Rows remembered: far more than all batches hold. One that is forgotten only makes the broker close, or
/// nack, once more.
const REMEMBERED_MAX: usize = 1 << 17;
/// `last_error` and `outbox_attempts.error` hold this many characters.
const ERROR_MAX: usize = 1000;

/// A row that the broker has nacked.
#[derive(Clone, Copy, Debug, Default)]
struct Nacked {
    strikes: u32,
    /// Another one of its route was confirmed since.
    others_confirmed: bool,
}

/// What is remembered of rows that failed.
#[derive(Debug)]
pub(super) struct Attribution {
    /// Tag and strikes of rows that were in a batch which the broker answered by closing.
    suspects: FxHashMap<u64, (u64, u32)>,
    nacked: FxHashMap<u64, Nacked>,
    /// What was reported last of a row: thousands of routes are probed every few seconds, nearly always
    /// with the same answer.
    reported: FxHashMap<u64, u64>,
}

impl Attribution {
    pub(super) fn new(memory: Memory) -> Self {
        Self {
            suspects: memory.suspects,
            nacked: FxHashMap::default(),
            reported: FxHashMap::default(),
        }
    }

    pub(super) fn into_memory(self) -> Memory {
        Memory {
            suspects: self.suspects,
        }
    }

    pub(super) fn is_suspect(&self, id: u64, tag: u64) -> bool {
        self.suspects.get(&id).is_some_and(|(of, _)| *of == tag)
    }

    /// Was the row nacked when it went last?
    pub(super) fn was_nacked(&self, id: u64) -> bool {
        self.nacked.contains_key(&id)
    }

    /// The row has left the index.
    pub(super) fn forget(&mut self, id: u64) {
        self.nacked.remove(&id);
        self.reported.remove(&id);
    }

    /// Is this not what was reported of the row last?
    fn is_news(&mut self, id: u64, reason: Reason, text: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        (reason, text).hash(&mut hasher);
        // Rows of routes that are forgotten stay behind; reporting again costs one write each.
        if self.reported.len() >= 2 * OPEN_MAX {
            self.reported.clear();
        }
        let hash = hasher.finish();
        self.reported.insert(id, hash) != Some(hash)
    }

    /// The row was nacked: is it itself to blame?
    fn is_nacked_alone(&mut self, id: u64) -> bool {
        if self.nacked.len() >= REMEMBERED_MAX {
            self.nacked.clear();
        }
        let nacked = self.nacked.entry(id).or_default();
        // Strikes count until the row is confirmed, or many are nacked.
        nacked.strikes += u32::from(std::mem::take(&mut nacked.others_confirmed));
        nacked.strikes >= NACKS_MAX
    }

    fn strike(&mut self, id: u64, tag: u64, alone: bool) -> u32 {
        if self.suspects.len() >= REMEMBERED_MAX {
            self.suspects.clear();
        }
        let suspect = self.suspects.entry(id).or_insert((tag, 0));
        if suspect.0 != tag {
            *suspect = (tag, 0);
        }
        suspect.1 += u32::from(alone);
        suspect.1
    }
}

impl Engine {
    /// A batch has come back.
    pub(super) fn on_published(
        &mut self,
        publisher: usize,
        outcome: Outcome,
        now: Instant,
        out: &mut Vec<Command>,
    ) {
        let since = self.out_since[publisher];
        let Some(batch) = self.queue.done(publisher) else {
            debug_assert!(false, "publisher {publisher} had no batch");
            return;
        };
        match outcome {
            Outcome::Settled(verdicts) => self.on_verdicts(&batch, verdicts, now, out),
            Outcome::Closed { code, text } => self.on_closed(&batch, code, &text, out),
            Outcome::TimedOut { answered } => {
                // A blocked connection answers nobody: that is no route's fault. Neither is it when the
                // block ended while the batch was out.
                let excused =
                    self.blocked.is_some() || self.unblocked_at.is_some_and(|end| end >= since);
                let text = "no confirm within RELAY_CONFIRM_TIMEOUT";
                for (place, row) in batch.rows.iter().enumerate() {
                    if excused || answered.get(place) != Some(&false) {
                        self.put_back(row.id, now);
                    } else {
                        self.route_failed(row.id, Reason::Timeout, text, out);
                    }
                }
            }
            Outcome::Lost(why) => {
                self.put_back_all(&batch, now);
                self.on_broker_lost(why, now, out);
            }
            Outcome::LeaseOver => {
                // Whoever keeps the lock will say what follows.
                self.rests_until = Some(now + LEASE_OVER_REST);
                self.put_back_all(&batch, now);
            }
        }
        self.place_released(now);
    }

    fn on_verdicts(
        &mut self,
        batch: &Batch,
        verdicts: Vec<Verdict>,
        now: Instant,
        out: &mut Vec<Command>,
    ) {
        debug_assert_eq!(batch.rows.len(), verdicts.len());
        for (row, verdict) in batch.rows.iter().zip(verdicts) {
            let id = row.id;
            match verdict {
                Verdict::Confirmed(confirmed) => {
                    debug_assert_eq!(confirmed.id(), id, "the confirm of another row");
                    self.on_confirmed(confirmed, now, out);
                }
                Verdict::Returned(text) => {
                    self.route_failed(id, Reason::Returned, &text, out);
                }
                Verdict::Nacked => self.on_nacked(id, out),
                Verdict::Invalid(text) => self.failed(id, Reason::Invalid, &text, out),
            }
        }
    }

    fn on_confirmed(&mut self, confirmed: Confirmed, now: Instant, out: &mut Vec<Command>) {
        let id = confirmed.id();
        self.out_message_ids.remove(&id);
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let (key, route, committed) = (entry.key, entry.route, entry.committed);
        if let Some(released) = self.routes.confirmed(route, id) {
            self.released.extend(released);
            if let Some(route) = self.routes.route(route) {
                out.push(Command::Report(Report::RouteOpened(route.clone())));
            }
        }
        for nacked in self.routes.nacked_beside(route, id) {
            if let Some(nacked) = self.attribution.nacked.get_mut(nacked) {
                nacked.others_confirmed = true;
            }
        }
        self.attribution.nacked.remove(&id);
        self.attribution.suspects.remove(&id);
        self.ledger.confirmed(confirmed, now);
        self.move_to(id, Stage::Confirmed);
        out.push(Command::Report(Report::Confirmed {
            source: source_of(committed),
            took: committed.map(|at| now.saturating_duration_since(at)),
        }));
        self.promote(key, now);
    }

    fn on_nacked(&mut self, id: u64, out: &mut Vec<Command>) {
        if self.attribution.is_nacked_alone(id) {
            let text =
                "nacked again and again (basic.nack), while others of its route are confirmed";
            self.failed(id, Reason::Nack, text, out);
        } else {
            let text = "the queue refused it (basic.nack)";
            self.route_failed(id, Reason::Nack, text, out);
        }
        // A full queue nacks whatever comes: no single message is to blame then.
        if let Some(entry) = self.index.get(id) {
            for nacked in self.routes.nacked(entry.route, id) {
                self.attribution.nacked.remove(&nacked);
            }
        }
    }

    fn on_closed(&mut self, batch: &Batch, code: u16, text: &str, out: &mut Vec<Command>) {
        out.push(Command::Report(Report::ChannelClosed {
            why: text.to_owned(),
            rows: batch.rows.len(),
        }));
        if let [row] = batch.rows.as_slice() {
            match code {
                403 | 404 => {
                    return self.route_failed(row.id, Reason::ChannelClosed, text, out);
                }
                406 => return self.failed(row.id, Reason::TooLarge, text, out),
                _ => {}
            }
        }
        let alone = batch.isolation == Isolation::Solo;
        for row in &batch.rows {
            self.suspect(row.id, alone, text, out);
        }
    }

    /// Something in the row's batch made the broker close.
    fn suspect(&mut self, id: u64, alone: bool, text: &str, out: &mut Vec<Command>) {
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let (route, tag) = (entry.route, entry.tag);
        // It does not keep silent: its next probe needs no publisher for the silent ones.
        self.routes.probe_gone(route, id, Some(Pace::Prompt));
        if self.attribution.strike(id, tag, alone) >= STRIKES_MAX {
            self.failed(id, Reason::ChannelClosed, text, out);
        } else {
            out.push(Command::Report(Report::Refused(Reason::ChannelClosed)));
            self.put_back(id, self.now);
        }
    }

    fn put_back_all(&mut self, batch: &Batch, now: Instant) {
        for row in &batch.rows {
            self.put_back(row.id, now);
        }
    }

    /// The row is as it was before it went.
    fn put_back(&mut self, id: u64, now: Instant) {
        self.out_message_ids.remove(&id);
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let key = entry.key;
        self.move_to(id, Stage::Waiting);
        self.place(id, None, now);
        self.promote(key, now);
    }

    fn route_failed(&mut self, id: u64, reason: Reason, text: &str, out: &mut Vec<Command>) {
        let now = self.now;
        out.push(Command::Report(Report::Refused(reason)));
        let Some(entry) = self.index.get(id) else {
            return;
        };
        let (route, jitter) = (entry.route, self.jitter.next());
        // The route is to blame, so the row is not.
        self.attribution.suspects.remove(&id);
        let answered = reason != Reason::Timeout;
        let opened = self.routes.failed(route, id, answered, (jitter, now));
        let mut record = self.record(id, reason, text);
        match opened {
            Opened::Known => self.put_back(id, now),
            Opened::News => {
                if self.attribution.is_news(id, reason, text) {
                    self.ledger.record(record.clone());
                    out.push(Command::Report(Report::RouteClosed(record)));
                }
                self.put_back(id, now);
            }
            Opened::TooMany => {
                let wait = self.routes.unnamed_wait(jitter);
                record.then = Then::Wait(wait);
                if self.attribution.is_news(id, reason, text) {
                    out.push(Command::Report(Report::RouteClosed(record.clone())));
                }
                self.ledger.record(record);
                self.set_failing(id, false, Some(now + wait), now);
            }
        }
    }

    fn failed(&mut self, id: u64, reason: Reason, text: &str, out: &mut Vec<Command>) {
        let now = self.now;
        self.attribution.suspects.remove(&id);
        self.attribution.reported.remove(&id);
        let jitter = self.jitter.next();
        let mut record = self.record(id, reason, text);
        let Some(entry) = self.index.get_mut(id) else {
            return;
        };
        entry.attempts = entry.attempts.saturating_add(1);
        let (attempts, route) = (entry.attempts, entry.route);
        let parks = self.retry.parks(attempts);
        let after = self.retry.delay(attempts, jitter);
        record.then = match parks {
            true => Then::Park { attempts },
            false => Then::Retry { attempts, after },
        };
        self.routes.probe_gone(route, id, Some(Pace::Prompt));
        self.ledger.record(record.clone());
        out.push(Command::Report(Report::Failed(record)));
        self.set_failing(id, parks, Some(now + after), now);
    }

    fn record(&mut self, id: u64, reason: Reason, text: &str) -> Record {
        Record {
            id,
            message_id: self.out_message_ids.remove(&id).unwrap_or_default(),
            reason,
            text: cut(text),
            then: Then::Explain,
        }
    }

    fn set_failing(&mut self, id: u64, parks: bool, due: Option<Instant>, now: Instant) {
        self.move_to(id, Stage::Failing { parks });
        let Some(entry) = self.index.get_mut(id) else {
            return;
        };
        entry.due = due;
        let key = entry.key;
        self.hold_back_behind(key, id);
        self.promote(key, now);
    }

    /// Marks and records have been committed, or given up.
    pub(super) fn on_written(&mut self, written: &Written, now: Instant) {
        self.ledger.written(written);
        for &id in &written.rows {
            match self.index.get(id).map(|entry| entry.stage) {
                Some(Stage::Confirmed | Stage::Failing { parks: true }) => self.remove(id, now),
                Some(Stage::Failing { parks: false }) => self.resume_failed(id, now),
                _ => {}
            }
        }
        for &id in &written.given_up {
            if let Some(Stage::Failing { .. }) = self.index.get(id).map(|entry| entry.stage) {
                if let Some(entry) = self.index.get_mut(id) {
                    entry.attempts = entry.attempts.saturating_sub(1);
                }
                self.resume_failed(id, now);
            }
        }
    }

    fn resume_failed(&mut self, id: u64, now: Instant) {
        self.has_changed(id);
        let Some(entry) = self.index.get_mut(id) else {
            return;
        };
        let key = entry.key;
        if std::mem::take(&mut entry.again) {
            self.arrivals.again(id, now);
        }
        self.move_to(id, Stage::Waiting);
        self.place(id, None, now);
        self.promote(key, now);
    }
}

pub(super) fn source_of(committed: Option<Instant>) -> Source {
    match committed {
        Some(_) => Source::Binlog,
        None => Source::Sweep,
    }
}

/// As much of a text as is written down. A record may wait for long, and among thousands.
fn cut(text: &str) -> String {
    let end = text
        .char_indices()
        .nth(ERROR_MAX)
        .map_or(text.len(), |(end, _)| end);
    text[..end].to_owned()
}
