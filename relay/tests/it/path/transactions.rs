//! What a transaction left in the table is what is published, however it came to its end.

use e2e::Flavor;
use e2e::product::Process;
use e2e::rig::ops::{FROM_BINLOG, MISSED, stop, wait_delivered};
use e2e::rig::servers::OwnDb;
use e2e::rig::{Deliveries, LATER, QUEUE, Rig, SOON};
use outbox::Event;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use uuid::Uuid;

/// The log line of a stream that is opened, and so of a catch-up that has ended.
const TAILING: &str = "tailing the binlog";
/// No sweep comes to the rescue within a test.
const NEVER: &str = "10m";

async fn run(connection: &mut MySqlConnection, sql: impl Into<String>) {
    let sql: String = sql.into();
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql.as_str())))
        .await
        .unwrap_or_else(|err| panic!("{sql}: {err}"));
}

/// An INSERT as a program in any language would write it, and its message id.
fn insert_into(table: &str, key: &str) -> (String, String) {
    let id = Uuid::now_v7().to_string();
    let sql = format!(
        "INSERT INTO {table} (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
         payload) VALUES ('{id}', 'order', '{key}', 'order.placed.v1', 'order.pay', '{{}}')"
    );
    (id, sql)
}

fn insert(key: &str) -> (String, String) {
    insert_into("outbox", key)
}

