//! Deleting sent rows after `RELAY_RETENTION`.
//!
//! A row's age is that of `sent_at`, or of `created_at` where that one tells nothing: it is NULL, a
//! zero date or over a day ahead. A row without any usable time stays, and a metric says so.

use std::time::Duration;

use outbox::statement::{padded, padded_len, placeholders};
use sqlx::mysql::MySqlConnection;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection as _, MySql, MySqlPool};
use svc_kit::retention::{self, Deleted, Next, PAGE, Parts, Rows, Walk, age, in_time};
use tokio_util::sync::CancellationToken;

use crate::database::wait_little_for_locks;
use crate::observe::metrics::{Metrics, Skipped};

/// Pages of young rows alone after which a round from the oldest row on ends: the oldest rows are the
/// first to expire.
const BARREN_MAX: u32 = 10;
/// And a walk that goes on where it ended, to what stands behind rows that were sent again lately.
const WALK_BARREN_MAX: u32 = 100;

/// A walk through the sent rows by id.
#[derive(Default)]
struct Round {
    after: u64,
    barren: u32,
}

/// What was found behind `Round::after`.
#[derive(Default)]
struct Page {
    /// As many rows as were looked for.
    full: bool,
    last: u64,
    /// Rows that have not expired yet.
    young: u64,
    no_time: u64,
    expired: Deleted,
}

/// What a page leads to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Next,
    /// Enough for now.
    Rest,
    /// That was the last row.
    End,
}

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
    let cleaner = Cleaner {
        pool,
        rows: SentRows { table },
        retention,
        metrics,
        parts: Parts::default(),
        oldest: Some(Round::default()),
        walk: Round::default(),
        skipped: Skipped::default(),
        last: Skipped::default(),
    };
    // The session ends the task.
    retention::run(cleaner, CancellationToken::new()).await;
    Ok(())
}

struct Cleaner {
    pool: MySqlPool,
    rows: SentRows,
    retention: Duration,
    metrics: Metrics,
    parts: Parts,
    /// The round from the oldest row on, which comes before each part of the walk.
    oldest: Option<Round>,
    walk: Round,
    /// Of the walk at hand.
    skipped: Skipped,
    /// Of the last whole walk.
    last: Skipped,
}

impl Walk for Cleaner {
    async fn page(&mut self) -> Next {
        if let Some(mut oldest) = self.oldest.take() {
            if self.step(&mut oldest, BARREN_MAX).await.0 == Step::Next {
                self.oldest = Some(oldest);
            }
            return Next::Page;
        }
        let mut walk = std::mem::take(&mut self.walk);
        let (step, skipped) = self.step(&mut walk, WALK_BARREN_MAX).await;
        self.skipped.add(skipped);
        if step == Step::End {
            self.last = std::mem::take(&mut self.skipped);
            walk = Round::default();
        }
        // A walk through a large table takes hours.
        self.metrics.set_skipped(self.last.max(self.skipped));
        self.walk = walk;
        if step == Step::Next {
            return Next::Page;
        }
        self.walk.barren = 0;
        self.oldest = Some(Round::default());
        Next::Rest
    }
}

impl Cleaner {
    /// One page: the next sent rows by id, those of them that are old enough deleted by id.
    async fn step(&mut self, round: &mut Round, barren_max: u32) -> (Step, Skipped) {
        let mut page = Page::default();
        let cleaned = self.clean(round.after, &mut page).await;
        self.metrics.cleaned.inc_by(page.expired.deleted);
        if let Err(err) = cleaned {
            tracing::warn!(error = %err, "could not delete sent rows, trying again in a while");
            return (Step::Rest, Skipped::default());
        }
        let skipped = Skipped {
            no_time: page.no_time,
            refused: page.expired.refused,
            locked: page.expired.locked,
            slow: page.expired.slow,
        };
        (round.step(&page, barren_max), skipped)
    }

    async fn clean(&mut self, after: u64, page: &mut Page) -> Result<(), sqlx::Error> {
        let rows = in_time(self.rows.page(&self.pool, after)).await?;
        page.full = rows.len() >= PAGE;
        page.last = rows.last().map_or(after, |(id, ..)| *id);
        let mut expired = Vec::new();
        for (id, sent_ago, created_ago) in rows {
            match age([sent_ago, created_ago]) {
                None => page.no_time += 1,
                Some(age) if age > self.retention => expired.push(id),
                Some(_) => page.young += 1,
            }
        }
        let Self {
            pool, rows, parts, ..
        } = self;
        parts.delete(pool, rows, &expired, &mut page.expired).await
    }
}

