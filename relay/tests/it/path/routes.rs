//! Routes that are closed: no binding, no exchange, no right, a full queue. Their rows wait and follow
//! by themselves; nothing else waits for them.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::ops::{FROM_BINLOG, MISSED};
use e2e::rig::rows::assert_calm;
use e2e::rig::{EXCHANGE, LATER, QUEUE, Rig, SOON};
use serde_json::json;

/// A further binding of the rig's queue.
async fn bind(rig: &Rig, exchange: &str, routing_key: &str) {
    let api = rig.rabbit.management().unwrap();
    api.bind(&rig.vhost.name, exchange, QUEUE, routing_key)
        .await
        .unwrap();
}

#[tokio::test]
async fn of_4000_pipelined_messages_400_unroutable_ones_stay_pending_and_follow_once_bound() {
    e2e::shared::on_every_server_at_once(unroutable_among_routable).await;
}

async fn unroutable_among_routable(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    const ROUNDS: i64 = 10;
    let mut rig = Rig::new(db).await;
    // Large batches: the confirms of many returned messages are on their way together.
    rig.set_backoff("100ms", "500ms")
        .set("RELAY_BATCH_MAX", "1000");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    for round in 0..ROUNDS {
        let route = |n| if n % 10 == 3 { "late.pay" } else { "order.pay" };
        let rows = (0..4000).map(|n| (format!("{round}-{n}"), route(n)));
        rig.insert_all(rows).await;

        rig.wait_count("status = 2", round * 4000 + 3600).await;
        rig.wait_waiting("late.pay", 400).await;
        rig.wait_reason("routing_key = 'late.pay'", "312 NO_ROUTE")
            .await;
        let waiting = "status = 1 AND routing_key = 'late.pay' AND attempts = 0 \
                       AND next_attempt_at IS NULL";
        assert_eq!(rig.count(waiting).await, 400);
        let misjudged = "status = 2 AND routing_key = 'late.pay'";
        assert_eq!(rig.count(misjudged).await, round * 400);
        assert_eq!(rig.count("status > 2 OR attempts > 0").await, 0);

        bind(&rig, EXCHANGE, "late.*").await;
        rig.wait_sent((round + 1) * 4000).await;
        let all = usize::try_from((round + 1) * 4000).unwrap();
        e2e::wait::until("every delivery", SOON, async || {
            deliveries.first().len() == all
        })
        .await;
        assert_eq!(deliveries.count(), all, "nothing is delivered twice");
        let api = rig.rabbit.management().unwrap();
        let unbound = api.unbind(&rig.vhost.name, EXCHANGE, QUEUE, "late.*").await;
        assert!(unbound.unwrap());
    }
    assert_eq!(rig.metric(MISSED).await, Some(0.0));
    assert!(
        !relay.log().contains("BasicReturnMessage"),
        "no payload in the log"
    );
    assert_calm(&relay);
}

e2e::on_each_server!(with_no_consumer_yet_the_exchange_is_declared_and_rows_wait_visibly);
async fn with_no_consumer_yet_the_exchange_is_declared_and_rows_wait_visibly(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::without_queue(db).await;
    rig.set_backoff("100ms", "500ms");
    let before = rig.insert(5).await;
    let relay = rig.tailing().await;
    let after = rig.insert(5).await;
    rig.wait_waiting("order.pay", 10).await;

    let api = rig.rabbit.management().unwrap();
    let path = format!("exchanges/{}/{EXCHANGE}", rig.vhost.name);
    let exchange = api.get(&path).await.unwrap();
    assert_eq!(exchange["type"], "topic");
    assert_eq!(exchange["durable"], true);
    let queues = api.queues(&rig.vhost.name).await.unwrap();
    assert!(
        queues.is_empty(),
        "a consumer's queue is not ours: {queues:?}"
    );
    rig.wait_reason("attempts = 0", "312 NO_ROUTE").await;
    assert_eq!(rig.count("status = 1 AND attempts = 0").await, 10);
    let ready = reqwest::get(format!("http://{}/readyz", rig.env["ADMIN_ADDR"])).await;
    assert_eq!(ready.unwrap().status(), 200, "a closed route is no outage");

    rig.declare_queue(QUEUE, "order.*").await;
    let deliveries = rig.consume(QUEUE).await;
    rig.wait_sent(10).await;
    rig.wait_metric("outbox_relay_pending_rows", 0.0).await;
    e2e::wait::until("10 deliveries", SOON, async || deliveries.count() == 10).await;
    let mut arrived: Vec<_> = deliveries.all().into_iter().map(|d| d.message_id).collect();
    arrived.sort();
    assert_eq!(arrived, [before, after].concat());
    assert_calm(&relay);
}

