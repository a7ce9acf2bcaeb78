//! The task that reads pages of pending rows, and looks at what is paused.

use sqlx::mysql::MySqlConnection;
use tokio::sync::mpsc;

use super::TableNews;
use super::page_size::PageSize;
use super::queries::Queries;
use super::refusal::{READ_TIMEOUT, Tries};
use crate::database::wait_little_for_locks;
use crate::engine::{Page, PageQuery};
use crate::pause::Watch;

pub use super::page_size::PAGE;

/// Reads page after page until `wanted` is closed, and reports when something else is paused than before.
///
/// # Errors
/// The first database error but for a lock: the session then starts again.
pub async fn run(
    mut connection: MySqlConnection,
    queries: Queries,
    watch: Watch,
    mut wanted: mpsc::Receiver<PageQuery>,
    news: mpsc::Sender<TableNews>,
) -> anyhow::Result<()> {
    wait_little_for_locks(&mut connection).await?;
    let mut reader = PageReader {
        connection,
        queries,
        watch,
        news,
        size: PageSize::FIRST,
    };
    loop {
        let query = tokio::time::timeout_at(reader.watch.next(), wanted.recv()).await;
        reader.look().await?;
        let Ok(query) = query else { continue };
        let Some(query) = query else { break };
        let page = reader.read(&query).await?;
        if reader.news.send(TableNews::Page(page)).await.is_err() {
            break;
        }
    }
    Ok(())
}

struct PageReader {
    connection: MySqlConnection,
    queries: Queries,
    watch: Watch,
    news: mpsc::Sender<TableNews>,
    size: PageSize,
}

impl PageReader {
    /// This also keeps an idle connection from being ended by the server, or in between.
    async fn look(&mut self) -> anyhow::Result<()> {
        let looked = self.watch.look(&mut self.connection, self.queries.name());
        if let Some(found) = looked.await? {
            drop(self.news.send(TableNews::Pauses(found)).await);
        }
        Ok(())
    }

    async fn read(&mut self, query: &PageQuery) -> anyhow::Result<Page> {
        let mut tries = Tries::new();
        loop {
            let reading = self
                .queries
                .page(&mut self.connection, query, &mut self.size);
            let answer = tokio::time::timeout(READ_TIMEOUT, reading).await?;
            if let Some(page) = tries.settle(answer, &self.news).await? {
                return Ok(page);
            }
            self.look().await?;
        }
    }
}
