//! Writing what happened to one row beside its mark.

use ::ops::table::Key;
use ::ops::{Table, bulk};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, MySqlTransaction};

use crate::engine::{Record, Then};

/// `last_error` and `outbox_attempts.error` hold this many characters.
const ERROR_MAX: usize = 1000;

/// As much of a text as is written. A record may wait for long, and among thousands.
pub(super) fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(ERROR_MAX) {
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

/// Writes it, if the row is still pending and the same message.
pub(super) async fn write(
    connection: &mut MySqlConnection,
    table: &Table,
    record: &Record,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    match record.then {
        Then::Retry { attempts, after } => {
            let failure = Failure {
                status: 1,
                attempts,
                delay: i64::try_from(after.as_micros()).ok(),
            };
            record_failure(&mut tx, table, record, failure).await?;
        }
        Then::Park { attempts } => {
            let failure = Failure {
                status: 3,
                attempts,
                delay: None,
            };
            record_failure(&mut tx, table, record, failure).await?;
        }
        Then::Explain => explain(&mut tx, table.name(), record, None).await?,
        Then::Wait(wait) => {
            let wait = i64::try_from(wait.as_micros()).ok();
            explain(&mut tx, table.name(), record, wait).await?;
        }
    }
    tx.commit().await
}

/// `last_error` as the operators see it.
fn error_of(record: &Record) -> String {
    cut(format!("{}: {}", record.reason.name(), record.text))
}

/// Why the row's route breaker is open, and perhaps for how many microseconds the row waits by itself.
async fn explain(
    tx: &mut MySqlTransaction<'_>,
    table: &str,
    record: &Record,
    wait: Option<i64>,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "UPDATE `{table}` SET last_error = ?, next_attempt_at = \
         COALESCE(UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, next_attempt_at) \
         WHERE id = ? AND message_id = ? AND status = 1"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(error_of(record))
        .bind(wait)
        .bind(record.id)
        .bind(&record.message_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// What becomes of a row by a failure.
struct Failure {
    status: u8,
    attempts: u32,
    /// Microseconds to the next attempt.
    delay: Option<i64>,
}

async fn record_failure(
    tx: &mut MySqlTransaction<'_>,
    outbox: &Table,
    record: &Record,
    failure: Failure,
) -> Result<(), sqlx::Error> {
    let error = error_of(record);
    let table = outbox.name();
    let key = Key::Id(record.id);
    // Before the row is locked, as whoever acts on a bulk does it.
    let bulks = bulk::active(tx, outbox, std::slice::from_ref(&key)).await?;
    let statement = format!(
        "UPDATE `{table}` SET status = ?, attempts = ?, last_error = ?, \
         next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
         WHERE id = ? AND message_id = ? AND status = 1"
    );
    let changed = sqlx::query(AssertSqlSafe(statement))
        .bind(failure.status)
        .bind(failure.attempts)
        .bind(&error)
        .bind(failure.delay)
        .bind(record.id)
        .bind(&record.message_id)
        .execute(&mut **tx)
        .await?;
    if changed.rows_affected() == 0 {
        return Ok(());
    }
    let statement = format!(
        "INSERT INTO `{table}_attempts` (outbox_id, message_id, attempt, class, error) \
         VALUES (?, ?, ?, ?, ?)"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(record.id)
        .bind(&record.message_id)
        .bind(failure.attempts)
        .bind(record.reason.name())
        .bind(&error)
        .execute(&mut **tx)
        .await?;
    for bulk in bulks {
        bulk::stop(tx, outbox, bulk, ("relay", &error)).await?;
    }
    if matches!(record.then, Then::Park { .. }) {
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
