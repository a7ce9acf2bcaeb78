use e2e::Flavor;
use e2e::rig::servers::OwnDb;
use e2e::rig::{LATER, Rig};
use relay::engine::position::Position;
use relay::leadership::server_identity::ServerId;
use relay::source::binlog::library::Reader;
use relay::source::binlog::reader_task::{BinlogGone, BinlogNews, BinlogOf, BinlogStream};
use relay::source::binlog::transaction::Doubt;

use super::{Outbox, ids};

fn open(outbox: &Outbox, from: Position) -> BinlogStream {
    let binlog = BinlogOf {
        table: outbox.table.clone(),
        reader: Reader::MysqlAsync,
        server: outbox.server.clone(),
    };
    BinlogStream::open(binlog, from)
}

async fn next(stream: &mut BinlogStream) -> BinlogNews {
    let next = tokio::time::timeout(LATER, stream.next(true, false)).await;
    next.unwrap().unwrap()
}

async fn committed(stream: &mut BinlogStream) -> Vec<u64> {
    match next(stream).await {
        BinlogNews::Committed(added) => stream.transaction(added, None).ids,
        other => panic!("{other:?}"),
    }
}

e2e::on_each_server!(a_stream_reports_what_was_added_and_how_far_it_is);
async fn a_stream_reports_what_was_added_and_how_far_it_is(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let mut outbox = Outbox::of(&rig).await;
    let from = outbox
        .queries
        .position(&mut outbox.connection)
        .await
        .unwrap();
    let mut stream = open(&outbox, from);
    assert!(matches!(next(&mut stream).await, BinlogNews::Opened));
    rig.insert(2).await;
    rig.sql(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, payload) SELECT UUID(), 'order', id, 't', 'order.pay', '{}' FROM outbox",
    )
    .await;
    let all = ids(&rig).await;
    assert_eq!(committed(&mut stream).await, all[..1]);
    assert_eq!(committed(&mut stream).await, all[1..2]);
    assert_eq!(committed(&mut stream).await, all[2..]);
    // As the relay marks; then a person sets one back.
    rig.sql("UPDATE outbox SET status = 2").await;
    rig.sql(&format!(
        "UPDATE outbox SET status = 1 WHERE id = {}",
        all[1]
    ))
    .await;
    assert_eq!(committed(&mut stream).await, all[1..2]);

    rig.sql("DELETE FROM outbox").await;
    let wanted = outbox
        .queries
        .position(&mut outbox.connection)
        .await
        .unwrap();
    let reached = async {
        loop {
            if stream.position().is_some_and(|position| position >= wanted) {
                break;
            }
            let news = stream.next(true, true).await.unwrap();
            assert!(matches!(news, BinlogNews::Moved), "{news:?}");
        }
    };
    tokio::time::timeout(LATER, reached).await.unwrap();
}

#[tokio::test]
async fn a_position_is_reached_when_everything_before_it_was_taken() {
    let rig = Rig::new(e2e::shared::mariadb().await).await;
    let mut outbox = Outbox::of(&rig).await;
    let from = outbox
        .queries
        .position(&mut outbox.connection)
        .await
        .unwrap();
    rig.insert(3).await;
    let wanted = outbox
        .queries
        .position(&mut outbox.connection)
        .await
        .unwrap();
    let mut stream = open(&outbox, from);
    assert!(matches!(next(&mut stream).await, BinlogNews::Opened));
    let reached =
        |stream: &mut BinlogStream| stream.position().is_some_and(|position| position >= wanted);
    // Nothing is taken, so however far the task is, nothing is reached.
    let moved = tokio::time::timeout(LATER, stream.next(false, true)).await;
    assert!(matches!(moved.unwrap(), Ok(BinlogNews::Moved)));
    assert!(!reached(&mut stream));
    for _ in 0..3 {
        assert!(!reached(&mut stream));
        committed(&mut stream).await;
    }
    assert!(reached(&mut stream));
}

#[tokio::test]
async fn a_position_that_is_not_there_ends_the_stream_and_so_does_another_server() {
    let rig = Rig::new(e2e::shared::mariadb().await).await;
    let mut outbox = Outbox::of(&rig).await;
    let from = outbox
        .queries
        .position(&mut outbox.connection)
        .await
        .unwrap();
    let mut stream = open(&outbox, Position::new("binlog.999999", 4));
    let gone = tokio::time::timeout(LATER, stream.next(true, false)).await;
    let Err(BinlogGone::Ended(end)) = gone.unwrap() else {
        panic!("it is open")
    };
    assert!(!end.timed_out && end.why.contains("1236"), "{end:?}");

    outbox.server = ServerId::new(vec![("server_id".into(), "0".into())]);
    let mut stream = open(&outbox, from);
    let gone = tokio::time::timeout(LATER, stream.next(true, false)).await;
    assert!(matches!(gone.unwrap(), Err(BinlogGone::Elsewhere(_))));
}

