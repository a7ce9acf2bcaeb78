//! Placing and finding orders.

use std::collections::HashSet;

use e2e::Flavor;
use futures::future::join_all;
use order_svc::batch::{Placed, Wanted};
use order_svc::order::Order;
use order_svc::place;
use order_svc::request::OrderRequest;
use order_svc::trace::Trace;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::app::{App, order};

e2e::on_each_server!(an_order_and_its_event_are_written_together);
async fn an_order_and_its_event_are_written_together(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let mut request = order();
    request["description"] = "a café \u{1f4e6}".into();

    let answer = app.post("/orders", &request).await;

    assert_eq!(answer.status(), StatusCode::CREATED);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let receipt: Value = answer.json().await.unwrap();
    let order_id = receipt["order_id"].as_str().unwrap();
    assert_eq!(location, format!("orders/{order_id}"));
    assert_eq!(Uuid::parse_str(order_id).unwrap().get_version_num(), 7);
    for member in ["customer_id", "amount_minor", "currency", "description"] {
        assert_eq!(receipt[member], request[member]);
    }

    let event: (String, String, String, String, String, Vec<u8>, u8) = sqlx::query_as(
        "SELECT message_id, aggregate_type, aggregate_id, event_type, routing_key, payload, \
         status FROM outbox",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    let (message_id, aggregate_type, aggregate_id, event_type, routing_key, payload, status) =
        event;
    assert_eq!(receipt["message_id"], message_id);
    assert_eq!(
        (aggregate_type.as_str(), aggregate_id.as_str()),
        ("order", order_id)
    );
    assert_eq!(
        (event_type.as_str(), routing_key.as_str()),
        ("order.placed.v1", "order.pay")
    );
    assert_eq!(status, 1);
    let payload: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(
        payload,
        json!({
            "order_id": order_id, "customer_id": "c-17", "amount_minor": 1999,
            "currency": "EUR", "placed_at": receipt["placed_at"],
        })
    );
    assert_eq!(app.metric("orders_placed_total ").await, Some(1.0));
}

e2e::on_each_server!(an_order_shows_how_far_its_message_has_come);
async fn an_order_shows_how_far_its_message_has_come(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let receipt: Value = app.post("/orders", &order()).await.json().await.unwrap();
    let path = format!("/orders/{}", receipt["order_id"].as_str().unwrap());

    for (status, delivery) in [(1, "pending"), (2, "sent"), (3, "parked"), (4, "discarded")] {
        let update = sqlx::query("UPDATE outbox SET status = ?").bind(status);
        update.execute(&app.pool).await.unwrap();
        let found: Value = app.get(&path).await.json().await.unwrap();
        assert_eq!(found["delivery"], delivery);
        let mut expected = receipt.clone();
        expected["delivery"] = delivery.into();
        assert_eq!(found, expected);
    }

    // Only what was sent is ever cleaned up.
    sqlx::query("DELETE FROM outbox")
        .execute(&app.pool)
        .await
        .unwrap();
    let found: Value = app.get(&path).await.json().await.unwrap();
    assert_eq!(found["delivery"], "sent");
}

#[tokio::test]
async fn the_location_is_right_behind_a_prefix_too() {
    let app = App::start(e2e::shared::mariadb().await).await;
    for path in ["/orders", "/buy"] {
        let answer = app.post(path, &order()).await;
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let own = answer.url().join(&location).unwrap();
        assert_eq!(
            app.client.get(own).send().await.unwrap().status(),
            StatusCode::OK
        );
        let gateway = reqwest::Url::parse(&format!("http://gateway/order{path}")).unwrap();
        let behind = gateway.join(&location).unwrap();
        assert!(behind.path().starts_with("/order/orders/"), "{behind}");
    }
}

#[tokio::test]
async fn buy_places_a_sample_order_without_a_body_and_the_order_in_it_with_one() {
    let app = App::start(e2e::shared::mariadb().await).await;

    let answer = app
        .client
        .post(format!("{}/buy", app.url))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let sample: Value = answer.json().await.unwrap();
    assert_eq!(sample["amount_minor"], OrderRequest::sample().amount_minor);

    let bought: Value = app.post("/buy", &order()).await.json().await.unwrap();
    assert_eq!(bought["customer_id"], "c-17");
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (2, 2)
    );
}

e2e::on_each_server!(a_rolled_back_order_leaves_no_event);
/// P1: only what is committed is published, so what is rolled back must leave no row.
async fn a_rolled_back_order_leaves_no_event(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let new = Order::new(
        Uuid::now_v7(),
        OffsetDateTime::now_utc(),
        OrderRequest::sample(),
    );

    let mut tx = app.pool.begin().await.unwrap();
    let wanted = Wanted::new(new.clone(), None, Trace::start());
    let placed = place::write(&mut tx, &[&wanted]).await.unwrap();
    assert_eq!(placed, [Placed::New(new.receipt().json())]);
    tx.rollback().await.unwrap();
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (0, 0)
    );
}

