//! Row → AMQP message.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{AGGREGATE_ID, AGGREGATE_TYPE, MessageId, OCCURRED_AT, refused_header};
use crate::row::Row;

/// `delivery_mode` of a message that a broker restart must not lose.
const PERSISTENT: u8 = 2;

const RFC3339_MICROS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// What is published for a row, beside its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The exchange to publish to; empty is AMQP's default exchange.
    pub exchange: ShortString,
    /// The routing key to publish with.
    pub routing_key: ShortString,
    /// All properties and headers, persistent delivery included.
    pub properties: BasicProperties,
}

/// A row that can't be a message, whatever the broker. `Display` is the operator's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidRow {
    /// The column at fault.
    pub field: &'static str,
    /// What is wrong with it, as the rest of a sentence that starts with the column.
    pub problem: String,
}

impl InvalidRow {
    fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }
}

/// Turns a row into what is published for it; the payload stays in the row.
///
/// # Errors
/// [`InvalidRow`] names the first column that no message can carry. The row will not become valid by
/// itself, and its neighbours are not touched by it.
pub fn encode(row: &Row) -> Result<Message, InvalidRow> {
    MessageId::check(row.message_id.as_bytes())
        .map_err(|problem| InvalidRow::new("message_id", problem.to_string()))?;
    let created_at = row
        .created_at
        .ok_or_else(|| InvalidRow::new("created_at", "is a zero date"))?;

    let mut headers = own_headers(row.headers.as_deref())?;
    let occurred_at = created_at
        .format(RFC3339_MICROS)
        .map_err(|err| InvalidRow::new("created_at", format!("can't be written: {err}")))?;
    // The row's columns win over headers of the same name: consumers order and group by them.
    for (name, value) in [
        (AGGREGATE_TYPE, row.aggregate_type.clone()),
        (AGGREGATE_ID, row.aggregate_id.clone()),
        (OCCURRED_AT, occurred_at.into_bytes()),
    ] {
        headers.insert(ShortString::from(name), long_string(value));
    }

    Ok(Message {
        exchange: short_string("exchange", &row.exchange)?,
        routing_key: short_string("routing_key", &row.routing_key)?,
        properties: BasicProperties::default()
            .with_message_id(short_string("message_id", row.message_id.as_bytes())?)
            .with_type(short_string("event_type", &row.event_type)?)
            .with_content_type(short_string("content_type", &row.content_type)?)
            .with_delivery_mode(PERSISTENT)
            .with_timestamp(unix_seconds(created_at)?)
            .with_headers(FieldTable::from(headers)),
    })
}

/// The column `headers`: a JSON object of strings.
fn own_headers(json: Option<&[u8]>) -> Result<BTreeMap<ShortString, AMQPValue>, InvalidRow> {
    let invalid = |problem: String| InvalidRow::new("headers", problem);
    let Some(json) = json else {
        return Ok(BTreeMap::new());
    };
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_slice(json)
        .map_err(|err| invalid(format!("is not a JSON object: {err}")))?;
    object
        .into_iter()
        .map(|(name, value)| {
            if let Some(why) = refused_header(&name) {
                return Err(invalid(format!("has {name}, which {why}")));
            }
            let serde_json::Value::String(value) = value else {
                return Err(invalid(format!(
                    "has a value that is not a string, at {name:?}"
                )));
            };
            let name = ShortString::try_new(name)
                .map_err(|_| invalid("has a name of more than 255 bytes".to_owned()))?;
            Ok((name, long_string(value.into_bytes())))
        })
        .collect()
}

fn long_string(bytes: Vec<u8>) -> AMQPValue {
    AMQPValue::LongString(LongString::from(bytes))
}

fn short_string(field: &'static str, bytes: &[u8]) -> Result<ShortString, InvalidRow> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| InvalidRow::new(field, "is not valid UTF-8"))?;
    ShortString::try_new(text)
        .map_err(|_| InvalidRow::new(field, format!("has {} bytes, more than 255", text.len())))
}