e2e::on_each_server!(an_event_that_is_too_large_is_a_doubt);
/// The driver holds an event whole, so one of any table that is this large is not read at all.
async fn an_event_that_is_too_large_is_a_doubt(flavor: Flavor) {
    // A server of its own: such an event disturbs every relay of a server.
    let db = OwnDb::start(flavor, &["--max-allowed-packet=64M"]).await;
    let rig = db.rig().await;
    too_large(&rig).await;
}

async fn too_large(rig: &Rig) {
    let mut outbox = Outbox::of(rig).await;
    rig.sql("CREATE TABLE others (id INT PRIMARY KEY, data LONGBLOB)")
        .await;
    let from = outbox
        .queries
        .position(&mut outbox.connection)
        .await
        .unwrap();
    for (id, mebibytes) in [(1, 30), (2, 40)] {
        rig.sql(&format!(
            "INSERT INTO others VALUES ({id}, REPEAT('x', {mebibytes} << 20))"
        ))
        .await;
    }
    let mut stream = open(&outbox, from);
    assert!(matches!(next(&mut stream).await, BinlogNews::Opened));
    let news = next(&mut stream).await;
    assert!(
        matches!(news, BinlogNews::Doubt(Doubt::TooLarge(_))),
        "{news:?}"
    );
    let gone = tokio::time::timeout(LATER, stream.next(true, false)).await;
    assert!(matches!(gone.unwrap(), Err(BinlogGone::Ended(_))));
}

/// Definitions with columns of many types before the id; the last ones are MariaDB's alone.
const DEFINITIONS: [&str; 12] = [
    "MODIFY id INT UNSIGNED NOT NULL AUTO_INCREMENT, MODIFY status INT NOT NULL DEFAULT 1",
    "MODIFY aggregate_id VARCHAR(64) CHARACTER SET latin1 NOT NULL",
    "MODIFY payload JSON NOT NULL FIRST, MODIFY headers JSON NULL FIRST",
    "MODIFY created_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) FIRST",
    "MODIFY payload LONGBLOB NOT NULL FIRST, ADD COLUMN tenant INT INVISIBLE DEFAULT 7 FIRST",
    "ADD COLUMN total INT GENERATED ALWAYS AS (attempts + 1) VIRTUAL FIRST",
    "ADD COLUMN total INT GENERATED ALWAYS AS (attempts + 1) STORED FIRST",
    "ADD COLUMN kind ENUM('a', 'b') NOT NULL DEFAULT 'a' FIRST, \
     ADD COLUMN flags SET('x', 'y') DEFAULT 'x' FIRST, ADD COLUMN price DECIMAL(20, 6) DEFAULT 1 FIRST, \
     ADD COLUMN b BIT(11) DEFAULT 3 FIRST, ADD COLUMN note CHAR(200) DEFAULT 'ü' FIRST",
    "ADD COLUMN note BLOB FIRST, ADD UNIQUE KEY note (note)",
    "ADD SYSTEM VERSIONING",
    "MODIFY payload LONGBLOB NOT NULL COMPRESSED FIRST, \
     ADD COLUMN note VARCHAR(300) COMPRESSED DEFAULT '----------------------------------------' FIRST",
    "ADD COLUMN u UUID DEFAULT UUID() FIRST, ADD COLUMN i INET6 DEFAULT '::1' FIRST",
];
/// How many of them are MariaDB's alone.
const MARIADB_ALONE: usize = 4;

e2e::on_each_server!(ids_come_by_the_binlog_under_every_definition_and_with_minimal_images);
async fn ids_come_by_the_binlog_under_every_definition_and_with_minimal_images(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    rig.sql("CREATE TABLE spare LIKE outbox").await;
    let mut writer = rig.pool.acquire().await.unwrap();
    let alone = match db.flavor() {
        Flavor::MariaDb => 0,
        Flavor::MySql => MARIADB_ALONE,
    };
    for change in &DEFINITIONS[..DEFINITIONS.len() - alone] {
        rig.sql("DROP TABLE outbox").await;
        rig.sql("CREATE TABLE outbox LIKE spare").await;
        rig.sql(&format!("ALTER TABLE outbox {change}")).await;
        let mut outbox = Outbox::of(&rig).await;
        let from = outbox.queries.position(&mut outbox.connection).await;
        let mut stream = open(&outbox, from.unwrap());
        assert!(matches!(next(&mut stream).await, BinlogNews::Opened));
        for image in ["FULL", "MINIMAL"] {
            let before = ids(&rig).await.len();
            let set = format!("SET SESSION binlog_row_image = '{image}'");
            for statement in [&*set, TWO_ROWS] {
                let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
                statement.execute(&mut *writer).await.unwrap();
            }
            let found = committed(&mut stream).await;
            assert_eq!(found, ids(&rig).await[before..], "{image}: {change}");
        }
    }
}

const TWO_ROWS: &str = "INSERT INTO outbox \
    (message_id, aggregate_type, aggregate_id, event_type, routing_key, headers, payload) VALUES \
    (UUID(), 'order', '42', 't', 'order.pay', '{\"a\": \"b\"}', '{}'), \
    (UUID(), 'order', '42', 't', 'order.pay', NULL, CONCAT('\"', REPEAT('x', 300), '\"'))";
