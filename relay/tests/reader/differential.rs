//! Both readers over one binlog: every id of every transaction, and every doubt.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use e2e::Flavor;
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::print;
use e2e::rig::{Rig, SOON};
use mysql_async::binlog::EventType;
use mysql_async::binlog::events::Event;
use relay::engine::position::Position;
use relay::source::binlog::library::Reader;
use relay::source::binlog::transaction::{Change, Doubt};

use crate::reading::{Outbox, Seen};
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

e2e::on_each_server!(both_readers_report_the_same_of_every_transaction);
async fn both_readers_report_the_same_of_every_transaction(flavor: Flavor) {
    let db = OwnDb::start(flavor, arguments(flavor)).await;
    let rig = db.rig().await;
    let outbox = Outbox::of(&rig).await;
    let mut connection = rig.database.connect().await.unwrap();
    let seed = rand::random();
    print(&format!("{flavor:?}: seed {seed}"));

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
    print(&format!(
        "{flavor:?}: {} changes, {} ids; mysql_async {:?}, mysql_cdc {:?}",
        first.len(),
        ids(&first),
        between - began,
        between.elapsed()
    ));
    assert_eq!(first, second);
    assert_saw_everything(&first);
    assert_has_all_rows(&rig, &first).await;
    // Nobody takes events any more, so the reader's thread ends and its connection with it.
    e2e::wait::until("no dump thread", SOON, async || {
        dump_threads(&rig).await == 0
    })
    .await;
}

/// Writes the events into `dir` as `relay/tests/it/decoder` reads them: header and data, the checksum
/// taken off. `CAPTURE=relay/tests/it/decoder` makes its fixtures anew.
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

fn ids(seen: &[Seen]) -> usize {
    seen.iter().map(|seen| seen.ids().len()).sum()
}

/// The workload is of no use if the server has written less than it was meant to.
fn assert_saw_everything(all: &[Seen]) {
    let above_signed = |seen: &Seen| seen.ids().iter().any(|id| *id > i64::MAX.unsigned_abs());
    assert!(all.iter().any(above_signed));
    assert!(all.iter().any(|seen| seen.ids().len() >= 20));
    for doubt in ["XA COMMIT", "a statement"] {
        let doubt = Change::Doubt(Doubt::Unvouched(doubt));
        assert!(all.iter().any(|seen| seen.change == doubt), "{doubt:?}");
    }
}

/// Only a few rows came by a statement or by XA, whose ids the binlog does not give.
async fn assert_has_all_rows(rig: &Rig, all: &[Seen]) {
    let in_table: Vec<u64> = sqlx::query_scalar("SELECT id FROM outbox")
        .fetch_all(&rig.pool)
        .await
        .unwrap();
    let found: HashSet<u64> = all.iter().flat_map(Seen::ids).copied().collect();
    let missing = in_table.iter().filter(|id| !found.contains(id)).count();
    assert!(
        (1..=6).contains(&missing),
        "{missing} of {}",
        in_table.len()
    );
}
