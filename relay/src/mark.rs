//! Writing down what became of rows: sent, failed, parked, or why a route is shut.

use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, MySqlTransaction};
use svc_kit::database::{Fault, classify};
use tokio::sync::mpsc;

use crate::effects::{Failure, Mark, Sample};
use crate::queue::RowId;
use crate::schedule::Next;
use crate::table::{padded, padded_len, placeholders};

/// Rows in one UPDATE.
pub const MARK_MAX: usize = 512;
/// `last_error` and `outbox_attempts.error` hold this many characters.
const ERROR_MAX: usize = 1000;
/// Deadlocks and lock waits that others cause pass; this many in a row do not.
const BUSY_MAX: u32 = 10;
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be written.
#[derive(Debug)]
pub enum Write {
    /// These are confirmed. At most [`MARK_MAX`].
    Sent(Vec<Mark>),
    /// This one failed by its own fault.
    Failed(Failure),
    /// This one tells why its route is shut. It stays pending and spends no attempt.
    Sample(Sample),
}

/// What has been committed.
#[derive(Debug)]
pub struct Written {
    /// The rows that are no longer on their way; none for a sample.
    pub rows: Vec<RowId>,
    /// How many of them were confirmed rows that are marked now.
    pub marked: u64,
    /// Confirmed rows that were not pending any more, or were another message.
    pub missed: u64,
}

/// Writes until `writes` is closed, reporting each write once it is committed.
///
/// # Errors
/// The first database error that does not pass by itself: the session then starts again.
pub async fn run(
    mut connection: MySqlConnection,
    table: String,
    mut writes: mpsc::Receiver<Write>,
    written: mpsc::Sender<Written>,
) -> anyhow::Result<()> {
    minimal_image(&mut connection).await;
    while let Some(write) = writes.recv().await {
        let done = patiently(&mut connection, &table, &write).await?;
        if written.send(done).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// A mark adds as much to the binlog as the insert did unless the image is MINIMAL (+102 % against
/// +2.8 %, measured). It needs a right that the relay may lack; then it goes on without.
async fn minimal_image(connection: &mut MySqlConnection) {
    let set = sqlx::query("SET SESSION binlog_row_image = 'MINIMAL'")
        .execute(connection)
        .await;
    if let Err(err) = set {
        tracing::info!(error = %err, "marks are written to the binlog with full row images");
    }
}

async fn patiently(
    connection: &mut MySqlConnection,
    table: &str,
    write: &Write,
) -> anyhow::Result<Written> {
    let mut busy = 0;
    loop {
        let attempt = tokio::time::timeout(WRITE_TIMEOUT, commit(connection, table, write)).await?;
        match attempt {
            Ok(written) => return Ok(written),
            Err(err) if busy < BUSY_MAX && matches!(classify(&err), Fault::Busy) => {
                busy += 1;
                tracing::warn!(error = %err, busy, "a mark met a lock, trying again");
            }
            Err(err) => return Err(err.into()),
        }
    }
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
                marked: 0,
                missed: 0,
            })
        }
        Write::Sample(sample) => {
            let statement = format!(
                "UPDATE `{table}` SET last_error = ? WHERE id = ? AND message_id = ? AND status = 1"
            );
            sqlx::query(AssertSqlSafe(statement))
                .bind(cut(&format!("{}: {}", sample.reason.name(), sample.text)))
                .bind(sample.row.id.id)
                .bind(&sample.row.message_id)
                .execute(connection)
                .await?;
            Ok(Written {
                rows: Vec::new(),
                marked: 0,
                missed: 0,
            })
        }
    }
}

/// Conditional on the message ids: after a TRUNCATE, a restore or a failover the same id may be
/// another message. As two lists and not as pairs, which is 20 times slower on MariaDB.
async fn mark_sent(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Mark],
) -> Result<Written, sqlx::Error> {
    let list = placeholders(padded_len(marks.len()), "?");
    let statement = format!(
        "UPDATE `{table}` SET status = 2, sent_at = UTC_TIMESTAMP(6) \
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
    if failure.next == Next::Park {
        record_parking(tx, failure, &error).await?;
    }
    Ok(())
}

/// Parking lets the later messages of the key overtake: that is an action, so it is in the audit.
async fn record_parking(
    tx: &mut MySqlTransaction<'_>,
    failure: &Failure,
    error: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO operator_actions (actor, action, target, reason, before_state, after_state) \
         VALUES ('relay', 'park', ?, ?, 'pending', 'parked')",
    )
    .bind(failure.row.id.id.to_string())
    .bind(error)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(ERROR_MAX).collect()
}
