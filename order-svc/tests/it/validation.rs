//! What is refused, how, and that nothing of it is stored.

use e2e::Flavor;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::app::{App, order, problem_code};

#[tokio::test]
async fn every_refusal_has_its_status_and_code_and_stores_nothing() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let json = "application/json";
    let valid = order().to_string();
    let long = format!(r#"{{"customer_id":"{}"}}"#, "x".repeat(65_536));
    let unknown = json!({"customer_id": "c", "amount_minor": 1, "currency": "EUR", "vip": true});
    for path in ["/orders", "/buy"] {
        for (content_type, body, status, code) in [
            (json, "{", StatusCode::BAD_REQUEST, "malformed_json"),
            (json, "\u{0}", StatusCode::BAD_REQUEST, "malformed_json"),
            (
                json,
                "[]",
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_order",
            ),
            (
                json,
                "{}",
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_order",
            ),
            (
                json,
                &unknown.to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_order",
            ),
            (json, &long, StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            (
                "text/plain",
                &valid,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_json",
            ),
            ("", &valid, StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json"),
        ] {
            let mut request = app
                .client
                .post(format!("{}{path}", app.url))
                .body(body.to_owned());
            if !content_type.is_empty() {
                request = request.header("content-type", content_type);
            }
            let (found, found_code) = problem_code(request.send().await.unwrap()).await;
            assert_eq!(
                (found, found_code.as_str()),
                (status, code),
                "{path} {body:.60}"
            );
        }
    }
    let empty = app
        .client
        .post(format!("{}/orders", app.url))
        .header("content-type", json);
    let (status, code) = problem_code(empty.send().await.unwrap()).await;
    assert_eq!(
        (status, code.as_str()),
        (StatusCode::BAD_REQUEST, "malformed_json")
    );
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (0, 0)
    );
}

#[tokio::test]
async fn a_body_of_exactly_64_kib_is_read() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let body = order().to_string();
    let padded = format!("{body}{}", " ".repeat(65_536 - body.len()));
    let request = app.client.post(format!("{}/orders", app.url));
    let request = request
        .header("content-type", "application/json; charset=utf-8")
        .body(padded);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test]
async fn all_wrong_members_are_named_at_once() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let wrong = json!({"customer_id": "", "amount_minor": 0, "currency": "euro", "colour": "red"});
    let body: Value = app.post("/orders", &wrong).await.json().await.unwrap();
    let mut fields: Vec<&str> = body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["field"].as_str().unwrap())
        .collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        ["amount_minor", "colour", "currency", "customer_id"]
    );
}

e2e::on_each_server!(the_limits_of_the_contract_fit_the_tables);
async fn the_limits_of_the_contract_fit_the_tables(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    for amount in [1_i64, 1_000_000_000_000_000] {
        let request = json!({
            "customer_id": "\u{1f4e6}".repeat(64), "amount_minor": amount, "currency": "ZZZ",
            "description": "\u{1f4e6}".repeat(1000),
        });
        let answer = app.post("/orders", &request).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let receipt: Value = answer.json().await.unwrap();
        let path = format!("/orders/{}", receipt["order_id"].as_str().unwrap());
        let found: Value = app.get(&path).await.json().await.unwrap();
        assert_eq!(found["description"], request["description"]);
        assert_eq!(found["amount_minor"], amount);
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_problems_too() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let (status, code) = problem_code(app.get("/nowhere").await).await;
    assert_eq!(
        (status, code.as_str()),
        (StatusCode::NOT_FOUND, "not_found")
    );
    let (status, code) = problem_code(app.get("/orders").await).await;
    assert_eq!(
        (status, code.as_str()),
        (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
    );
    let unmatched = r#"http_requests_total{method="GET",route="unmatched",status="404"}"#;
    assert_eq!(app.metric(unmatched).await, Some(1.0));
}
