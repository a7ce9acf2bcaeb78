//! Deleting rows whose retention is over: what the walks through all tables have in common.
//!
//! A walk reads rows page by page by an index, compares their ages here and not in SQL, and deletes
//! them by primary key: a range that finds nothing reads everything, and a range that deletes locks
//! what it does not delete. What a foreign key, a trigger or somebody's lock keeps is passed over and
//! counted.

use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, MySql, MySqlPool};
use tokio_util::sync::CancellationToken;

use crate::database::{Fault, classify};

/// Rows of a page.
pub const PAGE: usize = 500;
/// Rows of the first delete: each has to end in time, and a row may have megabytes.
const AT_ONCE_FIRST: usize = 32;
/// Deletes that take longer get fewer rows, and those that take less than half get more.
const PART_TIME: Duration = Duration::from_secs(2);
/// A read of a page, or a delete, that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Refusals in a row, without a delete, after which what is refused is no longer halved.
const REFUSALS_MAX: u32 = 12;
/// Between two rounds.
const IDLE: Duration = Duration::from_mins(1);
/// The least rest between two pages. A page rests as long as it took, so that deletes take half of one
/// connection's time at the most, and less of a server that is busy.
const PACE_MIN: Duration = Duration::from_millis(10);

/// What follows a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another page.
    Page,
    /// Nothing for a while: the round is over, or the database can't be worked with.
    Rest,
}

/// A walk through a table.
pub trait Walk {
    /// Deletes what has expired of the next page. Failures are reported by it: nothing else may suffer
    /// from what only tidies up.
    fn page(&mut self) -> impl Future<Output = Next> + Send;
}

/// Walks until `stop`.
pub async fn run(mut walk: impl Walk, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let rest = match walk.page().await {
            Next::Page => begun.elapsed().max(PACE_MIN),
            Next::Rest => IDLE,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// The table's side of a delete.
pub trait Rows {
    /// The primary key.
    type Key;

    /// Deletes these rows in one transaction.
    fn delete(
        &self,
        connection: &mut PoolConnection<MySql>,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<Deleted, sqlx::Error>> + Send;

    /// Whether the server says this of every delete alike, and the walk has to rest.
    fn concerns_all(fault: &Fault) -> bool {
        matches!(fault, Fault::ReadOnly)
    }
}

/// What became of rows that have expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// They are gone.
    pub deleted: u64,
    /// Somebody holds a lock on them.
    pub locked: u64,
    /// The database refuses to delete them, by a foreign key or a trigger.
    pub refused: u64,
    /// One alone takes too long.
    pub slow: u64,
}

/// How many rows are deleted at once; kept from page to page.
#[derive(Clone, Debug)]
pub struct Parts {
    at_once: usize,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            at_once: AT_ONCE_FIRST,
        }
    }
}

impl Parts {
    /// Deletes rows part by part and adds to `sum` what became of them. A part that is refused is
    /// halved, down to the rows that are at fault.
    ///
    /// # Errors
    /// The database's, when it can't be worked with; the rest is then left as it is.
    pub async fn delete<R: Rows>(
        &mut self,
        pool: &MySqlPool,
        rows: &R,
        keys: &[R::Key],
        sum: &mut Deleted,
    ) -> Result<(), sqlx::Error> {
        let mut refusals = 0;
        let mut ahead = vec![keys];
        while let Some(part) = ahead.pop() {
            let (part, later) = part.split_at(part.len().min(self.at_once));
            if part.is_empty() {
                continue;
            }
            ahead.push(later);
            let begun = Instant::now();
            let err = match delete_part(pool, rows, part).await {
                Ok(done) => {
                    sum.deleted += done.deleted;
                    sum.locked += done.locked;
                    refusals = 0;
                    self.at_once = next(self.at_once, begun.elapsed());
                    continue;
                }
                Err(Failed::Walk(err)) => return Err(err),
                Err(Failed::Part(err)) => err,
            };
            if is_timeout(&err) {
                tracing::warn!(rows = part.len(), "deleting rows took over {TIMEOUT:?}");
                self.at_once = (part.len() / 2).max(1);
            }
            refusals += 1;
            if part.len() > 1 && refusals <= REFUSALS_MAX {
                let (first, second) = part.split_at(part.len() / 2);
                ahead.extend([second, first]);
                continue;
            }
            tracing::debug!(error = %err, rows = part.len(), "rows can't be deleted");
            let count = part.len() as u64;
            match classify(&err) {
                _ if is_timeout(&err) => sum.slow += count,
                Fault::Busy => sum.locked += count,
                _ => sum.refused += count,
            }
        }
        Ok(())
    }
}

