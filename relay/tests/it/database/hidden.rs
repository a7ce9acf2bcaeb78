//! Binlogs that hide rows, lose their beginning and change their shape while orders are placed:
//! nothing is lost, the operator sees it, and the tail goes on.

use e2e::Flavor;
use e2e::rig::ops::{MISSED, TAILING, assert_complete, own_user, stop, wait_live};
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::{Writers, print};
use e2e::rig::{LATER, QUEUE, Rig};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::world::probe;

const UNDECODABLE: &str = "outbox_relay_undecodable_events_total";

async fn run(connection: &mut MySqlConnection, sql: &str) {
    let statement = sqlx::raw_sql(AssertSqlSafe(sql));
    connection
        .execute(statement)
        .await
        .unwrap_or_else(|err| panic!("{sql}: {err}"));
}

/// One row, by a session that has made its settings; named as a probe, which is counted.
fn insert() -> String {
    let id = uuid::Uuid::now_v7();
    format!(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
         payload) VALUES ('{id}', 'order', 'probe {id}', 'order.placed.v1', 'order.pay', '1')"
    )
}

/// The binlog has the statement and no id.
#[tokio::test]
async fn a_row_whose_id_the_binlog_does_not_have_is_delivered_and_the_stream_goes_on() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = e2e::shared::database(flavor).await;
        let mut rig = Rig::new(db).await;
        // No sweep comes to the rescue.
        rig.set("RELAY_SWEEP_INTERVAL", "10m");
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        let mut writer = rig.database.connect().await.unwrap();
        run(&mut writer, "SET SESSION binlog_format = 'STATEMENT'").await;
        for rows in 1..=3 {
            run(&mut writer, &insert()).await;
            e2e::wait::until("the row without an id", LATER, async || {
                deliveries.count() == rows
            })
            .await;
        }
        wait_live(&rig).await;
        assert_eq!(rig.metric(MISSED).await, Some(0.0));
        stop(&relay).await;
    })
    .await;
}

/// All of it under load, again and again.
async fn hide(flavor: Flavor, args: &[&str], rounds: usize) {
    let db = OwnDb::start(flavor, args).await;
    let mut rig = db.rig().await;
    own_user(&mut rig).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 2, 10).await;
    let mut minimal = MySqlConnection::connect(&rig.database.url).await.unwrap();
    run(&mut minimal, "SET SESSION binlog_row_image = 'MINIMAL'").await;
    let mut statements = MySqlConnection::connect(&rig.database.url).await.unwrap();
    run(&mut statements, "SET SESSION binlog_format = 'STATEMENT'").await;
    let mut owner = MySqlConnection::connect(&rig.database.url).await.unwrap();
    for round in 0..rounds {
        for hidden in [&mut minimal, &mut statements] {
            for _ in 0..5 {
                run(hidden, &insert()).await;
            }
            probe(&rig, &deliveries).await;
        }
        let column = format!("extra{round}");
        run(
            &mut owner,
            &format!("ALTER TABLE outbox ADD COLUMN {column} INT NULL AFTER id"),
        )
        .await;
        probe(&rig, &deliveries).await;
        run(
            &mut owner,
            &format!("ALTER TABLE outbox DROP COLUMN {column}"),
        )
        .await;
        probe(&rig, &deliveries).await;
        // Where the tail was is gone when it comes back.
        run(&mut owner, "FLUSH BINARY LOGS").await;
        rig.kill_dump().await;
        run(
            &mut owner,
            "PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY",
        )
        .await;
        probe(&rig, &deliveries).await;
    }
    // While rows are hidden one after the other, each leads to another scan.
    assert_complete(&rig, writers, &deliveries).await;
    rig.wait_metric(TAILING, 1.0).await;
    let counted = rig.metric(UNDECODABLE).await.unwrap();
    print(&format!(
        "{flavor:?} {args:?}: {counted} events counted as hidden"
    ));
    if args == COMPRESSED {
        assert!(counted >= 1.0);
        assert!(relay.log().contains("the binlog hides something"));
    }
    stop(&relay).await;
}

#[tokio::test]
async fn nothing_is_lost_while_rows_are_hidden_the_table_altered_and_the_binlog_purged() {
    let plain = e2e::shared::on_every_server_at_once(async |flavor| hide(flavor, &[], 1).await);
    tokio::join!(plain, hide(Flavor::MariaDb, &COMPRESSED, 1));
}

/// MariaDB's compressed row events are not decoded.
const COMPRESSED: [&str; 2] = ["--log-bin-compress=ON", "--log-bin-compress-min-len=10"];

#[cfg(feature = "long")]
e2e::on_each_server!(long_database_rows_hidden_in_every_way_on_servers_that_compress_and_on_others);
#[cfg(feature = "long")]
async fn long_database_rows_hidden_in_every_way_on_servers_that_compress_and_on_others(
    flavor: Flavor,
) {
    let compressed: [(Flavor, &[&str]); 2] = [
        (Flavor::MariaDb, &COMPRESSED),
        (Flavor::MySql, &["--binlog-transaction-compression=ON"]),
    ];
    let (_, args) = compressed.iter().find(|(of, _)| *of == flavor).unwrap();
    tokio::join!(hide(flavor, &[], 10), hide(flavor, args, 10));
}
