//! Deleting idempotency keys after `ORDER_KEY_RETENTION`. From then on the key is new again.

use std::time::Duration;

use outbox::statement::placeholders;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, MySql, MySqlPool};
use svc_kit::database::Fault;
use svc_kit::retention::{self, Deleted, Next, PAGE, Parts, Rows, Walk, in_time};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// A round ends when it has left so many behind: each page reads past all of them.
const LEFT_MAX: u64 = 20_000;

/// Prunes until `stop`; with a retention of zero never.
///
/// # Errors
/// None; the signature is that of a task.
pub async fn run(
    pool: MySqlPool,
    metrics: Metrics,
    retention: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if retention.is_zero() {
        stop.cancelled().await;
    }
    let pruner = Pruner {
        pool,
        metrics,
        retention,
        round: Round::default(),
    };
    retention::run(pruner, stop).await;
    Ok(())
}

struct Pruner {
    pool: MySqlPool,
    metrics: Metrics,
    retention: Duration,
    round: Round,
}

impl Walk for Pruner {
    async fn page(&mut self) -> Next {
        match page(&self.pool, self.retention, &mut self.round).await {
            Ok(Next::Page) => Next::Page,
            Ok(Next::Rest) => {
                let left = std::mem::take(&mut self.round.left);
                let left = i64::try_from(left).unwrap_or(i64::MAX);
                self.metrics.keys_prune_skipped.set(left);
                Next::Rest
            }
            Err(err) => {
                tracing::warn!(error = %err, "could not delete old idempotency keys, trying again in a while");
                Next::Rest
            }
        }
    }
}

/// A walk through the keys, from the oldest on.
#[derive(Debug, Default)]
pub struct Round {
    /// Old keys that could not be deleted, and are passed over.
    pub left: u64,
    parts: Parts,
}

/// Deletes the old keys of the next page. The oldest are read by their index.
///
/// # Errors
/// The database's.
pub async fn page(
    pool: &MySqlPool,
    retention: Duration,
    round: &mut Round,
) -> Result<Next, sqlx::Error> {
    let oldest = sqlx::query_as(
        "SELECT idempotency_key, \
         CAST(TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) AS SIGNED) \
         FROM idempotency_keys FORCE INDEX (idempotency_keys_created_at) \
         ORDER BY created_at LIMIT ? OFFSET ?",
    )
    .bind(u32::try_from(PAGE).unwrap_or(u32::MAX))
    .bind(round.left)
    .fetch_all(pool);
    let oldest: Vec<(Vec<u8>, Option<i64>)> = in_time(oldest).await?;
    let kept_for = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    let mut old: Vec<Vec<u8>> = oldest
        .into_iter()
        // One without a date, or with one that is in no calendar, is as old as can be, and the first
        // of all.
        .filter(|(_, age)| age.is_none_or(|age| age > kept_for))
        .map(|(key, _)| key)
        .collect();
    let is_full = old.len() == PAGE;
    // In the order in which others take them: see `batch::by_key`.
    old.sort_unstable();
    let (keys, mut done) = (Keys { kept_for }, Deleted::default());
    let deleted = round.parts.delete(pool, &keys, &old, &mut done).await;
    round.left += done.locked + done.refused + done.slow;
    deleted?;
    Ok(match is_full && round.left < LEFT_MAX {
        true => Next::Page,
        false => Next::Rest,
    })
}

/// Idempotency keys that are older than so many microseconds.
struct Keys {
    kept_for: i64,
}

impl Rows for Keys {
    type Key = Vec<u8>;

    async fn delete(
        &self,
        connection: &mut PoolConnection<MySql>,
        keys: &[Vec<u8>],
    ) -> Result<Deleted, sqlx::Error> {
        // Its age once more: another instance may have deleted a key since, and a client used it anew.
        let sql = format!(
            "DELETE FROM idempotency_keys WHERE idempotency_key IN ({}) AND (created_at IS NULL \
             OR created_at < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)",
            placeholders(keys.len(), "?")
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for key in keys {
            query = query.bind(key);
        }
        let done = query.bind(self.kept_for).execute(&mut **connection).await?;
        Ok(Deleted {
            deleted: done.rows_affected(),
            ..Deleted::default()
        })
    }

    fn concerns_all(fault: &Fault) -> bool {
        matches!(
            fault,
            Fault::Misconfigured(_) | Fault::MissingTable | Fault::ReadOnly
        )
    }
}