/// Why a part was not deleted.
enum Failed {
    /// For its own rows: the server works on.
    Part(sqlx::Error),
    /// The walk has to rest.
    Walk(sqlx::Error),
}

async fn delete_part<R: Rows>(
    pool: &MySqlPool,
    rows: &R,
    keys: &[R::Key],
) -> Result<Deleted, Failed> {
    let mut connection = in_time(pool.acquire()).await.map_err(Failed::Walk)?;
    let err = match in_time(rows.delete(&mut connection, keys)).await {
        Ok(deleted) => return Ok(deleted),
        Err(err) => err,
    };
    if is_timeout(&err) {
        // What it has locked is passed over until the server has given it up.
        connection.close_on_drop();
        return Err(Failed::Part(err));
    }
    let fault = classify(&err);
    if fault == Fault::ReadOnly {
        // The next connection resolves the name anew and finds the server that took over.
        connection.close_on_drop();
    }
    if R::concerns_all(&fault) || !matches!(err, sqlx::Error::Database(_)) {
        return Err(Failed::Walk(err));
    }
    // Carries out the rollback: its locks must be gone when others are tried. A server that still
    // answers refuses these rows.
    match in_time(connection.ping()).await {
        Ok(()) => Err(Failed::Part(err)),
        Err(_) => Err(Failed::Walk(err)),
    }
}

/// Runs a statement of a walk within a time.
///
/// # Errors
/// The database's, and an `Io` of the kind `TimedOut`.
pub async fn in_time<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let done = tokio::time::timeout(TIMEOUT, work).await;
    done.unwrap_or_else(|_elapsed| {
        let text = format!("no answer within {TIMEOUT:?}");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into())
    })
}

/// Whether [`in_time`] gave up.
#[must_use]
pub fn is_timeout(err: &sqlx::Error) -> bool {
    matches!(err, sqlx::Error::Io(err) if err.kind() == std::io::ErrorKind::TimedOut)
}

/// How many rows the next delete gets, after one that took so long.
fn next(at_once: usize, took: Duration) -> usize {
    if took > PART_TIME {
        (at_once / 2).max(1)
    } else if took < PART_TIME / 2 {
        (at_once * 2).min(PAGE)
    } else {
        at_once
    }
}

/// The age by the first time that is usable, of times in microseconds ago. NULL, which a zero date is
/// too, and a date over a day ahead are not usable; a clock may have been set back a little.
#[must_use]
pub fn age(times: [Option<i64>; 2]) -> Option<Duration> {
    const DAY_AHEAD: i64 = -86_400_000_000;
    let ago = times.into_iter().flatten().find(|ago| *ago >= DAY_AHEAD)?;
    Some(Duration::from_micros(u64::try_from(ago).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletes_shrink_to_what_is_done_in_time() {
        let mut rows = AT_ONCE_FIRST;
        for _ in 0..4 {
            rows = next(rows, Duration::from_millis(20));
        }
        assert_eq!(rows, PAGE);
        // Rows of 8 MiB at 50 MB a second.
        for _ in 0..10 {
            rows = next(
                rows,
                Duration::from_millis(160) * u32::try_from(rows).unwrap(),
            );
        }
        assert!((6..=12).contains(&rows), "{rows}");
        assert_eq!(next(1, TIMEOUT), 1);
    }

    #[test]
    fn a_row_is_as_old_as_its_first_usable_time() {
        const DAY: i64 = 86_400_000_000;
        let micros = |times| age(times).map(|age| age.as_micros());
        assert_eq!(micros([Some(5), Some(9)]), Some(5));
        assert_eq!(micros([None, Some(9)]), Some(9));
        assert_eq!(micros([Some(-DAY - 1), Some(9)]), Some(9));
        let set_back = micros([Some(-5), Some(9)]);
        assert_eq!(set_back, Some(0), "a clock was set back");
        assert_eq!(age([None, Some(-DAY * 1000)]), None);
        assert_eq!(age([None, None]), None);
    }
}
