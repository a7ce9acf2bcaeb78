//! Writing down what became of rows: sent, failed, parked, or why a route breaker is open.
//!
//! The marks of sent rows come first: as long as one is missing, its message goes out again after a
//! new start. A write that is refused waits by itself and is tried again, and keeps no other from
//! being written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::ops::Table;
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, Executor as _};
use svc_kit::database::{Fault, classify};
use tokio::sync::{Notify, mpsc};

use super::MARK_MAX;
use super::backlog::{Backlog, Next};
use super::later::Put;
use super::{failure_record, sent_mark};
use crate::config::RowImage;
use crate::database::{PING_EVERY, WRITE_TIMEOUT, ends_session, wait_little_for_locks};
use crate::engine::{Record, Refused, Then, Write, Written};
use crate::observe::metrics::Metrics;
use crate::publish::confirms::Confirmed;

/// From a lock that was met to the next try of the marks behind it: it may wait for a lock again.
const LOCKED_AGAIN: Duration = Duration::from_secs(5);
/// A refused write rests this many times as long as the refusal took before another one that was put
/// off is tried: a tenth of the connection's time at the most goes to refusals.
const REST_FACTOR: u32 = 9;
/// Refusals in a row that are no reason for a rest: finding one row among [`MARK_MAX`] takes as many.
const REFUSALS_MAX: u32 = 12;

/// What the marker works with.
pub struct Marking {
    /// The outbox.
    pub table: Table,
    /// `RELAY_BINLOG_ROW_IMAGE`.
    pub image: RowImage,
    /// Counts marks.
    pub metrics: Metrics,
    /// Rung after a failure was recorded.
    pub failed: Arc<Notify>,
}

struct Marker {
    connection: MySqlConnection,
    table: Table,
    /// Of marks, and of the next write as the connection is set now.
    image: RowImage,
    image_now: RowImage,
    backlog: Backlog,
    refusals: u32,
    why: Arc<str>,
    metrics: Metrics,
    failed: Arc<Notify>,
}

/// Writes until `writes` is closed, and reports each write once it is committed or put off. What is
/// refused waits by itself and keeps no other from being written; a locked table keeps all of them, and
/// then no more are taken.
///
/// # Errors
/// The connection is lost, or the server takes no writes: the session then starts again.
pub async fn run(
    mut connection: MySqlConnection,
    marking: Marking,
    mut writes: mpsc::Receiver<Write>,
    written: mpsc::Sender<Written>,
) -> anyhow::Result<()> {
    without_annotations(&mut connection).await;
    wait_little_for_locks(&mut connection).await?;
    let Marking {
        table,
        image,
        metrics,
        failed,
    } = marking;
    let mut marker = Marker {
        connection,
        table,
        image,
        image_now: RowImage::Full,
        backlog: Backlog::default(),
        refusals: 0,
        why: "".into(),
        metrics,
        failed,
    };
    loop {
        let done = match marker.next(&mut writes).await? {
            Next::Marks(put) => marker.mark(put).await?,
            Next::Record(put) => marker.record(put).await?,
            Next::Wait { .. } => continue,
            Next::End => break,
        };
        let refused = marker.refused();
        if written.send(Written { refused, ..done }).await.is_err() {
            break;
        }
    }
    Ok(())
}

enum Refusal {
    Locked,
    Other,
}

impl Marker {
    /// The next write, or nothing after a while of pings.
    async fn next(&mut self, writes: &mut mpsc::Receiver<Write>) -> anyhow::Result<Next> {
        let now = Instant::now();
        let next = self.backlog.next(writes, now);
        let Next::Wait { until, takes } = next else {
            return Ok(next);
        };
        let until = until.map_or(now + PING_EVERY, |due| due.min(now + PING_EVERY));
        if !takes {
            tokio::time::sleep_until(until.into()).await;
            return Ok(next);
        }
        match tokio::time::timeout_at(until.into(), writes.recv()).await {
            Ok(Some(write)) => self.backlog.take(write),
            Ok(None) => return Ok(Next::End),
            Err(_) => tokio::time::timeout(WRITE_TIMEOUT, self.connection.ping()).await??,
        }
        Ok(next)
    }

