//! Writing down what became of rows: sent, failed, parked, or why a route is shut.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::ops::table::Key;
use ::ops::{Table, bulk};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, MySqlTransaction};
use svc_kit::database::{Fault, classify};
use tokio::sync::{Notify, mpsc};

use crate::effects::{Failure, Mark, Sample};
use crate::in_list::{padded, padded_len, placeholders};
use crate::queue::RowId;
use crate::schedule::Next;
use crate::table::PING_EVERY;

/// Rows in one UPDATE. MariaDB makes a subquery of a list of 1,000 literals; of parameters it does not.
pub const MARK_MAX: usize = 1024;
/// `last_error` and `outbox_attempts.error` hold this many characters.
const ERROR_MAX: usize = 1000;
/// The servers' smallest wait for a lock, in seconds, be it a row's or the table's (LOCK TABLES, or an
/// ALTER that copies): what is locked is put off.
const LOCK_WAIT_S: u32 = 1;
/// From a lock that was met to the next try of what is put off: it may wait for a lock again.
const LOCKED_AGAIN: Duration = Duration::from_secs(5);
/// Writes put off; with more of them no new ones are taken, and intake stops behind.
const LOCKED_MAX: usize = 256;
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be written.
#[derive(Debug)]
pub enum Write {
    /// These are confirmed. At most [`MARK_MAX`].
    Sent(Vec<Mark>),
    /// This one failed by its own fault.
    Failed(Failure),
    /// This one tells why its route is shut. It stays pending and spends no attempt, but may have to
    /// wait.
    Sample(Sample),
}

/// What has been committed.
#[derive(Debug, Default)]
pub struct Written {
    /// The rows that are no longer on their way; none for a sample that does not wait.
    pub rows: Vec<RowId>,
    /// How many of them were confirmed rows that are marked now.
    pub marked: u64,
    /// Confirmed rows that were not pending any more, or were another message.
    pub missed: u64,
    /// How many writes are done with: 1, or 0 when rows of this one are locked and still to come.
    pub finished: usize,
}

/// The marker and what somebody's lock keeps it from writing.
struct Marker {
    connection: MySqlConnection,
    table: String,
    locked: VecDeque<Write>,
    try_locked_at: Instant,
    /// It is the table that is locked, so no new write could pass either.
    table_locked: bool,
}

/// Writes until `writes` is closed, reporting each write once it is committed; `failed` is rung after
/// a failure. A locked row waits by
/// itself, for as long as the lock is held, and keeps no other from being written; a locked table
/// keeps all of them, and then no more are taken.
///
/// # Errors
/// The first database error that does not pass by itself: the session then starts again.
pub async fn run(
    mut connection: MySqlConnection,
    table: String,
    mut writes: mpsc::Receiver<Write>,
    written: mpsc::Sender<Written>,
    failed: Arc<Notify>,
) -> anyhow::Result<()> {
    log_little(&mut connection).await;
    sqlx::query(AssertSqlSafe(format!(
        "SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}, lock_wait_timeout = {LOCK_WAIT_S}"
    )))
    .execute(&mut connection)
    .await?;
    let locked = VecDeque::new();
    let mut marker = Marker {
        connection,
        table,
        locked,
        try_locked_at: Instant::now(),
        table_locked: false,
    };
    loop {
        let done = match marker.next(&mut writes).await? {
            Some(write) => {
                let is_failure = matches!(write, Write::Failed(_));
                let done = tokio::time::timeout(WRITE_TIMEOUT, marker.write(write)).await??;
                if is_failure {
                    failed.notify_one();
                }
                done
            }
            None => break,
        };
        if written.send(done).await.is_err() {
            break;
        }
    }
    Ok(())
}

