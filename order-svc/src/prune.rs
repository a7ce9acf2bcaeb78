//! Deleting idempotency keys after `ORDER_KEY_RETENTION`. From then on the key is new again.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, MySqlPool};
use svc_kit::database::{Fault, classify};
use tokio_util::sync::CancellationToken;

use crate::batch::rows;

/// Keys that are looked at, and deleted, together.
const PAGE: usize = 500;
/// A page is a few hundred rows by primary key.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two rounds.
const IDLE: Duration = Duration::from_mins(1);
/// The least rest between two pages. A page rests as long as it took, so that deletes take half of
/// one connection's time at the most, and less of a server that is busy.
const PACE_MIN: Duration = Duration::from_millis(10);

/// Prunes until `stop`; with a retention of zero never.
///
/// # Errors
/// None; the signature is that of a task.
pub async fn run(
    pool: MySqlPool,
    retention: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if retention.is_zero() {
        stop.cancelled().await;
    }
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let rest = match tokio::time::timeout(PAGE_TIMEOUT, page(&pool, retention)).await {
            Ok(Ok(Page::Full)) => begun.elapsed().max(PACE_MIN),
            Ok(Ok(Page::Last)) => IDLE,
            Ok(Err(err)) if classify(&err) == Fault::Busy => PACE_MIN,
            // Nothing that places orders may suffer from what only tidies up.
            Ok(Err(err)) => {
                tracing::warn!(error = %err, "could not delete old idempotency keys, trying again in a while");
                IDLE
            }
            Err(_elapsed) => {
                tracing::warn!("deleting a page of idempotency keys took over {PAGE_TIMEOUT:?}");
                IDLE
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
    Ok(())
}

/// Whether there may be more to delete behind a page.
enum Page {
    Full,
    Last,
}

/// The oldest keys are read by the index, their age is looked at in code, and those that are old are
/// deleted by primary key: a delete by time would lock what is beside it, and with nothing to delete
/// it would read on and on.
async fn page(pool: &MySqlPool, retention: Duration) -> Result<Page, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let oldest: Vec<(Vec<u8>, Option<i64>)> = sqlx::query_as(
        "SELECT idempotency_key, \
         CAST(TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) AS SIGNED) \
         FROM idempotency_keys FORCE INDEX (idempotency_keys_created_at) \
         ORDER BY created_at LIMIT ?",
    )
    .bind(u32::try_from(PAGE).unwrap_or(u32::MAX))
    .fetch_all(&mut *connection)
    .await?;
    let kept_for = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    let mut old: Vec<Vec<u8>> = oldest
        .into_iter()
        // One with a date that is in no calendar is as old as can be, and the first of all.
        .filter(|(_, age)| age.is_none_or(|age| age > kept_for))
        .map(|(key, _)| key)
        .collect();
    if old.is_empty() {
        return Ok(Page::Last);
    }
    // In the order in which others take them: see `batch::by_key`.
    old.sort_unstable();
    // Its age once more: another instance may have deleted a key since, and a client used it anew.
    let sql = format!(
        "DELETE FROM idempotency_keys WHERE idempotency_key IN ({}) \
         AND created_at < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND",
        rows("?", old.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for key in &old {
        query = query.bind(key);
    }
    query = query.bind(kept_for);
    query.execute(&mut *connection).await?;
    tracing::debug!(keys = old.len(), "old idempotency keys deleted");
    Ok(if old.len() == PAGE {
        Page::Full
    } else {
        Page::Last
    })
}
