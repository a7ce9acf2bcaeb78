//! Deleting sent rows after `RELAY_RETENTION`.
//!
//! A row's age is that of `sent_at`, or of `created_at` where that one tells nothing: it is NULL, a
//! zero date or over a day ahead. A row without any usable time stays, and a metric says so.

use std::time::{Duration, Instant};

use outbox::statement::{padded, padded_len, placeholders};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, MySqlPool};
use svc_kit::database::{Fault, classify};

use crate::mark::{ends_session, wait_little_for_locks};
use crate::metrics::{Metrics, Skipped};

/// A page is a few hundred rows by primary key.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
const PAGE: usize = 500;
/// The first page, and what a page of large rows may shrink below: each has to be deleted by one
/// transaction in time, and a row may have megabytes.
const PAGE_MIN: usize = 32;
/// Pages that take less grow, and those that take more shrink.
const PAGE_TIME: Duration = Duration::from_secs(2);
/// Between two rounds.
const IDLE: Duration = Duration::from_mins(1);
/// The least rest between two pages. A page rests as long as it took, so deletes take half of one
/// connection's time at the most, and less of a server that is busy.
const PACE_MIN: Duration = Duration::from_millis(10);
/// Pages of young rows alone after which a round from the oldest row on ends: the oldest rows are the
/// first to expire.
const BARREN_MAX: u32 = 10;
/// And a walk that goes on where it ended, to what stands behind rows that were sent again lately.
const WALK_BARREN_MAX: u32 = 100;
/// Refusals in a row, without a delete, after which the rest of a page is left.
const REFUSALS_MAX: u32 = 12;

/// A walk through the sent rows by id.
#[derive(Default)]
struct Round {
    after: u64,
    barren: u32,
}

/// What was found behind `Round::after`.
#[derive(Default)]
struct Page {
    rows: usize,
    /// As many as were looked for.
    full: bool,
    last: u64,
    /// Rows that have not expired yet.
    young: usize,
    deleted: u64,
    skipped: Skipped,
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
    let mut cleaner = Cleaner {
        page: PAGE_MIN,
        pool,
        table,
        retention,
        metrics,
    };
    let mut walk = Round::default();
    // Of the walk at hand, and of the last whole one.
    let (mut skipped, mut last) = (Skipped::default(), Skipped::default());
    loop {
        let mut oldest = Round::default();
        while cleaner.step(&mut oldest, BARREN_MAX).await.0 == Step::Next {}
        walk.barren = 0;
        loop {
            let (step, page) = cleaner.step(&mut walk, WALK_BARREN_MAX).await;
            skipped.add(page.skipped);
            if step == Step::End {
                last = std::mem::take(&mut skipped);
                walk = Round::default();
            }
            // A walk through a large table takes hours.
            cleaner.metrics.set_skipped(last.max(skipped));
            if step != Step::Next {
                break;
            }
        }
        tokio::time::sleep(IDLE).await;
    }
}

struct Cleaner {
    /// Rows in the next page.
    page: usize,
    pool: MySqlPool,
    table: String,
    retention: Duration,
    metrics: Metrics,
}

impl Cleaner {
    /// One page, and the rest after it. Nothing that publishes may suffer from what only tidies up.
    async fn step(&mut self, round: &mut Round, barren_max: u32) -> (Step, Page) {
        let begun = Instant::now();
        let mut page = Page::default();
        let cleaning = self.clean(round.after, &mut page);
        let cleaned = tokio::time::timeout(PAGE_TIMEOUT, cleaning).await;
        self.metrics.cleaned.inc_by(page.deleted);
        match cleaned {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                tracing::warn!(error = %err, "could not delete sent rows, trying again in a while");
                return (Step::Rest, Page::default());
            }
            Err(_) => {
                let rows = self.page;
                tracing::warn!(
                    rows,
                    "deleting a page of sent rows took over {PAGE_TIMEOUT:?}"
                );
                if rows == 1 && page.rows == 1 {
                    // This row alone takes too long: the others behind it may not.
                    round.after = page.last;
                    page.skipped.slow = 1;
                }
                self.page = 1;
                return (Step::Rest, page);
            }
        }
        self.page = next_page(self.page, begun.elapsed());
        let step = round.step(&page, barren_max);
        if step == Step::Next {
            tokio::time::sleep(begun.elapsed().max(PACE_MIN)).await;
        }
        (step, page)
    }

    /// One page: the next sent rows by id, those of them that are old enough deleted by id.
    ///
    /// The age is looked at here and not in SQL: `sent_at < …` with nothing expired reads every sent
    /// row (5 million, 15 s, every time); and a DELETE by a range locks what it does not delete.
    async fn clean(&self, after: u64, page: &mut Page) -> Result<(), sqlx::Error> {
        let table = &self.table;
        let mut connection = self.pool.acquire().await?;
        wait_little_for_locks(&mut connection).await?;
        let oldest = format!(
            "SELECT id, TIMESTAMPDIFF(MICROSECOND, sent_at, UTC_TIMESTAMP(6)), \
             TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) FROM `{table}` \
             WHERE status = 2 AND id > ? ORDER BY id LIMIT {}",
            self.page
        );
        let rows: Vec<(u64, Option<i64>, Option<i64>)> = sqlx::query_as(AssertSqlSafe(oldest))
            .bind(after)
            .fetch_all(&mut *connection)
            .await?;
        page.rows = rows.len();
        page.full = rows.len() >= self.page;
        page.last = rows.last().map_or(after, |(id, ..)| *id);
        let mut expired = Vec::new();
        for (id, sent_ago, created_ago) in rows {
            match age(sent_ago, created_ago) {
                None => page.skipped.no_time += 1,
                Some(age) if age > self.retention => expired.push(id),
                Some(_) => page.young += 1,
            }
        }
        delete(&mut connection, table, expired, page).await
    }
}