impl Marker {
    /// The next write: a locked one that is due again, or a new one. Pings while there is none.
    async fn next(&mut self, writes: &mut mpsc::Receiver<Write>) -> anyhow::Result<Option<Write>> {
        loop {
            let due = !self.locked.is_empty() && Instant::now() >= self.try_locked_at;
            if let Some(locked) = self.locked.pop_front_if(|_| due) {
                return Ok(Some(locked));
            }
            if self.table_locked || self.locked.len() >= LOCKED_MAX {
                tokio::time::sleep_until(self.try_locked_at.into()).await;
                continue;
            }
            let until = if self.locked.is_empty() {
                Instant::now() + PING_EVERY
            } else {
                self.try_locked_at
            };
            match tokio::time::timeout_at(until.into(), writes.recv()).await {
                Ok(write) => return Ok(write),
                Err(_) => tokio::time::timeout(WRITE_TIMEOUT, self.connection.ping()).await??,
            }
        }
    }

    async fn write(&mut self, write: Write) -> Result<Written, sqlx::Error> {
        self.table_locked = false;
        let Self {
            connection, table, ..
        } = self;
        let err = match commit(connection, table, &write).await {
            Err(err) if matches!(classify(&err), Fault::Busy) => err,
            outcome => return outcome,
        };
        tracing::warn!(error = %err, "somebody else holds a lock on what is to be marked");
        let Write::Sent(marks) = write else {
            self.put_off(write);
            return Ok(Written::default());
        };
        let free = match unlocked(connection, table, &marks).await {
            Err(err) if matches!(classify(&err), Fault::Busy) => {
                self.table_locked = true;
                self.put_off(Write::Sent(marks));
                return Ok(Written::default());
            }
            outcome => outcome?,
        };
        let (free, locked): (Vec<_>, Vec<_>) = marks
            .into_iter()
            .partition(|mark| free.contains(&mark.id.id));
        let mut written = match free.is_empty() {
            true => Written::default(),
            // A deadlock, or a lock taken since: all of it again later.
            false => match commit(connection, table, &Write::Sent(free.clone())).await {
                Err(err) if matches!(classify(&err), Fault::Busy) => {
                    self.put_off(Write::Sent([free, locked].concat()));
                    return Ok(Written::default());
                }
                outcome => outcome?,
            },
        };
        if !locked.is_empty() {
            self.put_off(Write::Sent(locked));
            written.finished = 0;
        }
        Ok(written)
    }

    /// Only this makes what is put off wait: once a lock is gone, all of it follows at once.
    fn put_off(&mut self, write: Write) {
        self.locked.push_back(write);
        self.try_locked_at = Instant::now() + LOCKED_AGAIN;
    }
}

/// A mark adds as much to the binlog as the insert did unless the image is MINIMAL (+102 % against
/// +2.8 %, measured). It needs a right that the relay may lack; then it goes on without.
async fn log_little(connection: &mut MySqlConnection) {
    let set = sqlx::query("SET SESSION binlog_row_image = 'MINIMAL'")
        .execute(&mut *connection)
        .await;
    if let Err(err) = set {
        tracing::info!(error = %err, "marks are written to the binlog with full row images");
    }
    // MariaDB writes the statement beside its rows, 47 bytes a mark, unless told not to; MySQL has no
    // such variable, and does so only when told to.
    let annotations = sqlx::query("SET SESSION binlog_annotate_row_events = OFF");
    if let Err(err) = annotations.execute(connection).await {
        tracing::debug!(error = %err, "the binlog's annotations stay as they are");
    }
}

/// Which of the rows nobody has locked.
async fn unlocked(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Mark],
) -> Result<Vec<u64>, sqlx::Error> {
    let list = placeholders(padded_len(marks.len()), "?");
    let statement = format!("SELECT id FROM `{table}` WHERE id IN ({list}) FOR UPDATE SKIP LOCKED");
    let mut query = sqlx::query_scalar(AssertSqlSafe(statement));
    for mark in padded(marks) {
        query = query.bind(mark.id.id);
    }
    query.fetch_all(connection).await
}

