//! The numbers that come from the table, by bounded index reads every few seconds, and the ages
//! that grow in between.

use std::time::{Duration, Instant};

use prometheus::{Gauge, IntGauge};
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::sync::watch;

use crate::metrics::{Metrics, ROWS_COUNTED_MAX};

const READ_EVERY: u32 = 3;
const TICK: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What the session tells about its tail.
#[derive(Clone, Copy, Debug, Default)]
pub enum TailLag {
    /// There is no tail: the table alone tells how late we are.
    #[default]
    NotTailing,
    /// The commit of the oldest event that is not confirmed, if any.
    Tailing(Option<Instant>),
}

/// Reads and ticks until the process ends.
///
/// # Errors
/// Never: a database that is away leaves the last numbers, and the ages grow on.
pub async fn run(
    pool: MySqlPool,
    table: String,
    metrics: Metrics,
    lag: watch::Receiver<TailLag>,
) -> anyhow::Result<()> {
    let mut oldest_pending = None;
    let mut oldest_parked = None;
    for tick in 0_u32.. {
        if tick % READ_EVERY == 0 {
            let reads = async {
                let pending = read(&pool, &table, 1, &metrics.pending_rows).await?;
                let parked = read(&pool, &table, 3, &metrics.parked_rows).await?;
                Ok::<_, sqlx::Error>((pending, parked))
            };
            match tokio::time::timeout(READ_TIMEOUT, reads).await {
                Ok(Ok(found)) => (oldest_pending, oldest_parked) = found,
                Ok(Err(err)) => tracing::debug!(error = %err, "could not read the row gauges"),
                Err(_) => tracing::debug!("the row gauges took over 10 s to read"),
            }
        }
        show_age(&metrics.oldest_pending_age, oldest_pending);
        show_age(&metrics.oldest_parked_age, oldest_parked);
        let oldest_event = match *lag.borrow() {
            TailLag::Tailing(oldest) => oldest,
            TailLag::NotTailing => oldest_pending,
        };
        show_age(&metrics.binlog_lag, oldest_event);
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

fn show_age(gauge: &Gauge, since: Option<Instant>) {
    gauge.set(since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
}

/// Sets the count of rows with `status` and returns when the oldest of them was created.
async fn read(
    pool: &MySqlPool,
    table: &str,
    status: u8,
    count: &IntGauge,
) -> Result<Option<Instant>, sqlx::Error> {
    let counting = format!(
        "SELECT COUNT(*) FROM \
         (SELECT 1 FROM `{table}` WHERE status = {status} LIMIT {ROWS_COUNTED_MAX}) AS counted"
    );
    count.set(
        sqlx::query_scalar(AssertSqlSafe(counting))
            .fetch_one(pool)
            .await?,
    );
    let oldest = format!(
        "SELECT TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) FROM `{table}` \
         WHERE status = {status} ORDER BY id LIMIT 1"
    );
    let age: Option<Option<i64>> = sqlx::query_scalar(AssertSqlSafe(oldest))
        .fetch_optional(pool)
        .await?;
    // A row from the future (a writer's clock or zone) is of age 0.
    let age = age
        .flatten()
        .map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
    Ok(age.and_then(|age| Instant::now().checked_sub(age)))
}
