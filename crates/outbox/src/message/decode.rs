//! AMQP delivery → what a consumer stores.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value};

use super::{AGGREGATE_ID, Received};

/// Tables within tables beyond this depth are left out, so that no message can exhaust the stack.
const MAX_DEPTH: usize = 16;

/// Longest text of `inbox.aggregate_id`, in characters.
const MAX_AGGREGATE_ID: usize = 255;

/// Turns a delivery into what the inbox stores. Nothing a producer sends makes this fail.
///
/// Copies the body; [`decode_parts`] takes it.
#[must_use]
pub fn decode(delivery: &Delivery) -> Received {
    decode_parts(
        &delivery.properties,
        delivery.exchange.as_str(),
        delivery.routing_key.as_str(),
        delivery.data.clone(),
    )
}

/// As [`decode`], of the parts of a delivery.
#[must_use]
pub fn decode_parts(
    properties: &BasicProperties,
    exchange: &str,
    routing_key: &str,
    payload: Vec<u8>,
) -> Received {
    let id = properties
        .message_id()
        .as_ref()
        .map(|id| id.as_str().as_bytes());
    let (message_id, problem) = Received::identify(id, &payload);
    let headers = properties.headers().as_ref();
    Received {
        message_id,
        event_type: properties.kind().as_ref().map(ToString::to_string),
        aggregate_id: headers
            .and_then(|headers| headers.inner().get(AGGREGATE_ID))
            .and_then(|value| text(&json(value, MAX_DEPTH))),
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        headers: headers.map_or_else(|| Value::Object(Map::new()), |h| object(h, MAX_DEPTH)),
        payload,
        problem,
    }
}

/// A header as a column's text: a string is itself, anything else its JSON.
fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(text.chars().take(MAX_AGGREGATE_ID).collect())
}

fn object(table: &FieldTable, depth: usize) -> Value {
    table
        .into_iter()
        .map(|(name, value)| (name.to_string(), json(value, depth)))
        .collect()
}

