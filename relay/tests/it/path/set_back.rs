//! Rows that are set back by hand, with the statements that people use.

use std::time::Duration;

use e2e::Flavor;
use e2e::product::Process;
use e2e::rig::ops::{FROM_BINLOG, MISSED};
use e2e::rig::rows::assert_calm;
use e2e::rig::{Deliveries, QUEUE, Rig, SOON};

/// A statement of a person's, with `ID` and `MESSAGE` for those of the row.
const WAYS: [(&str, u8, &str); 8] = [
    (
        "status alone",
        2,
        "UPDATE outbox SET status = 1 WHERE id = ID",
    ),
    (
        "status and sent_at",
        2,
        "UPDATE outbox SET status = 1, sent_at = NULL WHERE id = ID",
    ),
    (
        "everything",
        2,
        "UPDATE outbox SET status = 1, sent_at = NULL, attempts = 0, last_error = NULL, \
         next_attempt_at = NULL WHERE message_id = 'MESSAGE'",
    ),
    (
        "from discarded",
        4,
        "UPDATE outbox SET status = 1, sent_at = NULL WHERE id = ID",
    ),
    (
        "REPLACE",
        2,
        "REPLACE INTO outbox (id, message_id, aggregate_type, aggregate_id, event_type, \
         routing_key, payload) VALUES (ID, 'MESSAGE', 'order', 'k', 'order.placed.v1', \
         'order.pay', '{}')",
    ),
    (
        "ON DUPLICATE KEY UPDATE",
        2,
        "INSERT INTO outbox (id, message_id, aggregate_type, aggregate_id, event_type, \
         routing_key, payload) VALUES (ID, 'MESSAGE', 'order', 'k', 'order.placed.v1', \
         'order.pay', '{}') ON DUPLICATE KEY UPDATE status = 1, sent_at = NULL",
    ),
    (
        "DELETE and INSERT",
        2,
        "DELETE FROM outbox WHERE id = ID; \
         INSERT INTO outbox (id, message_id, aggregate_type, aggregate_id, event_type, \
         routing_key, payload) VALUES (ID, 'MESSAGE', 'order', 'k', 'order.placed.v1', \
         'order.pay', '{}')",
    ),
    (
        "DELETE and INSERT with another id",
        2,
        "DELETE FROM outbox WHERE id = ID; \
         INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
         routing_key, payload) VALUES ('MESSAGE', 'order', 'k', 'order.placed.v1', \
         'order.pay', '{}')",
    ),
];

async fn set_back(rig: &Rig, relay: &Process, deliveries: &Deliveries) {
    for (way, status, statement) in WAYS {
        let message = rig.insert_one("k", "order.pay", b"{}").await;
        rig.wait_status(&message, 2).await;
        if status != 2 {
            rig.sql(&format!(
                "UPDATE outbox SET status = {status} WHERE message_id = '{message}'"
            ))
            .await;
        }
        let id: u64 = sqlx::query_scalar("SELECT id FROM outbox WHERE message_id = ?")
            .bind(&message)
            .fetch_one(&rig.pool)
            .await
            .unwrap();
        let statement = statement
            .replace("ID,", &format!("{id},"))
            .replace("= ID", &format!("= {id}"))
            .replace("MESSAGE", &message);
        rig.sql(&statement).await;
        e2e::wait::until(&format!("{way}: the message again"), SOON, async || {
            let ids = deliveries.ids();
            ids.iter().filter(|id| **id == message).count() == 2
        })
        .await;
        rig.wait_status(&message, 2).await;
        assert_eq!(rig.metric(MISSED).await, Some(0.0), "{way}");
    }
    assert_calm(relay);
}

e2e::on_each_server!(a_row_that_is_set_back_by_hand_is_sent_again_and_never_counts_as_missed);
async fn a_row_that_is_set_back_by_hand_is_sent_again_and_never_counts_as_missed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    for order in ["key", "none"] {
        let mut rig = Rig::new(db).await;
        // Sweeps that would count it come all the time, others make up for nothing.
        rig.set("RELAY_SWEEP_INTERVAL", "1s")
            .set("RELAY_ORDER", order);
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        set_back(&rig, &relay, &deliveries).await;

        // Thousands at once, under load.
        let rows = (0..3000).map(|n| (format!("many-{n}"), "order.pay"));
        rig.insert_all(rows).await;
        rig.wait_count("status = 2", 3000 + 8).await;
        let changing = rig
            .sql("UPDATE outbox SET status = 1, sent_at = NULL WHERE aggregate_id LIKE 'many-%'");
        tokio::join!(changing, rig.insert(100));
        rig.wait_sent(3108).await;
        e2e::wait::until("all of them twice", SOON, async || {
            deliveries.count() >= 2 * 3008 + 100
        })
        .await;
        assert_eq!(deliveries.count(), 2 * 3008 + 100);
        assert_eq!(rig.metric(MISSED).await, Some(0.0));
        assert_calm(&relay);
    }
}

e2e::on_each_server!(a_row_that_the_binlog_does_not_have_still_counts_as_missed);
async fn a_row_that_the_binlog_does_not_have_still_counts_as_missed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "500ms");
    let relay = rig.tailing().await;
    let before = rig.metric(FROM_BINLOG).await;
    let mut hidden = rig.database.connect().await.unwrap();
    let insert = "SET SESSION sql_log_bin = 0; INSERT INTO outbox (message_id, \
        aggregate_type, aggregate_id, event_type, routing_key, payload) VALUES (UUID(), \
        'order', 'hidden', 'order.placed.v1', 'order.pay', '{}')";
    sqlx::Executor::execute(&mut hidden, sqlx::raw_sql(insert))
        .await
        .unwrap();
    rig.wait_sent(1).await;
    e2e::wait::until("it is counted", Duration::from_secs(10), async || {
        rig.metric(MISSED).await == Some(1.0)
    })
    .await;
    assert_eq!(rig.metric(FROM_BINLOG).await, before);
    assert_calm(&relay);
}
