//! Writing a record: a failure or a sample.

use ::ops::table::Key;
use ::ops::{Table, bulk};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, MySqlTransaction};

use super::marker_task::Record;
use crate::effects::{Failure, Mark, Sample, cut};
use crate::queue::RowId;
use crate::schedule::Next;

/// Writes it. Returns the row if it is no longer on its way then.
pub(super) async fn write(
    connection: &mut MySqlConnection,
    table: &Table,
    record: &Record,
) -> Result<Vec<RowId>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    match record {
        Record::Failed(failure) => record_failure(&mut tx, table, failure).await?,
        Record::Sample(sample) => record_sample(&mut tx, table.name(), sample).await?,
    }
    tx.commit().await?;
    Ok(record.row().into_iter().collect())
}

/// An UPDATE passes over a row of a key of several columns while its INSERT is not visible yet; this
/// waits for it. True if the row is still pending.
async fn lock(tx: &mut MySqlTransaction<'_>, table: &str, row: &Mark) -> Result<bool, sqlx::Error> {
    let statement = format!(
        "SELECT 1 FROM `{table}` WHERE id = ? AND message_id = ? AND status = 1 FOR UPDATE"
    );
    let found: Option<i64> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(row.id.id)
        .bind(&row.message_id)
        .fetch_optional(&mut **tx)
        .await?;
    Ok(found.is_some())
}

async fn record_sample(
    tx: &mut MySqlTransaction<'_>,
    table: &str,
    sample: &Sample,
) -> Result<(), sqlx::Error> {
    if !lock(tx, table, &sample.row).await? {
        return Ok(());
    }
    let statement = format!(
        "UPDATE `{table}` SET last_error = ?, next_attempt_at = \
         COALESCE(UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, next_attempt_at) \
         WHERE id = ? AND message_id = ? AND status = 1"
    );
    let wait = sample
        .wait
        .and_then(|wait| i64::try_from(wait.as_micros()).ok());
    sqlx::query(AssertSqlSafe(statement))
        .bind(cut(format!("{}: {}", sample.reason.name(), sample.text)))
        .bind(wait)
        .bind(sample.row.id.id)
        .bind(&sample.row.message_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn record_failure(
    tx: &mut MySqlTransaction<'_>,
    outbox: &Table,
    failure: &Failure,
) -> Result<(), sqlx::Error> {
    let (status, delay) = match failure.next {
        Next::Retry(after) => (1, i64::try_from(after.as_micros()).ok()),
        Next::Park => (3, None),
    };
    let error = cut(format!("{}: {}", failure.reason.name(), failure.text));
    let table = outbox.name();
    let key = Key::Id(failure.row.id.id);
    // Before the row is locked, as whoever acts on a bulk does it.
    let bulks = bulk::active(tx, outbox, std::slice::from_ref(&key)).await?;
    if !lock(tx, table, &failure.row).await? {
        return Ok(());
    }
    let statement = format!(
        "UPDATE `{table}` SET status = ?, attempts = ?, last_error = ?, \
         next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
         WHERE id = ? AND message_id = ? AND status = 1"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(status)
        .bind(failure.attempts)
        .bind(&error)
        .bind(delay)
        .bind(failure.row.id.id)
        .bind(&failure.row.message_id)
        .execute(&mut **tx)
        .await?;
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
        bulk::stop(tx, outbox, bulk, ("relay", &error)).await?;
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
