//! One trace from `POST /orders` through the relay to the payment, as a collector of traces sees it.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use e2e::{
    otlp::{Collector, Exported},
    provider::Reply,
    stage::{Stage, client},
    wait,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const LATER: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_trace_goes_from_the_request_through_the_relay_to_the_payment() {
    let collector = Collector::start().await.unwrap();
    let export = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ];
    let stage = Stage::with(e2e::shared::flavor(), &export).await.unwrap();
    let requested: Arc<Mutex<Vec<_>>> = Arc::default();
    let calls = Arc::clone(&requested);
    stage.provider.script(move |call| {
        calls.lock().unwrap().push(call.traceparent.clone());
        Reply::captured()
    });
    let order = place(&stage, &format!("00-{TRACE}-{CALLER}-01")).await;
    let unwanted = TRACE.replace('4', "5");
    // Whose caller does not record its trace.
    place(&stage, &format!("00-{unwanted}-{CALLER}-00")).await;

    let spans = wait::until("six spans in one trace", LATER, async || {
        let spans = collector.of_trace(TRACE);
        (spans.len() >= 6).then_some(spans)
    })
    .await;
    let request = find(&spans, ("order-svc", "place order", 2), CALLER);
    assert_eq!(request.attributes["http.response.status_code"], "201");
    find(&spans, ("order-svc", "commit order", 1), &request.span_id);
    // The message's creation context, which the relay does not change.
    let id = order["message_id"].as_str().unwrap();
    let publish = find(&spans, ("relay", "publish", 4), &request.span_id);
    assert_eq!(publish.attributes["messaging.message.id"], id);
    let destination = &publish.attributes["messaging.destination.name"];
    assert_eq!(destination, "order-exchange:order.pay");
    find(&spans, ("pay-svc", "receive", 5), &request.span_id);
    let process = find(&spans, ("pay-svc", "process", 5), &request.span_id);
    assert_eq!(process.attributes["messaging.message.id"], id);
    let charge = find(&spans, ("pay-svc", "charge", 3), &process.span_id);
    let reported = format!("00-{TRACE}-{}-01", charge.span_id);
    let requested = requested.lock().unwrap().clone();
    assert!(
        requested.contains(&Some(reported)),
        "the provider joins in: {requested:?}"
    );
    let failed: Vec<_> = spans.iter().filter(|span| span.error.is_some()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(spans.len(), 6, "{spans:#?}");
    assert!(collector.of_trace(&unwanted).is_empty());
}

async fn place(stage: &Stage, traceparent: &str) -> Value {
    let answer = client()
        .unwrap()
        .post(format!("{}/orders", stage.order.url))
        .header("traceparent", traceparent)
        .json(&json!({"customer_id": "c", "amount_minor": 1999, "currency": "EUR"}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    answer.json().await.unwrap()
}

/// The one span of that service, name and kind; its parent is this.
#[track_caller]
fn find<'a>(
    spans: &'a [Exported],
    (service, name, kind): (&str, &str, i32),
    parent: &str,
) -> &'a Exported {
    let mut found = spans
        .iter()
        .filter(|span| span.service == service && span.name == name);
    let (one, more) = (found.next(), found.next());
    let one = one.unwrap_or_else(|| panic!("no {name} of {service} in {spans:#?}"));
    assert!(more.is_none(), "{spans:#?}");
    assert_eq!(
        (one.kind, one.parent.as_str()),
        (kind, parent),
        "{spans:#?}"
    );
    one
}

/// A row of a trace that no broker takes: the failure is in the trace, and so is what follows it.
#[tokio::test]
async fn what_fails_is_reported_in_the_trace() {
    let collector = Collector::start().await.unwrap();
    let export = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ];
    let stage = Stage::with(e2e::shared::flavor(), &export).await.unwrap();
    let insert = "INSERT INTO orders.outbox (message_id, aggregate_type, aggregate_id, event_type, \
                  routing_key, headers, payload) VALUES (UUID(), 't', ?, ?, ?, ?, '{}')";
    let headers = format!(r#"{{"traceparent": "00-{TRACE}-{CALLER}-01"}}"#);
    for (event, route) in [
        ("order.placed.v1", "nobody.listens"),
        ("odd.v1", "order.pay"),
    ] {
        sqlx::query(insert)
            .bind(route)
            .bind(event)
            .bind(route)
            .bind(&headers)
            .execute(&stage.pool)
            .await
            .unwrap();
    }
    wait::until("both failures", LATER, async || {
        let spans = collector.of_trace(TRACE);
        let failed = |service: &str, text: &str| {
            spans.iter().any(|span| {
                let error = span.error.as_deref().unwrap_or_default();
                span.service == service && span.parent == CALLER && error.contains(text)
            })
        };
        failed("relay", "NO_ROUTE") && failed("pay-svc", "unknown_type")
    })
    .await;
}