fn json(value: &AMQPValue, depth: usize) -> Value {
    let Some(deeper) = depth.checked_sub(1) else {
        return Value::Null;
    };
    match value {
        AMQPValue::Boolean(flag) => Value::from(*flag),
        AMQPValue::ShortShortInt(number) => Value::from(*number),
        AMQPValue::ShortShortUInt(number) => Value::from(*number),
        AMQPValue::ShortInt(number) => Value::from(*number),
        AMQPValue::ShortUInt(number) => Value::from(*number),
        AMQPValue::LongInt(number) => Value::from(*number),
        AMQPValue::LongUInt(number) => Value::from(*number),
        AMQPValue::LongLongInt(number) => Value::from(*number),
        AMQPValue::Float(number) => Value::from(*number),
        AMQPValue::Double(number) => Value::from(*number),
        AMQPValue::DecimalValue(number) => {
            Value::from(format!("{}e-{}", number.value, number.scale))
        }
        AMQPValue::ShortString(text) => Value::from(text.as_str()),
        AMQPValue::LongString(text) => Value::from(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => Value::from(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(items) => items
            .as_slice()
            .iter()
            .map(|item| json(item, deeper))
            .collect(),
        AMQPValue::Timestamp(seconds) => Value::from(*seconds),
        AMQPValue::FieldTable(table) => object(table, deeper),
        AMQPValue::Void => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::{FieldArray, LongString, ShortString};
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;
    use crate::message::{Problem, UnusableId, encode, encoded_properties_len};
    use crate::row::Row;

    fn decoded(properties: &BasicProperties) -> Received {
        decode_parts(properties, "order-exchange", "order.pay", b"body".to_vec())
    }

    /// SHA-256 of `body`.
    const DIGEST: &str = "sha256:230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5";

    #[test]
    fn a_message_without_a_usable_id_is_stored_under_its_digest_and_parked() {
        let long = "x".repeat(129);
        for (id, why) in [
            (None, UnusableId::Absent),
            (Some(""), UnusableId::Empty),
            (Some("two words"), UnusableId::BadByte(b' ')),
            (Some("tab\t"), UnusableId::BadByte(b'\t')),
            (Some("del\x7f"), UnusableId::BadByte(0x7f)),
            (Some("é"), UnusableId::BadByte(0xc3)),
            (Some(long.as_str()), UnusableId::TooLong(129)),
            (Some("sha256:00"), UnusableId::Reserved),
        ] {
            let properties = BasicProperties::default();
            let received = decoded(&match id {
                Some(id) => properties.with_message_id(id.into()),
                None => properties,
            });
            assert_eq!(received.message_id.as_str(), DIGEST, "{id:?}");
            assert_eq!(received.problem, Some(Problem::BadMessageId(why)), "{id:?}");
        }
    }

    #[test]
    fn a_message_that_comes_back_under_its_own_digest_is_no_problem() {
        let received = decoded(&BasicProperties::default().with_message_id(DIGEST.into()));
        assert_eq!(
            (received.message_id.as_str(), received.problem),
            (DIGEST, None)
        );
    }

    #[test]
    fn the_longest_and_the_outermost_ids_are_usable() {
        for id in ["x".repeat(128), "!".to_owned(), "~".to_owned()] {
            let received = decoded(&BasicProperties::default().with_message_id(id.as_str().into()));
            assert_eq!(
                (received.message_id.as_str(), received.problem),
                (id.as_str(), None)
            );
        }
    }

    #[test]
    fn headers_of_any_type_become_json() {
        let mut table = FieldTable::default();
        table.insert(
            "text".into(),
            AMQPValue::LongString(LongString::from(vec![b'a', 0xff])),
        );
        table.insert("number".into(), AMQPValue::LongInt(-5));
        table.insert("nan".into(), AMQPValue::Double(f64::NAN));
        let list = vec![AMQPValue::Boolean(true), AMQPValue::Void];
        table.insert("list".into(), AMQPValue::FieldArray(FieldArray::from(list)));
        let received = decoded(&BasicProperties::default().with_headers(table));
        let expected = serde_json::json!({"text": "a\u{fffd}", "number": -5, "nan": null, "list": [true, null]});
        assert_eq!(received.headers, expected);
    }

    #[test]
    fn an_aggregate_id_is_stored_as_text_and_cut_to_its_column() {
        let with = |value| {
            let mut table = FieldTable::default();
            table.insert(AGGREGATE_ID.into(), value);
            decoded(&BasicProperties::default().with_headers(table)).aggregate_id
        };
        assert_eq!(with(AMQPValue::LongInt(42)), Some("42".to_owned()));
        assert_eq!(with(AMQPValue::Void), None);
        let long = with(AMQPValue::LongString("å".repeat(300).into())).unwrap();
        assert_eq!(long, "å".repeat(255));
    }

    #[test]
    fn tables_within_tables_end_somewhere() {
        let nested = |depth: usize| {
            (0..depth).fold(AMQPValue::Void, |inner, _| {
                AMQPValue::FieldArray(FieldArray::from(vec![inner]))
            })
        };
        let mut table = FieldTable::default();
        table.insert("deep".into(), nested(2_000));
        let text = decoded(&BasicProperties::default().with_headers(table))
            .headers
            .to_string();
        assert!(text.len() < 100, "{text}");
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..300)
    }

    prop_compose! {
        fn any_row()(
            message_id in ".{0,200}",
            [aggregate_type, aggregate_id, event_type, exchange, routing_key, content_type] in
                proptest::array::uniform6(bytes()),
            headers in proptest::option::of(prop_oneof![
                bytes(),
                btree_map(".{0,300}", ".*", 0..5).prop_map(|map| serde_json::to_vec(&map).unwrap()),
            ]),
            created_at in proptest::option::of(any::<i32>()),
        ) -> Row {
            let epoch = datetime!(1970-01-01 00:00:00);
            let created_at =
                created_at.map(|seconds| epoch + time::Duration::seconds(seconds.into()));
            Row {
                id: 1, message_id, aggregate_type, aggregate_id, event_type, exchange, routing_key,
                content_type, headers, payload: Vec::new(), created_at,
            }
        }
    }

    prop_compose! {
        fn valid_row()(
            message_id in "[!-~]{1,128}".prop_filter("reserved", |id| !id.starts_with("sha256:")),
            aggregate_id in "\\PC{1,128}",
            event_type in "[ -~]{0,255}",
            headers in btree_map("\\PC{1,60}", "\\PC*", 0..5),
            payload in bytes(),
        ) -> (Row, std::collections::BTreeMap<String, String>) {
            let row = Row {
                id: 1,
                message_id,
                aggregate_type: b"order".to_vec(),
                aggregate_id: aggregate_id.into_bytes(),
                event_type: event_type.into_bytes(),
                exchange: b"order-exchange".to_vec(),
                routing_key: b"order.pay".to_vec(),
                content_type: b"application/json".to_vec(),
                headers: Some(serde_json::to_vec(&headers).unwrap()),
                payload,
                created_at: Some(datetime!(2026-02-03 04:05:06.5)),
            };
            (row, headers)
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_encode_panic(row in any_row()) {
            if let Ok(message) = encode(&row) {
                prop_assert!(encoded_properties_len(&message.properties) > 0);
            }
        }

        #[test]
        fn what_one_end_encodes_the_other_decodes((row, headers) in valid_row()) {
            let message = encode(&row).unwrap();
            let (exchange, key) = (message.exchange.as_str(), message.routing_key.as_str());
            let received = decode_parts(&message.properties, exchange, key, row.payload.clone());
            prop_assert_eq!(received.problem, None);
            prop_assert_eq!(received.message_id.as_str(), &row.message_id);
            prop_assert_eq!(received.event_type.unwrap().into_bytes(), row.event_type);
            prop_assert_eq!(received.aggregate_id.unwrap().into_bytes(), row.aggregate_id);
            prop_assert_eq!(received.payload, row.payload);
            for (name, value) in headers {
                prop_assert_eq!(&received.headers[&name], &Value::from(value));
            }
            prop_assert_eq!(&received.headers["occurred-at"], "2026-02-03T04:05:06.500000Z");
        }

        #[test]
        fn no_delivery_makes_decode_panic(
            id in proptest::option::of("\\PC{0,60}"),
            header in bytes(),
            payload in bytes(),
        ) {
            let mut table = FieldTable::default();
            table.insert(AGGREGATE_ID.into(), AMQPValue::LongString(header.into()));
            let mut properties = BasicProperties::default().with_headers(table);
            if let Some(id) = &id {
                properties = properties.with_message_id(ShortString::try_new(id.as_str()).unwrap());
            }
            let received = decode_parts(&properties, "", "", payload);
            prop_assert!(received.message_id.as_str().len() <= 128);
            prop_assert!(received.message_id.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
