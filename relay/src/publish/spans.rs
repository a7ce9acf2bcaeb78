//! A span for each publish, from the batch's first byte to its last confirm, below the span that its
//! row was written in. The header `traceparent` stays the row's: it is the message's creation context
//! by OpenTelemetry's conventions, which nobody on the way changes.

use outbox::row::Row;
use serde::Deserialize;
use svc_kit::trace::{Kind, Span, exports};

use super::confirms::{Outcome, Verdict};

/// The spans of a batch in its order; empty, and without any cost, where none are exported.
pub struct Publishing(Vec<Option<Span>>);

impl Publishing {
    /// The batch is about to go.
    pub fn begin(rows: &[Row]) -> Self {
        match exports() {
            true => Self(rows.iter().map(begin).collect()),
            false => Self(Vec::new()),
        }
    }

    /// The broker has answered.
    pub fn end(self, outcome: &Outcome) {
        for (at, span) in self.0.into_iter().enumerate() {
            let Some(mut span) = span else { continue };
            if let Some(why) = failure(outcome, at) {
                span.fail(why);
            }
        }
    }
}

/// Why the message at place `at` is not confirmed, if it is not.
fn failure(outcome: &Outcome, at: usize) -> Option<String> {
    let text = match outcome {
        Outcome::Settled(verdicts) => match verdicts.get(at) {
            Some(Verdict::Confirmed(_)) => return None,
            Some(Verdict::Returned(text) | Verdict::Invalid(text)) => text,
            Some(Verdict::Nacked) => "the queue refused it (basic.nack)",
            None => "not confirmed",
        },
        Outcome::Closed { text, .. } => text,
        Outcome::TimedOut { answered } if answered.get(at) == Some(&false) => {
            "no confirm within RELAY_CONFIRM_TIMEOUT"
        }
        Outcome::TimedOut { .. } | Outcome::Lost(_) | Outcome::LeaseOver => "not confirmed",
    };
    Some(text.to_owned())
}

/// Those that were written outside of any trace have none here either.
fn begin(row: &Row) -> Option<Span> {
    let mut span = Span::follow("publish", Kind::Producer, || {
        traceparent(row.headers.as_deref()?)
    })?;
    let exchange = String::from_utf8_lossy(&row.exchange);
    let key = String::from_utf8_lossy(&row.routing_key);
    span.set_attribute("messaging.system", "rabbitmq");
    span.set_attribute("messaging.operation.name", "publish");
    span.set_attribute("messaging.operation.type", "send");
    span.set_attribute("messaging.destination.name", format!("{exchange}:{key}"));
    span.set_attribute("messaging.rabbitmq.destination.routing_key", key);
    span.set_attribute("messaging.message.id", row.message_id.as_str());
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
