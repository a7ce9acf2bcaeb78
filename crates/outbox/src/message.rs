//! The message both ends agree on: [`encode`] turns a row into one, [`decode`] turns a delivery into
//! what a consumer stores.
//!
//! | Row                              | Message                                              |
//! |----------------------------------|------------------------------------------------------|
//! | `message_id`                     | property `message_id`                                |
//! | `event_type`                     | property `type`                                      |
//! | `content_type`                   | property `content_type`                              |
//! | `created_at`                     | property `timestamp` (s), header `occurred-at` (µs)  |
//! | `aggregate_type`, `aggregate_id` | headers `aggregate-type`, `aggregate-id`             |
//! | `headers`                        | further headers; the three above win                 |
//! | `payload`                        | body, the same bytes                                 |
//!
//! `encode` and `decode` need the feature `amqp`; [`Received`] does not, so a message that arrives
//! another way (over HTTP, say) takes the same path through the inbox.

mod received;
pub(crate) use received::digest;
pub use received::{DIGEST_PREFIX, MessageId, Problem, Received, UnusableId};

#[cfg(feature = "amqp")]
mod encode;
#[cfg(feature = "amqp")]
pub use encode::{InvalidRow, Message, encode};

#[cfg(feature = "amqp")]
mod length;
#[cfg(feature = "amqp")]
pub use length::encoded_properties_len;

#[cfg(feature = "amqp")]
mod decode;
#[cfg(feature = "amqp")]
pub use decode::{decode, decode_parts};

/// Header with the type of the thing the event is about, e.g. `order`.
pub const AGGREGATE_TYPE: &str = "aggregate-type";
/// Header with the id of the thing the event is about.
pub const AGGREGATE_ID: &str = "aggregate-id";
/// Header with the time the row was written: RFC 3339, UTC, microseconds.
pub const OCCURRED_AT: &str = "occurred-at";

/// Why no message may have a header of this name.
///
/// RabbitMQ routes a message to the keys in `CC` and `BCC` as well, past the row's own route. A
/// delayed-message exchange takes a message with `x-delay` and returns it as one that reached no queue:
/// it can't be distinguished from one that was lost, and would be sent again and again.
pub(crate) fn refused_header(name: &str) -> Option<&'static str> {
    match name {
        "CC" | "BCC" => Some("would route the message elsewhere"),
        "x-delay" => Some(
            "makes a delayed-message exchange keep the message and report it as not routed: to delay a \
             message, leave it out and set next_attempt_at",
        ),
        _ => None,
    }
}
