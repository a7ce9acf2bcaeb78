//! A span for each publish, from the batch's first byte to its last confirm, below the span that its
//! row was written in. The header `traceparent` stays the row's: it is the message's creation context
//! by OpenTelemetry's conventions, which nobody on the way changes.

use serde::Deserialize;
use svc_kit::trace::{Kind, Span, exports};

use crate::fault::{self, Fault};
use crate::publish::publisher_task::Outcome;
use crate::queue::Item;
use crate::route::Route;

/// The spans of a batch in its order; empty, and without any cost, where none are exported.
pub struct Publishing(Vec<Option<Span>>);

impl Publishing {
    /// The batch is about to go.
    pub fn begin(items: &[Item]) -> Self {
        match exports() {
            true => Self(items.iter().map(begin).collect()),
            false => Self(Vec::new()),
        }
    }

    /// The broker has answered.
    pub fn end(self, outcome: &Outcome) {
        let alone = self.0.len() == 1;
        for (at, span) in self.0.into_iter().enumerate() {
            let Some(mut span) = span else { continue };
            match fault::find(outcome, at, alone) {
                Fault::None => {}
                Fault::Nobody => span.fail("not confirmed"),
                Fault::Suspect(text) | Fault::Route(_, text) | Fault::Message(_, text) => {
                    span.fail(text);
                }
            }
        }
    }
}

/// Those that were written outside of any trace have none here either.
fn begin(item: &Item) -> Option<Span> {
    let mut span = Span::follow("publish", Kind::Producer, || {
        traceparent(item.row.headers.as_deref()?)
    })?;
    let route = Route::of(&item.row);
    let exchange = String::from_utf8_lossy(&route.exchange);
    let key = String::from_utf8_lossy(&route.routing_key);
    span.tell("messaging.system", "rabbitmq");
    span.tell("messaging.operation.name", "publish");
    span.tell("messaging.operation.type", "send");
    span.tell("messaging.destination.name", format!("{exchange}:{key}"));
    span.tell("messaging.rabbitmq.destination.routing_key", key);
    span.tell("messaging.message.id", item.row.message_id.as_str());
    span.tell("outbox.source", item.source.name());
    Some(span)
}

fn traceparent(headers: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Headers {
        traceparent: String,
    }
    let headers: Headers = serde_json::from_slice(headers).ok()?;
    Some(headers.traceparent)
}

#[cfg(test)]
mod tests {
    use super::traceparent;

    #[test]
    fn the_parent_is_found_among_other_headers() {
        let found = |headers: &str| traceparent(headers.as_bytes());
        let with = r#"{"a": "b", "traceparent": "00-1-2-01", "c": "d"}"#;
        assert_eq!(found(with).as_deref(), Some("00-1-2-01"));
        for without in ["{}", r#"{"traceparent": 1}"#, "", "null", "[]"] {
            assert_eq!(found(without), None, "{without}");
        }
    }
}
