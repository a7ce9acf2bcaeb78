//! Primary keys of several columns, and partitions.

use e2e::Flavor;
use e2e::rig::ops::MISSED;
use e2e::rig::rows::assert_calm;
use e2e::rig::writers::{Writers, assert_first_deliveries_in_order, wait_all_delivered};
use e2e::rig::{QUEUE, Rig};

/// What makes the outbox one with such a key.
const KEYS: [(&str, &str); 3] = [
    (
        "PRIMARY KEY (id, created_at)",
        "ALTER TABLE outbox DROP PRIMARY KEY, ADD PRIMARY KEY (id, created_at)",
    ),
    (
        "partitioned by id",
        "ALTER TABLE outbox DROP INDEX outbox_message_id, ADD UNIQUE KEY outbox_message_id \
         (message_id, id) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (700), \
         PARTITION p1 VALUES LESS THAN (1500), PARTITION p2 VALUES LESS THAN MAXVALUE)",
    ),
    (
        "partitioned by created_at",
        "ALTER TABLE outbox DROP PRIMARY KEY, ADD PRIMARY KEY (id, created_at), \
         DROP INDEX outbox_message_id, ADD UNIQUE KEY outbox_message_id (message_id, created_at) \
         PARTITION BY RANGE COLUMNS (created_at) (PARTITION p0 VALUES LESS THAN ('2026-01-01'), \
         PARTITION p1 VALUES LESS THAN ('2036-01-01'), PARTITION p2 VALUES LESS THAN (MAXVALUE))",
    ),
];

e2e::on_each_server!(keys_of_several_columns_and_partitions_cost_no_duplicate_and_no_missed_row);
async fn keys_of_several_columns_and_partitions_cost_no_duplicate_and_no_missed_row(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    for (key, change) in KEYS {
        eprintln!("{:?} {key}", db.flavor());
        let mut rig = Rig::new(db).await;
        rig.set("RELAY_SWEEP_INTERVAL", "500ms");
        rig.sql(change).await;
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        let writers = Writers::start(&rig, 8, 40).await;
        e2e::wait::until("3,000 rows sent", e2e::rig::LATER, async || {
            rig.count("status = 2").await >= 3000
        })
        .await;
        let committed = writers.stop(&rig).await;
        wait_all_delivered(&rig, &deliveries).await;
        // And the last row, which shows that all are there.
        rig.wait_sent(i64::try_from(committed + 1).unwrap()).await;
        assert_eq!(assert_first_deliveries_in_order(&deliveries), committed);
        assert_eq!(deliveries.twice(), 0, "{key}");
        let missed = "outbox_relay_mark_missed_total";
        assert_eq!(rig.metric(missed).await, Some(0.0), "{key}");
        assert_eq!(rig.metric(MISSED).await, Some(0.0), "{key}");
        assert_calm(&relay);
    }
}