e2e::on_each_server!(a_missing_exchange_holds_its_own_route_alone_and_without_a_crash_loop);
async fn a_missing_exchange_holds_its_own_route_alone_and_without_a_crash_loop(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set_backoff("100ms", "500ms")
        .set("RELAY_DECLARE_EXCHANGE", "");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut tx = rig.pool.begin().await.unwrap();
    let mut lost = Vec::new();
    for number in 0..40 {
        let key = format!("{number}");
        let event = outbox::Event::new("order", key, "order.placed.v1", "order.pay", b"{}");
        let event = match number % 4 {
            0 => event.exchange("not-there"),
            _ => event,
        };
        let id = outbox::event::write(&mut tx, &event).await.unwrap();
        if number % 4 == 0 {
            lost.push(id.to_string());
        }
    }
    tx.commit().await.unwrap();

    rig.wait_count("status = 2", 30).await;
    rig.wait_reason("exchange = 'not-there'", "404 NOT_FOUND")
        .await;
    let name = "outbox_relay_waiting_rows{exchange=\"not-there\",routing_key=\"order.pay\"}";
    rig.wait_metric(name, 10.0).await;
    rig.insert(10).await;
    rig.wait_count("status = 2", 40).await;
    assert_eq!(rig.count("status = 1 AND attempts = 0").await, 10);
    assert_eq!(rig.count("exchange = 'not-there' AND status <> 1").await, 0);
    assert_calm(&relay);

    let api = rig.rabbit.management().unwrap();
    api.declare_exchange(&rig.vhost.name, "not-there", "topic")
        .await
        .unwrap();
    bind(&rig, "not-there", "order.*").await;
    rig.wait_sent(50).await;
    e2e::wait::until("50 messages", SOON, async || deliveries.first().len() == 50).await;
    assert_eq!(rig.count("attempts > 0").await, 0);
    assert_calm(&relay);
}

#[tokio::test]
async fn an_exchange_the_relay_may_not_write_to_holds_its_own_route_alone() {
    let mut rig = Rig::new(e2e::shared::mariadb().await).await;
    let api = rig.rabbit.management().unwrap();
    let user = format!("relay-{}", rig.vhost.name);
    api.create_user(&user, "pw", "").await.unwrap();
    api.declare_exchange(&rig.vhost.name, "forbidden", "topic")
        .await
        .unwrap();
    let rights = [EXCHANGE, EXCHANGE, EXCHANGE];
    api.set_permissions(&rig.vhost.name, &user, rights)
        .await
        .unwrap();
    let url = rig.rabbit.user_url(&user, "pw", &rig.vhost.name);
    rig.set("AMQP_URL", &url).set_backoff("100ms", "500ms");
    let relay = rig.tailing().await;

    rig.insert(10).await;
    rig.sql("UPDATE outbox_fence SET n = n + 1").await;
    let mut tx = rig.pool.begin().await.unwrap();
    let event = outbox::Event::new("order", "f", "order.placed.v1", "order.pay", b"{}");
    let event = event.exchange("forbidden");
    let refused = outbox::event::write(&mut tx, &event).await.unwrap();
    tx.commit().await.unwrap();
    rig.insert(10).await;

    rig.wait_count("status = 2", 20).await;
    rig.wait_reason("exchange = 'forbidden'", "403 ACCESS_REFUSED")
        .await;
    let state = rig.state(&refused.to_string()).await;
    assert_eq!((state.status, state.attempts), (1, 0), "{state:?}");
    assert_calm(&relay);

    let rights = [EXCHANGE, ".*", EXCHANGE];
    api.set_permissions(&rig.vhost.name, &user, rights)
        .await
        .unwrap();
    bind(&rig, "forbidden", "order.*").await;
    rig.wait_sent(21).await;
    assert_calm(&relay);
}

