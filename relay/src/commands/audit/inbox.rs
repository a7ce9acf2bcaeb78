//! Reading the inbox for an audit: by message id, in pages, without payloads.

use std::time::Duration;

use anyhow::Context as _;
use outbox::row::InboxStatus;
use outbox::statement::{padded, padded_len, placeholders};
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::chosen::Chosen;
use super::{PAGE, READ_TIMEOUT};

/// A row, as far as an audit looks at it.
#[derive(Clone, Debug)]
pub(super) struct InboxRow {
    /// What both tables have in common.
    pub(super) message_id: String,
    /// Its state.
    pub(super) status: InboxStatus,
    /// `event_type`, if the message had one.
    pub(super) event_type: Option<String>,
    /// `aggregate_id`, if the message had one.
    pub(super) key: Option<String>,
    /// Since `received_at`, by the server's clock.
    pub(super) age: Duration,
}

/// The inbox.
pub(super) struct Inbox {
    connection: MySqlConnection,
}

const COLUMNS: &str = "message_id, status, event_type, aggregate_id, \
    TIMESTAMPDIFF(MICROSECOND, received_at, UTC_TIMESTAMP(6)), received_at, \
    event_type, exchange, routing_key";

impl Inbox {
    pub(super) fn new(connection: MySqlConnection) -> Self {
        Self { connection }
    }

    /// The rows of these messages, as far as there are any.
    pub(super) async fn find(&mut self, ids: &[&str]) -> anyhow::Result<Vec<InboxRow>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let statement = format!(
            "SELECT {COLUMNS} FROM inbox WHERE message_id IN ({})",
            placeholders(padded_len(ids.len()), "?")
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for id in padded(ids) {
            query = query.bind(id.as_bytes());
        }
        let rows = tokio::time::timeout(READ_TIMEOUT, query.fetch_all(&mut self.connection))
            .await
            .context("no answer to rows of the inbox")?
            .context("the inbox")?;
        rows.iter().map(row_of).collect()
    }

    /// The rows behind a message id, the first of them, and the id to go on behind; `None` at the
    /// end.
    pub(super) async fn page(
        &mut self,
        after: &[u8],
        chosen: &Chosen,
    ) -> anyhow::Result<(Vec<InboxRow>, Option<Vec<u8>>)> {
        let statement = format!(
            "SELECT {COLUMNS} FROM inbox WHERE message_id > ? ORDER BY message_id LIMIT {PAGE}"
        );
        let reading = sqlx::query(AssertSqlSafe(statement))
            .bind(after)
            .fetch_all(&mut self.connection);
        let rows = tokio::time::timeout(READ_TIMEOUT, reading)
            .await
            .context("no answer to a page of the inbox")?
            .context("the inbox")?;
        let next = match rows.last() {
            Some(last) if rows.len() == PAGE => Some(last.try_get_unchecked(0)?),
            _ => None,
        };
        let wanted = rows.iter().filter(|row| chosen.takes(row, 5));
        Ok((wanted.map(row_of).collect::<Result<_, _>>()?, next))
    }
}

fn row_of(row: &MySqlRow) -> anyhow::Result<InboxRow> {
    let text = |index: usize| {
        row.try_get_unchecked::<Option<Vec<u8>>, _>(index)
            .map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let message_id = text(0)?.unwrap_or_default();
    let micros: Option<i64> = row.try_get(4)?;
    Ok(InboxRow {
        status: InboxStatus::try_from(row.try_get::<u8, _>(1)?)
            .with_context(|| format!("inbox row {message_id}"))?,
        message_id,
        event_type: text(2)?,
        key: text(3)?,
        age: Duration::from_micros(u64::try_from(micros.unwrap_or(0)).unwrap_or(0)),
    })
}
