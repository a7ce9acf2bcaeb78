//! Taking rows to work on. A claim moves `next_attempt_at` ahead: until then the rows are nobody
//! else's, and a worker that dies gives them back by doing nothing.

use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use outbox::message::Received;
use outbox::row::InboxStatus;
use outbox::statement::placeholders;
use rand::seq::SliceRandom as _;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, MySqlPool};
use time::PrimitiveDateTime;

use crate::database::retire_if_read_only;
use crate::payment::PAYLOAD_MAX;

/// Headers longer than this are not read: they are only wanted for one time stamp.
const HEADERS_READ_MAX: usize = 64 * 1024;

/// Bodies and headers that a worker holds at once, about: with more of them it takes fewer rows.
pub(crate) const HELD_BYTES: usize = 2 * 1024 * 1024;

/// A received message that is due.
#[derive(Debug, Clone, FromRow)]
pub struct Due {
    /// The inbox's key.
    pub message_id: Vec<u8>,
    /// AMQP property `type`.
    pub event_type: Option<String>,
    /// A JSON object.
    pub headers: Option<String>,
    /// The first [`PAYLOAD_MAX`] + 1 bytes of the body.
    pub payload: Vec<u8>,
    /// Attempts spent so far.
    pub attempts: u32,
    /// Microseconds since it was stored, by the database's clock.
    age_micros: i64,
    /// The lease on it; one value for all rows of a claim.
    lease: PrimitiveDateTime,
}

impl Due {
    /// The row of a message that has just been stored, leased to whoever stored it.
    pub(crate) fn stored(received: Received, lease: PrimitiveDateTime) -> Self {
        let headers = received.headers.to_string();
        // No more than is read of a row of the table: a worker has many of them at once.
        let mut payload = received.payload;
        payload.truncate(PAYLOAD_MAX + 1);
        payload.shrink_to_fit();
        Self {
            message_id: received.message_id.as_str().as_bytes().to_vec(),
            event_type: received.event_type,
            headers: (headers.len() <= HEADERS_READ_MAX).then_some(headers),
            payload,
            attempts: 0,
            age_micros: 0,
            lease,
        }
    }

    /// Time since the message was stored.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.age_micros).unwrap_or(0))
    }

    /// The id as text, for logs.
    #[must_use]
    pub fn id(&self) -> String {
        String::from_utf8_lossy(&self.message_id).into_owned()
    }

    /// A header, if the message has it as a text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let headers: serde_json::Value = serde_json::from_str(self.headers.as_deref()?).ok()?;
        Some(headers.get(name)?.as_str()?.to_owned())
    }
}

/// How long rows belong to whoever claimed them.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// What `next_attempt_at` was set to. A write that finds another value has lost its rows.
    pub until: PrimitiveDateTime,
    /// The same on this process's own clock, taken before the database's, so never later.
    pub expires: Instant,
}

/// Rows with one lease on all of them.
#[derive(Debug)]
pub struct Claimed {
    /// The lease.
    pub lease: Lease,
    /// At least one.
    pub rows: Vec<Due>,
}

/// When a lease that begins now ends, by the database's clock: for rows that are about to be stored.
///
/// # Errors
/// The database's.
pub async fn begin_lease(
    connection: &mut sqlx::MySqlConnection,
    lease: Duration,
) -> Result<Lease, sqlx::Error> {
    let expires = Instant::now() + lease;
    let until =
        sqlx::query_scalar("SELECT CAST(UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND AS DATETIME(6))")
            .bind(i64::try_from(lease.as_micros()).unwrap_or(i64::MAX))
            .fetch_one(connection)
            .await?;
    Ok(Lease { until, expires })
}

/// Windows, in multiples of what is wanted, in which rows are looked for. A wider one only when all
/// rows of the one before were just being taken by another instance, and then at random, so that
/// the two do not meet again.
const WINDOWS: [usize; 3] = [1, 4, 16];

/// Claims up to `rows_max` due rows for `lease`. `None` when nothing is due.
///
/// # Errors
/// The database's; then nothing is claimed, or the rows come back when the lease ends.
pub async fn claim(
    pool: &MySqlPool,
    rows_max: usize,
    lease: Duration,
) -> Result<Option<Claimed>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    for window in WINDOWS {
        let outcome = claim_in(&mut connection, rows_max, window, lease).await;
        if let Err(err) = &outcome {
            retire_if_read_only(&mut connection, err);
        }
        match outcome? {
            Found::Claimed(claimed) => return Ok(Some(claimed)),
            Found::Nothing => return Ok(None),
            Found::Taken => {}
        }
    }
    Ok(None)
}

