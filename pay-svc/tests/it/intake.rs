//! From the queue to the inbox and on to the payment, on healthy servers.

use e2e::wait::until;
use e2e::{Db, DbOptions, Flavor};
use serde_json::json;
use uuid::Uuid;

use crate::app::{App, SOON, classes, config, database, inbox_row, payments, until_status, vhost};
use crate::messages::{Outgoing, Publisher, order_payload};
use crate::provider::{Act, Scripted, handle};

e2e::on_each_server!(duplicates_never_stop_the_consumer);
/// C1: a duplicate was never acknowledged there, and 25 of them stopped the consumer.
async fn duplicates_never_stop_the_consumer(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let tables = database(db).await;
    let mut config = config(&tables.url, &vhost.amqp_url);
    config.intake.prefetch = 25;
    config.intake.batch_max = 10;
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let known = Outgoing::order(Uuid::now_v7());
    for _ in 0..100 {
        publisher.publish(&known).await;
    }
    let later = Outgoing::order(Uuid::now_v7());
    publisher.publish(&later).await;

    app.until_paid(2).await;

    let row = inbox_row(&app.pool, known.message_id.as_deref().unwrap())
        .await
        .unwrap();
    assert_eq!((row.status, row.deliveries), (2, 100));
    assert_eq!(app.metric("inbox_duplicates_total ").await, 99.0);
    assert_eq!(app.metric("inbox_received_total ").await, 101.0);
    let api = e2e::shared::rabbit().await.management().unwrap();
    until("an empty queue", SOON, async || {
        api.queue(&vhost.name, "order-queue")
            .await
            .unwrap()
            .unwrap()
            .total
            == 0
    })
    .await;
}

e2e::on_each_server!(messages_are_distinguished_by_their_id_not_by_their_body);
/// C7: what makes a message the same is its `message_id`, not its body.
async fn messages_are_distinguished_by_their_id_not_by_their_body(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(db, &vhost).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let order = Uuid::now_v7();
    let payload = order_payload(order);
    // One body under two ids: two messages, of which the second finds the order paid.
    publisher.publish(&Outgoing::new("one", &payload)).await;
    publisher.publish(&Outgoing::new("two", &payload)).await;
    until_status(&app.pool, "one", 2).await;
    until_status(&app.pool, "two", 2).await;
    assert_eq!(payments(&app.pool).await, 1);
    assert_eq!(
        app.metric("inbox_processed_total{outcome=\"already_paid\"}")
            .await,
        1.0
    );

    // Ids that any collation would make one.
    publisher
        .publish(&Outgoing::new("ONE", &order_payload(Uuid::now_v7())))
        .await;
    until_status(&app.pool, "ONE", 2).await;
    assert_eq!(payments(&app.pool).await, 2);

    // Another body under a known id is neither dropped nor paid: a person must look.
    publisher
        .publish(&Outgoing::new("one", &order_payload(Uuid::now_v7())))
        .await;
    let conflict: Vec<u8> = until("the conflict", SOON, async || {
        sqlx::query_scalar("SELECT message_id FROM inbox WHERE message_id LIKE 'sha256:%'")
            .fetch_optional(&app.pool)
            .await
            .unwrap()
    })
    .await;
    let conflict = String::from_utf8(conflict).unwrap();
    assert_eq!(until_status(&app.pool, &conflict, 3).await.deliveries, 1);
    assert_eq!(classes(&app.pool, &conflict).await, ["id_conflict"]);
    assert_eq!(inbox_row(&app.pool, "one").await.unwrap().deliveries, 1);
    assert_eq!(
        app.metric("inbox_failed_total{class=\"id_conflict\"}")
            .await,
        1.0
    );
}

e2e::on_each_server!(malformed_messages_are_parked_at_once_and_the_others_flow);
/// C6: what can't be read is stored as it came and parked at once; the others flow.
async fn malformed_messages_are_parked_at_once_and_the_others_flow(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(db, &vhost).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let order = |n: u128| Outgoing::order(Uuid::from_u128(n));
    let mut no_id = order(1);
    no_id.message_id = None;
    let mut spaced_id = order(2);
    spaced_id.message_id = Some("a b".to_owned());
    let mut long_id = order(3);
    long_id.message_id = Some("x".repeat(129));
    let mut unknown = order(4);
    unknown.event_type = Some("order.cancelled.v1".to_owned());
    let mut not_text = Outgoing::new("bytes", "");
    not_text.payload = vec![0xff, 0x00, 0xfe];
    let bad = [
        Outgoing::new("not-json", "{"),
        not_text,
        unknown,
        no_id,
        spaced_id,
        long_id,
    ];
    for (n, bad) in bad.iter().enumerate() {
        publisher.publish(bad).await;
        publisher.publish(&order(100 + n as u128)).await;
    }

    app.until_paid(6).await;

    let parked = async || {
        let sql = "SELECT COUNT(*) FROM inbox WHERE status = 3";
        sqlx::query_scalar::<_, i64>(sql)
            .fetch_one(&app.pool)
            .await
            .unwrap()
    };
    until("six parked messages", SOON, async || parked().await == 6).await;
    let stored: Vec<u8> =
        sqlx::query_scalar("SELECT payload FROM inbox WHERE message_id = 'bytes'")
            .fetch_one(&app.pool)
            .await
            .unwrap();
    assert_eq!(stored, [0xff, 0x00, 0xfe]);
    let mut seen: Vec<(String, i64)> =
        sqlx::query_as("SELECT class, COUNT(*) FROM inbox_attempts GROUP BY class")
            .fetch_all(&app.pool)
            .await
            .unwrap();
    seen.sort();
    let expected = [("bad_message_id", 3), ("malformed", 2), ("unknown_type", 1)];
    assert_eq!(
        seen,
        expected.map(|(class, count)| (class.to_owned(), count))
    );
    until("the gauges", SOON, async || {
        let rows = app.metric("inbox_parked_rows ").await;
        rows == 6.0 && app.metric("inbox_oldest_parked_age_seconds ").await > 0.0
    })
    .await;
    assert_eq!(app.metric("inbox_pending_rows ").await, 0.0);
    assert_eq!(app.metric("inbox_oldest_pending_age_seconds ").await, 0.0);
}