/// Message ids of everything that was ever published.
///
/// A relay that starts reads every pending row, so whatever the first life left in the table by
/// mistake goes out in a second one, and before the last row of the queue.
async fn everything_published(rig: &Rig, relay: &Process, deliveries: &Deliveries) -> Vec<String> {
    stop(relay).await;
    relay.start_again().unwrap();
    rig.wait_phase("tailing").await;
    let last = rig.insert_one("last", "order.pay", b"{}").await;
    wait_delivered(deliveries, std::slice::from_ref(&last)).await;
    stop(relay).await;
    let mut ids = deliveries.ids();
    ids.retain(|id| *id != last);
    ids.sort();
    ids
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

e2e::on_each_server!(rows_committed_out_of_id_order_are_all_delivered);
async fn rows_committed_out_of_id_order_are_all_delivered(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;

    // Two long transactions hold the lowest ids: one ends under the tail, one while no relay runs.
    let mut first = rig.database.connect().await.unwrap();
    let mut second = rig.database.connect().await.unwrap();
    let (first_id, first_insert) = insert("k1");
    let (second_id, second_insert) = insert("k2");
    run(&mut first, "BEGIN").await;
    run(&mut first, first_insert).await;
    run(&mut second, "BEGIN").await;
    run(&mut second, second_insert).await;

    let mut written = rig.insert(30).await;
    rig.wait_sent(30).await;
    run(&mut first, "COMMIT").await;
    written.push(first_id);
    rig.wait_sent(31).await;

    stop(&relay).await;
    written.extend(rig.insert(30).await);
    run(&mut second, "COMMIT").await;
    written.push(second_id);
    relay.start_again().unwrap();
    wait_delivered(&deliveries, &written).await;
    let published = everything_published(&rig, &relay, &deliveries).await;
    assert_eq!(published, sorted(written));
}

e2e::on_each_server!(
    a_prepared_transaction_is_published_when_it_commits_and_never_when_it_rolls_back
);
async fn a_prepared_transaction_is_published_when_it_commits_and_never_when_it_rolls_back(
    flavor: Flavor,
) {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    rig.set("RELAY_SWEEP_INTERVAL", NEVER);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut expected = Vec::new();

    for (number, end) in ["COMMIT", "ROLLBACK"]
        .into_iter()
        .cycle()
        .take(6)
        .enumerate()
    {
        let mut writer = rig.database.connect().await.unwrap();
        let (id, sql) = insert("k");
        let name = format!("'here{number}'");
        run(&mut writer, format!("XA START {name}")).await;
        run(&mut writer, sql).await;
        run(&mut writer, format!("XA END {name}")).await;
        run(&mut writer, format!("XA PREPARE {name}")).await;
        // What is committed after the prepare is delivered: the prepared one does not block.
        let beside = rig.insert_one("beside", "order.pay", b"{}").await;
        wait_delivered(&deliveries, std::slice::from_ref(&beside)).await;
        expected.push(beside);
        assert!(!deliveries.ids().contains(&id), "published before its end");
        run(&mut writer, format!("XA {end} {name}")).await;
        if end == "COMMIT" {
            wait_delivered(&deliveries, std::slice::from_ref(&id)).await;
            expected.push(id);
        }
    }

    let mut writer = rig.database.connect().await.unwrap();
    let (id, sql) = insert("k");
    run(&mut writer, "XA START 'one phase'").await;
    run(&mut writer, sql).await;
    run(&mut writer, "XA END 'one phase'").await;
    run(&mut writer, "XA COMMIT 'one phase' ONE PHASE").await;
    expected.push(id);

    let published = everything_published(&rig, &relay, &deliveries).await;
    assert_eq!(published, sorted(expected), "{flavor:?}");
}

e2e::on_each_server!(
    a_transaction_prepared_under_one_relay_and_committed_under_the_next_is_published
);
async fn a_transaction_prepared_under_one_relay_and_committed_under_the_next_is_published(
    flavor: Flavor,
) {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    rig.set("RELAY_SWEEP_INTERVAL", NEVER);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;

    let mut writers = Vec::new();
    for name in ["commits", "rolls back"] {
        let mut writer = rig.database.connect().await.unwrap();
        let (id, sql) = insert("k");
        run(&mut writer, format!("XA START '{name}'")).await;
        run(&mut writer, sql).await;
        run(&mut writer, format!("XA END '{name}'")).await;
        run(&mut writer, format!("XA PREPARE '{name}'")).await;
        writers.push((writer, id));
    }
    stop(&relay).await;
    relay.start_again().unwrap();
    rig.wait_phase("tailing").await;
    run(&mut writers[0].0, "XA COMMIT 'commits'").await;
    run(&mut writers[1].0, "XA ROLLBACK 'rolls back'").await;
    let committed = writers[0].1.clone();
    wait_delivered(&deliveries, std::slice::from_ref(&committed)).await;

    let published = everything_published(&rig, &relay, &deliveries).await;
    assert_eq!(published, [committed], "{flavor:?}");
}

e2e::on_each_server!(xa_transactions_of_other_tables_cost_no_pass);
async fn xa_transactions_of_other_tables_cost_no_pass(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let rig = db.rig().await;
    let mut writer = rig.database.connect().await.unwrap();
    run(&mut writer, "CREATE TABLE stock (n INT)").await;
    let relay = rig.tailing().await;
    let opened = relay.log().matches(TAILING).count();

    for (number, end) in ["COMMIT", "ROLLBACK"]
        .into_iter()
        .cycle()
        .take(10)
        .enumerate()
    {
        run(&mut writer, format!("XA START 'other{number}'")).await;
        run(&mut writer, "INSERT INTO stock VALUES (1)").await;
        run(&mut writer, format!("XA END 'other{number}'")).await;
        run(&mut writer, format!("XA PREPARE 'other{number}'")).await;
        run(&mut writer, format!("XA {end} 'other{number}'")).await;
    }
    run(&mut writer, "XA START 'one'").await;
    run(&mut writer, "INSERT INTO stock VALUES (1)").await;
    run(&mut writer, "XA END 'one'").await;
    run(&mut writer, "XA COMMIT 'one' ONE PHASE").await;

    // The tail has read all that when it brings this, and never left the binlog on its way.
    rig.insert(1).await;
    rig.wait_sent(1).await;
    assert_eq!(
        relay.log().matches(TAILING).count(),
        opened,
        "{flavor:?}: {}",
        relay.log()
    );
    let from_binlog = rig.metric(FROM_BINLOG).await;
    assert_eq!(from_binlog, Some(1.0), "{flavor:?}");
    stop(&relay).await;
}

e2e::on_each_server!(
    a_row_deleted_or_changed_by_the_transaction_that_inserted_it_is_published_as_it_was_left
);
async fn a_row_deleted_or_changed_by_the_transaction_that_inserted_it_is_published_as_it_was_left(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut writer = rig.database.connect().await.unwrap();
    let mut left = Vec::new();

    for change in [
        "DELETE FROM outbox WHERE message_id = '{id}'",
        "UPDATE outbox SET payload = 'changed' WHERE message_id = '{id}'",
        "UPDATE outbox SET status = 4 WHERE message_id = '{id}'",
    ] {
        let (changed, changed_insert) = insert("k");
        let (beside, beside_insert) = insert("k");
        run(&mut writer, "BEGIN").await;
        run(&mut writer, changed_insert).await;
        run(&mut writer, beside_insert).await;
        run(&mut writer, change.replace("{id}", &changed)).await;
        run(&mut writer, "COMMIT").await;
        if change.contains("payload") {
            left.push(changed);
        }
        left.push(beside);
        wait_delivered(&deliveries, &left).await;
    }

    let published = everything_published(&rig, &relay, &deliveries).await;
    assert_eq!(published, sorted(left.clone()));
    let changed = deliveries
        .all()
        .into_iter()
        .find(|d| d.message_id == left[1]);
    assert_eq!(changed.unwrap().payload, b"changed");
}

e2e::on_each_server!(a_row_removed_by_rollback_to_savepoint_is_not_published);
async fn a_row_removed_by_rollback_to_savepoint_is_not_published(flavor: Flavor) {
    // MySQL writes ROLLBACK TO into the binlog only where a table without transactions was
    // written as well, which its GTIDs forbid.
    let args: &[&str] = match flavor {
        Flavor::MySql => &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"],
        Flavor::MariaDb => &[],
    };
    let db = OwnDb::start(flavor, args).await;
    let rig = db.rig().await;
    let mut writer = rig.database.connect().await.unwrap();
    run(&mut writer, "CREATE TABLE journal (n INT) ENGINE = MyISAM").await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;

    let mut left = Vec::new();
    for between in ["DO 0", "INSERT INTO journal VALUES (1)"] {
        let (kept, kept_insert) = insert("k");
        let (_, removed_insert) = insert("k");
        run(&mut writer, "BEGIN").await;
        run(&mut writer, kept_insert).await;
        run(&mut writer, "SAVEPOINT here").await;
        run(&mut writer, removed_insert).await;
        run(&mut writer, between).await;
        run(&mut writer, "ROLLBACK TO SAVEPOINT here").await;
        run(&mut writer, "COMMIT").await;
        left.push(kept);
        wait_delivered(&deliveries, &left).await;
    }
    let published = everything_published(&rig, &relay, &deliveries).await;
    assert_eq!(published, sorted(left), "{flavor:?}");
}

e2e::on_each_server!(rows_written_in_statement_format_are_delivered_by_a_pass);
async fn rows_written_in_statement_format_are_delivered_by_a_pass(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    rig.set("RELAY_SWEEP_INTERVAL", NEVER);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut writer = rig.database.connect().await.unwrap();
    run(&mut writer, "SET SESSION binlog_format = 'STATEMENT'").await;

    let mut written = Vec::new();
    for _ in 0..10 {
        let (id, sql) = insert("k");
        run(&mut writer, sql).await;
        written.push(id);
    }
    wait_delivered(&deliveries, &written).await;
    assert_eq!(
        deliveries.ids(),
        written,
        "{flavor:?}: the order of their key"
    );
    stop(&relay).await;
}

e2e::on_each_server!(the_rows_of_one_statement_keep_their_order);
async fn the_rows_of_one_statement_keep_their_order(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut written = Vec::new();
    for _ in 0..3 {
        let events: Vec<Event> = (0..40)
            .map(|_| Event::new("order", "k", "order.placed.v1", "order.pay", "{}"))
            .collect();
        let mut tx = rig.pool.begin().await.unwrap();
        let ids = outbox::event::write_all(&mut tx, &events).await.unwrap();
        tx.commit().await.unwrap();
        written.extend(ids.iter().map(Uuid::to_string));
    }
    wait_delivered(&deliveries, &written).await;
    assert_eq!(deliveries.ids(), written);
    stop(&relay).await;
}

#[tokio::test]
async fn compressed_transactions_of_mysql_come_from_the_binlog() {
    if !e2e::shared::is_available(Flavor::MySql) {
        return;
    }
    let db = OwnDb::start(Flavor::MySql, &["--binlog-transaction-compression=ON"]).await;
    let rig = db.rig().await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;

    let mut written = rig.insert(10).await;
    written.push(
        rig.insert_one("large", "order.pay", &vec![b'x'; 3 << 20])
            .await,
    );
    wait_delivered(&deliveries, &written).await;
    rig.wait_sent(11).await;

    let from_binlog = rig.metric(FROM_BINLOG).await;
    assert_eq!(from_binlog, Some(11.0), "{}", relay.log());
    let hidden = rig.metric("outbox_relay_undecodable_events_total").await;
    assert_eq!(hidden, Some(0.0));
    stop(&relay).await;
}

#[tokio::test]
async fn compressed_events_of_mariadb_are_counted_and_the_rows_delivered_by_a_pass() {
    let db = OwnDb::start(Flavor::MariaDb, &["--log-bin-compress=ON"]).await;
    let mut rig = db.rig().await;
    rig.set("RELAY_SWEEP_INTERVAL", NEVER);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;

    let mut written = Vec::new();
    for _ in 0..10 {
        written.push(rig.insert_one("k", "order.pay", &[b'x'; 2000]).await);
    }
    wait_delivered(&deliveries, &written).await;
    assert_eq!(deliveries.ids(), written, "the order of their key");
    let hidden = rig.metric("outbox_relay_undecodable_events_total").await;
    assert!(hidden.is_some_and(|events| events > 0.0), "{hidden:?}");
    assert_eq!(rig.metric(MISSED).await, Some(0.0));
    stop(&relay).await;
}

e2e::on_each_server!(nothing_is_lost_while_the_outbox_gets_another_column);
async fn nothing_is_lost_while_the_outbox_gets_another_column(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    rig.set("RELAY_SWEEP_INTERVAL", NEVER);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;

    let writer = async {
        let mut written = Vec::new();
        for _ in 0..200 {
            written.push(rig.insert_one("k", "order.pay", b"{}").await);
        }
        written
    };
    let owner = async {
        let mut owner = MySqlConnection::connect(&rig.database.url).await.unwrap();
        for alter in [
            "ALTER TABLE outbox ADD COLUMN tenant INT NULL",
            "ALTER TABLE outbox ADD COLUMN region INT NULL AFTER id",
            "ALTER TABLE outbox DROP COLUMN tenant",
        ] {
            let before = deliveries.count();
            e2e::wait::until("20 more deliveries", SOON, async || {
                deliveries.count() >= before + 20
            })
            .await;
            run(&mut owner, alter).await;
        }
    };
    let (written, ()) = tokio::join!(writer, owner);

    wait_delivered(&deliveries, &written).await;
    assert_eq!(deliveries.ids(), written, "{flavor:?}: once each, in order");
    // The tail reads the new shape.
    let before = rig.metric(FROM_BINLOG).await;
    e2e::wait::until("a row by the binlog", LATER, async || {
        rig.insert(1).await;
        rig.metric(FROM_BINLOG).await > before
    })
    .await;
    stop(&relay).await;
}
