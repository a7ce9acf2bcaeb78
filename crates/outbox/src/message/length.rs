//! How long the properties of a message are on the wire.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

/// Bytes of the frame that carries the properties, the frame's own overhead included.
///
/// Compare it with the negotiated `frame_max`: AMQP has no way to split this frame, and RabbitMQ
/// closes the whole *connection* on one that is too long.
#[must_use]
pub fn encoded_properties_len(properties: &BasicProperties) -> usize {
    /// Type, channel and length before a frame, one byte after it; then class, weight, body size.
    const FRAME: usize = 7 + 1 + 2 + 2 + 8;
    const FLAGS: usize = 2;

    let short_strings: usize = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ]
    .into_iter()
    .flatten()
    .map(|text| 1 + text.as_str().len())
    .sum();

    FRAME
        + FLAGS
        + short_strings
        + properties.headers().as_ref().map_or(0, table_len)
        + properties.delivery_mode().map_or(0, |_| 1)
        + properties.priority().map_or(0, |_| 1)
        + properties.timestamp().map_or(0, |_| 8)
}

fn table_len(table: &FieldTable) -> usize {
    4 + table
        .into_iter()
        .map(|(name, value)| 1 + name.as_str().len() + value_len(value))
        .sum::<usize>()
}

fn value_len(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(items) => 4 + items.as_slice().iter().map(value_len).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_len(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the sizes, the broker's opinion counts; lapin's own writer stands in for it.
    #[test]
    fn the_length_of_a_properties_frame_is_what_lapin_would_write() {
        use lapin::types::{ByteArray, DecimalValue, FieldArray};

        let mut inner = FieldTable::default();
        inner.insert("n".into(), AMQPValue::LongLongInt(1));
        let values = vec![
            AMQPValue::Void,
            AMQPValue::Boolean(true),
            AMQPValue::ShortShortInt(1),
            AMQPValue::ShortShortUInt(1),
            AMQPValue::ShortInt(1),
            AMQPValue::ShortUInt(1),
            AMQPValue::LongInt(1),
            AMQPValue::LongUInt(1),
            AMQPValue::LongLongInt(1),
            AMQPValue::Float(1.0),
            AMQPValue::Double(1.0),
            AMQPValue::Timestamp(1),
            AMQPValue::DecimalValue(DecimalValue { scale: 1, value: 1 }),
            AMQPValue::LongString("text".into()),
            AMQPValue::ByteArray(ByteArray::from(vec![1, 2, 3])),
            AMQPValue::FieldTable(inner),
        ];
        let properties = BasicProperties::default()
            .with_message_id("0198f1c2-0000-7000-8000-000000000001".into())
            .with_type("order.placed.v1".into())
            .with_delivery_mode(2)
            .with_timestamp(1_770_091_506);
        let mut headers = FieldTable::default();
        headers.insert(
            "all".into(),
            AMQPValue::FieldArray(FieldArray::from(values)),
        );
        let properties = properties
            .with_headers(headers)
            .with_priority(3)
            .with_app_id("app".into())
            .with_expiration("60000".into());

        let frame = lapin::protocol::basic::gen_properties(&properties)(Vec::new().into())
            .expect("a Vec takes all");
        assert_eq!(encoded_properties_len(&properties), frame.write.len() + 20);
    }
}
