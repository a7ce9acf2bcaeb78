//! Deleting idempotency keys after `ORDER_KEY_RETENTION`. From then on the key is new again.

use std::time::{Duration, Instant};

use outbox::statement::placeholders;
use sqlx::{AssertSqlSafe, MySqlPool};
use svc_kit::database::{Fault, classify};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Keys that are looked at, and deleted, together.
const PAGE: usize = 500;
/// A page is a few hundred rows by primary key.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Refusals in a row, without a delete, after which the rest of a page is left.
const REFUSALS_MAX: u32 = 12;
/// A round ends when it has left so many behind: each page reads past all of them.
const LEFT_MAX: u64 = 20_000;
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
    metrics: Metrics,
    retention: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if retention.is_zero() {
        stop.cancelled().await;
    }
    let mut round = Round::default();
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let rest = match page(&pool, retention, &mut round).await {
            Ok(Page::Full) => begun.elapsed().max(PACE_MIN),
            Ok(Page::Last) => {
                let left = i64::try_from(std::mem::take(&mut round.left)).unwrap_or(i64::MAX);
                metrics.keys_prune_skipped.set(left);
                IDLE
            }
            // Nothing that places orders may suffer from what only tidies up.
            Err(err) => {
                tracing::warn!(error = %err, "could not delete old idempotency keys, trying again in a while");
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

/// A walk through the keys, from the oldest on.
#[derive(Debug)]
pub struct Round {
    /// Old keys that could not be deleted, and are passed over.
    pub left: u64,
    /// Keys in one statement, at most: fewer after one that took too long.
    at_once: usize,
}

impl Default for Round {
    fn default() -> Self {
        Self {
            left: 0,
            at_once: PAGE,
        }
    }
}

/// Whether there may be more to delete behind a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// There may be.
    Full,
    /// There is not: the round is over.
    Last,
}

/// The oldest keys are read by the index, their age is looked at in code, and those that are old are
/// deleted by primary key: a delete by time would lock what is beside it, and with nothing to delete
/// it would read on and on.
///
/// # Errors
/// The database's.
pub async fn page(
    pool: &MySqlPool,
    retention: Duration,
    round: &mut Round,
) -> Result<Page, sqlx::Error> {
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
    delete(pool, &old, kept_for, round).await?;
    Ok(match is_full && round.left < LEFT_MAX {
        true => Page::Full,
        false => Page::Last,
    })
}

/// Deletes keys, but for those that a trigger, a foreign key or somebody's lock keeps.
async fn delete(
    pool: &MySqlPool,
    old: &[Vec<u8>],
    kept_for: i64,
    round: &mut Round,
) -> Result<(), sqlx::Error> {
    let mut parts: Vec<&[Vec<u8>]> = old.chunks(round.at_once).rev().collect();
    let mut refusals = 0;
    while let Some(keys) = parts.pop() {
        let begun = Instant::now();
        let Err(err) = in_time(delete_all(pool, keys, kept_for)).await else {
            if begun.elapsed() < STATEMENT_TIMEOUT / 4 {
                round.at_once = PAGE.min(round.at_once * 2);
            }
            refusals = 0;
            continue;
        };
        if is_timeout(&err) {
            round.at_once = (keys.len() / 2).max(1);
        } else if err.as_database_error().is_none() || is_of_all(&err) {
            return Err(err);
        }
        refusals += 1;
        if keys.len() > 1 && refusals <= REFUSALS_MAX {
            let (first, rest) = keys.split_at(keys.len() / 2);
            parts.extend([rest, first]);
        } else {
            tracing::debug!(error = %err, keys = keys.len(), "idempotency keys can't be deleted");
            round.left += keys.len() as u64;
        }
    }
    Ok(())
}

/// What the server says of every delete alike.
fn is_of_all(err: &sqlx::Error) -> bool {
    matches!(
        classify(err),
        Fault::Misconfigured(_) | Fault::MissingTable | Fault::ReadOnly
    )
}

async fn delete_all(pool: &MySqlPool, keys: &[Vec<u8>], kept_for: i64) -> Result<(), sqlx::Error> {
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
    query.bind(kept_for).execute(pool).await?;
    tracing::debug!(keys = keys.len(), "old idempotency keys deleted");
    Ok(())
}

async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let done = tokio::time::timeout(STATEMENT_TIMEOUT, work).await;
    done.unwrap_or_else(|_elapsed| {
        let text = format!("no answer within {STATEMENT_TIMEOUT:?}");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into())
    })
}

fn is_timeout(err: &sqlx::Error) -> bool {
    matches!(err, sqlx::Error::Io(err) if err.kind() == std::io::ErrorKind::TimedOut)
}
