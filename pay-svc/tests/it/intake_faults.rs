//! Brokers, queues and databases that go away under a running consumer.

use e2e::wait::until;
use e2e::{Db, DbOptions, Flavor, Rabbit, RabbitOptions};
use reqwest::StatusCode;
use serde_json::Value;
use sqlx::Executor as _;
use svc_kit::boot::Exit;
use uuid::Uuid;

use crate::app::{App, SOON, config, config_with, database, vhost};
use crate::bench::Bench;
use crate::messages::{Outgoing, Publisher, order_payload, received};
use crate::provider::{Act, Scripted};

#[tokio::test]
async fn a_queue_that_is_deleted_is_declared_again_and_consumed() {
    for rabbit in [
        Some(e2e::shared::rabbit().await),
        e2e::shared::rabbit4().await,
    ] {
        let Some(rabbit) = rabbit else { continue };
        let vhost = vhost(rabbit).await;
        let app = App::start(e2e::shared::mariadb().await, &vhost).await;
        app.until_it_pays(&vhost).await;
        let api = rabbit.management().unwrap();
        for _ in 0..3 {
            assert!(api.delete_queue(&vhost.name, "order-queue").await.unwrap());
            // Were its consumer still waiting on the old queue, nothing would be paid.
            app.until_it_pays(&vhost).await;
        }
        assert_eq!(app.stop().await, Exit::Drained);
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_by_an_operator_is_made_anew() {
    for rabbit in [
        Some(e2e::shared::rabbit().await),
        e2e::shared::rabbit4().await,
    ] {
        let Some(rabbit) = rabbit else { continue };
        let vhost = vhost(rabbit).await;
        let app = App::start(e2e::shared::mariadb().await, &vhost).await;
        let api = rabbit.management().unwrap();
        for _ in 0..5 {
            app.until_it_pays(&vhost).await;
            until("the connection to be closed", SOON, async || {
                api.close_connections(&vhost.name).await.unwrap() > 0
            })
            .await;
        }
        app.until_it_pays(&vhost).await;
        assert_eq!(app.stop().await, Exit::Drained);
    }
}

#[tokio::test]
async fn a_broker_that_restarts_is_found_again() {
    let rabbit = Rabbit::start(RabbitOptions::default()).await.unwrap();
    let vhost = vhost(&rabbit).await;
    let app = App::start(e2e::shared::mariadb().await, &vhost).await;
    app.until_it_pays(&vhost).await;
    // In order first: Ra's directory is on disk half a second after a queue was declared, and a
    // queue whose broker is killed before that never has a leader again.
    for in_order in [true, false] {
        if in_order {
            rabbit.stop().await.unwrap();
        } else {
            rabbit.kill().unwrap();
        }
        until("lost readiness", SOON, async || {
            let (status, body) = app.readiness().await;
            status == StatusCode::SERVICE_UNAVAILABLE
                && body["conditions"]["broker"]["ok"] == false
                && body["conditions"]["database"]["ok"] == true
        })
        .await;
        rabbit.restart().await.unwrap();
        app.until_ready().await;
        app.until_it_pays(&vhost).await;
    }
    assert_eq!(app.stop().await, Exit::Drained);
}

e2e::on_each_server!(while_the_database_is_away_nothing_is_consumed_and_nothing_lost);
/// While the database is away the queue keeps the messages: none goes round and round.
async fn while_the_database_is_away_nothing_is_consumed_and_nothing_lost(flavor: Flavor) {
    let db = Db::start(flavor, DbOptions::default()).await.unwrap();
    let rabbit = e2e::shared::rabbit().await;
    let vhost = vhost(rabbit).await;
    let app = App::start(&db, &vhost).await;
    app.until_it_pays(&vhost).await;

    db.kill().unwrap();
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    for _ in 0..50 {
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
    }
    let api = rabbit.management().unwrap();
    until(
        "the consumer to be cancelled and all messages in the queue",
        SOON,
        async || {
            let queue = api
                .queue(&vhost.name, "order-queue")
                .await
                .unwrap()
                .unwrap();
            (queue.consumers, queue.ready, queue.unacked) == (0, 50, 0)
        },
    )
    .await;
    let (status, body) = app.readiness().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["conditions"]["database"]["ok"], false);
    assert_eq!(body["conditions"]["consumer"]["ok"], false);
    assert_eq!(body["conditions"]["broker"]["ok"], true);

    db.restart().await.unwrap();
    app.until_paid(51).await;
    app.until_ready().await;
    let headers: Vec<String> = sqlx::query_scalar("SELECT headers FROM inbox")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    for headers in headers {
        let headers: Value = serde_json::from_str(&headers).unwrap();
        let requeued = headers["x-delivery-count"].as_i64().unwrap_or(0);
        assert!(requeued <= 3, "a message went round {requeued} times");
    }
}

e2e::on_each_server!(a_batch_that_waits_too_long_for_a_lock_is_tried_again);
async fn a_batch_that_waits_too_long_for_a_lock_is_tried_again(flavor: Flavor) {
    let args = vec!["--innodb-lock-wait-timeout=1".to_owned()];
    let db = Db::start(
        flavor,
        DbOptions {
            args,
            ..DbOptions::default()
        },
    )
    .await
    .unwrap();
    let bench = Bench::new(&db, Scripted::always(Act::Capture)).await;
    let mut blocker = bench.pool.begin().await.unwrap();
    sqlx::query("INSERT INTO inbox (message_id, payload) VALUES ('m-1', '')")
        .execute(&mut *blocker)
        .await
        .unwrap();
    let store = bench.store.clone();
    let message = received("m-1", &order_payload(Uuid::now_v7()));
    let storing = svc_kit::tasks::unit(async move { store.take_in(vec![message], None).await });
    let waits = async || {
        // Of nothing but this batch: the server is the test's own, and its text may be no text.
        let sql = "SELECT COUNT(*) FROM information_schema.processlist \
                   WHERE command = 'Execute' AND db = ? AND id <> CONNECTION_ID()";
        sqlx::query_scalar::<_, i64>(sql)
            .bind(&bench.database.name)
            .fetch_one(&bench.pool)
            .await
            .unwrap()
    };
    // It waits, gives up after its second, and is there again.
    for _ in 0..2 {
        until("a lock wait", SOON, async || waits().await == 1).await;
        until("the end of a lock wait", SOON, async || waits().await == 0).await;
    }
    if storing.is_finished() {
        panic!("{:?}", storing.await);
    }
    blocker.rollback().await.unwrap();
    assert_eq!(
        storing.await.unwrap().unwrap(),
        [outbox::inbox::Claim::First]
    );
    assert_eq!(bench.work_off().await, 1);
}

/// The service may be there before its servers, its tables or its queue.
#[tokio::test]
async fn the_order_in_which_things_start_does_not_matter() {
    let rabbit = Rabbit::start(RabbitOptions::default()).await.unwrap();
    let vhost = vhost(&rabbit).await;
    let db = e2e::shared::mariadb().await;
    let empty = db.create_database().await.unwrap();
    rabbit.kill().unwrap();

    let config = config(&empty.url, &vhost.amqp_url);
    let app = App::serve(empty, config, Scripted::always(Act::Capture)).await;
    until("the missing tables to be named", SOON, async || {
        let (_, body) = app.readiness().await;
        let detail = body["conditions"]["database"]["detail"]
            .as_str()
            .unwrap()
            .to_owned();
        detail.contains("pay-svc migrate")
    })
    .await;
    let url = svc_kit::database::DatabaseUrl::parse(&app.database.url).unwrap();
    svc_kit::migrate::run(&url, &pay_svc::migrations())
        .await
        .unwrap();
    rabbit.restart().await.unwrap();

    app.until_ready().await;
    app.until_it_pays(&vhost).await;
}

/// A stopped broker leaves the way in by hand, and the work goes on.
#[tokio::test]
async fn without_a_broker_received_messages_are_still_paid() {
    let rabbit = Rabbit::start(RabbitOptions::default()).await.unwrap();
    let vhost = vhost(&rabbit).await;
    let tables = database(e2e::shared::mariadb().await).await;
    rabbit.kill().unwrap();
    let config = config(&tables.url, &vhost.amqp_url);
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    let body = format!(
        r#"{{"message_id":"m-1","type":"order.placed.v1","payload":{}}}"#,
        order_payload(Uuid::now_v7())
    );
    let request = app
        .client
        .post(format!("{}/pay", app.url))
        .bearer_auth(crate::app::OPERATOR);
    let request = request
        .header("content-type", "application/json")
        .body(body);
    until("the database", SOON, async || {
        app.readiness().await.1["conditions"]["database"]["ok"] == true
    })
    .await;
    assert_eq!(request.send().await.unwrap().status(), StatusCode::ACCEPTED);
    app.until_paid(1).await;
    assert_eq!(app.stop().await, Exit::Drained);
}

e2e::on_each_server!(a_store_that_takes_longer_than_two_heartbeats_keeps_the_connection);
/// The gate is closed then, and lapin gives up a connection that is silent for two heartbeats.
async fn a_store_that_takes_longer_than_two_heartbeats_keeps_the_connection(flavor: Flavor) {
    const MESSAGES: i64 = 40;
    const HEARTBEAT: u64 = 2;
    let db = e2e::shared::database(flavor).await;
    let tables = database(db).await;
    let pool = tables.pool().unwrap();
    let vhost = vhost(e2e::shared::rabbit().await).await;
    let publisher = Publisher::connect(&vhost.amqp_url).await;
    let body = "x".repeat(128 * 1024);
    for number in 0..MESSAGES {
        let message = Outgoing::new(&format!("m-{number}"), &body);
        publisher.publish(&message).await;
    }
    let mut blocker = tables.connect().await.unwrap();
    blocker.execute("LOCK TABLES inbox READ").await.unwrap();
    let url = format!("{}?heartbeat={HEARTBEAT}", vhost.amqp_url);
    let small = ["--buffer-bytes", "1048576"];
    let config = config_with(&tables.url, &url, &small);
    let name = tables.name.clone();
    let app = App::serve(tables, config, Scripted::always(Act::Capture)).await;
    until("a store that waits", SOON, async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM information_schema.processlist \
             WHERE db = ? AND info LIKE 'INSERT INTO `inbox`%'",
        )
        .bind(&name)
        .fetch_one(&pool)
        .await
        .unwrap();
        waiting > 0
    })
    .await;
    // The time itself is the case: a connection of no use would be gone after two heartbeats.
    let held = std::time::Instant::now();
    while held.elapsed().as_secs() < 4 * HEARTBEAT {
        let (_, body) = app.readiness().await;
        assert_eq!(body["conditions"]["broker"]["ok"], true, "{body}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    blocker.execute("UNLOCK TABLES").await.unwrap();
    let stored = async || -> (i64, i64) {
        let sql = "SELECT COUNT(*), CAST(COALESCE(SUM(deliveries), 0) AS SIGNED) FROM inbox";
        sqlx::query_as(sql).fetch_one(&pool).await.unwrap()
    };
    until("all to be stored", SOON, async || {
        stored().await.0 == MESSAGES
    })
    .await;
    app.until_ready().await;
    let deliveries = stored().await.1;
    assert_eq!(deliveries, MESSAGES, "{:?}: redelivered", db.flavor());
}
