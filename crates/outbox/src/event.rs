//! Writing an event: one row of the outbox, inside the transaction of the change that it reports.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, MySql, Transaction};
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};
use uuid::Uuid;

use crate::message::refused_header;
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
        // A year short of what the column and the type can hold, whatever the offset.
        let years = 1970..=9998;
        if self
            .not_before
            .is_some_and(|at| !years.contains(&at.year()))
        {
            return Err(invalid(
                "next_attempt_at",
                "is outside the years 1970 to 9998",
            ));
        }
        Ok(())
    }

    fn validate_headers(&self) -> Result<(), WriteError> {
        for name in self.headers.keys() {
            if name.len() > 255 {
                return Err(invalid("headers", "has a name of more than 255 bytes"));
            }
            if let Some(why) = refused_header(name) {
                return Err(invalid("headers", format!("has {name}, which {why}")));
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
/// As [`write()`]; one invalid event keeps all of them out of the database.
pub async fn write_all(
    tx: &mut Transaction<'_, MySql>,
    events: &[Event],
) -> Result<Vec<Uuid>, WriteError> {
    for event in events {
        event.validate()?;
    }
    for range in statement::ranges(events.iter().map(Event::size)) {
        insert(tx, "outbox", &events[range]).await?;
    }
    Ok(events.iter().map(|event| event.message_id).collect())
}

/// As [`write()`], into an outbox with another name, which must need no quoting beyond backticks.
///
/// # Errors
/// As [`write()`].
pub async fn write_into(
    tx: &mut Transaction<'_, MySql>,
    table: &str,
    event: &Event,
) -> Result<Uuid, WriteError> {
    event.validate()?;
    insert(tx, table, std::slice::from_ref(event)).await?;
    Ok(event.message_id)
}

async fn insert(
    tx: &mut Transaction<'_, MySql>,
    table: &str,
    events: &[Event],
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "INSERT INTO `{table}` (`message_id`, `aggregate_type`, `aggregate_id`, `event_type`, \
         `exchange`, `routing_key`, `content_type`, `headers`, `payload`, `next_attempt_at`) VALUES {}",
        statement::placeholders(
            events.len(),
            "(?, ?, ?, ?, COALESCE(?, DEFAULT(`exchange`)), ?, \
             COALESCE(?, DEFAULT(`content_type`)), ?, ?, ?)"
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

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn event() -> Event {
        Event::new("order", "42", "order.placed.v1", "order.pay", "{}")
    }

    #[track_caller]
    fn refused(event: &Event, text: &str) {
        let err = event.validate().unwrap_err();
        assert!(matches!(err, WriteError::Invalid { .. }));
        assert_eq!(err.to_string(), text);
    }

    #[test]
    fn an_id_is_a_uuid_of_version_seven_and_stays() {
        let event = event();
        assert_eq!(event.id().get_version_num(), 7);
        assert_eq!(event.clone().id(), event.id());
        let id = Uuid::now_v7();
        assert_eq!(event.message_id(id).id(), id);
    }

    #[test]
    fn texts_must_fit_their_columns() {
        let of = |aggregate_type: &str, id: &str| Event::new(aggregate_type, id, "t", "k", "");
        assert!(of(&"å".repeat(64), &"å".repeat(128)).validate().is_ok());
        refused(
            &of(&"å".repeat(65), "1"),
            "aggregate_type has 65 characters, more than 64",
        );
        refused(
            &of("order", &"å".repeat(129)),
            "aggregate_id has 129 characters, more than 128",
        );
        refused(&of("order", ""), "aggregate_id is empty");
        refused(
            &event().exchange("x".repeat(128)),
            "exchange has 128 bytes, more than 127",
        );
        refused(
            &event().content_type("x".repeat(65)),
            "content_type has 65 bytes, more than 64",
        );
        let key = "k".repeat(256);
        refused(
            &Event::new("a", "1", "t", key, ""),
            "routing_key has 256 bytes, more than 255",
        );
    }

    #[test]
    fn names_that_become_short_strings_are_ascii() {
        let event = Event::new("a", "1", "bestellt.für", "k", "");
        refused(&event, "event_type has a character that is not ASCII");
    }

    #[test]
    fn headers_that_the_relay_would_refuse_are_refused_here() {
        refused(
            &event().header("CC", "x"),
            "headers has CC, which would route the message elsewhere",
        );
        let delayed = event().header("x-delay", "5000");
        let err = delayed.validate().unwrap_err().to_string();
        assert!(err.contains("set next_attempt_at"), "{err}");
        let long = event().header("n".repeat(256), "x");
        refused(&long, "headers has a name of more than 255 bytes");
        let large = event().header("n", "x".repeat(65_535));
        refused(&large, "headers take 65543 bytes as JSON, more than 65535");
    }

    #[test]
    fn headers_are_a_json_object_of_strings() {
        assert_eq!(event().headers_json(), None);
        let event = event()
            .header("b", "2")
            .header("a", "\"1\"")
            .header("b", "3");
        assert_eq!(event.headers_json().unwrap(), r#"{"a":"\"1\"","b":"3"}"#);
    }

    #[test]
    fn a_delay_is_stored_in_utc_whatever_its_offset() {
        let event = event().not_before(datetime!(2026-02-03 04:05:06 +8));
        assert_eq!(
            event.next_attempt_at(),
            Some(datetime!(2026-02-02 20:05:06))
        );
        let never = event.not_before(datetime!(9999-12-31 23:59:59 -12));
        refused(&never, "next_attempt_at is outside the years 1970 to 9998");
    }
}
