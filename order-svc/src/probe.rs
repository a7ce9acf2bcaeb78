//! Is the database there? Looked at all the time, so that readiness tells without a request.

use std::time::Duration;

use sqlx::MySqlPool;
use svc_kit::admin::Readiness;
use svc_kit::database::{DatabaseUrl, look};
use tokio_util::sync::CancellationToken;

/// Name of the readiness condition.
pub const CONDITION: &str = "database";

/// The tables without which no order is placed.
const TABLES: [&str; 2] = ["orders", "outbox"];
const PROBE_EVERY: Duration = Duration::from_secs(1);

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
        let problem = look(&pool, &TABLES, "order-svc").await.err();
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