impl Round {
    fn step(&mut self, page: &Page, barren_max: u32) -> Step {
        self.after = page.last;
        self.barren = match (page.expired.deleted, page.young + page.expired.refused) {
            (0, 0) => self.barren,
            (0, _) => self.barren + 1,
            _ => 0,
        };
        if !page.full {
            Step::End
        } else if self.barren >= barren_max {
            Step::Rest
        } else {
            Step::Next
        }
    }
}

struct SentRows {
    table: String,
}

impl SentRows {
    /// Ids behind this one, with the microseconds since the row was sent and since it was created.
    async fn page(
        &self,
        pool: &MySqlPool,
        after: u64,
    ) -> Result<Vec<(u64, Option<i64>, Option<i64>)>, sqlx::Error> {
        let sql = format!(
            "SELECT id, TIMESTAMPDIFF(MICROSECOND, sent_at, UTC_TIMESTAMP(6)), \
             TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) FROM `{}` \
             WHERE status = 2 AND id > ? ORDER BY id LIMIT {PAGE}",
            self.table
        );
        let page = sqlx::query_as(AssertSqlSafe(sql)).bind(after);
        page.fetch_all(pool).await
    }
}

impl Rows for SentRows {
    type Key = u64;

    async fn delete(
        &self,
        connection: &mut PoolConnection<MySql>,
        ids: &[u64],
    ) -> Result<Deleted, sqlx::Error> {
        let table = &self.table;
        wait_little_for_locks(connection).await?;
        let mut tx = connection.begin().await?;
        let list = placeholders(padded_len(ids.len()), "?");
        let look = format!(
            "SELECT id FROM `{table}` WHERE id IN ({list}) AND status = 2 FOR UPDATE SKIP LOCKED"
        );
        let mut query = sqlx::query_scalar(AssertSqlSafe(look));
        for id in padded(ids) {
            query = query.bind(id);
        }
        let free: Vec<u64> = query.fetch_all(&mut *tx).await?;
        let locked = match free.len() < ids.len() {
            true => still_sent(&mut tx, table, ids)
                .await?
                .saturating_sub(free.len() as u64),
            false => 0,
        };
        if free.is_empty() {
            return Ok(Deleted {
                locked,
                ..Deleted::default()
            });
        }
        let delete = format!(
            "DELETE FROM `{table}` WHERE id IN ({}) AND status = 2",
            placeholders(padded_len(free.len()), "?")
        );
        let mut query = sqlx::query(AssertSqlSafe(delete));
        for id in padded(&free) {
            query = query.bind(id);
        }
        let deleted = query.execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        Ok(Deleted {
            deleted,
            locked,
            ..Deleted::default()
        })
    }
}

/// The others were deleted or set back meanwhile.
async fn still_sent(
    connection: &mut MySqlConnection,
    table: &str,
    ids: &[u64],
) -> Result<u64, sqlx::Error> {
    let list = placeholders(padded_len(ids.len()), "?");
    let count = format!("SELECT COUNT(*) FROM `{table}` WHERE id IN ({list}) AND status = 2");
    let mut query = sqlx::query_scalar(AssertSqlSafe(count));
    for id in padded(ids) {
        query = query.bind(id);
    }
    let rows: i64 = query.fetch_one(connection).await?;
    Ok(u64::try_from(rows).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: usize, young: u64, deleted: u64) -> Page {
        Page {
            full: rows == PAGE,
            last: 7,
            young,
            no_time: 0,
            expired: Deleted {
                deleted,
                ..Deleted::default()
            },
        }
    }

    #[test]
    fn a_round_looks_past_a_few_thousand_rows_that_have_not_expired() {
        let mut round = Round::default();
        assert_eq!(round.step(&page(PAGE, 0, 500), BARREN_MAX), Step::Next);
        for _ in 1..BARREN_MAX {
            assert_eq!(round.step(&page(PAGE, 1, 0), BARREN_MAX), Step::Next);
        }
        assert_eq!(round.after, 7);
        assert_eq!(round.step(&page(PAGE, 1, 0), BARREN_MAX), Step::Rest);
        let last = page(PAGE - 1, 0, 499);
        assert_eq!(Round::default().step(&last, BARREN_MAX), Step::End);
    }

    #[test]
    fn rows_that_will_never_be_deleted_end_no_round() {
        let mut round = Round::default();
        for _ in 0..1000 {
            assert_eq!(round.step(&page(PAGE, 0, 0), BARREN_MAX), Step::Next);
        }
    }

    #[test]
    fn rows_that_may_not_be_deleted_end_the_round_from_the_oldest_on() {
        let mut round = Round::default();
        let mut refused = page(PAGE, 0, 0);
        refused.expired.refused = PAGE as u64;
        for _ in 1..BARREN_MAX {
            assert_eq!(round.step(&refused, BARREN_MAX), Step::Next);
        }
        assert_eq!(round.step(&refused, BARREN_MAX), Step::Rest);
    }
}