async fn commit(
    connection: &mut MySqlConnection,
    table: &str,
    write: &Write,
) -> Result<Written, sqlx::Error> {
    match write {
        Write::Sent(marks) => mark_sent(connection, table, marks).await,
        Write::Failed(failure) => {
            let mut tx = connection.begin().await?;
            record_failure(&mut tx, table, failure).await?;
            tx.commit().await?;
            Ok(Written {
                rows: vec![failure.row.id],
                finished: 1,
                ..Written::default()
            })
        }
        Write::Sample(sample) => {
            let statement = format!(
                "UPDATE `{table}` SET last_error = ?, next_attempt_at = \
                 COALESCE(UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, next_attempt_at) \
                 WHERE id = ? AND message_id = ? AND status = 1"
            );
            let wait = sample
                .wait
                .and_then(|wait| i64::try_from(wait.as_micros()).ok());
            sqlx::query(AssertSqlSafe(statement))
                .bind(cut(&format!("{}: {}", sample.reason.name(), sample.text)))
                .bind(wait)
                .bind(sample.row.id.id)
                .bind(&sample.row.message_id)
                .execute(connection)
                .await?;
            Ok(Written {
                rows: wait.map(|_| sample.row.id).into_iter().collect(),
                finished: 1,
                ..Written::default()
            })
        }
    }
}

/// Conditional on the message ids: after a TRUNCATE, a restore or a failover the same id may be
/// another message. As two lists and not as pairs, which is 20 times slower on MariaDB. By the primary
/// key, since a scan would pass over a row that the tail has brought a moment before it is visible.
async fn mark_sent(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Mark],
) -> Result<Written, sqlx::Error> {
    let list = placeholders(padded_len(marks.len()), "?");
    let statement = format!(
        "UPDATE `{table}` FORCE INDEX (PRIMARY) SET status = 2, sent_at = UTC_TIMESTAMP(6) \
         WHERE id IN ({list}) AND message_id IN ({list}) AND status = 1"
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for mark in padded(marks) {
        query = query.bind(mark.id.id);
    }
    for mark in padded(marks) {
        query = query.bind(mark.message_id);
    }
    let marked = query.execute(connection).await?.rows_affected();
    Ok(Written {
        rows: marks.iter().map(|mark| mark.id).collect(),
        marked,
        missed: (marks.len() as u64).saturating_sub(marked),
        finished: 1,
    })
}

async fn record_failure(
    tx: &mut MySqlTransaction<'_>,
    table: &str,
    failure: &Failure,
) -> Result<(), sqlx::Error> {
    let (status, delay) = match failure.next {
        Next::Retry(after) => (1, i64::try_from(after.as_micros()).ok()),
        Next::Park => (3, None),
    };
    let error = cut(&format!("{}: {}", failure.reason.name(), failure.text));
    let outbox = Table::Outbox {
        name: table.to_owned(),
    };
    let key = Key::Id(failure.row.id.id);
    // Before the row is locked, as whoever acts on a bulk does it.
    let bulks = bulk::active(tx, &outbox, std::slice::from_ref(&key)).await?;
    let statement = format!(
        "UPDATE `{table}` SET status = ?, attempts = ?, last_error = ?, \
         next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
         WHERE id = ? AND message_id = ? AND status = 1"
    );
    let changed = sqlx::query(AssertSqlSafe(statement))
        .bind(status)
        .bind(failure.attempts)
        .bind(&error)
        .bind(delay)
        .bind(failure.row.id.id)
        .bind(&failure.row.message_id)
        .execute(&mut **tx)
        .await?
        .rows_affected();
    if changed == 0 {
        return Ok(());
    }
    let statement = format!(
        "INSERT INTO `{table}_attempts` (outbox_id, message_id, attempt, class, error) \
         VALUES (?, ?, ?, ?, ?)"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(failure.row.id.id)
        .bind(&failure.row.message_id)
        .bind(failure.attempts)
        .bind(failure.reason.name())
        .bind(&error)
        .execute(&mut **tx)
        .await?;
    for bulk in bulks {
        bulk::stop(tx, &outbox, bulk, ("relay", &error)).await?;
    }
    if failure.next == Next::Park {
        record_parking(tx, &outbox.target(&key), &error).await?;
    }
    Ok(())
}

/// Parking lets the later messages of the key overtake: that is an action, so it is in the audit.
async fn record_parking(
    tx: &mut MySqlTransaction<'_>,
    target: &str,
    error: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO operator_actions (actor, action, target, reason, before_state, after_state) \
         VALUES ('relay', 'park', ?, ?, 'pending', 'parked')",
    )
    .bind(target)
    .bind(error)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(ERROR_MAX).collect()
}
