//! What the database knows of the relay. Each read is bounded, whatever the size of the table.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use outbox::statement::placeholders;
use serde::Serialize;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};

use crate::engine::route::Route;
use crate::leadership::lock::lock_name;
use crate::observe::canary;
use crate::observe::metrics::ROWS_COUNTED_MAX;
use crate::outbox_table::OutboxTable;
use crate::pause::{self, Pause, Pauses};
use crate::source::table::queries::Queries;

const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// Pending rows, the oldest first, that are looked at for routes and retries.
pub const OLDEST_LOOKED_AT: u32 = 10_000;
const ROUTES_SHOWN: usize = 50;

/// What the database says.
#[derive(Debug, Serialize)]
pub struct Database {
    /// Where it is, without a password.
    pub url: String,
    /// As it names itself.
    pub version: String,
    /// Takes no writes: a replica, or `read_only=ON`. No relay leads here.
    pub read_only: bool,
    /// Who holds the lock.
    pub leader: Option<Leader>,
    /// Rows that are still to be sent.
    pub pending: Rows,
    /// Rows that a person must look at.
    pub parked: Rows,
    /// Of the oldest pending rows, those that have failed by their own fault and are tried again.
    pub retrying: u64,
    /// Routes of the oldest pending rows, the fullest first, with why they wait.
    pub routes: Vec<WaitingRoute>,
    /// What is paused.
    pub paused: Paused,
}

/// The connection that holds the lock.
#[derive(Debug, Serialize)]
pub struct Leader {
    /// Its id, for `KILL`.
    pub connection: u64,
    /// Its account; unknown where this account may not see others.
    pub user: Option<String>,
    /// Host and port it comes from.
    pub host: Option<String>,
}

/// Rows of one status.
#[derive(Debug, Serialize)]
pub struct Rows {
    /// How many.
    pub rows: u64,
    /// There are more: counting stopped.
    pub or_more: bool,
    /// Age of the oldest by the database's clock.
    pub oldest_age_seconds: Option<f64>,
}

/// Rows of one route among the oldest pending ones.
#[derive(Debug, Serialize)]
pub struct WaitingRoute {
    /// AMQP exchange.
    pub exchange: String,
    /// AMQP routing key.
    pub routing_key: String,
    /// How many of the oldest pending rows.
    pub rows: u64,
    /// What the broker said of the route's oldest row that has been tried.
    pub last_error: Option<String>,
}

/// What operators have paused.
#[derive(Debug, Default, Serialize)]
pub struct Paused {
    /// The whole relay.
    pub relay: Option<PausedBy>,
    /// Routes.
    pub routes: Vec<PausedRoute>,
    /// Why it is not known, when the table is not there or not to be read.
    pub unknown: Option<String>,
}

/// Who, when and why.
#[derive(Debug, Serialize)]
pub struct PausedBy {
    /// Who.
    pub by: String,
    /// UTC.
    pub since: String,
    /// In that person's words.
    pub reason: String,
}

/// A paused route.
#[derive(Debug, Serialize)]
pub struct PausedRoute {
    /// AMQP exchange.
    pub exchange: String,
    /// AMQP routing key.
    pub routing_key: String,
    /// Who, when and why.
    #[serde(flatten)]
    pub paused: PausedBy,
}

impl From<&Pause> for PausedBy {
    fn from(pause: &Pause) -> Self {
        Self {
            by: pause.actor.clone(),
            since: pause.since.clone(),
            reason: pause.reason.clone(),
        }
    }
}

/// Queries it.
///
/// # Errors
/// The database's, and no answer in time.
pub async fn query(table: &OutboxTable) -> anyhow::Result<Database> {
    let answer = tokio::time::timeout(ASK_TIMEOUT, read(table)).await;
    answer.with_context(|| format!("no answer within {ASK_TIMEOUT:?}"))?
}

async fn read(table: &OutboxTable) -> anyhow::Result<Database> {
    let mut connection = table.url.connect().await?;
    let (version, read_only): (String, i64) =
        sqlx::query_as("SELECT VERSION(), CAST(@@GLOBAL.read_only AS CHAR) NOT IN ('0', 'OFF')")
            .fetch_one(&mut connection)
            .await?;
    let leader = leader(&mut connection, table).await?;
    let index = Queries::discover(&mut connection, table)
        .await?
        .force_index();
    let from = format!("`{}` {index}", table.name);
    let pending = rows(&mut connection, &from, 1).await?;
    let parked = rows(&mut connection, &from, 3).await?;
    let (retrying, routes) = routes(&mut connection, &table.name, &from).await?;
    Ok(Database {
        url: table.url.to_string(),
        version,
        read_only: read_only != 0,
        leader,
        pending,
        parked,
        retrying,
        routes,
        paused: paused(&mut connection, &table.name).await?,
    })
}