    async fn mark(&mut self, put: Put<Vec<Confirmed>>) -> anyhow::Result<Written> {
        self.backlog.table_locked = false;
        self.use_marks_image().await?;
        let (marks, tries) = (put.what, put.tries);
        let began = Instant::now();
        let marking = sent_mark::mark(&mut self.connection, self.table.name(), &marks);
        let err = match tokio::time::timeout(WRITE_TIMEOUT, marking).await? {
            Ok(marked) => {
                self.refusals = 0;
                if tries > 0 {
                    // A lock is gone, or a right is back: all of them follow at once.
                    self.merge_marks();
                }
                return Ok(self.finish(&marks, marked));
            }
            Err(err) => err,
        };
        match self.refusal(err).await? {
            Refusal::Locked => self.mark_unlocked(marks, tries).await,
            Refusal::Other => {
                self.refusals += 1;
                if self.refusals > REFUSALS_MAX {
                    self.backlog.marks.rest(began.elapsed() * REST_FACTOR);
                }
                self.put_off_refused(marks, tries);
                Ok(Written::default())
            }
        }
    }

    /// Fewer rows changed than there are marks: somebody else has changed them, or deleted them.
    fn finish(&self, marks: &[Confirmed], marked: u64) -> Written {
        self.metrics.marked.inc_by(marked);
        let missed = (marks.len() as u64).saturating_sub(marked);
        self.metrics.unmarked.inc_by(missed);
        Written {
            finished: marks.len(),
            rows: marks.iter().map(Confirmed::id).collect(),
            ..Written::default()
        }
    }

    /// One row among them may be to blame, by a trigger of somebody's: the halves go by themselves.
    fn put_off_refused(&mut self, mut marks: Vec<Confirmed>, tries: u32) {
        if marks.len() == 1 {
            return self.backlog.marks.put_off(marks, tries + 1);
        }
        let half = marks.split_off(marks.len() / 2);
        self.backlog.marks.put_first(half);
        self.backlog.marks.put_first(marks);
    }

    /// Those that nobody has locked, and the others when they may be free.
    async fn mark_unlocked(
        &mut self,
        marks: Vec<Confirmed>,
        tries: u32,
    ) -> anyhow::Result<Written> {
        let tries = tries + 1;
        let looking = sent_mark::unlocked(&mut self.connection, self.table.name(), &marks);
        let free = match tokio::time::timeout(WRITE_TIMEOUT, looking).await? {
            Ok(free) => free,
            Err(err) => {
                self.backlog.table_locked = matches!(self.refusal(err).await?, Refusal::Locked);
                self.backlog.marks.put_off_for(marks, tries, LOCKED_AGAIN);
                return Ok(Written::default());
            }
        };
        let (free, locked): (Vec<_>, Vec<_>) = marks
            .into_iter()
            .partition(|mark| free.contains(&mark.id()));
        if !locked.is_empty() {
            self.backlog.marks.put_off_for(locked, tries, LOCKED_AGAIN);
        }
        if free.is_empty() {
            return Ok(Written::default());
        }
        let marking = sent_mark::mark(&mut self.connection, self.table.name(), &free);
        let err = match tokio::time::timeout(WRITE_TIMEOUT, marking).await? {
            Ok(marked) => return Ok(self.finish(&free, marked)),
            Err(err) => err,
        };
        match self.refusal(err).await? {
            // A deadlock, or a lock taken since.
            Refusal::Locked => self.backlog.marks.put_off_for(free, tries, LOCKED_AGAIN),
            Refusal::Other => self.put_off_refused(free, tries),
        }
        Ok(Written::default())
    }

    fn merge_marks(&mut self) {
        let mut all: Vec<Confirmed> = self.backlog.marks.drain().into_iter().flatten().collect();
        while !all.is_empty() {
            let some = all.split_off(all.len().saturating_sub(MARK_MAX));
            self.backlog.marks.put_first(some);
        }
    }

