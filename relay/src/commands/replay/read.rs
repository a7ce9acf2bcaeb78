//! Reading sent rows, by id, in pages.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outbox::row::{OutboxStatus, Row};
use outbox::statement::{padded, padded_len, placeholders};
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};
use time::PrimitiveDateTime;

use crate::engine::route::Route;
use crate::hash::key_hash;
use crate::pause::{self, Pauses, Watch};
use crate::source::table::queries::Queries;

/// Rows of a page; they come without payloads.
const PAGE: u64 = 1000;
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A sent row, without its payload.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// `outbox.id`.
    pub(super) id: u64,
    /// The message's id.
    pub(super) message_id: String,
    /// Hash of the ordering key.
    pub(super) key: u64,
    /// `event_type`.
    pub(super) event_type: Vec<u8>,
    /// `aggregate_id`.
    pub(super) aggregate_id: Vec<u8>,
    /// Where it goes.
    pub(super) route: Route,
    /// The earlier of `created_at` and `sent_at`: no inbox has known the message for longer.
    pub(super) written: Option<PrimitiveDateTime>,
    /// `sent_at`.
    pub(super) sent_at: Option<PrimitiveDateTime>,
}

/// Sent rows behind an id.
pub(super) struct Page {
    /// By id.
    pub(super) heads: Vec<Head>,
    /// The highest id that was looked at.
    pub(super) upto: u64,
    /// There is no further page.
    pub(super) last: bool,
}

/// The one connection of a replay.
pub(super) struct Reader {
    connection: MySqlConnection,
    queries: Queries,
    /// Highest id when the replay began; rows above it are not looked at.
    upto: u64,
    /// The database's clock at a moment of ours.
    clock: (PrimitiveDateTime, Instant),
    pauses: Pauses,
    watch: Watch,
}

impl Reader {
    pub(super) async fn new(
        mut connection: MySqlConnection,
        queries: Queries,
    ) -> anyhow::Result<Self> {
        let upto = queries.highest_id(&mut connection).await?;
        let now: PrimitiveDateTime = sqlx::query_scalar("SELECT UTC_TIMESTAMP(6)")
            .fetch_one(&mut connection)
            .await?;
        let pauses = match Pauses::read(&mut connection, queries.name()).await {
            Ok(pauses) => pauses,
            // Tables of an older release: nothing can be paused.
            Err(err) if pause::is_not_there(&err) => Pauses::default(),
            Err(err) => return Err(err).context("reading what is paused"),
        };
        Ok(Self {
            upto,
            clock: (now, Instant::now()),
            watch: Watch::new(pauses.clone()),
            pauses,
            connection,
            queries,
        })
    }

    /// Highest id when the replay began.
    pub(super) fn upto(&self) -> u64 {
        self.upto
    }

    /// How old a row is by the database's clock. One without a usable time is as old as can be.
    pub(super) fn age(&self, head: &Head) -> Duration {
        let (now, then) = self.clock;
        let Some(written) = head.written else {
            return Duration::MAX;
        };
        crate::commands::times::between(written, now).saturating_add(then.elapsed())
    }

    /// The sent rows behind `after`.
    pub(super) async fn page(&mut self, after: u64) -> anyhow::Result<Page> {
        let statement = format!(
            "SELECT id, message_id, aggregate_type, CONCAT(aggregate_id), event_type, exchange, \
             routing_key, created_at, sent_at FROM `{}` {} \
             WHERE status = 2 AND id > ? AND id <= ? ORDER BY id LIMIT {PAGE}",
            self.queries.name(),
            self.queries.clone().force_index(),
        );
        let read = sqlx::query(AssertSqlSafe(statement))
            .bind(after)
            .bind(self.upto)
            .fetch_all(&mut self.connection);
        let rows = tokio::time::timeout(READ_TIMEOUT, read)
            .await
            .context("no answer to a page of sent rows")??;
        let heads: Vec<Head> = rows.iter().map(head_of).collect::<Result<_, _>>()?;
        let last = (heads.len() as u64) < PAGE;
        Ok(Page {
            upto: match heads.last() {
                Some(head) if !last => head.id,
                _ => self.upto,
            },
            heads,
            last,
        })
    }

    /// Payload bytes by id. To tell them the server reads the payloads.
    pub(super) async fn sizes(&mut self, ids: &[u64]) -> anyhow::Result<HashMap<u64, u64>> {
        let statement = format!(
            "SELECT id, CAST(OCTET_LENGTH(payload) AS UNSIGNED) FROM `{}` WHERE id IN ({})",
            self.queries.name(),
            placeholders(padded_len(ids.len()), "?")
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for id in padded(ids) {
            query = query.bind(id);
        }
        let rows = tokio::time::timeout(READ_TIMEOUT, query.fetch_all(&mut self.connection))
            .await
            .context("no answer to the sizes of payloads")??;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get_unchecked(1)?)))
            .collect()
    }

    /// Whole rows, as far as they are there and sent.
    pub(super) async fn rows(&mut self, ids: &[u64]) -> anyhow::Result<Vec<Row>> {
        let read = self
            .queries
            .rows(&mut self.connection, ids, OutboxStatus::Sent);
        let rows = tokio::time::timeout(READ_TIMEOUT, read)
            .await
            .context("no answer to sent rows")??;
        Ok(rows)
    }

    /// What is paused, at most a second old.
    pub(super) async fn pauses(&mut self) -> anyhow::Result<&Pauses> {
        let looked = self.watch.look(&mut self.connection, self.queries.name());
        if let Some(new) = looked.await? {
            self.pauses = new;
        }
        Ok(&self.pauses)
    }
}

fn head_of(row: &MySqlRow) -> Result<Head, sqlx::Error> {
    let bytes = |index: usize| row.try_get_unchecked::<Vec<u8>, _>(index);
    let time = |index: usize| {
        row.try_get_unchecked::<Option<PrimitiveDateTime>, _>(index)
            .unwrap_or(None)
    };
    let aggregate_id = bytes(3)?;
    let (created_at, sent_at) = (time(7), time(8));
    Ok(Head {
        id: row.try_get(0)?,
        message_id: String::from_utf8_lossy(&bytes(1)?).into_owned(),
        key: key_hash(&bytes(2)?, &aggregate_id),
        event_type: bytes(4)?,
        aggregate_id,
        route: Route::new(&bytes(5)?, &bytes(6)?),
        written: created_at.map(|created| sent_at.map_or(created, |sent| created.min(sent))),
        sent_at,
    })
}
