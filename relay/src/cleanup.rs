//! Deleting sent rows after `RELAY_RETENTION`.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, MySqlPool};
use svc_kit::database::{Fault, classify};

use crate::in_list::{padded, padded_len, placeholders};
use crate::metrics::Metrics;

/// A page is a few hundred rows by primary key.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
const PAGE: usize = 500;
/// Between two rounds.
const IDLE: Duration = Duration::from_mins(1);
/// The least rest between two pages. A page rests as long as it took, so deletes take half of one
/// connection's time at the most, and less of a server that is busy.
const PACE_MIN: Duration = Duration::from_millis(10);
/// Pages without an expired row after which a round ends. The oldest rows are the first to expire,
/// but rows that were sent again lately may stand before them.
const BARREN_MAX: u32 = 10;

/// A walk through the sent rows by id, from the oldest on.
#[derive(Default)]
struct Round {
    after: u64,
    barren: u32,
}

/// What was found behind `Round::after`.
struct Page {
    rows: usize,
    last: u64,
    deleted: u64,
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
    let mut round = Round::default();
    loop {
        let begun = Instant::now();
        let page = page(&pool, &table, round.after, retention);
        let rest = match tokio::time::timeout(PAGE_TIMEOUT, page).await {
            Ok(Ok(page)) => {
                metrics.cleaned.inc_by(page.deleted);
                if round.goes_on(&page) {
                    begun.elapsed().max(PACE_MIN)
                } else {
                    round = Round::default();
                    IDLE
                }
            }
            Ok(Err(err)) if matches!(classify(&err), Fault::Busy) => PACE_MIN,
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

impl Round {
    fn goes_on(&mut self, page: &Page) -> bool {
        self.after = page.last;
        self.barren = if page.deleted == 0 {
            self.barren + 1
        } else {
            0
        };
        page.rows == PAGE && self.barren < BARREN_MAX
    }
}

/// One page: the next sent rows by id, those of them that are old enough deleted by id.
///
/// The age is looked at here and not in SQL: `sent_at < …` with nothing expired reads every sent
/// row (5 million, 15 s, every time); and a DELETE by a range locks what it does not delete.
async fn page(
    pool: &MySqlPool,
    table: &str,
    after: u64,
    retention: Duration,
) -> Result<Page, sqlx::Error> {
    let oldest = format!(
        "SELECT id, TIMESTAMPDIFF(MICROSECOND, sent_at, UTC_TIMESTAMP(6)) FROM `{table}` \
         WHERE status = 2 AND id > ? ORDER BY id LIMIT {PAGE}"
    );
    let rows: Vec<(u64, Option<i64>)> = sqlx::query_as(AssertSqlSafe(oldest))
        .bind(after)
        .fetch_all(pool)
        .await?;
    let mut page = Page {
        rows: rows.len(),
        last: rows.last().map_or(after, |(id, _)| *id),
        deleted: 0,
    };
    let old_enough = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    let expired: Vec<u64> = rows
        .into_iter()
        .filter(|(_, age)| age.is_some_and(|age| age > old_enough))
        .map(|(id, _)| id)
        .collect();
    if expired.is_empty() {
        return Ok(page);
    }
    let delete = format!(
        "DELETE FROM `{table}` WHERE id IN ({}) AND status = 2",
        placeholders(padded_len(expired.len()), "?")
    );
    let mut query = sqlx::query(AssertSqlSafe(delete));
    for id in padded(&expired) {
        query = query.bind(id);
    }
    page.deleted = query.execute(pool).await?.rows_affected();
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_looks_past_a_few_thousand_rows_that_have_not_expired() {
        let mut round = Round::default();
        let page = |deleted, rows| Page {
            rows,
            last: 7,
            deleted,
        };
        assert!(round.goes_on(&page(500, PAGE)));
        for _ in 1..BARREN_MAX {
            assert!(round.goes_on(&page(0, PAGE)));
        }
        assert_eq!(round.after, 7);
        assert!(!round.goes_on(&page(0, PAGE)));
        assert!(!Round::default().goes_on(&page(499, PAGE - 1)), "the last");
    }
}
