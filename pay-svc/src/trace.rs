//! Spans of what is done with a message, below the one that its row was written in.

use outbox::message::Received;
use svc_kit::trace::{Kind, Span, TRACEPARENT, exports};

use crate::claim::Due;
use crate::settle::{Settlement, Verdict};

const MESSAGE_ID: &str = "messaging.message.id";

/// Deliveries that are about to be stored; none where none are exported.
pub(crate) fn receiving(batch: &[Received]) -> Vec<Span> {
    if !exports() {
        return Vec::new();
    }
    let spans = batch.iter().filter_map(|received| {
        let mut span = Span::follow("receive", Kind::Consumer, || {
            Some(received.headers.get(TRACEPARENT)?.as_str()?.to_owned())
        })?;
        span.set_attribute("messaging.system", "rabbitmq");
        span.set_attribute("messaging.operation.name", "receive");
        span.set_attribute("messaging.operation.type", "receive");
        span.set_attribute(MESSAGE_ID, received.message_id.as_str());
        Some(span)
    });
    spans.collect()
}

/// A message that is worked on, from its claim until what became of it is written.
pub(crate) fn processing(due: &Due) -> Option<Span> {
    let mut span = Span::follow("process", Kind::Consumer, || due.header(TRACEPARENT))?;
    span.set_attribute("messaging.system", "rabbitmq");
    span.set_attribute("messaging.operation.name", "process");
    span.set_attribute("messaging.operation.type", "process");
    span.set_attribute(MESSAGE_ID, due.id());
    Some(span)
}

/// The call of the provider, within the processing.
pub(crate) fn charging(processing: Option<&Span>) -> Option<Span> {
    processing.map(|span| Span::start("charge", Kind::Client, Some(span.place())))
}

/// Records in a span what became of its message, and gives it back to end when that is written.
pub(crate) async fn judged(
    mut span: Option<Span>,
    settlement: impl Future<Output = Settlement>,
) -> (Settlement, Option<Span>) {
    let settlement = settlement.await;
    if let Some(span) = &mut span
        && let Verdict::Failed { class, text, .. } = &settlement.verdict
    {
        span.fail(format!("{}: {text}", class.name()));
    }
    (settlement, span)
}
