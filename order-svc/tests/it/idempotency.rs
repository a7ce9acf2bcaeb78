//! Requests that are sent twice.

use std::collections::HashSet;

use futures::future::join_all;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::app::{App, order, problem_code};

async fn post_with_key(app: &App, key: &str, body: &Value) -> Response {
    let request = app.client.post(format!("{}/orders", app.url));
    request
        .header("Idempotency-Key", key)
        .json(body)
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn the_same_key_and_order_get_the_same_answer_and_one_order() {
    for db in e2e::shared::databases().await {
        let app = App::start(db).await;
        let longest = "~".repeat(128);
        for key in ["!", &longest] {
            let first = post_with_key(&app, key, &order()).await;
            let again = post_with_key(&app, key, &order()).await;
            assert_eq!(
                (first.status(), again.status()),
                (StatusCode::CREATED, StatusCode::CREATED)
            );
            assert_eq!(first.headers()["location"], again.headers()["location"]);
            assert_eq!(first.bytes().await.unwrap(), again.bytes().await.unwrap());
        }
        assert_eq!(
            (app.count("orders").await, app.count("outbox").await),
            (2, 2)
        );
        assert_eq!(app.metric("orders_placed_total ").await, Some(2.0));
    }
}

#[tokio::test]
async fn the_same_key_with_another_order_is_refused() {
    for db in e2e::shared::databases().await {
        let app = App::start(db).await;
        post_with_key(&app, "k", &order()).await;
        let other = json!({"customer_id": "c-17", "amount_minor": 2000, "currency": "EUR"});
        let (status, code) = problem_code(post_with_key(&app, "k", &other).await).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(code, "idempotency_key_reused");
        assert_eq!(
            (app.count("orders").await, app.count("outbox").await),
            (1, 1)
        );
    }
}

#[tokio::test]
async fn of_many_at_once_exactly_one_places_the_order() {
    for db in e2e::shared::databases().await {
        let app = App::start(db).await;
        for round in 0..5 {
            let (key, body) = (format!("round-{round}"), order());
            let answers = join_all((0..100).map(|_| post_with_key(&app, &key, &body))).await;
            let mut bodies = HashSet::new();
            for answer in answers {
                assert_eq!(answer.status(), StatusCode::CREATED);
                bodies.insert(answer.text().await.unwrap());
            }
            assert_eq!(bodies.len(), 1);
            assert_eq!(app.count("orders").await, round + 1);
            assert_eq!(app.count("outbox").await, round + 1);
        }
    }
}

/// The one that was first and failed must not take the key with it.
#[tokio::test]
async fn a_key_is_free_again_when_its_order_was_not_placed() {
    for db in e2e::shared::databases().await {
        let app = App::start(db).await;
        sqlx::query("RENAME TABLE outbox TO hidden_outbox")
            .execute(&app.pool)
            .await
            .unwrap();
        let body = order();
        let failed = join_all((0..10).map(|_| post_with_key(&app, "k", &body))).await;
        for answer in failed {
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        sqlx::query("RENAME TABLE hidden_outbox TO outbox")
            .execute(&app.pool)
            .await
            .unwrap();
        assert_eq!(app.count("idempotency_keys").await, 0);
        assert_eq!(
            post_with_key(&app, "k", &order()).await.status(),
            StatusCode::CREATED
        );
        assert_eq!(
            (app.count("orders").await, app.count("outbox").await),
            (1, 1)
        );
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_one_is_refused() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let too_long = "k".repeat(129);
    for key in ["", "a b", "tab\tbed", &too_long] {
        let (status, code) = problem_code(post_with_key(&app, key, &order()).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{key:?}");
        assert_eq!(code, "bad_idempotency_key");
    }
    let url = format!("{}/orders", app.url);
    let twice = app
        .client
        .post(url)
        .header("Idempotency-Key", "a")
        .header("Idempotency-Key", "b");
    let answer = twice.json(&order()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(app.count("orders").await, 0);
}
