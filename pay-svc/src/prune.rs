//! Deleting processed and discarded messages, with their attempts, after `PAY_RETENTION`. Payments
//! stay: whatever else is gone, an order that is paid is not charged again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox::row::InboxStatus;
use outbox::statement::placeholders;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection as _, MySql, MySqlPool, Transaction};
use svc_kit::retention::{self, Deleted, Next, PAGE, Parts, Rows, Walk, age, in_time, is_timeout};
use time::PrimitiveDateTime;
use time::macros::datetime;
use tokio_util::sync::CancellationToken;

use crate::database::Database;
use crate::metrics::{Metrics, Skipped};

/// Attempts deleted in one transaction, at most: a message may have hundreds after an outage.
const ATTEMPTS_MAX: usize = 2000;

/// Prunes until `stop`.
///
/// # Errors
/// None; the signature is that of a task.
pub async fn run(
    database: Arc<Database>,
    metrics: Metrics,
    retention: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = database.up() => {}
    }
    let pruner = Pruner {
        database,
        metrics,
        retention,
        round: Round::default(),
    };
    retention::run(pruner, stop).await;
    Ok(())
}

struct Pruner {
    database: Arc<Database>,
    metrics: Metrics,
    retention: Duration,
    round: Round,
}

impl Walk for Pruner {
    async fn page(&mut self) -> Next {
        if !self.database.is_up() {
            return Next::Rest;
        }
        match page(self.database.pool(), self.retention, &mut self.round).await {
            Ok(page) => {
                self.metrics.pruned.inc_by(page.deleted);
                self.round.skipped.no_time += page.skipped.no_time;
                self.round.skipped.refused += page.skipped.refused;
                if page.next == Next::Rest {
                    let skipped = std::mem::take(&mut self.round.skipped);
                    self.metrics.set_skipped(skipped);
                }
                page.next
            }
            Err(err) => {
                tracing::warn!(error = %err, "could not prune the inbox, trying again in a while");
                if !is_timeout(&err) {
                    self.database.suspect(&err);
                }
                Next::Rest
            }
        }
    }
}

/// No message was received before; what is, has a zero date.
const BEGINNING: PrimitiveDateTime = datetime!(1000-01-01 00:00);
/// Messages with a zero date are counted up to here.
const COUNTED_MAX: u32 = 100_000;

/// A walk through the messages of one status after the other, from the one received first.
#[derive(Debug, Clone)]
pub struct Round {
    status: InboxStatus,
    received_at: PrimitiveDateTime,
    message_id: Vec<u8>,
    /// What it has left behind so far.
    skipped: Skipped,
    parts: Parts,
}

impl Default for Round {
    fn default() -> Self {
        Self::of(InboxStatus::Processed)
    }
}

impl Round {
    fn of(status: InboxStatus) -> Self {
        Self {
            status,
            received_at: BEGINNING,
            message_id: Vec::new(),
            skipped: Skipped::default(),
            parts: Parts::default(),
        }
    }

    /// To the next status. After the last one the round is over, and the next begins.
    fn turn(&mut self) -> Next {
        let (status, next) = match self.status {
            InboxStatus::Processed => (InboxStatus::Discarded, Next::Page),
            _ => (InboxStatus::Processed, Next::Rest),
        };
        *self = Self {
            skipped: self.skipped,
            parts: self.parts.clone(),
            ..Self::of(status)
        };
        next
    }
}

/// What a page came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Messages deleted.
    pub deleted: u64,
    /// What follows.
    pub next: Next,
    /// Messages left behind.
    pub skipped: Skipped,
}

#[derive(sqlx::FromRow)]
struct Candidate {
    message_id: Vec<u8>,
    received_at: PrimitiveDateTime,
    /// Microseconds since it was received.
    received_ago: Option<i64>,
    /// Microseconds since it was processed or discarded, as far as that is known.
    processed_ago: Option<i64>,
}

/// Deletes what has expired of the next page.
///
/// # Errors
/// The database's.
pub async fn page(
    pool: &MySqlPool,
    retention: Duration,
    round: &mut Round,
) -> Result<Page, sqlx::Error> {
    let candidates = in_time(candidates(pool, round)).await?;
    let limit = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    // A message is done after it was received: from the first young one on, all are.
    let is_young = |row: &Candidate| row.received_ago.is_some_and(|ago| ago <= limit);
    let last_page = candidates.len() < PAGE || candidates.iter().any(is_young);
    let mut skipped = Skipped::default();
    if round.received_at == BEGINNING && round.message_id.is_empty() {
        skipped.no_time = in_time(without_date(pool, round.status)).await?;
    }
    let mut expired: Vec<Vec<u8>> = Vec::new();
    for row in &candidates {
        match age([row.processed_ago, row.received_ago]) {
            None => skipped.no_time += 1,
            Some(age) if age > retention => expired.push(row.message_id.clone()),
            Some(_) => {}
        }
    }
    let rows = Messages {
        status: round.status,
    };
    let mut done = Deleted::default();
    round.parts.delete(pool, &rows, &expired, &mut done).await?;
    skipped.refused = done.refused + done.slow;
    let next = match candidates.last() {
        Some(last) if !last_page => {
            round.received_at = last.received_at;
            round.message_id.clone_from(&last.message_id);
            Next::Page
        }
        Some(_) | None => round.turn(),
    };
    Ok(Page {
        deleted: done.deleted,
        next,
        skipped,
    })
}

