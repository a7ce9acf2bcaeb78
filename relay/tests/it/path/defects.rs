//! Defects of the system that this one stands for, each turned into what must hold here. P3 is in
//! `poison`, P4 and P5 are in `routes`.

use std::collections::HashMap;
use std::time::Duration;

use e2e::rig::ops::FROM_BINLOG;
use e2e::rig::rows::assert_calm;
use e2e::rig::{EXCHANGE, LATER, QUEUE, Rig, SOON};
use e2e::{Flavor, Rabbit, RabbitOptions};
use relay::outbox_table::OutboxTable;
use relay::source::table::queries::Queries;
use sqlx::{AssertSqlSafe, Executor as _};
use svc_kit::database::DatabaseUrl;

e2e::on_each_server!(what_is_rolled_back_is_never_published);
async fn what_is_rolled_back_is_never_published(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "100ms");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let event = |key| outbox::Event::new("order", key, "order.placed.v1", "order.pay", b"{}");

    let mut open = rig.pool.begin().await.unwrap();
    outbox::event::write(&mut open, &event("rolled back"))
        .await
        .unwrap();
    // While it is open, sweeps look at the table and the tail goes past.
    for number in 0..5 {
        let id = rig
            .insert_one(&format!("beside-{number}"), "order.pay", b"{}")
            .await;
        rig.wait_status(&id, 2).await;
    }
    open.rollback().await.unwrap();

    let mut half = rig.pool.begin().await.unwrap();
    outbox::event::write(&mut half, &event("kept"))
        .await
        .unwrap();
    half.execute("SAVEPOINT s").await.unwrap();
    outbox::event::write(&mut half, &event("undone"))
        .await
        .unwrap();
    half.execute("ROLLBACK TO s").await.unwrap();
    half.commit().await.unwrap();

    let last = rig.insert_one("after", "order.pay", b"{}").await;
    rig.wait_status(&last, 2).await;
    rig.wait_sent(7).await;
    e2e::wait::until("7 deliveries", SOON, async || deliveries.count() == 7).await;
    let phantom = |key: &str| deliveries.all().iter().any(|delivery| delivery.key == key);
    assert!(phantom("kept") && !phantom("rolled back") && !phantom("undone"));
    assert_calm(&relay);
}

e2e::on_each_server!(a_broker_outage_spends_no_attempts_and_makes_no_resend_storm);
async fn a_broker_outage_spends_no_attempts_and_makes_no_resend_storm(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    // A rig keeps its broker for the whole process; this one is killed at the end.
    let rabbit: &'static Rabbit = Box::leak(Box::new(
        Rabbit::start(RabbitOptions::default()).await.unwrap(),
    ));
    let mut rig = Rig::on(db, rabbit).await;
    // One way on each server.
    let killed = flavor == Flavor::MariaDb;
    declare(&rig, killed).await;
    rig.set("RELAY_SWEEP_INTERVAL", "500ms")
        .set("RELAY_BATCH_MAX", "512");
    let relay = rig.tailing().await;
    rig.insert(100).await;
    let going = rig.insert_all((0..1000).map(|n| (format!("going-{n}"), "order.pay")));
    // In the middle of the work: at once, or in order.
    if killed {
        going.await;
        rabbit.kill().unwrap();
    } else {
        let (_, stopped) = tokio::join!(going, rabbit.stop());
        stopped.unwrap();
    }
    rig.wait_metric("outbox_relay_broker_connected", 0.0).await;
    rig.insert_all((0..1000).map(|n| (format!("in-outage-{n}"), "order.pay")))
        .await;
    // Some seconds of it: three vain attempts to connect at least.
    e2e::wait::until("three retries", LATER, async || {
        relay.log().matches("starting again").count() >= 4
    })
    .await;
    assert!(rig.count("status = 1").await >= 1000);
    assert_eq!(rig.count("attempts > 0 OR status > 2").await, 0);

    rabbit.restart().await.unwrap();
    rig.wait_sent(2100).await;
    let deliveries = rig.consume(QUEUE).await;
    e2e::wait::until("2,100 messages", LATER, async || {
        deliveries.first().len() == 2100
    })
    .await;
    let mut times: HashMap<String, usize> = HashMap::new();
    for delivery in deliveries.all() {
        *times.entry(delivery.message_id).or_default() += 1;
    }
    let most = times.values().max().copied().unwrap();
    let again = deliveries.count() - 2100;
    eprintln!("{again} of 2,100 delivered again, one {most} times at most");
    assert!(
        most <= 2,
        "each was on its way once when the broker went: {most}"
    );
    assert!(
        again <= 2 * 512,
        "no more than two batches are on their way: {again}"
    );
    assert_eq!(rig.count("attempts > 0 OR last_error IS NOT NULL").await, 0);
    assert_eq!(attempts_written(&rig).await, 0);
    assert!(!relay.log().contains("panicked"), "{}", relay.log());
    drop(relay);
    rabbit.kill().unwrap();
}

