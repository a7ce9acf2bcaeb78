//! What the owner of a table does for its bulks: it holds back what a failure has stopped, goes on with
//! what somebody has left half done, ends those of which no row is on its way any more, and deletes
//! the lists of those that ended long ago.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _, MySqlConnection, Row as _};
use svc_kit::admin::Readiness;
use svc_kit::database::{Fault, classify, is_answer};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::hold::{self, Untried, Window};
use super::{BulkState, carry};
use crate::console::Console;
use crate::error::Error;
use crate::row::text;
use crate::table::Table;

/// Name of the readiness condition.
const CONDITION: &str = "bulks";
/// Between two looks that nobody requested.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The least time between two looks: in an outage every message fails.
const REST: Duration = Duration::from_secs(1);
/// A look that takes longer has failed.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever carries out a bulk has left it when nothing was changed for this long, in seconds: its
/// process has died.
const LEFT_S: u32 = 10;
/// The rows of a bulk are kept apart for this long after its end, in days.
const ROWS_KEPT_DAYS: u32 = 30;
/// Rows of ended bulks that one look deletes, at most: in that many statements, of `DELETED` each.
const DELETES: u32 = 20;
const DELETED: u32 = 500;

/// Keeps the bulks of a table, by connections that come and go.
#[derive(Debug)]
pub struct Keeper {
    /// The table.
    pub console: Console,
    /// Rung when a failure was recorded: a bulk may have been stopped.
    pub failed: Arc<Notify>,
    /// Cancelled after the first look: what had been stopped before is held back by then.
    pub looked: CancellationToken,
    /// Reports what is missing; its condition always holds, as all else works without bulks.
    pub readiness: Readiness,
}

