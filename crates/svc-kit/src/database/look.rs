//! Looking whether a database can be worked with.

use std::time::Duration;

use sqlx::{AssertSqlSafe, MySqlPool};

use super::{Fault, classify};

/// A look that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks, on a pooled connection, whether the server answers, takes writes and has these tables.
/// `program` is named where its migrations are missing.
///
/// # Errors
/// Why it can't be worked with, for readiness and the log.
pub async fn look(pool: &MySqlPool, tables: &[&str], program: &str) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, is_read_only(pool, tables)).await {
        Ok(Ok(false)) => Ok(()),
        Ok(Ok(true)) => Err("the server is read-only".to_owned()),
        Ok(Err(err)) => Err(match classify(&err) {
            Fault::Misconfigured(setting) => setting.to_string(),
            Fault::MissingTable => format!("{err}; run `{program} migrate`"),
            Fault::Unavailable | Fault::ReadOnly | Fault::Busy | Fault::Data => err.to_string(),
        }),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    }
}

async fn is_read_only(pool: &MySqlPool, tables: &[&str]) -> Result<bool, sqlx::Error> {
    let rows: Vec<String> = tables
        .iter()
        .map(|table| format!("EXISTS(SELECT 1 FROM {table} LIMIT 1)"))
        .collect();
    let sql = format!(
        "SELECT CAST(@@global.read_only AS CHAR) NOT IN ('0', 'OFF'), CAST({} AS SIGNED)",
        rows.join(" + ")
    );
    let mut connection = pool.acquire().await?;
    let (read_only, _rows): (i64, i64) = sqlx::query_as(AssertSqlSafe(sql))
        .fetch_one(&mut *connection)
        .await?;
    if read_only != 0 {
        // A demoted primary: the next connection resolves the name again.
        connection.close_on_drop();
    }
    Ok(read_only != 0)
}