/// A queue that outlives its broker's end. A quorum queue may not: when RabbitMQ 3.10 is killed soon
/// after the declaration, it comes back without a leader and confirms nothing any more
/// (<https://github.com/rabbitmq/rabbitmq-server/issues/10070>).
async fn declare(rig: &Rig, killed: bool) {
    if !killed {
        return rig.declare_queue(QUEUE, "order.*").await;
    }
    let api = rig.rabbit.management().unwrap();
    let vhost = &rig.vhost.name;
    api.declare_queue(vhost, QUEUE, serde_json::json!({}))
        .await
        .unwrap();
    api.declare_exchange(vhost, EXCHANGE, "topic")
        .await
        .unwrap();
    api.bind(vhost, EXCHANGE, QUEUE, "order.*").await.unwrap();
}

async fn attempts_written(rig: &Rig) -> i64 {
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM outbox_attempts");
    count.fetch_one(&rig.pool).await.unwrap()
}

/// Rows with a status and a `sent_at` this long ago.
async fn insert_aged(rig: &Rig, rows: u32, status: u8, age: Duration) {
    let statement = format!(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
         routing_key, payload, status, sent_at) \
         WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 1000) \
         SELECT UUID(), 'order', 'k', 'order.placed.v1', 'order.pay', '{{}}', {status}, \
         UTC_TIMESTAMP(6) - INTERVAL {} SECOND \
         FROM n, (SELECT i FROM n WHERE i <= 100) AS m LIMIT {rows}",
        age.as_secs()
    );
    rig.sql(&statement).await;
}

e2e::on_each_server!(a_pass_reads_the_pending_rows_alone_by_their_index);
async fn a_pass_reads_the_pending_rows_alone_by_their_index(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::without_queue(db).await;
    insert_aged(&rig, 50_000, 2, Duration::ZERO).await;
    rig.insert(10).await;
    let url = DatabaseUrl::parse(&rig.database.url).unwrap();
    let mut connection = url.connect().await.unwrap();
    let table = OutboxTable {
        url,
        name: "outbox".into(),
    };
    let queries = Queries::discover(&mut connection, &table).await.unwrap();
    assert!(queries.has_index());

    let plan = format!("EXPLAIN FORMAT=JSON {}", queries.heads_statement());
    let plan: String = sqlx::query_scalar(AssertSqlSafe(plan))
        .bind(0_u64)
        .bind(u64::MAX)
        .bind(1000_u64)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(plan.contains("outbox_status_id"), "{plan}");
    assert!(!plan.contains("filesort"), "{plan}");

    // What it really reads, whatever the plan says.
    connection.execute("FLUSH STATUS").await.unwrap();
    let heads = sqlx::query(AssertSqlSafe(queries.heads_statement()))
        .bind(0_u64)
        .bind(u64::MAX)
        .bind(1000_u64)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert_eq!(heads.len(), 10);
    let read: Vec<(String, String)> = sqlx::query_as("SHOW SESSION STATUS LIKE 'Handler_read%'")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let read: u64 = read
        .iter()
        .map(|(_, rows)| rows.parse::<u64>().unwrap())
        .sum();
    assert!(read <= 100, "{read} rows read for 10");
}

