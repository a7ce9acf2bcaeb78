//! The task that reads rows by id.

use sqlx::Connection as _;
use sqlx::mysql::MySqlConnection;
use tokio::sync::mpsc;

use super::TableNews;
use super::queries::Queries;
use super::refusal::{READ_TIMEOUT, Tries};
use crate::database::{PING_EVERY, wait_little_for_locks};
use crate::engine::LoadQuery;

/// Loads rows until `wanted` is closed.
///
/// # Errors
/// The first database error but for a lock: the session then starts again.
pub async fn run(
    mut connection: MySqlConnection,
    queries: Queries,
    mut wanted: mpsc::Receiver<LoadQuery>,
    news: mpsc::Sender<TableNews>,
) -> anyhow::Result<()> {
    wait_little_for_locks(&mut connection).await?;
    loop {
        let Ok(query) = tokio::time::timeout(PING_EVERY, wanted.recv()).await else {
            tokio::time::timeout(READ_TIMEOUT, connection.ping()).await??;
            continue;
        };
        let Some(query) = query else { break };
        let mut tries = Tries::new();
        let rows = loop {
            let loading = queries.load(&mut connection, &query);
            let answer = tokio::time::timeout(READ_TIMEOUT, loading).await?;
            if let Some(rows) = tries.settle(answer, &news).await? {
                break rows;
            }
        };
        if news.send(TableNews::Rows(rows)).await.is_err() {
            break;
        }
    }
    Ok(())
}
