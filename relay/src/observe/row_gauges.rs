//! The numbers that come from the table, by bounded index reads every few seconds, and the ages
//! that grow in between.

use std::time::{Duration, Instant};

use prometheus::{Gauge, IntGauge};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::sync::watch;

use crate::engine::Lag;
use crate::leadership::lock::{Leadership, Lease};
use crate::leadership::server_identity::{self, WAIT_TIMEOUT_S};
use crate::observe::canary::{self, Canary};
use crate::observe::metrics::{Metrics, ROWS_COUNTED_MAX};
use crate::outbox_table::OutboxTable;

const READ_EVERY: u32 = 3;
const TICK: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads and ticks until the process ends.
///
/// # Errors
/// Never: a database that is away leaves the last numbers, and the ages grow on.
pub async fn run(
    table: OutboxTable,
    metrics: Metrics,
    lag: watch::Receiver<Lag>,
    lock: Lock,
    canary: Canary,
) -> anyhow::Result<()> {
    let (mut pending, mut parked) = (Oldest::default(), Oldest::default());
    for tick in 0_u32.. {
        if tick % READ_EVERY == 0 {
            let reads = Box::pin(read_all(&table, &metrics, &lock, (pending, parked)));
            match tokio::time::timeout(READ_TIMEOUT, reads).await {
                Ok(Ok(found)) => (pending, parked) = found,
                Ok(Err(err)) => {
                    tracing::debug!(error = format!("{err:#}"), "could not read the row gauges");
                }
                Err(_) => tracing::debug!("the row gauges took over 10 s to read"),
            }
        }
        show_age(&metrics.oldest_pending_age, pending.since());
        show_age(&metrics.oldest_parked_age, parked.since());
        let oldest_event = match *lag.borrow() {
            Lag::Reported(oldest) => oldest,
            Lag::InTable => pending.since(),
        };
        show_age(&metrics.binlog_lag, oldest_event);
        show_age(&metrics.canary_age, canary.due());
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

fn show_age(gauge: &Gauge, since: Option<Instant>) {
    gauge.set(since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
}

/// What the gauges know of the lock, and may do about it.
pub struct Lock {
    /// Where it is.
    pub leadership: watch::Receiver<Leadership>,
    /// To give it up.
    pub lease: Lease,
}

/// By a new connection each time. So after a failover the numbers are those of the new server; and
/// a name that leads to another server shows, even when nobody has informed the old one: it lives on,
/// takes writes, and so keeps the lock's connection, while the orders are placed elsewhere.
async fn read_all(
    table: &OutboxTable,
    metrics: &Metrics,
    lock: &Lock,
    (pending, parked): (Oldest, Oldest),
) -> anyhow::Result<(Oldest, Oldest)> {
    let (mut connection, found) = server_identity::connect(&table.url, WAIT_TIMEOUT_S).await?;
    let leader = lock.leadership.borrow().clone();
    if let Leadership::Leader { server, .. } = leader
        && let Err(elsewhere) = found.must_be(&server, "name")
    {
        tracing::error!(error = %elsewhere, "the lock is on another server, giving it up");
        lock.lease.give_up();
    }
    let began = Instant::now();
    let pending = read(&mut connection, table, 1, (&metrics.pending_rows, pending)).await?;
    let parked = read(&mut connection, table, 3, (&metrics.parked_rows, parked)).await?;
    metrics.row_gauges_read.set(began.elapsed().as_secs_f64());
    connection.close().await?;
    Ok((pending, parked))
}

/// Sets the count of rows with `status` and finds the oldest of them.
async fn read(
    connection: &mut MySqlConnection,
    table: &OutboxTable,
    status: u8,
    (count, before): (&IntGauge, Oldest),
) -> Result<Oldest, sqlx::Error> {
    let table = &table.name;
    let counting = canary::count_others(&format!("`{table}`"), status, ROWS_COUNTED_MAX);
    count.set(
        sqlx::query_scalar(AssertSqlSafe(counting))
            .fetch_one(&mut *connection)
            .await?,
    );
    let read_at = Instant::now();
    // Not COALESCE: of an unsigned and a signed number MariaDB makes a DECIMAL.
    let highest = format!("SELECT MAX(id) FROM `{table}`");
    let highest: Option<u64> = sqlx::query_scalar(AssertSqlSafe(highest))
        .fetch_one(&mut *connection)
        .await?;
    let oldest = format!(
        "SELECT id, TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) FROM `{table}` \
         WHERE status = {status} AND {} ORDER BY id LIMIT 1",
        canary::NOT_ONE
    );
    let oldest: Option<(u64, Option<i64>)> = sqlx::query_as(AssertSqlSafe(oldest))
        .fetch_optional(connection)
        .await?;
    // A row from the future (a writer's clock or zone) is of age 0.
    let oldest = oldest.map(|(id, micros)| {
        let micros = u64::try_from(micros.unwrap_or(0)).unwrap_or(0);
        (id, Duration::from_micros(micros))
    });
    Ok(before.next(oldest, highest.unwrap_or(0), read_at))
}

/// The oldest row of a status, and since when it is there by this process' own clock.
///
/// The database's clock may be set, so a row's age by it is believed once only, and not beyond what
/// is known anyway: ids are given out in the order of the inserts.
#[derive(Clone, Copy, Debug, Default)]
struct Oldest {
    /// Its id and since when it is there.
    row: Option<(u64, Instant)>,
    /// A reading's highest id of the table, and when that was read.
    highest: Option<(u64, Instant)>,
}

impl Oldest {
    fn since(&self) -> Option<Instant> {
        self.row.map(|(_, since)| since)
    }

    /// The oldest row is this one now, of that age by the database's clock.
    fn next(self, oldest: Option<(u64, Duration)>, highest: u64, now: Instant) -> Self {
        let since = |(id, age): (u64, Duration)| {
            let by_database = now.checked_sub(age).unwrap_or(now);
            match (self.row, self.highest) {
                (Some((before, since)), _) if before == id => since,
                // It was not there yet.
                (_, Some((highest, read_at))) if id > highest => by_database.max(read_at),
                (Some((before, since)), _) if id > before => by_database.max(since),
                _ => by_database,
            }
        };
        Self {
            row: oldest.map(|row| (row.0, since(row))),
            highest: Some((highest, now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUMP: Duration = Duration::from_secs(300);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_row_that_is_known_does_not_age_by_the_databases_clock() {
        let now = Instant::now() + JUMP * 2;
        let first = Oldest::default().next(Some((7, SECOND)), 9, now);
        assert_eq!(first.since(), Some(now - SECOND));
        for jumped in [JUMP, Duration::ZERO] {
            let again = first.next(Some((7, jumped)), 9, now + SECOND);
            assert_eq!(again.since(), first.since());
        }
    }

    #[test]
    fn a_row_is_no_older_than_the_one_before_it_or_a_reading_without_it() {
        let now = Instant::now() + JUMP * 2;
        let first = Oldest::default().next(Some((7, SECOND)), 9, now);
        let behind = first.next(Some((8, JUMP)), 9, now + SECOND);
        assert_eq!(behind.since(), first.since());
        let new = first.next(Some((10, JUMP)), 10, now + SECOND);
        assert_eq!(new.since(), Some(now));
        let none = first.next(None, 9, now);
        assert_eq!(none.since(), None);
        let new = none.next(Some((10, JUMP)), 10, now + SECOND);
        assert_eq!(new.since(), Some(now));
        let young = first.next(Some((10, Duration::ZERO)), 10, now + SECOND);
        assert_eq!(young.since(), Some(now + SECOND));
    }

    #[test]
    fn a_row_that_comes_back_is_as_old_as_the_database_says() {
        let now = Instant::now() + JUMP * 2;
        let first = Oldest::default().next(Some((7, SECOND)), 9, now);
        let back = first.next(Some((3, JUMP)), 9, now);
        assert_eq!(back.since(), Some(now - JUMP));
    }
}
