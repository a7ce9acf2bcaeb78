//! Deleting processed and discarded messages, with their attempts, after `PAY_RETENTION`. Payments
//! stay: whatever else is gone, an order that is paid is not charged again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox::row::InboxStatus;
use outbox::statement::placeholders;
use sqlx::{AssertSqlSafe, Connection as _, MySql, MySqlPool, Transaction};
use svc_kit::database::{Fault, classify};
use time::PrimitiveDateTime;
use time::macros::datetime;
use tokio_util::sync::CancellationToken;

use crate::database::{Database, retire_if_read_only};
use crate::metrics::{Metrics, Skipped};

/// Messages that are looked at together.
const PAGE: usize = 500;
/// Attempts deleted in one transaction, at most: a message may have hundreds after an outage.
const ATTEMPTS_MAX: usize = 2000;
/// A page is a few hundred rows by primary key; one of bodies of many MiB is deleted in parts.
const PART_TIMEOUT: Duration = Duration::from_secs(30);
/// Refusals in a row, without a delete, after which the rest of a page is left.
const REFUSALS_MAX: u32 = 12;
/// Between two rounds.
const IDLE: Duration = Duration::from_mins(1);
/// The least rest between two pages. A page rests as long as it took, so that deletes take half of
/// one connection's time at the most, and less of a server that is busy.
const PACE_MIN: Duration = Duration::from_millis(10);

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
    let mut round = Round::default();
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => break,
            () = database.up() => {}
        }
        let begun = Instant::now();
        let rest = match step(&database, &metrics, retention, &mut round).await {
            Some(Step::More) => begun.elapsed().max(PACE_MIN),
            Some(Step::Done) | None => IDLE,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
    Ok(())
}

/// One page; `None` when it failed. Nothing that pays may suffer from what only tidies up.
async fn step(
    database: &Database,
    metrics: &Metrics,
    retention: Duration,
    round: &mut Round,
) -> Option<Step> {
    match page(database.pool(), retention, round).await {
        Ok(page) => {
            metrics.pruned.inc_by(page.deleted);
            round.skipped.no_time += page.skipped.no_time;
            round.skipped.refused += page.skipped.refused;
            if page.step == Step::Done {
                metrics.set_skipped(std::mem::take(&mut round.skipped));
            }
            Some(page.step)
        }
        Err(err) if matches!(classify(&err), Fault::Busy) => Some(Step::More),
        Err(err) => {
            tracing::warn!(error = %err, "could not prune the inbox, trying again in a while");
            if !is_timeout(&err) {
                database.suspect(&err);
            }
            None
        }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let done = tokio::time::timeout(PART_TIMEOUT, work).await;
    done.unwrap_or_else(|_elapsed| {
        let text = format!("no answer within {PART_TIMEOUT:?}");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into())
    })
}

fn is_timeout(err: &sqlx::Error) -> bool {
    matches!(err, sqlx::Error::Io(err) if err.kind() == std::io::ErrorKind::TimedOut)
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
    /// Messages in one delete, at most: fewer after one that took too long.
    at_once: usize,
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
            at_once: PAGE,
        }
    }

    /// To the next status. `Done` when there is none: the next round begins.
    fn turn(&mut self) -> Step {
        let (next, step) = match self.status {
            InboxStatus::Processed => (InboxStatus::Discarded, Step::More),
            _ => (InboxStatus::Processed, Step::Done),
        };
        *self = Self {
            skipped: self.skipped,
            at_once: self.at_once,
            ..Self::of(next)
        };
        step
    }
}

/// What follows a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Another page.
    More,
    /// The round is over.
    Done,
}

/// What a page came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Messages deleted.
    pub deleted: u64,
    /// What follows.
    pub step: Step,
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

impl Candidate {
    /// By the first time that is usable: a zero date is not, nor is one over a day ahead.
    fn done_ago(&self) -> Option<i64> {
        const DAY_AHEAD: i64 = -86_400_000_000;
        let usable = |ago: &i64| *ago >= DAY_AHEAD;
        let received = self.received_ago.filter(usable);
        self.processed_ago.filter(usable).or(received)
    }
}

