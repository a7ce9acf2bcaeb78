//! A thousand hostile requests: each is refused clearly, or is legal and done; nothing is stored half.

mod console;
mod input;
mod wire;

use e2e::{
    Flavor,
    stage::{OPERATOR_TOKEN, Stage},
};
use input::Hostile;
use serde_json::{Value, json};
use wire::{Answer, Request};

/// `HOSTILE_SEED` tries other inputs.
const SEED: u64 = 20_260;
const ORDERS: usize = 250;
const PAYMENTS: usize = 250;

fn seed() -> u64 {
    let seed = std::env::var("HOSTILE_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    eprintln!("HOSTILE_SEED={seed}");
    seed
}

#[tokio::test]
async fn hostile_input_is_refused_clearly_and_never_stored_half() {
    let stage = Stage::set_up(Flavor::MariaDb).await.unwrap();
    let mut hostile = Hostile::new(seed());
    orders(&stage, &mut hostile).await;
    payments(&stage, &mut hostile).await;
    console::consoles(&stage, &mut hostile).await;
    // Whatever went in by the front door was worked on, or waits for a person; nobody choked on it.
    for service in [&stage.order, &stage.pay, &stage.relay] {
        service.ready().await.unwrap();
        let log = service.process.log();
        assert!(!log.contains("panicked"), "{}: {log}", service.name);
    }
}

/// The order API: each 201 is one order and one event, and nothing else is stored.
async fn orders(stage: &Stage, hostile: &mut Hostile) {
    let valid = json!({"customer_id": "c-1", "amount_minor": 1999, "currency": "EUR",
                       "description": "a description"});
    let mut receipts = std::collections::BTreeSet::new();
    for _ in 0..ORDERS {
        let body = hostile.body(&valid);
        let content_type = content_type(hostile);
        let request = match hostile.index(8) {
            0 => Request::new("GET", [b"/orders/", &hostile.in_url()[..]].concat()),
            1 => Request::new(method(hostile), [b"/", &hostile.in_url()[..]].concat()),
            2 => Request::new("POST", "/buy").body(content_type, body),
            3 => Request::new("POST", "/orders")
                .header("idempotency-key", hostile.header_value())
                .body("application/json", valid.to_string()),
            4 => Request::new("POST", "/orders")
                .header("traceparent", hostile.header_value())
                .header("tracestate", hostile.header_value())
                .body("application/json", valid.to_string()),
            _ => Request::new("POST", "/orders").body(content_type, body),
        };
        let Some(answer) = clear(&request, &stage.order.url).await else {
            continue;
        };
        if answer.status == 201 {
            let receipt: Value = serde_json::from_str(&answer.body).unwrap();
            receipts.insert(receipt["order_id"].as_str().unwrap().to_owned());
        }
    }
    let (stored, reported): (Vec<String>, i64) = (
        sqlx::query_scalar("SELECT order_id FROM orders.orders")
            .fetch_all(&stage.pool)
            .await
            .unwrap(),
        sqlx::query_scalar(
            "SELECT COUNT(*) FROM orders.outbox JOIN orders.orders ON order_id = aggregate_id",
        )
        .fetch_one(&stage.pool)
        .await
        .unwrap(),
    );
    assert_eq!(
        stored
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>(),
        receipts
    );
    assert_eq!(
        usize::try_from(reported).unwrap(),
        receipts.len(),
        "one event an order"
    );
    eprintln!("orders: {} of {ORDERS} were legal", receipts.len());
    assert!(
        receipts.len() > 20,
        "hardly anything was legal: the inputs have gone stale"
    );
}

/// The way in by hand: each 202 and each 409 is one row of the inbox.
async fn payments(stage: &Stage, hostile: &mut Hostile) {
    let mut rows = 0;
    let before = inbox_of_hand(stage).await;
    for n in 0..PAYMENTS {
        let payload = json!({"order_id": uuid::Uuid::now_v7().to_string(), "customer_id": "c", "currency": "EUR",
                             "amount_minor": 5, "placed_at": "2026-01-01T00:00:00Z"});
        let payload: Value = if hostile.one_in(3) {
            String::from_utf8_lossy(&hostile.body(&payload)).into()
        } else {
            payload
        };
        let valid = json!({"message_id": format!("hostile-{n}"), "type": "order.placed.v1",
                           "payload": payload});
        // One in four is a whole message, whose payload alone is hostile.
        let body = if hostile.one_in(4) {
            valid.to_string().into_bytes()
        } else {
            hostile.body(&valid)
        };
        let bearer = if hostile.one_in(10) {
            [b"Bearer ", &hostile.header_value()[..]].concat()
        } else {
            format!("Bearer {OPERATOR_TOKEN}").into_bytes()
        };
        let request = match hostile.index(8) {
            0 => Request::new("GET", [b"/payments/", &hostile.in_url()[..]].concat()),
            1 => Request::new(method(hostile), [b"/", &hostile.in_url()[..]].concat()),
            _ => Request::new("POST", "/pay").body(content_type(hostile), body),
        };
        let request = request.header("authorization", bearer);
        let Some(answer) = clear(&request, &stage.pay.url).await else {
            continue;
        };
        rows += i64::from(answer.status == 202 || answer.status == 409);
    }
    eprintln!("payments: {rows} of {PAYMENTS} were legal");
    assert_eq!(inbox_of_hand(stage).await - before, rows, "one row each");
    assert!(
        rows > 20,
        "hardly anything was legal: the inputs have gone stale"
    );
}

/// What came by hand has no exchange.
async fn inbox_of_hand(stage: &Stage) -> i64 {
    let sql = "SELECT COUNT(*) FROM payments.inbox WHERE exchange = '' OR exchange IS NULL";
    sqlx::query_scalar(sql)
        .fetch_one(&stage.pool)
        .await
        .unwrap()
}

/// Sends it. Whatever comes back is success or a clear refusal, and holds nothing of the input where
/// a browser or a proxy would act on it.
async fn clear(request: &Request, url: &str) -> Option<Answer> {
    let answer = request.send(url).await?;
    let context = || {
        format!(
            "{request}\n  answer {} {}\n{}",
            answer.status, answer.head, answer.body
        )
    };
    assert!((200..500).contains(&answer.status), "{}", context());
    for evil in ["\nx-evil:", "\nset-cookie: evil", "evil.example"] {
        assert!(!answer.head.contains(evil), "{}", context());
    }
    let kind = answer.header("content-type").unwrap_or_default();
    // What is not even HTTP is refused below the routes, without a body; HEAD never has one.
    if answer.status >= 400 && !answer.body.is_empty() {
        assert!(
            kind.starts_with("application/problem+json"),
            "{}",
            context()
        );
        let problem: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(problem["code"].is_string(), "{}", context());
    }
    assert!(!kind.starts_with("text/html"), "{}", context());
    Some(answer)
}

fn content_type(hostile: &mut Hostile) -> &'static str {
    let rare = [
        "text/plain",
        "",
        "application/json; charset=utf-16",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json, application/json",
        "APPLICATION/JSON",
        "application/json\u{0}",
    ];
    if hostile.one_in(8) {
        rare[hostile.index(rare.len())]
    } else {
        "application/json"
    }
}

fn method(hostile: &mut Hostile) -> &'static str {
    let methods = [
        "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW", "POST",
    ];
    methods[hostile.index(methods.len())]
}
