//! Every difference in the outbox's definition: harmless, and then rows come by the binlog as they were
//! written; or warned of; or refused by check and start, and the ALTER that is offered removes it.

use e2e::rig::ops::FROM_BINLOG;
use e2e::rig::rows::assert_calm;
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Db, Flavor};
use sqlx::Row as _;

const UNDECODABLE: &str = "outbox_relay_undecodable_events_total";

/// Where a definition can be had.
#[derive(Clone, Copy, PartialEq)]
enum On {
    Both,
    MariaDb,
    MySql,
}

use On::{Both, MariaDb, MySql};

/// Rows come by the binlog; `check` warns of this text, if there is one.
const WORKING: [(On, &str, Option<&str>); 30] = [
    (Both, "MODIFY aggregate_id BIGINT NOT NULL", None),
    (Both, "MODIFY aggregate_id INT UNSIGNED NOT NULL", None),
    (Both, "MODIFY aggregate_id VARBINARY(64) NOT NULL", None),
    (
        Both,
        "MODIFY aggregate_id VARCHAR(64) CHARACTER SET utf8mb3 COLLATE utf8mb3_general_ci NOT NULL",
        None,
    ),
    (Both, "MODIFY id INT UNSIGNED NOT NULL AUTO_INCREMENT", None),
    (
        Both,
        "MODIFY payload JSON NOT NULL, MODIFY headers JSON NULL",
        None,
    ),
    (
        Both,
        "MODIFY payload LONGTEXT CHARACTER SET utf8mb4 NOT NULL",
        None,
    ),
    (
        Both,
        "MODIFY created_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)",
        None,
    ),
    (
        Both,
        "MODIFY created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP",
        Some("`created_at` changes with every mark"),
    ),
    (
        Both,
        "MODIFY created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)",
        Some("the writer's zone and not UTC"),
    ),
    (
        Both,
        "MODIFY created_at DATETIME(3) NULL DEFAULT (UTC_TIMESTAMP(3))",
        None,
    ),
    (Both, "MODIFY status INT NOT NULL DEFAULT 1", None),
    (Both, "ADD COLUMN tenant INT NOT NULL DEFAULT 7 FIRST", None),
    (
        Both,
        "ADD COLUMN tenant INT INVISIBLE DEFAULT 7 AFTER id",
        None,
    ),
    (
        Both,
        "ADD COLUMN total INT GENERATED ALWAYS AS (attempts + 1) VIRTUAL AFTER id",
        None,
    ),
    (
        Both,
        "ADD COLUMN total INT GENERATED ALWAYS AS (attempts + 1) STORED AFTER id",
        None,
    ),
    (
        Both,
        "ADD COLUMN kind ENUM('a', 'b') NOT NULL DEFAULT 'a', ADD COLUMN flags SET('x', 'y') NULL",
        None,
    ),
    (
        Both,
        "DROP INDEX outbox_message_id",
        Some("ADD UNIQUE KEY `outbox_message_id`"),
    ),
    (
        Both,
        "ADD CONSTRAINT few CHECK (attempts < 3)",
        Some("`few`"),
    ),
    (Both, "ADD FULLTEXT INDEX words (last_error)", None),
    (MySql, "ADD INDEX later ((attempts + 1))", None),
    (
        MySql,
        "ALTER INDEX outbox_status_id INVISIBLE",
        Some("no index on (status, id)"),
    ),
    (
        Both,
        "MODIFY aggregate_id VARCHAR(64) CHARACTER SET latin1 NOT NULL",
        None,
    ),
    (
        Both,
        "MODIFY routing_key VARCHAR(64) CHARACTER SET utf16 NOT NULL",
        None,
    ),
    (
        Both,
        "MODIFY payload LONGTEXT CHARACTER SET latin1 NOT NULL",
        None,
    ),
    (
        Both,
        "MODIFY aggregate_id ENUM('1', '4200000') NOT NULL",
        None,
    ),
    (
        MariaDb,
        "ADD COLUMN note BLOB, ADD UNIQUE KEY note (note)",
        None,
    ),
    (MariaDb, "ADD SYSTEM VERSIONING", None),
    (MariaDb, "MODIFY payload LONGBLOB NOT NULL COMPRESSED", None),
    (MariaDb, "ADD COLUMN note TEXT COMPRESSED", None),
];