/// Deletes what has expired of the next page.
///
/// Ages are looked at here and not in SQL, and the delete is by primary keys: a range that finds
/// nothing reads everything, and one that deletes locks what it does not delete.
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
    let mut expired: Vec<&[u8]> = Vec::new();
    for row in &candidates {
        match row.done_ago() {
            None => skipped.no_time += 1,
            Some(ago) if ago > limit => expired.push(&row.message_id),
            Some(_) => {}
        }
    }
    let (deleted, is_whole) = delete(pool, round, &expired, &mut skipped).await?;
    if !is_whole {
        // Some of their attempts are gone: the same page again.
        return Ok(Page {
            deleted,
            step: Step::More,
            skipped: Skipped::default(),
        });
    }
    let step = match candidates.last() {
        Some(last) if !last_page => {
            round.received_at = last.received_at;
            round.message_id.clone_from(&last.message_id);
            Step::More
        }
        Some(_) | None => round.turn(),
    };
    Ok(Page {
        deleted,
        step,
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

/// Deletes messages that still have the round's status, but for those that the database refuses to
/// delete; how many, and whether it went through all: one that has more attempts than one transaction
/// takes loses some of these first.
async fn delete(
    pool: &MySqlPool,
    round: &mut Round,
    ids: &[&[u8]],
    skipped: &mut Skipped,
) -> Result<(u64, bool), sqlx::Error> {
    let (mut deleted, mut refusals) = (0, 0);
    let mut parts: Vec<&[&[u8]]> = ids.chunks(round.at_once).rev().collect();
    while let Some(ids) = parts.pop() {
        let begun = Instant::now();
        let err = match delete_all(pool, round.status, ids).await {
            Ok(None) => return Ok((deleted, false)),
            Ok(Some(some)) => {
                (deleted, refusals) = (deleted + some, 0);
                if begun.elapsed() < PART_TIMEOUT / 4 {
                    round.at_once = PAGE.min(round.at_once * 2);
                }
                continue;
            }
            Err(err) => err,
        };
        if is_timeout(&err) {
            // What it has locked is passed over until the server has given it up; the next round comes
            // back with fewer at once.
            round.at_once = (ids.len() / 2).max(1);
        } else {
            let busy = matches!(classify(&err), Fault::Busy | Fault::ReadOnly);
            if busy || !matches!(err, sqlx::Error::Database(_)) {
                return Err(err);
            }
            // It answers still, so it is these that it refuses.
            in_time(sqlx::query("SELECT 1").execute(pool)).await?;
        }
        refusals += 1;
        if ids.len() > 1 && refusals <= REFUSALS_MAX {
            let (first, rest) = ids.split_at(ids.len() / 2);
            parts.extend([rest, first]);
        } else {
            tracing::debug!(error = %err, "messages can't be deleted");
            skipped.refused += ids.len() as u64;
        }
    }
    Ok((deleted, true))
}

/// Messages and their attempts, in one transaction.
async fn delete_all(
    pool: &MySqlPool,
    status: InboxStatus,
    ids: &[&[u8]],
) -> Result<Option<u64>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let outcome = in_time(async {
        let mut tx = connection.begin().await?;
        let locked = lock(&mut tx, status, ids).await?;
        let deleted = if locked.is_empty() {
            Some(0)
        } else if delete_attempts(&mut tx, &locked).await? {
            Some(delete_messages(&mut tx, &locked).await?)
        } else {
            None
        };
        tx.commit().await?;
        Ok(deleted)
    })
    .await;
    if let Err(err) = &outcome {
        if is_timeout(err) {
            connection.close_on_drop();
            return outcome;
        }
        retire_if_read_only(&mut connection, err);
        // Carries out the rollback: its locks must be gone when others are tried.
        drop(connection.ping().await);
    }
    outcome
}

/// Those that an operator has not restored meanwhile, and that nobody is at.
async fn lock(
    tx: &mut Transaction<'_, MySql>,
    status: InboxStatus,
    ids: &[&[u8]],
) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    let sql = format!(
        "SELECT message_id FROM inbox FORCE INDEX (PRIMARY) WHERE message_id IN ({}) \
         AND status = ? FOR UPDATE SKIP LOCKED",
        placeholders(ids.len(), "?")
    );
    let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
    for id in ids {
        query = query.bind(*id);
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
