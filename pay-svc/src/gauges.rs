//! Row gauges, from bounded reads of the status indexes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox::row::InboxStatus;
use sqlx::MySqlPool;
use tokio_util::sync::CancellationToken;

use crate::database::Database;
use crate::metrics::{Metrics, ROWS_COUNTED_MAX};

const READ_EVERY: Duration = Duration::from_secs(2);
/// A slow database is not made slower by being measured: reading rests this many times as long.
const REST_FACTOR: u32 = 9;

/// Reads the gauges until `stop`. A failed read leaves the values as they were.
///
/// # Errors
/// None; the signature is that of a task.
pub async fn run(
    database: Arc<Database>,
    metrics: Metrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        let started = Instant::now();
        if database.is_up()
            && let Err(err) = read(database.pool(), &metrics).await
        {
            tracing::debug!(error = %err, "row gauges could not be read");
            database.suspect(&err);
        }
        let rest = READ_EVERY.max(started.elapsed() * REST_FACTOR);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
    Ok(())
}

/// Reads all row gauges once.
///
/// # Errors
/// The database's.
pub async fn read(pool: &MySqlPool, metrics: &Metrics) -> Result<(), sqlx::Error> {
    metrics
        .pending_rows
        .set(count(pool, InboxStatus::Received).await?);
    metrics
        .parked_rows
        .set(count(pool, InboxStatus::Parked).await?);
    metrics
        .oldest_pending_age
        .set(oldest_age(pool, InboxStatus::Received).await?);
    metrics
        .oldest_parked_age
        .set(oldest_age(pool, InboxStatus::Parked).await?);
    Ok(())
}

async fn count(pool: &MySqlPool, status: InboxStatus) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT COUNT(*) FROM (SELECT 1 FROM inbox FORCE INDEX (inbox_status_received_at) \
         WHERE status = ? LIMIT ?) AS counted",
    )
    .bind(status.code())
    .bind(ROWS_COUNTED_MAX)
    .fetch_one(pool)
    .await
}

/// In seconds, by the database's clock, which also wrote the rows; never negative.
async fn oldest_age(pool: &MySqlPool, status: InboxStatus) -> Result<f64, sqlx::Error> {
    let micros: Option<i64> = sqlx::query_scalar(
        "SELECT CAST(COALESCE(TIMESTAMPDIFF(MICROSECOND, received_at, UTC_TIMESTAMP(6)), 0) AS SIGNED) \
         FROM inbox FORCE INDEX (inbox_status_received_at) \
         WHERE status = ? ORDER BY received_at LIMIT 1",
    )
    .bind(status.code())
    .fetch_optional(pool)
    .await?;
    let micros = u64::try_from(micros.unwrap_or(0)).unwrap_or(0);
    Ok(Duration::from_micros(micros).as_secs_f64())
}
