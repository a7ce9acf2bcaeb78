//! Deleting sent rows after `RELAY_RETENTION`.

use std::time::Duration;

use sqlx::{AssertSqlSafe, MySqlPool};
use svc_kit::database::{Fault, classify};

use crate::metrics::Metrics;
use crate::table::{padded, padded_len, placeholders};

/// A page is a few hundred rows by primary key.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
const PAGE: usize = 500;
/// Between two rounds when the last one found nothing expired.
const IDLE: Duration = Duration::from_mins(1);
/// Between two pages: deletes must not crowd out orders.
const PACE: Duration = Duration::from_millis(50);
/// After a page with few expired rows: either it is the last, or rows that were sent again lately
/// stand before others that have expired.
const TRICKLE: Duration = Duration::from_secs(1);

/// Deletes page by page until the session ends.
///
/// # Errors
/// Never: the type is that of a task.
pub async fn run(
    pool: MySqlPool,
    table: String,
    retention: Duration,
    metrics: Metrics,
) -> anyhow::Result<()> {
    loop {
        let deleted = tokio::time::timeout(PAGE_TIMEOUT, page(&pool, &table, retention)).await;
        let rest = match deleted {
            Ok(Ok(deleted)) => {
                metrics.cleaned.inc_by(deleted);
                match deleted {
                    0 => IDLE,
                    few if few < PAGE as u64 / 2 => TRICKLE,
                    _ => PACE,
                }
            }
            Ok(Err(err)) if matches!(classify(&err), Fault::Busy) => PACE,
            // Nothing that publishes may suffer from what only tidies up.
            Ok(Err(err)) => {
                tracing::warn!(error = %err, "could not delete sent rows, trying again in a while");
                IDLE
            }
            Err(_) => {
                tracing::warn!("deleting a page of sent rows took over {PAGE_TIMEOUT:?}");
                IDLE
            }
        };
        tokio::time::sleep(rest).await;
    }
}

/// One page: the oldest sent rows by id, those of them that are old enough deleted by id.
///
/// The age is looked at here and not in SQL: `sent_at < …` with nothing expired reads every sent
/// row (5 million, 15 s, every time); and a DELETE by a range locks what it does not delete.
async fn page(pool: &MySqlPool, table: &str, retention: Duration) -> Result<u64, sqlx::Error> {
    let oldest = format!(
        "SELECT id, TIMESTAMPDIFF(MICROSECOND, sent_at, UTC_TIMESTAMP(6)) FROM `{table}` \
         WHERE status = 2 ORDER BY id LIMIT {PAGE}"
    );
    let rows: Vec<(u64, Option<i64>)> = sqlx::query_as(AssertSqlSafe(oldest))
        .fetch_all(pool)
        .await?;
    let old_enough = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    let expired: Vec<u64> = rows
        .into_iter()
        .filter(|(_, age)| age.is_some_and(|age| age > old_enough))
        .map(|(id, _)| id)
        .collect();
    if expired.is_empty() {
        return Ok(0);
    }
    let delete = format!(
        "DELETE FROM `{table}` WHERE id IN ({}) AND status = 2",
        placeholders(padded_len(expired.len()), "?")
    );
    let mut query = sqlx::query(AssertSqlSafe(delete));
    for id in padded(&expired) {
        query = query.bind(id);
    }
    Ok(query.execute(pool).await?.rows_affected())
}
