//! Is the database there? Looked at all the time, so that readiness tells without being asked.

use std::time::Duration;

use sqlx::MySqlPool;
use svc_kit::admin::Readiness;
use svc_kit::database::{DatabaseUrl, Fault, classify};
use tokio_util::sync::CancellationToken;

/// Name of the readiness condition.
pub const CONDITION: &str = "database";

/// The tables without which no order is placed.
const TABLES: [&str; 2] = ["orders", "outbox"];
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A probe that takes longer has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at the database until `stop`. Wrong configuration and tables of another program end it only
/// before the database is up for the first time.
///
/// # Errors
/// [`svc_kit::boot::ConfigError`].
pub async fn watch(
    url: DatabaseUrl,
    pool: MySqlPool,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    svc_kit::database::first_contact(&url, &stop).await?;
    let sets = crate::migrations();
    let waits = |why: &str| readiness.set(CONDITION, false, why);
    svc_kit::migrate::until_own(&url, &sets, &TABLES, &stop, waits).await?;
    let mut was_up = None;
    while !stop.is_cancelled() {
        let problem = match tokio::time::timeout(PROBE_TIMEOUT, look(&pool)).await {
            Ok(Ok(Look { read_only: false })) => None,
            Ok(Ok(Look { read_only: true })) => Some("the server is read-only".to_owned()),
            Ok(Err(err)) => Some(explain(&err)),
            Err(_elapsed) => Some("no answer in time".to_owned()),
        };
        let is_up = problem.is_none();
        if was_up.replace(is_up) != Some(is_up) {
            match &problem {
                None => tracing::info!(database = %url, "database is up"),
                Some(why) => tracing::warn!(database = %url, error = why, "database can't be used"),
            }
        }
        readiness.set(
            CONDITION,
            is_up,
            problem.unwrap_or_else(|| "connected".to_owned()),
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
    }
    readiness.set(CONDITION, false, "draining");
    Ok(())
}

struct Look {
    read_only: bool,
}

async fn look(pool: &MySqlPool) -> Result<Look, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let (read_only, _orders, _events): (i64, i64, i64) = sqlx::query_as(
        "SELECT CAST(@@global.read_only AS CHAR) NOT IN ('0', 'OFF'), \
         CAST(EXISTS(SELECT 1 FROM orders LIMIT 1) AS SIGNED), \
         CAST(EXISTS(SELECT 1 FROM outbox LIMIT 1) AS SIGNED)",
    )
    .fetch_one(&mut *connection)
    .await?;
    let read_only = read_only != 0;
    if read_only {
        // A demoted primary: the next connection resolves the name again.
        connection.close_on_drop();
    }
    Ok(Look { read_only })
}

fn explain(err: &sqlx::Error) -> String {
    match classify(err) {
        Fault::Misconfigured(config) => config.to_string(),
        Fault::MissingTable => format!("{err}; run `order-svc migrate`"),
        Fault::Unavailable | Fault::ReadOnly | Fault::Busy | Fault::Data => err.to_string(),
    }
}
