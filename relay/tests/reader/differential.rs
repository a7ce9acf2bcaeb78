//! Both readers over one binlog: every row of every group, and every verdict.

use std::path::Path;
use std::time::Instant;

use e2e::Flavor;
use mysql_async::binlog::EventType;
use mysql_async::binlog::events::Event;
use outbox::row::Row;
use relay::source::binlog::library::Reader;
use relay::source::binlog::position::Position;
use relay::source::binlog::transaction::Doubt;
use sqlx::AssertSqlSafe;
use time::macros::format_description;

use crate::reading::{Outbox, Told};
use crate::rig::servers::{OwnDb, flavors};
use crate::rig::writers::tell;
use crate::rig::{Rig, SOON};
use crate::workload;

/// MySQL writes ROLLBACK TO into the binlog only beside a table without transactions, which its GTIDs
/// forbid. MariaDB's own limit for a packet is 16 MiB.
fn arguments(flavor: Flavor) -> &'static [&'static str] {
    match flavor {
        Flavor::MySql => &[
            "--gtid-mode=OFF",
            "--enforce-gtid-consistency=OFF",
            "--binlog-checksum=NONE",
        ],
        Flavor::MariaDb => &["--max-allowed-packet=64M", "--binlog-checksum=CRC32"],
    }
}

#[tokio::test]
async fn both_readers_tell_the_same_of_every_transaction() {
    for flavor in flavors().await {
        let db = OwnDb::start(flavor, arguments(flavor)).await;
        let rig = db.rig().await;
        let outbox = Outbox::of(&rig).await;
        let mut connection = rig.database.connect().await.unwrap();
        let seed = rand::random();
        tell(&format!("{flavor:?}: seed {seed}"));

        let from = outbox.position().await;
        workload::run(&mut connection, &workload::essence(flavor)).await;
        if let Some(dir) = std::env::var_os("CAPTURE") {
            capture(&outbox, flavor, &from, Path::new(&dir)).await;
        }
        workload::run(&mut connection, &workload::bulk(seed)).await;
        let until = outbox.position().await;

        let began = Instant::now();
        let first = outbox
            .read(Reader::MysqlAsync, (&from, &until), |_| {})
            .await;
        let between = Instant::now();
        let second = outbox.read(Reader::MysqlCdc, (&from, &until), |_| {}).await;
        tell(&format!(
            "{flavor:?}: {} groups, {} rows; mysql_async {:?}, mysql_cdc {:?}",
            first.len(),
            rows(&first),
            between - began,
            between.elapsed()
        ));
        compare(&first, &second);
        assert_saw_everything(&first);
        // Nobody takes events any more, so the reader's thread ends and its connection with it.
        e2e::wait::until("no dump thread", SOON, async || {
            dump_threads(&rig).await == 0
        })
        .await;
        for row in first.iter().flat_map(|group| &group.rows) {
            assert_as_in_the_table(&rig, row).await;
        }
    }
}

/// Writes the events into `dir` as `relay/tests/decoder` reads them: header and data, the checksum
/// taken off. `CAPTURE=relay/tests/decoder` makes its fixtures anew.
async fn capture(outbox: &Outbox, flavor: Flavor, from: &Position, dir: &Path) {
    let until = outbox.position().await;
    let mut bytes = Vec::new();
    let keep = |event: &Event| {
        let (header, mut data) = (event.header(), event.data().to_vec());
        let raw = header.event_type_raw();
        if raw == EventType::FORMAT_DESCRIPTION_EVENT as u8 {
            // No checksums, and the place of its own.
            data.extend([0; 5]);
        } else if raw == EventType::HEARTBEAT_EVENT as u8 {
            return;
        }
        bytes.extend(header.timestamp().to_le_bytes());
        bytes.push(raw);
        bytes.extend(header.server_id().to_le_bytes());
        bytes.extend(u32::try_from(19 + data.len()).unwrap().to_le_bytes());
        bytes.extend(header.log_pos().to_le_bytes());
        bytes.extend(header.flags_raw().to_le_bytes());
        bytes.extend(data);
    };
    outbox.read(Reader::MysqlAsync, (from, &until), keep).await;
    let name = format!("{flavor:?}.events").to_lowercase();
    std::fs::write(dir.join(name), bytes).unwrap();
}