async fn leader(
    connection: &mut MySqlConnection,
    table: &OutboxTable,
) -> anyhow::Result<Option<Leader>> {
    let id: Option<i64> = sqlx::query_scalar("SELECT CAST(IS_USED_LOCK(?) AS SIGNED)")
        .bind(lock_name(table))
        .fetch_one(&mut *connection)
        .await?;
    let Some(id) = id else { return Ok(None) };
    let whose = sqlx::query("SELECT USER, HOST FROM information_schema.PROCESSLIST WHERE ID = ?")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    let text = |index: usize| whose.as_ref().and_then(|row| lossy(row, index).ok());
    Ok(Some(Leader {
        connection: id.unsigned_abs(),
        user: text(0),
        host: text(1),
    }))
}

fn lossy(row: &MySqlRow, index: usize) -> Result<String, sqlx::Error> {
    let bytes: Vec<u8> = row.try_get_unchecked(index)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn rows(
    connection: &mut MySqlConnection,
    from: &str,
    status: u8,
) -> Result<Rows, sqlx::Error> {
    let count = canary::count_others(from, status, ROWS_COUNTED_MAX);
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(count))
        .fetch_one(&mut *connection)
        .await?;
    let oldest = format!(
        "SELECT TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) FROM {from} \
         WHERE status = {status} AND {} ORDER BY id LIMIT 1",
        canary::NOT_ONE
    );
    let oldest: Option<Option<i64>> = sqlx::query_scalar(AssertSqlSafe(oldest))
        .fetch_optional(connection)
        .await?;
    // A row from the future (a writer's clock or zone) is of age 0.
    let age = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    Ok(Rows {
        rows: count.unsigned_abs(),
        or_more: count >= i64::from(ROWS_COUNTED_MAX),
        oldest_age_seconds: oldest.map(|micros| age(micros.unwrap_or(0)).as_secs_f64()),
    })
}

/// The rows that are tried again by their own fault, and the routes of all.
async fn routes(
    connection: &mut MySqlConnection,
    table: &str,
    from: &str,
) -> Result<(u64, Vec<WaitingRoute>), sqlx::Error> {
    // The relay writes the broker's text into one row of a closed route, which spends no attempt.
    let statement = format!(
        "SELECT exchange, routing_key, COUNT(*), CAST(SUM(attempts > 0) AS SIGNED), \
         MIN(CASE WHEN attempts = 0 AND last_error IS NOT NULL THEN id END) FROM \
         (SELECT id, exchange, routing_key, attempts, last_error FROM {from} \
          WHERE status = 1 AND {} ORDER BY id LIMIT {OLDEST_LOOKED_AT}) AS oldest \
         GROUP BY exchange, routing_key ORDER BY COUNT(*) DESC LIMIT 1000",
        canary::NOT_ONE
    );
    let found = sqlx::query(AssertSqlSafe(statement))
        .fetch_all(&mut *connection)
        .await?;
    let mut retrying = 0;
    let mut routes = Vec::new();
    for row in &found {
        retrying += row.try_get::<i64, _>(3)?.unsigned_abs();
        let sample: Option<u64> = row.try_get(4)?;
        let route = WaitingRoute {
            exchange: lossy(row, 0)?,
            routing_key: lossy(row, 1)?,
            rows: row.try_get::<i64, _>(2)?.unsigned_abs(),
            last_error: None,
        };
        routes.push((route, sample));
    }
    // Those that were tried before those that are only pending.
    routes.sort_by_key(|(_, sample)| sample.is_none());
    routes.truncate(ROUTES_SHOWN);
    let samples: Vec<u64> = routes.iter().filter_map(|(_, sample)| *sample).collect();
    let texts = errors(connection, table, &samples).await?;
    let described = routes.into_iter().map(|(mut route, sample)| {
        route.last_error = sample.and_then(|id| texts.get(&id).cloned());
        route
    });
    Ok((retrying, described.collect()))
}

async fn errors(
    connection: &mut MySqlConnection,
    table: &str,
    ids: &[u64],
) -> Result<HashMap<u64, String>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let list = placeholders(ids.len(), "?");
    let statement = format!(
        "SELECT id, last_error FROM `{table}` WHERE id IN ({list}) AND last_error IS NOT NULL"
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for id in ids {
        query = query.bind(id);
    }
    let rows = query.fetch_all(connection).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, lossy(row, 1)?)))
        .collect()
}

async fn paused(connection: &mut MySqlConnection, table: &str) -> Result<Paused, sqlx::Error> {
    let pauses = match Pauses::read(connection, table).await {
        Ok(pauses) => pauses,
        Err(err) if pause::is_not_there(&err) => {
            return Ok(Paused {
                unknown: Some(err.to_string()),
                ..Paused::default()
            });
        }
        Err(err) => return Err(err),
    };
    let route = |(route, pause): (&Route, &Pause)| PausedRoute {
        exchange: String::from_utf8_lossy(&route.exchange).into_owned(),
        routing_key: String::from_utf8_lossy(&route.routing_key).into_owned(),
        paused: pause.into(),
    };
    Ok(Paused {
        relay: pauses.whole.as_ref().map(PausedBy::from),
        routes: pauses.routes.iter().map(route).collect(),
        unknown: None,
    })
}
