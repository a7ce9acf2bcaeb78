//! A row as lists show it: without its payload, which may be large.

use outbox::row::rfc3339;
use serde::Serialize;
use sqlx::Row as _;
use sqlx::mysql::MySqlRow;
use time::macros::datetime;
use time::{Duration, PrimitiveDateTime};

use crate::filter::State;
use crate::table::{Key, Table};

const EPOCH: PrimitiveDateTime = datetime!(1970-01-01 0:00);

/// A row of the outbox or the inbox. Times are UTC, RFC 3339 with microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Row {
    /// Names the row in this API: the outbox's id, the inbox's message id.
    pub key: String,
    /// AMQP `message_id`.
    pub message_id: String,
    /// waiting, done, parked or discarded.
    pub state: State,
    /// What the table calls that state, e.g. `pending`.
    pub state_name: &'static str,
    /// AMQP `type`.
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    /// First half of the ordering key; the inbox has none.
    pub aggregate_type: Option<String>,
    /// Second half of the ordering key.
    pub aggregate_id: Option<String>,
    /// AMQP exchange.
    pub exchange: Option<String>,
    /// AMQP routing key.
    pub routing_key: Option<String>,
    /// Failed attempts since the last retry by a person.
    pub attempts: u32,
    /// Not tried before.
    pub next_attempt_at: Option<String>,
    /// Class of the last failure.
    pub class: Option<String>,
    /// Text of the last failure.
    pub last_error: Option<String>,
    /// Outbox: written; inbox: received, or given a new start by a retry.
    pub created_at: Option<String>,
    /// Sent or processed.
    pub done_at: Option<String>,
    /// Since `created_at`, by the database's clock, never negative.
    pub age_seconds: f64,
    /// Deliveries, duplicates included; the outbox has none.
    pub deliveries: Option<u32>,
    #[serde(skip)]
    pub(crate) cursor: Cursor,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Page {
    /// The rows.
    pub rows: Vec<Row>,
    /// Where the next page begins; `null`: there is none.
    pub next: Option<String>,
    /// Set when fewer rows than requested were found among as many as one page looks at: go on from
    /// `next`.
    pub looked_at: Option<u32>,
}

/// A place in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// What comes before the key in the index, in microseconds since 1970; the outbox has none.
    pub(crate) micros: i64,
    pub(crate) key: Key,
}

impl Cursor {
    pub(crate) fn text(&self) -> String {
        match &self.key {
            Key::Id(id) => id.to_string(),
            Key::Message(id) => format!("{}.{}", self.micros, String::from_utf8_lossy(id)),
        }
    }

    pub(crate) fn parse(table: &Table, text: &str) -> Option<Self> {
        match table {
            Table::Outbox { .. } => Some(Self {
                micros: 0,
                key: table.key(text)?,
            }),
            Table::Inbox => {
                let (micros, key) = text.split_once('.')?;
                let micros = micros.parse().ok()?;
                // What a DATETIME can hold; outside of it the sum below would fail.
                (0..=253_000_000_000_000_000)
                    .contains(&micros)
                    .then_some(Self {
                        micros,
                        key: table.key(key)?,
                    })
            }
        }
    }

    pub(crate) fn at(&self) -> PrimitiveDateTime {
        EPOCH + Duration::microseconds(self.micros)
    }
}

impl Table {
    /// What [`row_of`] reads, of the table under the alias `t`.
    pub(crate) fn row_columns(&self) -> String {
        let (own, created, done) = match self {
            Self::Outbox { .. } => ("t.id, t.aggregate_type, NULL", "created_at", "sent_at"),
            Self::Inbox => ("NULL, NULL, t.deliveries", "received_at", "processed_at"),
        };
        format!(
            "{own}, t.message_id, t.event_type, CONCAT(t.aggregate_id), t.exchange, t.routing_key, t.status, \
             t.attempts, t.next_attempt_at, {}, t.last_error, t.{created}, t.{done}, \
             TIMESTAMPDIFF(MICROSECOND, t.{created}, UTC_TIMESTAMP(6))",
            Self::CLASS
        )
    }
}

pub(crate) fn row_of(table: &Table, row: &MySqlRow) -> Result<Row, sqlx::Error> {
    let created: Option<PrimitiveDateTime> = row.try_get_unchecked(13).unwrap_or(None);
    let message: Vec<u8> = row.try_get_unchecked(3)?;
    let key = match table {
        Table::Outbox { .. } => Key::Id(row.try_get(0)?),
        Table::Inbox => Key::Message(message.clone()),
    };
    let status: u8 = row.try_get(8)?;
    let state = State::of(status)
        .ok_or_else(|| sqlx::Error::Protocol(format!("row {key} has the status {status}")))?;
    let micros: Option<i64> = row.try_get(15)?;
    Ok(Row {
        key: key.to_string(),
        message_id: String::from_utf8_lossy(&message).into_owned(),
        state,
        state_name: table.state_name(state),
        event_type: text(row, 4)?,
        aggregate_type: text(row, 1)?,
        aggregate_id: text(row, 5)?,
        exchange: text(row, 6)?,
        routing_key: text(row, 7)?,
        attempts: row.try_get(9)?,
        next_attempt_at: time(row, 10),
        class: text(row, 11)?,
        last_error: text(row, 12)?,
        created_at: created.map(rfc3339),
        done_at: time(row, 14),
        age_seconds: seconds(micros),
        deliveries: match table {
            Table::Outbox { .. } => None,
            Table::Inbox => Some(row.try_get(2)?),
        },
        cursor: Cursor {
            micros: created.map_or(0, micros_of),
            key,
        },
    })
}

/// Texts of any character set; what is not UTF-8 is shown as far as it goes.
pub(crate) fn text(row: &MySqlRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(index)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// A zero date, or a day that is in no calendar, is none.
pub(crate) fn time(row: &MySqlRow, index: usize) -> Option<String> {
    let at: Option<PrimitiveDateTime> = row.try_get_unchecked(index).unwrap_or(None);
    at.map(rfc3339)
}

pub(crate) fn micros_of(at: PrimitiveDateTime) -> i64 {
    i64::try_from((at - EPOCH).whole_microseconds()).unwrap_or(0)
}

pub(crate) fn seconds(micros: Option<i64>) -> f64 {
    let micros = u64::try_from(micros.unwrap_or(0)).unwrap_or(0);
    std::time::Duration::from_micros(micros).as_secs_f64()
}