impl Keeper {
    /// Keeps them until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut last = Ok(());
        // The rights are tried out until they are there.
        let mut checked = false;
        while !stop.is_cancelled() {
            match self.look(checked).await {
                Ok(()) => (checked, last) = (true, Ok(())),
                Err(err) => match known(&err) {
                    Some(right) => {
                        if last.as_ref().err() != Some(&right) {
                            tracing::warn!(error = %right, "bulk retries can't be kept");
                        }
                        (checked, last) = (false, Err(right));
                    }
                    // The database's own troubles are reported elsewhere; nothing else waits for bulks.
                    None => {
                        tracing::debug!(error = %err, "could not look at the bulks");
                        if !passes(&err) {
                            self.looked.cancel();
                        }
                    }
                },
            }
            if checked || last.is_err() {
                self.looked.cancel();
                let text = last.clone().err().unwrap_or_else(|| "kept".to_owned());
                self.readiness.set(CONDITION, true, text);
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(REST) => {}
            }
            // Until the first look workers wait for it.
            let rest = match self.looked.is_cancelled() {
                true => LOOK_EVERY - REST,
                false => Duration::ZERO,
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.failed.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn look(&self, checked: bool) -> Result<(), Error> {
        let table = self.console.table();
        let mut connection = self.console.connection().await?;
        // At first whatever is left to be done counts as left by somebody who died.
        let left_s = if self.looked.is_cancelled() {
            LEFT_S
        } else {
            0
        };
        let looking = look(&mut connection, table, (checked, left_s));
        // A lock on one of the tables may be held for hours.
        let Ok(looked) = tokio::time::timeout(LOOK_TIMEOUT, looking).await else {
            connection.close_on_drop();
            return Err(Error::Silent);
        };
        // It comes and goes, as those of clean-up do.
        drop(connection.close().await);
        for id in looked? {
            // One that can't be carried out, which is in the log, keeps no other from it.
            drop(self.console.bulk_carry_out(id).await);
        }
        Ok(())
    }
}

/// Is it worth waiting for?
fn passes(err: &Error) -> bool {
    match err {
        Error::Database(err) => {
            !is_answer(err) || matches!(classify(err), Fault::ReadOnly | Fault::Busy)
        }
        _ => false,
    }
}

/// What is wrong with the tables of bulks, if it is that.
fn known(err: &Error) -> Option<String> {
    let err = match err {
        Error::Database(err) => err,
        Error::Silent => {
            return Some("no answer in time, as when a table of bulks is locked".to_owned());
        }
        _ => return None,
    };
    match classify(err) {
        Fault::MissingTable | Fault::Misconfigured(_) => Some(format!(
            "{err}: migrate, and grant the rights that README lists"
        )),
        Fault::Unavailable | Fault::Data if is_answer(err) => Some(format!(
            "{err}: tried again until the tables of bulks can be used"
        )),
        Fault::Unavailable | Fault::ReadOnly | Fault::Busy | Fault::Data => None,
    }
}

/// Does what is done at once; returns the bulks that are to be carried out.
async fn look(
    connection: &mut MySqlConnection,
    table: &Table,
    (checked, left_s): (bool, u32),
) -> Result<Vec<u64>, sqlx::Error> {
    if !checked {
        check(connection, table).await.map_err(|(_, err)| err)?;
    }
    let mut left = Vec::new();
    for (id, state) in open(connection, table, left_s).await? {
        if state != BulkState::Running {
            left.push(id);
        } else if !is_under_way(connection, table, id).await? {
            carry::done(connection, table, id).await?;
        }
    }
    prune(connection, table).await?;
    Ok(left)
}

/// Bulks that may need something.
async fn open(
    connection: &mut MySqlConnection,
    table: &Table,
    left_s: u32,
) -> Result<Vec<(u64, BulkState)>, sqlx::Error> {
    let left = format!("changed_at <= UTC_TIMESTAMP(6) - INTERVAL {left_s} SECOND");
    let statement = format!(
        "SELECT id, state FROM `{}_bulks` WHERE state = 'running' OR state = 'stopped' AND held = 0 \
         OR state = 'filling' AND {left} OR state IN ('paused', 'cancelled') AND held = 0 AND {left} \
         ORDER BY id",
        table.name()
    );
    let rows = sqlx::query(AssertSqlSafe(statement))
        .fetch_all(connection)
        .await?;
    let open = |row: &sqlx::mysql::MySqlRow| {
        let state = BulkState::parse(&text(row, 1)?.unwrap_or_default())?;
        Ok((row.try_get(0)?, state))
    };
    rows.iter().map(open).collect()
}

/// Is one of its rows waiting or on its way? The last is checked first: mostly it is the answer.
async fn is_under_way(
    connection: &mut MySqlConnection,
    table: &Table,
    id: u64,
) -> Result<bool, sqlx::Error> {
    let statement = format!(
        "SELECT 1 FROM `{0}_bulk_rows` b STRAIGHT_JOIN `{0}` t ON t.{1} = b.row_key \
         WHERE b.bulk_id = {id} AND t.status = 1 ORDER BY b.seq DESC LIMIT 1",
        table.name(),
        table.key_column()
    );
    let found = sqlx::query(AssertSqlSafe(statement)).fetch_optional(connection);
    Ok(found.await?.is_some())
}

/// Deletes the lists of rows of bulks that ended long ago, some at a time.
async fn prune(connection: &mut MySqlConnection, table: &Table) -> Result<(), sqlx::Error> {
    let name = table.name();
    let oldest = format!(
        "SELECT k.id, (SELECT MIN(b.seq) FROM `{name}_bulk_rows` b WHERE b.bulk_id = k.id) AS first \
         FROM `{name}_bulks` k WHERE k.state IN ('done', 'cancelled') \
         AND k.changed_at < UTC_TIMESTAMP(6) - INTERVAL {ROWS_KEPT_DAYS} DAY \
         HAVING first IS NOT NULL LIMIT 1"
    );
    for _ in 0..DELETES {
        let found: Option<(u64, u32)> = sqlx::query_as(AssertSqlSafe(oldest.clone()))
            .fetch_optional(&mut *connection)
            .await?;
        let Some((id, first)) = found else { break };
        let delete = format!(
            "DELETE FROM `{name}_bulk_rows` WHERE bulk_id = {id} AND seq BETWEEN {first} AND {}",
            first + DELETED - 1
        );
        sqlx::query(AssertSqlSafe(delete))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Tries every right that bulks need, without changing anything; else the table that it is about, and
/// the database's words.
///
/// # Errors
/// The first that is missing, or a database that can't be queried.
pub async fn check(
    connection: &mut MySqlConnection,
    table: &Table,
) -> Result<(), (String, sqlx::Error)> {
    let (bulks, rows) = (
        format!("{}_bulks", table.name()),
        format!("{}_bulk_rows", table.name()),
    );
    for (object, statement) in [
        (
            &bulks,
            format!("UPDATE `{bulks}` SET state = state, held = held WHERE id = 0"),
        ),
        (
            &bulks,
            format!(
                "INSERT INTO `{bulks}` (actor, filter, rows_max, canary, canary_wait_us, interval_us) \
                 SELECT actor, filter, rows_max, canary, canary_wait_us, interval_us FROM `{bulks}` \
                 WHERE id = 0"
            ),
        ),
        (
            &rows,
            format!("UPDATE `{rows}` SET due_at = due_at WHERE bulk_id = 0"),
        ),
        (
            &rows,
            format!("INSERT INTO `{rows}` SELECT * FROM `{rows}` WHERE bulk_id = 0"),
        ),
        (&rows, format!("DELETE FROM `{rows}` WHERE bulk_id = 0")),
    ] {
        let tried = connection.execute(sqlx::raw_sql(AssertSqlSafe(statement)));
        tried.await.map_err(|err| (object.clone(), err))?;
    }
    Ok(())
}

/// Holds back what is to be held back, before a relay reads its table: rows of a stopped bulk that have
/// become due while no relay ran were not tried. Without bulks it does nothing.
///
/// # Errors
/// The database's.
pub async fn rest_before_start(
    connection: &mut MySqlConnection,
    table: &Table,
) -> Result<(), sqlx::Error> {
    let open = match open(connection, table, 0).await {
        Err(err)
            if matches!(
                classify(&err),
                Fault::MissingTable | Fault::Misconfigured(_)
            ) =>
        {
            return Ok(());
        }
        open => open?,
    };
    for (id, state) in open.into_iter().filter(|(_, state)| state.holds_back()) {
        let mut at = 0;
        loop {
            match hold::hold_back(connection, table, (id, at), Untried::All).await? {
                Window::Next { from, .. } => at = from,
                Window::Behind => break carry::rest(connection, table, id, state).await?,
                Window::Changed => break,
            }
        }
    }
    Ok(())
}