e2e::on_each_server!(a_full_queue_that_refuses_holds_its_rows_until_it_is_emptied);
async fn a_full_queue_that_refuses_holds_its_rows_until_it_is_emptied(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set_backoff("50ms", "300ms");
    let api = rig.rabbit.management().unwrap();
    let limits = json!({"x-max-length": 10, "x-overflow": "reject-publish"});
    api.declare_queue(&rig.vhost.name, "small", limits)
        .await
        .unwrap();
    api.bind(&rig.vhost.name, EXCHANGE, "small", "small.*")
        .await
        .unwrap();
    let relay = rig.tailing().await;
    let rows = (0..50).map(|n| (format!("{}", n % 5), "small.pay"));
    let small = rig.insert_all(rows).await;

    rig.wait_reason("routing_key = 'small.pay'", "nack").await;
    // The queue's limit is no exact one.
    e2e::wait::until("the rest to wait", SOON, async || {
        rig.count("status = 2").await >= 10 && rig.count("status = 1").await <= 40
    })
    .await;
    rig.insert_all((0..50).map(|n| (format!("open-{n}"), "order.pay")))
        .await;
    rig.wait_count("routing_key = 'order.pay' AND status = 2", 50)
        .await;
    let waiting = rig.count("routing_key = 'small.pay' AND status = 1").await;
    assert!(waiting >= 30, "{waiting}");
    assert_eq!(rig.count("attempts > 0 OR status > 2").await, 0);
    let failed = "outbox_relay_failed_total{reason=\"nack\"}";
    assert!(rig.metric(failed).await > Some(0.0));

    let deliveries = rig.consume("small").await;
    rig.wait_sent(100).await;
    e2e::wait::until("50 messages", SOON, async || deliveries.count() >= 50).await;
    let arrived = deliveries.all();
    assert_eq!(arrived.len(), 50, "what was refused is not in the queue");
    for key in 0..5 {
        let of_key: Vec<_> = arrived
            .iter()
            .filter(|delivery| delivery.key == format!("{key}"))
            .map(|delivery| delivery.message_id.clone())
            .collect();
        let written: Vec<_> = small.iter().skip(key).step_by(5).cloned().collect();
        assert_eq!(of_key, written, "order of key {key}");
    }
    assert_calm(&relay);
}

e2e::on_each_server!(a_closed_route_does_not_slow_another);
async fn a_closed_route_does_not_slow_another(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    // It is probed all the time.
    rig.set_backoff("20ms", "50ms");
    let relay = rig.tailing().await;
    let alone = rows_take(&rig, "a", 3000, 0).await;
    rig.insert_all((0..3000).map(|n| (format!("closed-{n}"), "closed.pay")))
        .await;
    rig.wait_waiting("closed.pay", 3000).await;
    let beside = rows_take(&rig, "b", 3000, 3000).await;
    eprintln!("3,000 rows alone {alone:?}, beside a closed route {beside:?}");
    assert!(
        beside < alone * 3 + Duration::from_secs(1),
        "{alone:?} {beside:?}"
    );
    // None of them had to wait for a sweep.
    assert_eq!(rig.metric(FROM_BINLOG).await, Some(6000.0));
    assert_calm(&relay);
}

async fn rows_take(rig: &Rig, name: &str, rows: i64, before: i64) -> Duration {
    let start = Instant::now();
    for some in 0..rows / 100 {
        let keys = (0..100).map(|n| (format!("{name}-{some}-{n}"), "order.pay"));
        rig.insert_all(keys).await;
    }
    rig.wait_count("status = 2", before + rows).await;
    start.elapsed()
}

e2e::on_each_server!(a_key_that_goes_over_a_closed_and_an_open_route_keeps_its_order);
async fn a_key_that_goes_over_a_closed_and_an_open_route_keeps_its_order(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set_backoff("100ms", "500ms");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut written = Vec::new();
    for number in 0..30 {
        let route = if number % 3 == 1 {
            "late.pay"
        } else {
            "order.pay"
        };
        written.push(rig.insert_one("one", route, b"{}").await);
    }
    let others = rig.insert(20).await;
    rig.wait_count("status = 2", 21).await;
    rig.wait_waiting("late.pay", 10).await;
    assert_eq!(rig.state(&written[0]).await.status, 2);
    assert_eq!(rig.count("aggregate_id = 'one' AND status = 1").await, 29);

    // More of both come while the key is being fed from the table.
    bind(&rig, EXCHANGE, "late.*").await;
    for number in 0..30 {
        let route = if number % 3 == 1 {
            "late.pay"
        } else {
            "order.pay"
        };
        written.push(rig.insert_one("one", route, b"{}").await);
    }
    rig.wait_sent(80).await;
    e2e::wait::until("80 messages", SOON, async || deliveries.first().len() == 80).await;
    let arrived: Vec<_> = deliveries
        .first()
        .into_iter()
        .filter(|delivery| delivery.key == "one")
        .map(|delivery| delivery.message_id)
        .collect();
    assert_eq!(arrived, written);
    assert_eq!(others.len(), 20);
    assert_calm(&relay);
}

#[tokio::test]
async fn without_an_order_only_the_rows_of_the_closed_route_wait() {
    let mut rig = Rig::new(e2e::shared::mariadb().await).await;
    rig.set_backoff("100ms", "500ms").set("RELAY_ORDER", "none");
    let relay = rig.tailing().await;
    for number in 0..30 {
        let route = if number % 3 == 1 {
            "late.pay"
        } else {
            "order.pay"
        };
        rig.insert_one("one", route, b"{}").await;
    }
    rig.wait_count("status = 2", 20).await;
    rig.wait_waiting("late.pay", 10).await;
    bind(&rig, EXCHANGE, "late.*").await;
    rig.wait_sent(30).await;
    assert_eq!(rig.count("attempts > 0").await, 0);
    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