/// After a page of so many rows that took so long.
fn next_page(rows: usize, took: Duration) -> usize {
    if took > PAGE_TIME {
        (rows / 2).max(1)
    } else if took < PAGE_TIME / 2 {
        (rows * 2).min(PAGE)
    } else {
        rows
    }
}

impl Round {
    fn step(&mut self, page: &Page, barren_max: u32) -> Step {
        self.after = page.last;
        let refused = usize::try_from(page.skipped.refused).unwrap_or(usize::MAX);
        self.barren = match (page.deleted, page.young.saturating_add(refused)) {
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

/// Of the first time that is usable, in microseconds ago. A clock may have been set back a little.
fn age(sent_ago: Option<i64>, created_ago: Option<i64>) -> Option<Duration> {
    const DAY_AHEAD: i64 = -86_400_000_000;
    let usable = |ago: &i64| *ago >= DAY_AHEAD;
    let ago = sent_ago.filter(usable).or(created_ago.filter(usable))?;
    Some(Duration::from_micros(u64::try_from(ago).unwrap_or(0)))
}

/// Deletes them, but for those that somebody has locked or that the database refuses to delete, by a
/// foreign key or a trigger.
async fn delete(
    connection: &mut MySqlConnection,
    table: &str,
    ids: Vec<u64>,
    page: &mut Page,
) -> Result<(), sqlx::Error> {
    let mut refusals = 0;
    let mut parts = vec![ids];
    while let Some(mut ids) = parts.pop() {
        if ids.is_empty() {
            continue;
        }
        let err = match delete_all(connection, table, &ids).await {
            Ok((locked, deleted)) => {
                page.deleted += deleted;
                page.skipped.locked += locked;
                refusals = 0;
                continue;
            }
            Err(err) => err,
        };
        if ends_session(connection, &err).await {
            return Err(err);
        }
        refusals += 1;
        if ids.len() > 1 && refusals <= REFUSALS_MAX {
            let half = ids.split_off(ids.len() / 2);
            parts.extend([half, ids]);
        } else if classify(&err) == Fault::Busy {
            page.skipped.locked += ids.len() as u64;
        } else {
            tracing::debug!(error = %err, "sent rows can't be deleted");
            page.skipped.refused += ids.len() as u64;
        }
    }
    Ok(())
}

/// How many were locked, and how many were deleted.
async fn delete_all(
    connection: &mut MySqlConnection,
    table: &str,
    ids: &[u64],
) -> Result<(u64, u64), sqlx::Error> {
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
        return Ok((locked, 0));
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
    Ok((locked, deleted))
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

    fn page(rows: usize, young: usize, deleted: u64) -> Page {
        Page {
            rows,
            full: rows == PAGE,
            last: 7,
            young,
            deleted,
            skipped: Skipped::default(),
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
        refused.skipped.refused = PAGE as u64;
        for _ in 1..BARREN_MAX {
            assert_eq!(round.step(&refused, BARREN_MAX), Step::Next);
        }
        assert_eq!(round.step(&refused, BARREN_MAX), Step::Rest);
    }

    #[test]
    fn pages_shrink_to_what_is_deleted_in_time() {
        let mut rows = PAGE_MIN;
        for _ in 0..4 {
            rows = next_page(rows, Duration::from_millis(20));
        }
        assert_eq!(rows, PAGE);
        // Rows of 8 MiB at 50 MB a second.
        for _ in 0..10 {
            rows = next_page(
                rows,
                Duration::from_millis(160) * u32::try_from(rows).unwrap(),
            );
        }
        assert!((6..=12).contains(&rows), "{rows}");
        assert_eq!(next_page(1, PAGE_TIMEOUT), 1);
    }

    #[test]
    fn a_row_is_as_old_as_its_first_usable_time() {
        const DAY: i64 = 86_400_000_000;
        let micros = |age: Option<Duration>| age.map(|age| age.as_micros());
        assert_eq!(micros(age(Some(5), Some(9))), Some(5));
        assert_eq!(micros(age(None, Some(9))), Some(9));
        assert_eq!(micros(age(Some(-DAY - 1), Some(9))), Some(9));
        assert_eq!(
            micros(age(Some(-5), Some(9))),
            Some(0),
            "a clock was set back"
        );
        assert_eq!(age(None, Some(-DAY * 1000)), None);
        assert_eq!(age(None, None), None);
    }
}
