//! What the world reports to the engine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox::row::Row;

use super::position::Position;
use super::route::Route;
use crate::publish::confirms::Outcome;

/// Everything that can be reported to the engine.
#[derive(Debug)]
pub enum Event {
    /// The time of [`super::Engine::deadline`] has come.
    Tick,
    /// The binlog stream is open, from the position of [`super::Command::OpenBinlog`].
    BinlogOpened,
    /// The binlog stream could not be opened, or has ended.
    BinlogEnded(BinlogEnd),
    /// A committed transaction has added rows to the outbox, or has set rows back to pending.
    Committed(Transaction),
    /// The binlog hides something: rows of the outbox may have been added without an id known.
    Doubt,
    /// Everything up to here has been reported by [`Event::Committed`] or [`Event::Doubt`]. Only sent
    /// while [`super::Engine::awaits_position`].
    BinlogAt(Position),
    /// The answer to [`super::Command::ReadPage`].
    Page(Page),
    /// The answer to [`super::Command::Load`].
    Rows(Rows),
    /// The table can't be read now, and is tried again: the answer follows later.
    TableRefused(String),
    /// The answer to [`super::Command::Publish`].
    Published {
        /// Which publisher had the batch.
        publisher: usize,
        /// What became of it.
        outcome: Outcome,
    },
    /// The connection to the broker is lost.
    BrokerLost(String),
    /// The broker blocks publishers.
    BrokerBlocked(String),
    /// It takes publishes again.
    BrokerUnblocked,
    /// Writes have been committed, put off or given up.
    Written(Written),
    /// Everything that operators have paused, at first and after each change.
    Pauses(Pauses),
    /// The process is to stop: nothing is taken in any more.
    Drain,
}

/// Why there is no binlog stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinlogEnd {
    /// In words, for readiness and log.
    pub why: String,
    /// There was no answer in time: the next try waits for seconds.
    pub timed_out: bool,
}

/// The rows that a transaction has added, or set back to pending, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// `outbox.id` of each.
    pub ids: Vec<u64>,
    /// When it was committed, by this process' clock.
    pub committed: Instant,
}

/// What the engine has to know of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `outbox.id`.
    pub id: u64,
    /// Hash of the message id: after a TRUNCATE or a restore the same id is another message.
    pub tag: u64,
    /// Hash of the ordering key.
    pub key: u64,
    /// Where it goes.
    pub route: Route,
    /// `next_attempt_at` as time still to wait at the moment of reading; `None` is due.
    pub wait: Option<Duration>,
    /// Bytes of payload and headers.
    pub bytes: usize,
    /// Failed attempts so far.
    pub attempts: u32,
    /// It has been tried, sent or delayed before: that the binlog did not report it as a new row is
    /// no wonder.
    pub has_history: bool,
}

/// A row as the table has it.
#[derive(Clone, Debug)]
pub struct Read {
    /// What the engine has to know.
    pub head: Head,
    /// `status` is 1.
    pub pending: bool,
    /// The row itself, if there was room for it.
    pub row: Option<Box<Row>>,
}

/// A page of the pending rows.
#[derive(Debug)]
pub struct Page {
    /// The rows, by id. All of them are pending.
    pub rows: Vec<Read>,
    /// Highest id in the table when the scan began. A scan goes no further: a row above it was inserted
    /// after the scan began, and one below it, of the same key, may have become visible behind the scan.
    pub upto: u64,
    /// Where the binlog was before the fence of a scan that begins, if that was queried.
    pub start: Option<Position>,
    /// Where the binlog was after the page was read, if that was queried.
    pub end: Option<Position>,
    /// Why the binlog's position or the fence could not be had. The page is good.
    pub unreadable: Option<String>,
    /// All pending rows up to here are in this page or in one before; at `upto` this page is the last.
    pub read_to: u64,
    /// When it was read.
    pub read_at: Instant,
}

/// The rows of a [`super::Command::Load`] that are in the table, all from one snapshot, in any order.
#[derive(Debug)]
pub struct Rows {
    /// The rows. One that is missing is not there, or not visible yet.
    pub rows: Vec<Read>,
    /// When they were read.
    pub read_at: Instant,
}

/// What has been committed or given up.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// The rows that are done with: marked (or found changed by somebody else), or their failure is in
    /// the table.
    pub rows: Vec<u64>,
    /// Rows whose failure could not be recorded and will not be tried again: they are as they were.
    pub given_up: Vec<u64>,
    /// Marks and records that the writer has finished with; a record that it has put off counts too.
    pub finished: usize,
    /// What waits because the database refuses it.
    pub refused: Refused,
}

/// What waits to be written because the database refuses it, or somebody holds a lock on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Confirmed rows without their mark.
    pub marks: usize,
    /// Failures.
    pub failures: usize,
    /// Reasons of open route breakers.
    pub samples: usize,
    /// The last refusal.
    pub why: Arc<str>,
}

impl Refused {
    /// For readiness; `None` when nothing is refused.
    pub fn detail(&self) -> Option<String> {
        let Self {
            marks,
            failures,
            samples,
            why,
        } = self;
        let some = marks + failures + samples > 0;
        some.then(|| {
            format!(
                "refused and tried again: {marks} marks of sent rows, {failures} records of \
                 failures, {samples} reasons of closed routes: {why}"
            )
        })
    }
}

/// What operators have paused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pauses {
    /// The whole relay.
    pub whole: bool,
    /// Single routes.
    pub routes: BTreeSet<Route>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_refused_write_is_shown() {
        let of = |marks, failures, samples| {
            let why = "read-only".into();
            let refused = Refused {
                marks,
                failures,
                samples,
                why,
            };
            refused.detail()
        };
        assert_eq!(of(0, 0, 0), None);
        for (marks, failures, samples) in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 3, 4)] {
            let expected = format!(
                "refused and tried again: {marks} marks of sent rows, {failures} records of \
                 failures, {samples} reasons of closed routes: read-only"
            );
            assert_eq!(of(marks, failures, samples), Some(expected));
        }
    }
}