/// Refused in cdc mode, with what is said beside the ALTER.
const REFUSED: [(On, &str, &str); 10] = [
    (
        Both,
        "MODIFY message_id BINARY(16) NOT NULL",
        "`message_id` is binary(16)",
    ),
    (
        Both,
        "MODIFY aggregate_id BINARY(16) NOT NULL",
        "`aggregate_id` is binary(16)",
    ),
    (
        Both,
        "MODIFY id BIGINT NOT NULL AUTO_INCREMENT",
        "`id` is bigint",
    ),
    (
        Both,
        "MODIFY status ENUM('1', '2', '3', '4') NOT NULL DEFAULT '1'",
        "`status` is enum",
    ),
    (
        Both,
        "MODIFY created_at DATE NOT NULL",
        "`created_at` is date",
    ),
    (
        Both,
        "MODIFY next_attempt_at DATETIME(6) NOT NULL DEFAULT '2000-01-01'",
        "`next_attempt_at` can't be NULL",
    ),
    (
        Both,
        "MODIFY exchange VARCHAR(127) CHARACTER SET ascii NULL",
        "`exchange` may be NULL",
    ),
    (
        Both,
        "MODIFY last_error VARCHAR(200) NULL",
        "`last_error` is varchar(200)",
    ),
    (
        Both,
        "MODIFY sent_at DATETIME(6) GENERATED ALWAYS AS (created_at) STORED",
        "`sent_at` is a generated column",
    ),
    (
        Both,
        "MODIFY id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT, ADD KEY (id), DROP PRIMARY KEY, ADD PRIMARY KEY (message_id)",
        "`id` is not the first column of the primary key",
    ),
];

fn is_here(on: On, db: &Db) -> bool {
    match on {
        Both => true,
        MariaDb => db.flavor() == Flavor::MariaDb,
        MySql => db.flavor() == Flavor::MySql,
    }
}

/// The table as the product makes it, and then with this change.
async fn define(rig: &Rig, change: &str) {
    rig.sql("DROP TABLE IF EXISTS outbox").await;
    rig.sql("CREATE TABLE outbox LIKE spare").await;
    rig.sql(&format!("ALTER TABLE outbox {change}")).await;
}

async fn spare(db: &'static Db) -> Rig {
    let rig = Rig::new(db).await;
    rig.sql("CREATE TABLE spare LIKE outbox").await;
    rig
}

async fn check(rig: &Rig) -> (Option<i32>, String) {
    let check = rig.command(&["check"]);
    let status = check.wait_exit(LATER).await.unwrap();
    (status.code(), check.log())
}

async fn write(rig: &Rig, payload: &str) {
    rig.sql(&format!(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, headers, \
         payload) VALUES (UUID(), 'order', '4200000', 'order.placed.v1', 'order.pay', '{{\"a\": \"b\"}}', \
         '{payload}')"
    ))
    .await;
}

e2e::on_each_server!(rows_come_by_the_binlog_under_every_definition_that_check_lets_pass);
async fn rows_come_by_the_binlog_under_every_definition_that_check_lets_pass(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = spare(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "5m");
    let deliveries = rig.consume(QUEUE).await;
    for (on, change, warning) in WORKING {
        if !is_here(on, db) {
            continue;
        }
        define(&rig, change).await;
        let (code, said) = check(&rig).await;
        assert_eq!(code, Some(0), "{change}: {said}");
        match warning {
            Some(warning) => assert!(said.contains(warning), "{change}: {said}"),
            None => assert!(!said.contains("fix:"), "{change}: {said}"),
        }
        let before = deliveries.count();
        // By a scan and by the tail, and the bytes are the same.
        write(&rig, PAYLOAD).await;
        let relay = rig.tailing().await;
        write(&rig, PAYLOAD).await;
        let sent = e2e::wait::try_until("both messages", LATER, async || {
            rig.count("status = 2").await == 2 && deliveries.count() == before + 2
        });
        assert!(sent.await.is_ok(), "{change}: {}", relay.log());
        let by_binlog = rig.metric(FROM_BINLOG).await;
        assert_eq!(by_binlog, Some(1.0), "{change}: {}", relay.log());
        assert_eq!(rig.metric(UNDECODABLE).await, Some(0.0), "{change}");
        let (by_scan, by_tail) = (&deliveries.all()[before], &deliveries.all()[before + 1]);
        assert_eq!(by_scan.payload, by_tail.payload, "{change}");
        assert_eq!(
            (&*by_scan.key, &*by_tail.key),
            ("4200000", "4200000"),
            "{change}"
        );
        assert_calm(&relay);
        relay.kill().unwrap();
    }
}