    async fn record(&mut self, put: Put<Record>) -> anyhow::Result<Written> {
        let Put {
            what, tries, new, ..
        } = put;
        let finished = usize::from(new);
        if new && self.backlog.records.is_resting(Instant::now()) {
            return Ok(self.keep_record(what, 0, finished));
        }
        let began = Instant::now();
        let err = match tokio::time::timeout(WRITE_TIMEOUT, self.write_record(&what)).await? {
            Ok(()) => {
                if tries > 0 {
                    self.backlog.records.all_due();
                }
                if what.is_failure() {
                    self.failed.notify_one();
                }
                return Ok(Written {
                    rows: what.held_row().into_iter().collect(),
                    finished,
                    ..Written::default()
                });
            }
            Err(err) => err,
        };
        self.refusal(err).await?;
        self.backlog.records.rest(began.elapsed() * REST_FACTOR);
        Ok(self.keep_record(what, tries + 1, finished))
    }

    fn keep_record(&mut self, record: Record, tries: u32, finished: usize) -> Written {
        let given_up = if self.backlog.is_full() {
            record.held_row()
        } else {
            self.backlog.records.put_off(record, tries);
            None
        };
        Written {
            given_up: given_up.into_iter().collect(),
            finished,
            ..Written::default()
        }
    }

    /// With full row images, whatever those of the marks are.
    async fn write_record(&mut self, record: &Record) -> Result<(), sqlx::Error> {
        self.use_image(RowImage::Full).await?;
        failure_record::write(&mut self.connection, &self.table, record).await
    }

    /// Before the write and not after it: what is committed is reported in any case.
    async fn use_image(&mut self, image: RowImage) -> Result<(), sqlx::Error> {
        if self.image_now != image {
            set_image(&mut self.connection, image).await?;
            self.image_now = image;
        }
        Ok(())
    }

    /// Marks need no right but to mark.
    async fn use_marks_image(&mut self) -> anyhow::Result<()> {
        let setting = self.use_image(self.image);
        let Err(err) = tokio::time::timeout(WRITE_TIMEOUT, setting).await? else {
            return Ok(());
        };
        if ends_session(&mut self.connection, &err).await {
            return Err(err.into());
        }
        tracing::warn!(error = %err, "RELAY_BINLOG_ROW_IMAGE=minimal needs a right to set it: marks \
            are written to the binlog with full row images");
        self.image = RowImage::Full;
        Ok(())
    }

    async fn refusal(&mut self, err: sqlx::Error) -> anyhow::Result<Refusal> {
        if ends_session(&mut self.connection, &err).await {
            return Err(err.into());
        }
        let refusal = match classify(&err) {
            Fault::Busy => Refusal::Locked,
            _ => Refusal::Other,
        };
        let why = match refusal {
            Refusal::Locked => format!("somebody else holds a lock: {err}"),
            Refusal::Other => err.to_string(),
        };
        if *why != *self.why {
            tracing::warn!(error = why, "a write is refused and will be tried again");
            self.why = why.into();
        }
        Ok(refusal)
    }

    fn refused(&self) -> Refused {
        let records = self.backlog.records.load();
        Refused {
            marks: self.backlog.marks.load().marks,
            failures: records.failures,
            samples: records.samples,
            why: Arc::clone(&self.why),
        }
    }
}

impl Record {
    /// The message's own failure, and not the reason of an open route breaker.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self.then, Then::Retry { .. } | Then::Park { .. })
    }

    /// The row, if it is held until this is written.
    fn held_row(&self) -> Option<u64> {
        (self.then != Then::Explain).then_some(self.id)
    }
}

async fn set_image(connection: &mut MySqlConnection, image: RowImage) -> Result<(), sqlx::Error> {
    let set = match image {
        RowImage::Full => "SET SESSION binlog_row_image = 'FULL'",
        RowImage::Minimal => "SET SESSION binlog_row_image = 'MINIMAL'",
    };
    connection.execute(sqlx::raw_sql(set)).await?;
    Ok(())
}

/// MariaDB writes the statement beside its rows, 47 bytes a mark, unless set not to; MySQL has no such
/// variable, and does so only when set to.
async fn without_annotations(connection: &mut MySqlConnection) {
    let annotations = sqlx::query("SET SESSION binlog_annotate_row_events = OFF");
    if let Err(err) = annotations.execute(connection).await {
        tracing::debug!(error = %err, "the binlog's annotations stay as they are");
    }
}