/// AMQP's timestamp has no sign.
fn unix_seconds(at: PrimitiveDateTime) -> Result<u64, InvalidRow> {
    u64::try_from(at.assume_utc().unix_timestamp())
        .map_err(|_| InvalidRow::new("created_at", "is before 1970"))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn row() -> Row {
        Row {
            id: 7,
            message_id: "0198f1c2-0000-7000-8000-000000000001".to_owned(),
            aggregate_type: b"order".to_vec(),
            aggregate_id: b"42".to_vec(),
            event_type: b"order.placed.v1".to_vec(),
            exchange: b"order-exchange".to_vec(),
            routing_key: b"order.pay".to_vec(),
            content_type: b"application/json".to_vec(),
            headers: None,
            payload: b"{}".to_vec(),
            created_at: Some(datetime!(2026-02-03 04:05:06.000_789)),
        }
    }

    fn header(message: &Message, name: &str) -> String {
        match message
            .properties
            .headers()
            .as_ref()
            .unwrap()
            .inner()
            .get(name)
        {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            other => panic!("{name}: {other:?}"),
        }
    }

    #[track_caller]
    fn refused(row: &Row, text: &str) {
        assert_eq!(encode(row).unwrap_err().to_string(), text);
    }

    #[test]
    fn a_row_is_the_message_of_the_contract() {
        let message = encode(&row()).unwrap();
        assert_eq!(message.exchange.as_str(), "order-exchange");
        assert_eq!(message.routing_key.as_str(), "order.pay");
        let properties = &message.properties;
        let text = |property: &Option<ShortString>| property.as_ref().unwrap().to_string();
        assert_eq!(
            text(properties.message_id()),
            "0198f1c2-0000-7000-8000-000000000001"
        );
        assert_eq!(text(properties.kind()), "order.placed.v1");
        assert_eq!(text(properties.content_type()), "application/json");
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(*properties.timestamp(), Some(1_770_091_506));
        assert_eq!(header(&message, "aggregate-type"), "order");
        assert_eq!(header(&message, "aggregate-id"), "42");
        assert_eq!(
            header(&message, "occurred-at"),
            "2026-02-03T04:05:06.000789Z"
        );
    }

    #[test]
    fn own_headers_are_sent_but_do_not_win_over_the_columns() {
        let headers = r#"{"traceparent": "00-1-2-3", "aggregate-id": "another"}"#;
        let message = encode(&Row {
            headers: Some(headers.into()),
            ..row()
        })
        .unwrap();
        assert_eq!(header(&message, "traceparent"), "00-1-2-3");
        assert_eq!(header(&message, "aggregate-id"), "42");
    }

    #[test]
    fn a_short_string_holds_255_bytes_and_no_more() {
        let long = |length: usize| Row {
            routing_key: vec![b'a'; length],
            ..row()
        };
        assert!(encode(&long(255)).is_ok());
        refused(&long(256), "routing_key has 256 bytes, more than 255");
        let wide = Row {
            event_type: "å".repeat(128).into_bytes(),
            ..row()
        };
        refused(&wide, "event_type has 256 bytes, more than 255");
        refused(
            &Row {
                exchange: vec![0xff],
                ..row()
            },
            "exchange is not valid UTF-8",
        );
    }

    #[test]
    fn headers_that_are_not_an_object_of_strings_are_refused() {
        let with = |headers: &str| Row {
            headers: Some(headers.into()),
            ..row()
        };
        refused(
            &with(r#"{"n": 1}"#),
            r#"headers has a value that is not a string, at "n""#,
        );
        let long = format!(r#"{{"{}": ""}}"#, "n".repeat(256));
        refused(&with(&long), "headers has a name of more than 255 bytes");
        for wrong in ["[]", "null", "\"x\"", "", "{", r#"{"a": "b"} c"#] {
            let err = encode(&with(wrong)).unwrap_err().to_string();
            assert!(
                err.starts_with("headers is not a JSON object: "),
                "{wrong}: {err}"
            );
        }
    }

    #[test]
    fn headers_that_route_are_refused() {
        for name in ["CC", "BCC"] {
            let headers = format!(r#"{{"{name}": "elsewhere"}}"#);
            let err = encode(&Row {
                headers: Some(headers.into()),
                ..row()
            })
            .unwrap_err();
            assert!(
                err.to_string()
                    .contains("would route the message elsewhere"),
                "{err}"
            );
        }
        let harmless = r#"{"cc": "a name like any other"}"#;
        assert!(
            encode(&Row {
                headers: Some(harmless.into()),
                ..row()
            })
            .is_ok()
        );
    }

    #[test]
    fn an_id_that_no_inbox_would_take_is_refused() {
        let with = |id: &str| Row {
            message_id: id.to_owned(),
            ..row()
        };
        refused(&with(""), "message_id is empty");
        refused(
            &with("a b"),
            "message_id has byte 0x20, which is outside 0x21-0x7e",
        );
    }

    #[test]
    fn a_time_that_amqp_can_not_say_is_refused() {
        refused(
            &Row {
                created_at: None,
                ..row()
            },
            "created_at is a zero date",
        );
        let early = datetime!(1969-12-31 23:59:59);
        refused(
            &Row {
                created_at: Some(early),
                ..row()
            },
            "created_at is before 1970",
        );
    }
}
