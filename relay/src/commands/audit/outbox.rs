//! Reading the outbox for an audit: by id, in pages, without payloads.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use outbox::row::OutboxStatus;
use outbox::statement::{padded, padded_len, placeholders};
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::chosen::Chosen;
use super::{PAGE, READ_TIMEOUT};
use crate::observe::canary;

/// A row, as far as an audit looks at it.
#[derive(Clone, Debug)]
pub(super) struct OutboxRow {
    /// `outbox.id`.
    pub(super) id: u64,
    /// What both tables have in common.
    pub(super) message_id: String,
    /// Its state.
    pub(super) status: OutboxStatus,
    /// `event_type`.
    pub(super) event_type: String,
    /// `aggregate_id`.
    pub(super) key: String,
    /// Since `created_at`, by the server's clock.
    pub(super) age: Duration,
    /// Since `sent_at`, by the server's clock.
    pub(super) sent_age: Option<Duration>,
    /// It is not to be sent before a time that is still to come, and has not failed.
    pub(super) delayed: bool,
}

/// The outbox.
pub(super) struct Outbox {
    connection: MySqlConnection,
    table: String,
}

const COLUMNS: &str = "id, message_id, status, event_type, CONCAT(aggregate_id), \
    TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)), \
    TIMESTAMPDIFF(MICROSECOND, sent_at, UTC_TIMESTAMP(6)), \
    COALESCE(next_attempt_at > UTC_TIMESTAMP(6) AND attempts = 0 AND last_error IS NULL, 0), \
    created_at, event_type, exchange, routing_key";

impl Outbox {
    pub(super) fn new(connection: MySqlConnection, table: &str) -> Self {
        Self {
            connection,
            table: format!("`{table}`"),
        }
    }

    /// The highest id now.
    pub(super) async fn upto(&mut self) -> anyhow::Result<u64> {
        let statement = AssertSqlSafe(format!("SELECT MAX(id) FROM {}", self.table));
        let id: Option<u64> = sqlx::query_scalar(statement)
            .fetch_one(&mut self.connection)
            .await
            .context("the outbox")?;
        Ok(id.unwrap_or(0))
    }

    /// The rows with `after < id <= upto`, the first of them, and the id to go on behind; `None` at
    /// the end.
    pub(super) async fn page(
        &mut self,
        (after, upto): (u64, u64),
        chosen: &Chosen,
    ) -> anyhow::Result<(Vec<OutboxRow>, Option<u64>)> {
        let statement = format!(
            "SELECT {COLUMNS} FROM {} WHERE id > ? AND id <= ? ORDER BY id LIMIT {PAGE}",
            self.table
        );
        let reading = sqlx::query(AssertSqlSafe(statement))
            .bind(after)
            .bind(upto)
            .fetch_all(&mut self.connection);
        let rows = tokio::time::timeout(READ_TIMEOUT, reading)
            .await
            .context("no answer to a page of the outbox")?
            .context("the outbox")?;
        let next = match rows.last() {
            Some(last) if rows.len() == PAGE => Some(last.try_get(0)?),
            _ => None,
        };
        let wanted = rows.iter().filter(|row| chosen.takes(row, 8));
        let mut rows: Vec<OutboxRow> = wanted.map(row_of).collect::<Result<_, _>>()?;
        rows.retain(|row| !canary::is_one(&row.message_id));
        Ok((rows, next))
    }

    /// Rows by id, as they are now.
    pub(super) async fn again(&mut self, ids: &[u64]) -> anyhow::Result<Vec<OutboxRow>> {
        let statement = format!(
            "SELECT {COLUMNS} FROM {} WHERE id IN ({})",
            self.table,
            placeholders(padded_len(ids.len()), "?")
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for id in padded(ids) {
            query = query.bind(id);
        }
        let rows = tokio::time::timeout(READ_TIMEOUT, query.fetch_all(&mut self.connection))
            .await
            .context("no answer to rows of the outbox")?
            .context("the outbox")?;
        rows.iter().map(row_of).collect()
    }

    /// Which of these message ids it knows.
    pub(super) async fn known(&mut self, ids: &[&str]) -> anyhow::Result<HashSet<String>> {
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let statement = format!(
            "SELECT message_id FROM {} WHERE message_id IN ({})",
            self.table,
            placeholders(padded_len(ids.len()), "?")
        );
        let mut query = sqlx::query_scalar::<_, String>(AssertSqlSafe(statement));
        for id in padded(ids) {
            query = query.bind(id);
        }
        let ids = tokio::time::timeout(READ_TIMEOUT, query.fetch_all(&mut self.connection))
            .await
            .context("no answer to message ids of the outbox")?
            .context("the outbox")?;
        Ok(ids.into_iter().collect())
    }
}

fn row_of(row: &MySqlRow) -> anyhow::Result<OutboxRow> {
    let text = |index: usize| {
        row.try_get_unchecked::<Vec<u8>, _>(index)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let ago = |index: usize| {
        row.try_get::<Option<i64>, _>(index)
            .map(|micros| micros.map(|m| Duration::from_micros(u64::try_from(m).unwrap_or(0))))
    };
    Ok(OutboxRow {
        id: row.try_get(0)?,
        message_id: text(1)?,
        status: OutboxStatus::try_from(row.try_get::<u8, _>(2)?)
            .with_context(|| format!("outbox row {}", row.try_get::<u64, _>(0).unwrap_or(0)))?,
        event_type: text(3)?,
        key: text(4)?,
        age: ago(5)?.unwrap_or_default(),
        sent_age: ago(6)?,
        delayed: row.try_get_unchecked::<i64, _>(7)? != 0,
    })
}