e2e::on_each_server!(what_cannot_be_stored_whole_is_stored_truncated_and_parked);
async fn what_cannot_be_stored_whole_is_stored_truncated_and_parked(flavor: Flavor) {
    let args = vec!["--max-allowed-packet=1048576".to_owned()];
    let options = DbOptions {
        args,
        ..DbOptions::default()
    };
    let db = Db::start(flavor, options).await.unwrap();
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let app = App::start(&db, &vhost).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let huge = Outgoing::new("huge", &"x".repeat(3 * 1024 * 1024));
    publisher.publish(&huge).await;
    publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    publisher.publish(&huge).await;

    app.until_paid(1).await;
    let row = until_status(&app.pool, "huge", 3).await;
    assert!(row.last_error.unwrap().starts_with("truncated: "));
    assert_eq!(classes(&app.pool, "huge").await, ["truncated"]);
    until("the duplicate", SOON, async || {
        inbox_row(&app.pool, "huge").await.unwrap().deliveries == 2
    })
    .await;
}

#[tokio::test]
async fn the_queue_is_declared_as_the_contract_says() {
    for rabbit in [
        Some(e2e::shared::rabbit().await),
        e2e::shared::rabbit4().await,
    ] {
        let Some(rabbit) = rabbit else { continue };
        let vhost = vhost(rabbit).await;
        let app = App::start(e2e::shared::mariadb().await, &vhost).await;
        app.until_ready().await;

        let api = rabbit.management().unwrap();
        let queue = api
            .queue(&vhost.name, "order-queue")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(queue.kind, "quorum");
        let expected = json!({"x-queue-type": "quorum", "x-delivery-limit": 2_147_483_647});
        assert_eq!(queue.arguments, expected);
        let bindings = api.bindings(&vhost.name, "order-queue").await.unwrap();
        let own = bindings
            .iter()
            .find(|binding| binding["source"] == "order-exchange")
            .unwrap();
        assert_eq!(own["routing_key"], "order.*");
        let path = format!("exchanges/{}/order-exchange", vhost.name);
        let exchange = api.get(&path).await.unwrap();
        assert_eq!(
            (&exchange["type"], &exchange["durable"]),
            (&json!("topic"), &json!(true))
        );
        app.until_it_pays(&vhost).await;
    }
}

/// Somebody else's queue is not fought over: it is used, and readiness says what to fix.
#[tokio::test]
async fn a_queue_in_another_shape_is_used_and_reported_with_its_fix() {
    for rabbit in [
        Some(e2e::shared::rabbit().await),
        e2e::shared::rabbit4().await,
    ] {
        let Some(rabbit) = rabbit else { continue };
        let api = rabbit.management().unwrap();
        for (arguments, fix) in [
            (
                json!({"x-queue-type": "quorum"}),
                r#"{"delivery-limit":2147483647}"#,
            ),
            (
                json!({"x-queue-type": "classic"}),
                "delete order-queue when it is empty",
            ),
        ] {
            let vhost = vhost(rabbit).await;
            api.declare_queue(&vhost.name, "order-queue", arguments.clone())
                .await
                .unwrap();
            let app = App::start(e2e::shared::mariadb().await, &vhost).await;
            app.until_ready().await;
            let (_, body) = app.readiness().await;
            let detail = body["conditions"]["consumer"]["detail"].as_str().unwrap();
            assert!(detail.contains(fix), "{fix} is not in: {detail}");
            assert!(detail.contains("PRECONDITION_FAILED"), "{detail}");
            app.until_it_pays(&vhost).await;
            let queue = api
                .queue(&vhost.name, "order-queue")
                .await
                .unwrap()
                .unwrap();
            assert_eq!(queue.arguments, arguments);
        }
    }
}

e2e::on_each_server!(a_thousand_orders_are_paid_once_each);
/// A batch is what is there: one message alone is paid without waiting for others.
async fn a_thousand_orders_are_paid_once_each(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let tables = database(db).await;
    let provider = Scripted::always(Act::Capture);
    let config = config(&tables.url, &vhost.amqp_url);
    let app = App::serve(tables, config, handle(&provider)).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    for _ in 0..1000 {
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    }
    app.until_paid(1000).await;
    assert_eq!(provider.all_calls(), 1000);
    assert_eq!(app.metric("inbox_duplicates_total ").await, 0.0);
}

#[tokio::test]
async fn a_user_who_may_only_read_the_queue_can_consume() {
    let rabbit = e2e::shared::rabbit().await;
    let vhost = vhost(rabbit).await;
    let api = rabbit.management().unwrap();
    Publisher::connect(&vhost.amqp_url).await.close().await;
    let user = format!("reader-{}", vhost.name);
    api.create_user(&user, "pw", "").await.unwrap();
    let rights = ["^$", "^$", "^order-(queue|exchange)$"];
    api.set_permissions(&vhost.name, &user, rights)
        .await
        .unwrap();

    let tables = database(e2e::shared::mariadb().await).await;
    let amqp_url = rabbit.user_url(&user, "pw", &vhost.name);
    let config = config(&tables.url, &amqp_url);
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    app.until_ready().await;
    app.until_it_pays(&vhost).await;
}