e2e::on_each_server!(a_pass_meets_every_pending_row_however_they_lie_among_sent_ones);
async fn a_pass_meets_every_pending_row_however_they_lie_among_sent_ones(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    // One pass, which no other one makes up for.
    rig.set("RELAY_MODE", "poll")
        .set("RELAY_ORDER", "none")
        .set("RELAY_POLL_INTERVAL", "1h")
        .set("RELAY_SWEEP_INTERVAL", "1h");
    // Pages of 64 to 512 rows and two of 1,000 end with the first rows, so that one that goes
    // along the table finds nothing; later ones begin and end in the middle.
    let mut pending = 0;
    for (there, sent) in [(2960, 3000), (1, 1), (5, 6000), (2001, 1), (1, 0)] {
        insert_aged(&rig, there, 1, Duration::ZERO).await;
        insert_aged(&rig, sent, 2, Duration::ZERO).await;
        pending += usize::try_from(there).unwrap();
    }
    let deliveries = rig.consume(QUEUE).await;
    let relay = rig.relay();
    rig.wait_count("status = 1", 0).await;
    e2e::wait::until("all deliveries", LATER, async || {
        deliveries.count() >= pending
    })
    .await;
    assert_eq!((deliveries.count(), deliveries.twice()), (pending, 0));
    assert_calm(&relay);
}

e2e::on_each_server!(sent_rows_older_than_the_retention_are_deleted_and_no_others);
async fn sent_rows_older_than_the_retention_are_deleted_and_no_others(flavor: Flavor) {
    const DAY: Duration = Duration::from_secs(86_400);
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    // Sent again lately, with old ids: they must not keep what is behind them.
    insert_aged(&rig, 5, 2, Duration::ZERO).await;
    insert_aged(&rig, 1200, 2, 2 * DAY).await;
    insert_aged(&rig, 100, 2, DAY / 2).await;
    insert_aged(&rig, 10, 3, 2 * DAY).await;
    insert_aged(&rig, 10, 4, 2 * DAY).await;
    rig.set("RELAY_RETENTION", "1d");
    let relay = rig.tailing().await;
    rig.insert(10).await;
    rig.wait_count(
        "status = 2 AND sent_at < UTC_TIMESTAMP() - INTERVAL 1 DAY",
        0,
    )
    .await;
    rig.wait_metric("outbox_relay_cleaned_total", 1200.0).await;
    rig.wait_count("status = 2", 5 + 100 + 10).await;
    assert_eq!(rig.count("status IN (3, 4)").await, 20);
    assert_calm(&relay);
}