e2e::on_each_server!(an_order_without_its_event_is_no_order);
/// P1, the other way round: an event that can't be written takes the order with it.
async fn an_order_without_its_event_is_no_order(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let hide = "RENAME TABLE outbox TO hidden_outbox";
    sqlx::query(hide).execute(&app.pool).await.unwrap();

    let answer = app.post("/orders", &order()).await;

    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(app.count("orders").await, 0);
    let show = "RENAME TABLE hidden_outbox TO outbox";
    sqlx::query(show).execute(&app.pool).await.unwrap();
    assert_eq!(
        app.post("/orders", &order()).await.status(),
        StatusCode::CREATED
    );
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (1, 1)
    );
}

e2e::on_each_server!(a_database_that_refuses_for_its_own_reasons_is_answered_503);
/// A full disk, a killed or slow statement, a plugin's or a trigger's refusal: nothing is wrong with the
/// order, so its client is to try again.
async fn a_database_that_refuses_for_its_own_reasons_is_answered_503(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    for number in [1021, 1030, 1114, 1317, 1644, 1969, 3024, 3101] {
        let trigger = format!(
            "CREATE TRIGGER refuse BEFORE INSERT ON outbox FOR EACH ROW \
             SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'refused'"
        );
        let created = app.pool.execute(sqlx::raw_sql(AssertSqlSafe(trigger)));
        created.await.unwrap();
        let answer = app.post("/orders", &order()).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{number}");
        assert!(answer.headers().contains_key("retry-after"), "{number}");
        assert_eq!(app.count("orders").await, 0, "{number}");
        app.pool.execute("DROP TRIGGER refuse").await.unwrap();
    }
    let placed = app.post("/orders", &order()).await;
    assert_eq!(placed.status(), StatusCode::CREATED);
}

e2e::on_each_server!(two_orders_in_one_millisecond_have_different_ids);
/// P2: ids made of milliseconds collide.
async fn two_orders_in_one_millisecond_have_different_ids(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let request = order();
    let answers = join_all((0..200).map(|_| app.post("/orders", &request))).await;
    let mut ids = HashSet::new();
    let mut milliseconds = Vec::new();
    for answer in answers {
        assert_eq!(answer.status(), StatusCode::CREATED);
        let receipt: Value = answer.json().await.unwrap();
        let id = Uuid::parse_str(receipt["order_id"].as_str().unwrap()).unwrap();
        assert!(ids.insert(id), "{id} was given twice");
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        milliseconds.push((seconds, nanos / 1_000_000));
    }
    milliseconds.sort_unstable();
    milliseconds.dedup();
    assert!(
        milliseconds.len() < 200,
        "no two orders fell into one millisecond"
    );
    assert_eq!(
        (app.count("orders").await, app.count("outbox").await),
        (200, 200)
    );
}

#[tokio::test]
async fn an_unknown_order_is_not_found() {
    let app = App::start(e2e::shared::mariadb().await).await;
    for id in [
        "018f4e7a-1111-7222-8333-444455556666",
        "7",
        "%00",
        "%ff",
        "..%2f..",
        "x'%20or%201=1",
    ] {
        let answer = app.get(&format!("/orders/{id}")).await;
        let (status, code) = crate::app::problem_code(answer).await;
        assert_eq!(
            (status, code.as_str()),
            (StatusCode::NOT_FOUND, "unknown_order"),
            "{id}"
        );
    }
}

#[tokio::test]
async fn the_document_describes_what_is_served() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let document: Value = app.get("/openapi.json").await.json().await.unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let answers = |path: &str, method: &str| -> Vec<String> {
        let answers = &document["paths"][path][method]["responses"];
        answers.as_object().unwrap().keys().cloned().collect()
    };
    let placing = [
        "201", "400", "405", "408", "413", "415", "422", "500", "503",
    ];
    assert_eq!(answers("/orders", "post"), placing);
    assert_eq!(answers("/buy", "post"), placing);
    let finding = ["200", "404", "405", "500", "503"];
    assert_eq!(answers("/orders/{id}", "get"), finding);
    let overloaded = &document["paths"]["/orders"]["post"]["responses"]["503"];
    assert!(overloaded["headers"]["Retry-After"].is_object());
    assert!(overloaded["content"]["application/problem+json"].is_object());
    let request = &document["components"]["schemas"]["OrderRequest"];
    assert_eq!(request["additionalProperties"], false);
    assert_eq!(
        request["required"],
        json!(["customer_id", "amount_minor", "currency"])
    );
}