enum Found {
    Claimed(Claimed),
    Nothing,
    /// There were due rows, all of them somebody else's by now.
    Taken,
}

async fn claim_in(
    connection: &mut sqlx::MySqlConnection,
    rows_max: usize,
    window: usize,
    lease: Duration,
) -> Result<Found, sqlx::Error> {
    let expires = Instant::now() + lease;
    let mut ids = due_ids(connection, rows_max.saturating_mul(window)).await?;
    if ids.is_empty() {
        return Ok(Found::Nothing);
    }
    if ids.len() > rows_max {
        ids.shuffle(&mut rand::rng());
        ids.truncate(rows_max);
    }
    let mut tx = connection.begin().await?;
    let rows = lock_due(&mut tx, &ids, lease).await?;
    let Some(until) = rows.first().map(|row| row.lease) else {
        tx.rollback().await?;
        return Ok(Found::Taken);
    };
    move_ahead(&mut tx, &rows, until).await?;
    tx.commit().await?;
    let lease = Lease { until, expires };
    Ok(Found::Claimed(Claimed { lease, rows }))
}

/// Up to half are retries (and what dead workers left), the rest is new: neither can starve the
/// other. Reads only the index.
async fn due_ids(
    connection: &mut sqlx::MySqlConnection,
    rows_max: usize,
) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    let rows_max = u32::try_from(rows_max).unwrap_or(u32::MAX);
    sqlx::query_scalar(
        "SELECT message_id FROM ( \
           (SELECT message_id FROM inbox FORCE INDEX (inbox_status_next_attempt_at) \
            WHERE status = ? AND next_attempt_at <= UTC_TIMESTAMP(6) \
            ORDER BY next_attempt_at LIMIT ?) \
           UNION ALL \
           (SELECT message_id FROM inbox FORCE INDEX (inbox_status_next_attempt_at) \
            WHERE status = ? AND next_attempt_at IS NULL \
            ORDER BY message_id LIMIT ?) \
         ) AS due LIMIT ?",
    )
    .bind(InboxStatus::Received.code())
    .bind(rows_max.div_ceil(2))
    .bind(InboxStatus::Received.code())
    .bind(rows_max)
    .bind(rows_max)
    .fetch_all(connection)
    .await
}

/// Reads and locks those of the rows that are still due. Rows another instance is claiming at this
/// moment are left to it.
async fn lock_due(
    connection: &mut sqlx::MySqlConnection,
    ids: &[Vec<u8>],
    lease: Duration,
) -> Result<Vec<Due>, sqlx::Error> {
    let sql = format!(
        "SELECT message_id, event_type, IF(LENGTH(headers) <= ?, headers, NULL) AS headers, \
         SUBSTRING(payload, 1, ?) AS payload, attempts, \
         CAST(COALESCE(TIMESTAMPDIFF(MICROSECOND, received_at, UTC_TIMESTAMP(6)), 0) AS SIGNED) \
         AS age_micros, \
         CAST(UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND AS DATETIME(6)) AS lease \
         FROM inbox FORCE INDEX (PRIMARY) WHERE message_id IN ({}) AND status = ? \
         AND (next_attempt_at IS NULL OR next_attempt_at <= UTC_TIMESTAMP(6)) \
         FOR UPDATE SKIP LOCKED",
        placeholders(ids.len(), "?")
    );
    let mut query = sqlx::query_as::<_, Due>(AssertSqlSafe(sql))
        .bind(u32::try_from(HEADERS_READ_MAX).unwrap_or(u32::MAX))
        .bind(u32::try_from(PAYLOAD_MAX + 1).unwrap_or(u32::MAX))
        .bind(i64::try_from(lease.as_micros()).unwrap_or(i64::MAX));
    for id in ids {
        query = query.bind(id);
    }
    let mut found = query.bind(InboxStatus::Received.code()).fetch(connection);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while bytes < HELD_BYTES {
        let Some(row) = found.try_next().await? else {
            break;
        };
        bytes += row.payload.len() + row.headers.as_ref().map_or(0, String::len);
        rows.push(row);
    }
    // The rest is nobody's: it is due as before.
    Ok(rows)
}

async fn move_ahead(
    connection: &mut sqlx::MySqlConnection,
    rows: &[Due],
    until: PrimitiveDateTime,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "UPDATE inbox SET next_attempt_at = ? WHERE message_id IN ({})",
        placeholders(rows.len(), "?")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(until);
    for row in rows {
        query = query.bind(&row.message_id);
    }
    query.execute(connection).await?;
    Ok(())
}