async fn dump_threads(rig: &Rig) -> i64 {
    sqlx::query_scalar(
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Binlog Dump%'",
    )
    .fetch_one(&rig.pool)
    .await
    .unwrap()
}

fn rows(groups: &[Told]) -> usize {
    groups.iter().map(|group| group.rows.len()).sum()
}

fn compare(first: &[Told], second: &[Told]) {
    for (one, other) in first.iter().zip(second) {
        let same = match (&one.doubt, &other.doubt) {
            // The words are the library's own.
            (Some(Doubt::Undecodable(_)), Some(Doubt::Undecodable(_))) => {
                (&one.position, one.committed) == (&other.position, other.committed)
            }
            _ => one == other,
        };
        assert!(same, "{}\n{}", short(one), short(other));
    }
    assert_eq!(first.len(), second.len());
}

fn short(told: &Told) -> String {
    let mut text = format!("{told:?}");
    text.truncate(text.floor_char_boundary(4000));
    text
}

/// The workload is of no use if the server has written less than it was meant to.
fn assert_saw_everything(groups: &[Told]) {
    let all: Vec<&Row> = groups.iter().flat_map(|group| &group.rows).collect();
    assert!(all.iter().any(|row| row.payload.len() == 33 << 20));
    assert!(all.iter().any(|row| row.id > i64::MAX.unsigned_abs()));
    assert!(all.iter().any(|row| row.created_at.is_none()));
    assert!(all.iter().any(|row| row.headers.is_none()));
    assert!(groups.iter().any(|group| group.rows.len() >= 20));
    assert!(groups.iter().any(|group| !group.deferred.is_empty()));
    for doubt in [
        "XA COMMIT",
        "a statement",
        "a statement or a rollback inside a transaction",
        "an UPDATE or DELETE beside an INSERT",
    ] {
        let seen =
            |group: &Told| matches!(group.doubt, Some(Doubt::Unvouched(what)) if what == doubt);
        assert!(groups.iter().any(seen), "{doubt}");
    }
    let undecodable = |group: &&Told| matches!(group.doubt, Some(Doubt::Undecodable(_)));
    // A row image without all columns, and one of another shape.
    assert!(groups.iter().filter(undecodable).count() >= 2);
}

/// The server's own word, where the row is still as it was inserted.
async fn assert_as_in_the_table(rig: &Rig, row: &Row) {
    type Stored = (Vec<u8>, Vec<u8>, Option<Vec<u8>>, Vec<u8>, String);
    let stored: Option<Stored> = sqlx::query_as(AssertSqlSafe(
        "SELECT CAST(message_id AS BINARY), CAST(aggregate_id AS BINARY), \
         CAST(headers AS BINARY), payload, CAST(created_at AS CHAR) \
         FROM outbox WHERE id = ? AND status = 1 AND payload NOT IN ('changed', 'again')",
    ))
    .bind(row.id)
    .fetch_optional(&rig.pool)
    .await
    .unwrap();
    let Some((message_id, aggregate_id, headers, payload, created_at)) = stored else {
        return;
    };
    assert_eq!(row.message_id.as_bytes(), message_id);
    assert_eq!(row.aggregate_id, aggregate_id);
    assert_eq!(row.headers, headers);
    assert!(row.payload == payload, "payload of {}", row.message_id);
    if let Some(told) = row.created_at {
        let format = format_description!(
            "[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]"
        );
        assert_eq!(told.format(&format).unwrap(), created_at);
    } else {
        assert!(created_at.contains("-00"), "{created_at}");
    }
}