/// How many messages have a zero date: the walk begins behind them.
async fn without_date(pool: &MySqlPool, status: InboxStatus) -> Result<u64, sqlx::Error> {
    let sql = format!(
        "SELECT COUNT(*) FROM (SELECT 1 FROM inbox FORCE INDEX (inbox_status_received_at) \
         WHERE status = ? AND received_at < ? LIMIT {COUNTED_MAX}) AS counted"
    );
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(status.code())
        .bind(BEGINNING)
        .fetch_one(pool)
        .await?;
    Ok(rows.unsigned_abs())
}

async fn candidates(pool: &MySqlPool, round: &Round) -> Result<Vec<Candidate>, sqlx::Error> {
    let sql = format!(
        "SELECT message_id, received_at, \
         CAST(TIMESTAMPDIFF(MICROSECOND, received_at, UTC_TIMESTAMP(6)) AS SIGNED) AS received_ago, \
         CAST(TIMESTAMPDIFF(MICROSECOND, processed_at, UTC_TIMESTAMP(6)) AS SIGNED) \
         AS processed_ago \
         FROM inbox FORCE INDEX (inbox_status_received_at) \
         WHERE status = ? AND received_at >= ? AND (received_at > ? OR message_id > ?) \
         ORDER BY received_at, message_id LIMIT {PAGE}"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(round.status.code())
        .bind(round.received_at)
        .bind(round.received_at)
        .bind(&round.message_id)
        .fetch_all(pool)
        .await
}

/// Messages that still have this status, and their attempts.
struct Messages {
    status: InboxStatus,
}

impl Rows for Messages {
    type Key = Vec<u8>;

    async fn delete(
        &self,
        connection: &mut PoolConnection<MySql>,
        ids: &[Vec<u8>],
    ) -> Result<Deleted, sqlx::Error> {
        loop {
            let begun = Instant::now();
            let mut tx = connection.begin().await?;
            let locked = lock(&mut tx, self.status, ids).await?;
            let mut done = Deleted::default();
            let is_whole = locked.is_empty() || delete_attempts(&mut tx, &locked).await?;
            if is_whole && !locked.is_empty() {
                done.deleted = delete_messages(&mut tx, &locked).await?;
            }
            tx.commit().await?;
            if is_whole {
                return Ok(done);
            }
            // Some of their attempts are gone; as between pages, the server gets a rest.
            tokio::time::sleep(begun.elapsed()).await;
        }
    }
}

/// Those that an operator has not restored meanwhile, and that nobody is at.
async fn lock(
    tx: &mut Transaction<'_, MySql>,
    status: InboxStatus,
    ids: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    let sql = format!(
        "SELECT message_id FROM inbox FORCE INDEX (PRIMARY) WHERE message_id IN ({}) \
         AND status = ? FOR UPDATE SKIP LOCKED",
        placeholders(ids.len(), "?")
    );
    let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
    for id in ids {
        query = query.bind(id);
    }
    query.bind(status.code()).fetch_all(&mut **tx).await
}

/// Are all of them gone?
async fn delete_attempts(
    tx: &mut Transaction<'_, MySql>,
    ids: &[Vec<u8>],
) -> Result<bool, sqlx::Error> {
    let sql = format!(
        "SELECT id FROM inbox_attempts FORCE INDEX (inbox_attempts_message_id) \
         WHERE message_id IN ({}) LIMIT {ATTEMPTS_MAX}",
        placeholders(ids.len(), "?")
    );
    let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
    for id in ids {
        query = query.bind(id);
    }
    let attempts: Vec<u64> = query.fetch_all(&mut **tx).await?;
    if !attempts.is_empty() {
        let sql = format!(
            "DELETE FROM inbox_attempts WHERE id IN ({})",
            placeholders(attempts.len(), "?")
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for attempt in &attempts {
            query = query.bind(attempt);
        }
        query.execute(&mut **tx).await?;
    }
    Ok(attempts.len() < ATTEMPTS_MAX)
}

async fn delete_messages(
    tx: &mut Transaction<'_, MySql>,
    ids: &[Vec<u8>],
) -> Result<u64, sqlx::Error> {
    let sql = format!(
        "DELETE FROM inbox WHERE message_id IN ({})",
        placeholders(ids.len(), "?")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for id in ids {
        query = query.bind(id);
    }
    Ok(query.execute(&mut **tx).await?.rows_affected())
}
