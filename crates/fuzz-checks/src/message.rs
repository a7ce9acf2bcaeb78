//! A delivery of the broker.

use lapin::BasicProperties;
use lapin::protocol::basic::{gen_properties, parse_properties};
use outbox::message::{decode_parts, encoded_properties_len};
use outbox::{MessageId, Problem, Received};
use serde_json::Value;

/// Longest text of `inbox.aggregate_id`.
const AGGREGATE_ID_MAX: usize = 255;
/// As the decoder has it, and one for the object of all headers.
const DEPTH_MAX: usize = 17;
/// A control character has six bytes in JSON, and a number has a few more than it has on the wire.
const EXPANSION_MAX: usize = 8;

/// Properties as they are on the wire, and a body: whatever they are, the inbox can store them.
pub fn message(data: &[u8]) {
    let Ok((body, properties)) = parse_properties(data) else {
        return;
    };
    has_its_length(&properties);
    let received = decode_parts(&properties, "order-exchange", "order.pay", body.to_vec());
    has_an_id(&received, &properties);
    let kind = properties.kind().as_ref().map(ToString::to_string);
    assert_eq!(received.event_type, kind);
    let aggregate_id = received.aggregate_id.as_deref().unwrap_or_default();
    assert!(aggregate_id.chars().count() <= AGGREGATE_ID_MAX);
    let headers = received.headers.to_string();
    assert!(received.headers.is_object() && depth(&received.headers) <= DEPTH_MAX);
    assert!(headers.len() <= EXPANSION_MAX * data.len() + 2, "{headers}");
    assert!(serde_json::from_str::<Value>(&headers).is_ok(), "{headers}");
    is_reduced(received);
}

/// What the relay compares with `frame_max` is what goes over the wire.
fn has_its_length(properties: &BasicProperties) {
    let written = gen_properties(properties)(Vec::new().into()).expect("a Vec takes all");
    assert_eq!(encoded_properties_len(properties), written.write.len() + 20);
}

fn has_an_id(received: &Received, properties: &BasicProperties) {
    let id = received.message_id.as_str();
    assert!((1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));
    let own = MessageId::of_body(&received.payload);
    let sent = properties.message_id().as_ref();
    match &received.problem {
        None => assert_eq!(sent.map(lapin::types::ShortString::as_str), Some(id)),
        Some(Problem::BadMessageId(_)) => assert_eq!(received.message_id, own),
        Some(other) => panic!("decoding finds no problem like {other}"),
    }
}

fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(map) => map.values().map(depth).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or_default()
}

/// What a database refused is cut, and the digest stays that of the whole.
fn is_reduced(mut received: Received) {
    let whole = MessageId::of_body(&received.payload).to_string();
    let bytes_whole = received.payload.len();
    for (bytes_max, headers_max) in [(usize::MAX, usize::MAX), (64, 256), (4, 8)] {
        received.reduce(bytes_max, headers_max);
        assert!(received.payload.len() <= bytes_max);
        assert!(received.headers.to_string().len() <= headers_max);
        let Some(Problem::Truncated {
            kept,
            bytes,
            sha256,
            ..
        }) = &received.problem
        else {
            panic!("{:?}", received.problem);
        };
        assert_eq!((*kept, *bytes), (received.payload.len(), bytes_whole));
        assert!(
            whole.ends_with(sha256.as_str()),
            "{sha256} is not of the whole"
        );
    }
}
