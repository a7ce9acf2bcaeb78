//! Payments over HTTP, and the way in by hand.

use e2e::Flavor;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use crate::app::{App, OPERATOR, VIEWER, inbox_row, until_status, vhost};
use crate::messages::{ORDER_PLACED, Outgoing, Publisher, order_payload};

fn body(message_id: &str, payload: &str) -> String {
    let payload = RawValue::from_string(payload.to_owned()).unwrap();
    format!(
        r#"{{"message_id":{},"type":"{ORDER_PLACED}","payload":{payload}}}"#,
        json!(message_id)
    )
}

fn post(app: &App, body: String) -> RequestBuilder {
    let request = app.client.post(format!("{}/pay", app.url)).body(body);
    request.header("content-type", "application/json")
}

async fn put_in(app: &App, body: String) -> (StatusCode, Value) {
    let answer = post(app, body).bearer_auth(OPERATOR).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

e2e::on_each_server!(a_message_put_in_by_hand_takes_the_same_path_as_one_from_the_queue);
async fn a_message_put_in_by_hand_takes_the_same_path_as_one_from_the_queue(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(db, &vhost).await;
    app.until_ready().await;
    let order = Uuid::now_v7();
    let url = format!("{}/payments/{order}", app.url);
    assert_eq!(
        app.client.get(&url).send().await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
    let payload = order_payload(order);

    let (status, taken) = put_in(&app, body("by-hand", &payload)).await;
    assert_eq!(
        (status, &taken["status"]),
        (StatusCode::ACCEPTED, &json!("received"))
    );
    app.until_paid(1).await;
    let payment: Value = app
        .client
        .get(&url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(payment["order_id"], order.to_string());
    assert_eq!(payment["message_id"], "by-hand");
    assert_eq!(payment["outcome"], "captured");

    let (status, taken) = put_in(&app, body("by-hand", &payload)).await;
    assert_eq!(
        (status, &taken["status"]),
        (StatusCode::OK, &json!("duplicate"))
    );

    // The broker is back and brings it too: the bytes are the same, so it is the same message.
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    publisher.publish(&Outgoing::new("by-hand", &payload)).await;
    e2e::wait::until("the third delivery", crate::app::SOON, async || {
        inbox_row(&app.pool, "by-hand").await.unwrap().deliveries == 3
    })
    .await;
    app.until_paid(1).await;
    let actions: Vec<(String, String, String)> =
        sqlx::query_as("SELECT actor, action, target FROM operator_actions")
            .fetch_all(&app.pool)
            .await
            .unwrap();
    let expected = ("ann".to_owned(), "put_in".to_owned(), "by-hand".to_owned());
    assert_eq!(actions, [expected.clone(), expected]);
}

#[tokio::test]
async fn a_payload_can_be_given_byte_for_byte() {
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(e2e::shared::mariadb().await, &vhost).await;
    let spaced = format!("  {} ", order_payload(Uuid::now_v7()));
    let as_string = serde_json::to_string(&spaced).unwrap();
    let (status, _) = put_in(&app, body("spaced", &as_string)).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let stored: Vec<u8> = sqlx::query_scalar("SELECT payload FROM inbox")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(stored, spaced.as_bytes());
    until_status(&app.pool, "spaced", 2).await;
}

#[tokio::test]
async fn only_an_operator_puts_messages_in() {
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(e2e::shared::mariadb().await, &vhost).await;
    let body = body("m-1", &order_payload(Uuid::now_v7()));

    let nobody = post(&app, body.clone()).send().await.unwrap();
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(nobody.headers()["www-authenticate"], "Bearer");
    let stranger = post(&app, body.clone())
        .bearer_auth("0123456789abcdeX")
        .send()
        .await
        .unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
    let viewer = post(&app, body).bearer_auth(VIEWER).send().await.unwrap();
    assert_eq!(viewer.status(), StatusCode::FORBIDDEN);
    assert!(inbox_row(&app.pool, "m-1").await.is_none());
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_not_stored() {
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(e2e::shared::mariadb().await, &vhost).await;
    let payload = order_payload(Uuid::now_v7());
    let long = body("m", &format!("\"{}\"", "x".repeat(65_536)));
    for (body, status, code) in [
        ("{".to_owned(), StatusCode::BAD_REQUEST, "malformed_json"),
        (
            "{}".to_owned(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_message",
        ),
        (
            "[]".to_owned(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_message",
        ),
        (
            body("", &payload),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_message",
        ),
        (
            body("a b", &payload),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_message",
        ),
        (
            body(&"x".repeat(129), &payload),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_message",
        ),
        (
            body("m", "7"),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_message",
        ),
        (
            body("m", &payload).replacen('{', r#"{"extra":1,"#, 1),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_message",
        ),
        (long, StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
    ] {
        let (found, problem) = put_in(&app, body.clone()).await;
        assert_eq!(
            (found, problem["code"].as_str()),
            (status, Some(code)),
            "{body:.70}"
        );
    }
    let text = app
        .client
        .post(format!("{}/pay", app.url))
        .bearer_auth(OPERATOR)
        .body("x");
    assert_eq!(
        text.send().await.unwrap().status(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM inbox")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn a_known_id_with_another_body_is_a_conflict() {
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(e2e::shared::mariadb().await, &vhost).await;
    put_in(&app, body("m-1", &order_payload(Uuid::now_v7()))).await;
    let (status, problem) = put_in(&app, body("m-1", &order_payload(Uuid::now_v7()))).await;
    assert_eq!(
        (status, problem["code"].as_str()),
        (StatusCode::CONFLICT, Some("id_conflict"))
    );
    let parked: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM inbox WHERE status = 3 AND message_id LIKE 'sha256:%'",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!(parked, 1);
}

#[tokio::test]
async fn the_document_describes_what_is_served() {
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(e2e::shared::mariadb().await, &vhost).await;
    let url = format!("{}/openapi.json", app.url);
    let document: Value = app
        .client
        .get(url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(document["paths"]["/pay"]["post"]["responses"]["202"].is_object());
    assert!(document["paths"]["/payments/{order_id}"]["get"].is_object());
    assert_eq!(
        document["components"]["securitySchemes"]["operator"]["scheme"],
        "bearer"
    );
}