const PAYLOAD: &str =
    r#"{"amount": 12.5, "text": "caf\u00e9 \\" \\n", "list": [1, -2, true, null, {"a": {}}]}"#;

e2e::on_each_server!(
    a_definition_that_does_harm_is_refused_and_the_alter_that_is_offered_removes_it
);
async fn a_definition_that_does_harm_is_refused_and_the_alter_that_is_offered_removes_it(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let rig = spare(db).await;
    for (on, change, problem) in REFUSED {
        if !is_here(on, db) {
            continue;
        }
        define(&rig, change).await;
        let (code, said) = check(&rig).await;
        assert_eq!(code, Some(1), "{change}: {said}");
        assert!(said.contains(problem), "{change}: {said}");
        let relay = rig.relay();
        let status = relay.wait_exit(LATER).await.unwrap();
        assert_eq!(status.code(), Some(64), "{change}: {}", relay.log());
        assert!(relay.log().contains(problem), "{change}: {}", relay.log());
        for fix in said.lines().filter_map(|line| line.split_once("fix: ")) {
            rig.sql(fix.1).await;
        }
        let (code, said) = check(&rig).await;
        assert_eq!(code, Some(0), "{change}: {said}");
    }
}

e2e::on_each_server!(integers_beyond_the_half_of_their_range_keep_their_value);
async fn integers_beyond_the_half_of_their_range_keep_their_value(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = spare(db).await;
    define(
        &rig,
        "MODIFY id INT UNSIGNED NOT NULL AUTO_INCREMENT, MODIFY aggregate_id MEDIUMINT UNSIGNED NOT NULL",
    )
    .await;
    rig.sql("ALTER TABLE outbox AUTO_INCREMENT = 4000000000")
        .await;
    let deliveries = rig.consume(QUEUE).await;
    let _relay = rig.tailing().await;
    rig.sql(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, payload) \
         VALUES (UUID(), 'order', 16000000, 't', 'order.pay', '{}')",
    )
    .await;
    rig.wait_sent(1).await;
    e2e::wait::until("the message", LATER, async || deliveries.count() == 1).await;
    assert_eq!(deliveries.all()[0].key, "16000000");
    assert_eq!(rig.metric(FROM_BINLOG).await, Some(1.0));
}

/// A hundred documents with numbers of every size.
#[tokio::test]
async fn json_payloads_are_the_servers_own_text() {
    let Some(db) = e2e::shared::mysql().await else {
        return;
    };
    let rig = spare(db).await;
    define(&rig, "MODIFY payload JSON NOT NULL").await;
    let deliveries = rig.consume(QUEUE).await;
    let relay = rig.tailing().await;
    for number in 0..100 {
        rig.sql(&format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
             payload) VALUES (UUID(), 'order', '{number}', 't', 'order.pay', JSON_OBJECT( \
             'd', (RAND() - 0.5) * POW(10, {number} - 50), 'n', {number} * 1234567, 'm', -70000 * {number}, \
             'dec', CAST(RAND() * 1000 AS DECIMAL(20, 6)), 'bytes', CONCAT(CHAR({number} USING utf8mb4), \
             'é\\\"\\\\'), 'long', REPEAT('x', {number} * 700), 'list', JSON_ARRAY(), 'u', 18446744073709551615, 'at', NOW(6)))"
        ))
        .await;
    }
    rig.wait_sent(100).await;
    e2e::wait::until("all messages", LATER, async || deliveries.count() == 100).await;
    let rows = sqlx::query("SELECT message_id, CAST(payload AS CHAR) FROM outbox");
    let rows = rows.fetch_all(&rig.pool).await.unwrap();
    let all = deliveries.all();
    for row in rows {
        let (id, payload): (String, String) = (row.get(0), row.get(1));
        let delivery = all
            .iter()
            .find(|delivery| delivery.message_id == id)
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&delivery.payload), payload);
    }
    assert_eq!(
        rig.metric(FROM_BINLOG).await,
        Some(100.0),
        "{}",
        relay.log()
    );
}
