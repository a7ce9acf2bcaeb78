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