e2e::on_each_server!(clean_up_gets_past_whatever_a_sent_row_may_contain);
async fn clean_up_gets_past_whatever_a_sent_row_may_contain(flavor: Flavor) {
    const DAY: Duration = Duration::from_secs(86_400);
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    // Old ones without a time of their own, young ones, ones from the future and without any
    // time, and old ones with the highest id and behind a foreign key.
    insert_aged(&rig, 6000, 2, DAY).await;
    rig.sql(
        "UPDATE outbox SET sent_at = NULL, created_at = created_at - INTERVAL 3 DAY \
         WHERE id <= 3000",
    )
    .await;
    rig.sql("UPDATE outbox SET sent_at = NULL WHERE id > 3000")
        .await;
    insert_aged(&rig, 7000, 2, DAY).await;
    let first: u64 = sqlx::query_scalar("SELECT MAX(id) - 6999 FROM outbox")
        .fetch_one(&rig.pool)
        .await
        .unwrap();
    rig.sql(&format!(
        "SET SESSION sql_mode = ''; \
         UPDATE outbox SET sent_at = '9999-12-31', created_at = '9999-12-31' \
         WHERE id >= {first} AND id < {first} + 6000; \
         UPDATE outbox SET sent_at = '0000-00-00', created_at = '0000-00-00' \
         WHERE id >= {first} + 6000; SET SESSION sql_mode = DEFAULT"
    ))
    .await;
    insert_aged(&rig, 700, 2, 3 * DAY).await;
    rig.sql("UPDATE outbox SET id = 18446744073709551000 ORDER BY id DESC LIMIT 1")
        .await;
    rig.sql(
        "CREATE TABLE kept (id BIGINT UNSIGNED NOT NULL, \
         FOREIGN KEY (id) REFERENCES outbox (id)); \
         INSERT INTO kept SELECT id FROM outbox WHERE sent_at < UTC_TIMESTAMP() - INTERVAL 2 \
         DAY AND sent_at > '2000-01-01' ORDER BY id LIMIT 3",
    )
    .await;
    let left = rig.count("status = 2").await - 3000 - 697;
    rig.set("RELAY_RETENTION", "2d");
    let relay = rig.tailing().await;
    rig.wait_metric("outbox_relay_cleaned_total", 3697.0).await;
    for (reason, rows) in [("no_time", 7000.0), ("refused", 3.0), ("locked", 0.0)] {
        let name = format!("outbox_relay_cleanup_skipped_rows{{reason=\"{reason}\"}}");
        rig.wait_metric(&name, rows).await;
    }
    assert_eq!(rig.count("status = 2").await, left);
    assert_calm(&relay);
}

#[tokio::test]
async fn a_retention_of_zero_keeps_every_sent_row() {
    let mut rig = Rig::new(e2e::shared::mariadb().await).await;
    insert_aged(&rig, 100, 2, Duration::from_secs(10 * 365 * 86_400)).await;
    rig.set("RELAY_RETENTION", "0s");
    let relay = rig.tailing().await;
    rig.insert(10).await;
    rig.wait_count("status = 2", 110).await;
    relay.terminate().unwrap();
    assert!(relay.wait_exit(LATER).await.unwrap().success());
    assert_eq!(rig.count("status = 2").await, 110);
}

e2e::on_each_server!(a_writer_whose_clock_or_zone_is_hours_off_is_served_at_once);
async fn a_writer_whose_clock_or_zone_is_hours_off_is_served_at_once(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "5m");
    let relay = rig.tailing().await;
    let mut writer = rig.database.connect().await.unwrap();
    for (number, zone) in ["+13:00", "-11:00", "+08:00"].into_iter().enumerate() {
        let set = format!("SET time_zone = '{zone}'");
        writer.execute(AssertSqlSafe(set)).await.unwrap();
        // CURRENT_TIMESTAMP is the session's zone: the mistake itself.
        let insert = format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, payload, created_at) VALUES (UUID(), 'order', 'zone-{number}', \
             'order.placed.v1', 'order.pay', '{{}}', CURRENT_TIMESTAMP(6))"
        );
        writer.execute(AssertSqlSafe(insert)).await.unwrap();
        // With the table's default the zone does not matter.
        let insert = format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, payload) VALUES (UUID(), 'order', 'zone-{number}', \
             'order.placed.v1', 'order.pay', '{{}}')"
        );
        writer.execute(AssertSqlSafe(insert)).await.unwrap();
    }
    rig.wait_sent(6).await;
    assert_eq!(
        rig.metric(FROM_BINLOG).await,
        Some(6.0),
        "none waited for a sweep"
    );
    let late = "sent_at > TIMESTAMPADD(SECOND, 20, created_at) OR sent_at < created_at";
    // Three by their own fault, the ones with the default are right whatever the zone.
    assert_eq!(rig.count(late).await, 3);
    rig.wait_metric("outbox_relay_binlog_lag_seconds", 0.0)
        .await;
    // A pass sees them with the same eyes.
    relay.terminate().unwrap();
    assert!(relay.wait_exit(LATER).await.unwrap().success());
    rig.sql("UPDATE outbox SET status = 1, sent_at = NULL")
        .await;
    relay.start_again().unwrap();
    rig.wait_sent(6).await;
    assert_calm(&relay);
}
