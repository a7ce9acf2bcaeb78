//! Writing an event: one row of the outbox, inside the transaction of the change it tells of.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, MySql, Transaction};
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};
use uuid::Uuid;

use crate::statement;

/// Something that happened, to be published once the transaction it is written in has committed.
///
/// Its id is chosen when it is built: an event that is written again, because the transaction was
/// rolled back and is tried once more, keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    message_id: Uuid,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    exchange: Option<String>,
    routing_key: String,
    content_type: Option<String>,
    headers: BTreeMap<String, String>,
    payload: Vec<u8>,
    not_before: Option<OffsetDateTime>,
}

/// Why an event was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The event can't be a row. Nothing was sent to the database; the transaction can go on.
    #[error("{field} {problem}")]
    Invalid {
        /// The column at fault.
        field: &'static str,
        /// What is wrong, as the rest of a sentence that starts with the column.
        problem: String,
    },
    /// The database did not take it.
    #[error("the outbox row could not be written")]
    Database(#[from] sqlx::Error),
}

impl Event {
    /// An event about `aggregate_type`/`aggregate_id`, in which order all events of that pair go out.
    ///
    /// The payload is sent as it is, byte for byte.
    #[must_use]
    pub fn new(
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
        routing_key: impl Into<String>,
        payload: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            message_id: Uuid::now_v7(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
            event_type: event_type.into(),
            exchange: None,
            routing_key: routing_key.into(),
            content_type: None,
            headers: BTreeMap::new(),
            payload: payload.into(),
            not_before: None,
        }
    }

    /// The exchange to publish to, at most 127 bytes; without this, the column's default.
    #[must_use]
    pub fn exchange(mut self, exchange: impl Into<String>) -> Self {
        self.exchange = Some(exchange.into());
        self
    }

    /// The MIME type of the payload, at most 64 bytes; without this, `application/json`.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// One more header, e.g. `traceparent`. The last value of a name counts.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// The id consumers drop duplicates by; without this, a new UUIDv7.
    #[must_use]
    pub fn message_id(mut self, message_id: Uuid) -> Self {
        self.message_id = message_id;
        self
    }

    /// Published no earlier than this. Later events of the same aggregate wait behind it.
    #[must_use]
    pub fn not_before(mut self, at: OffsetDateTime) -> Self {
        self.not_before = Some(at);
        self
    }

    /// The id it is, or will be, written with.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.message_id
    }

    /// The column `headers`; `None` for an event without any.
    fn headers_json(&self) -> Option<String> {
        (!self.headers.is_empty())
            .then(|| serde_json::to_string(&self.headers).expect("a map of strings is always JSON"))
    }

    fn next_attempt_at(&self) -> Option<PrimitiveDateTime> {
        self.not_before.map(|at| {
            let utc = at.to_offset(UtcOffset::UTC);
            PrimitiveDateTime::new(utc.date(), utc.time())
        })
    }

    /// Roughly what the row adds to a statement, in bytes.
    fn size(&self) -> usize {
        self.payload.len()
            + self
                .headers
                .iter()
                .map(|(k, v)| k.len() + v.len() + 6)
                .sum::<usize>()
    }

    fn validate(&self) -> Result<(), WriteError> {
        characters("aggregate_type", &self.aggregate_type, 64)?;
        characters("aggregate_id", &self.aggregate_id, 128)?;
        characters("event_type", &self.event_type, 128)?;
        ascii("event_type", &self.event_type, 128)?;
        ascii("routing_key", &self.routing_key, 255)?;
        ascii(
            "exchange",
            self.exchange.as_deref().unwrap_or_default(),
            127,
        )?;
        ascii(
            "content_type",
            self.content_type.as_deref().unwrap_or_default(),
            64,
        )?;
        self.validate_headers()?;
        let years = 1970..=9999;
        if self
            .next_attempt_at()
            .is_some_and(|at| !years.contains(&at.year()))
        {
            return Err(invalid(
                "next_attempt_at",
                "is outside the years 1970 to 9999",
            ));
        }
        Ok(())
    }

    fn validate_headers(&self) -> Result<(), WriteError> {
        for name in self.headers.keys() {
            if name.len() > 255 {
                return Err(invalid("headers", "has a name of more than 255 bytes"));
            }
            if name == "CC" || name == "BCC" {
                return Err(invalid(
                    "headers",
                    format!("has {name}, which would route it elsewhere"),
                ));
            }
        }
        match self.headers_json() {
            Some(json) if json.len() > 65_535 => Err(invalid(
                "headers",
                format!("take {} bytes as JSON, more than 65535", json.len()),
            )),
            _ => Ok(()),
        }
    }
}

/// Writes an event inside the caller's transaction; it is published if, and only if, that commits.
///
/// Lock the aggregate's own row before (an `UPDATE` of it does): two transactions that write events
/// of one aggregate side by side are ordered by their commits, which need not be what you mean.
///
/// # Errors
/// [`WriteError::Invalid`] before anything reaches the database, else what the database said.
pub async fn write(tx: &mut Transaction<'_, MySql>, event: &Event) -> Result<Uuid, WriteError> {
    write_all(tx, std::slice::from_ref(event)).await?;
    Ok(event.message_id)
}

/// Writes events in this order, with as few statements as their size allows; returns their ids.
///
/// # Errors
/// As [`write`]; one invalid event keeps all of them out of the database.
pub async fn write_all(
    tx: &mut Transaction<'_, MySql>,
    events: &[Event],
) -> Result<Vec<Uuid>, WriteError> {
    for event in events {
        event.validate()?;
    }
    for range in statement::ranges(events.iter().map(Event::size)) {
        insert(tx, &events[range]).await?;
    }
    Ok(events.iter().map(|event| event.message_id).collect())
}

async fn insert(tx: &mut Transaction<'_, MySql>, events: &[Event]) -> Result<(), sqlx::Error> {
    let sql = format!(
        "INSERT INTO `outbox` (`message_id`, `aggregate_type`, `aggregate_id`, `event_type`, \
         `exchange`, `routing_key`, `content_type`, `headers`, `payload`, `next_attempt_at`) VALUES {}",
        statement::rows(
            "(?, ?, ?, ?, COALESCE(?, DEFAULT(`exchange`)), ?, \
             COALESCE(?, DEFAULT(`content_type`)), ?, ?, ?)",
            events.len(),
        )
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for event in events {
        query = query
            .bind(event.message_id.to_string())
            .bind(&event.aggregate_type)
            .bind(&event.aggregate_id)
            .bind(&event.event_type)
            .bind(&event.exchange)
            .bind(&event.routing_key)
            .bind(&event.content_type)
            .bind(event.headers_json())
            .bind(&event.payload)
            .bind(event.next_attempt_at());
    }
    query.execute(&mut **tx).await?;
    Ok(())
}

fn characters(field: &'static str, text: &str, max: usize) -> Result<(), WriteError> {
    match text.chars().count() {
        0 => Err(invalid(field, "is empty")),
        count if count > max => Err(invalid(
            field,
            format!("has {count} characters, more than {max}"),
        )),
        _ => Ok(()),
    }
}

fn ascii(field: &'static str, text: &str, max: usize) -> Result<(), WriteError> {
    if text.len() > max {
        return Err(invalid(
            field,
            format!("has {} bytes, more than {max}", text.len()),
        ));
    }
    if !text.is_ascii() {
        return Err(invalid(field, "has a character that is not ASCII"));
    }
    Ok(())
}

fn invalid(field: &'static str, problem: impl Into<String>) -> WriteError {
    WriteError::Invalid {
        field,
        problem: problem.into(),
    }
}
