//! Deleting sent rows beside the orders.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::print;
use e2e::rig::{LATER, Rig};
use sqlx::AssertSqlSafe;

use crate::bulk::{Filled, fill, quantile};

/// The longest wait for a row lock that an order may meet, in milliseconds.
const LOCK_WAIT_MAX_MS: u64 = 100;
/// Of so many rows one is not sent, or sent lately.
const ONE_KEPT_IN: usize = 10;

#[tokio::test]
async fn clean_up_deletes_expired_sent_rows_alone_and_no_order_waits() {
    clean_up(e2e::shared::flavor(), 20_000).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_load_clean_up_of_two_million_rows);
#[cfg(feature = "long")]
async fn long_load_clean_up_of_two_million_rows(flavor: Flavor) {
    let figures = clean_up(flavor, 2_000_000).await;
    let name = format!("clean-up of 2,000,000 rows, {flavor:?}");
    e2e::figures::record(&name, &figures);
}

async fn clean_up(flavor: Flavor, rows: usize) -> String {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    rig.set("RELAY_RETENTION", "1h").set("RUST_LOG", "info");
    // Parked, discarded, delayed and lately sent rows among those that have expired.
    let mixed = Filled {
        more: (
            ", status, sent_at, next_attempt_at",
            ", CASE n % 40 WHEN 0 THEN 3 WHEN 10 THEN 4 WHEN 20 THEN 1 ELSE 2 END, \
             UTC_TIMESTAMP(6) - INTERVAL IF(n % 40 = 30, 0, 2) HOUR, \
             IF(n % 40 = 20, UTC_TIMESTAMP(6) + INTERVAL 1 DAY, NULL)",
        ),
        ..Filled::default()
    };
    fill(&rig, rows, mixed).await;
    let kept = rows / ONE_KEPT_IN;
    let expired = "status = 2 AND sent_at < UTC_TIMESTAMP(6) - INTERVAL 1 HOUR";

    let started = Instant::now();
    let relay = rig.tailing().await;
    let mut placing = place(&rig, async || {
        assert!(relay.ended().unwrap().is_none(), "{}", relay.log());
        let deleted = rig.metric("outbox_relay_cleaned_total").await;
        deleted < Some((rows - kept) as f64)
    })
    .await;
    let took = started.elapsed();
    e2e::wait::until("the placed rows to be sent", LATER, async || {
        rig.count("status = 1 AND next_attempt_at IS NULL").await == 0
    })
    .await;
    relay.terminate().unwrap();
    assert!(relay.wait_exit(LATER).await.unwrap().success());

    assert_eq!(rig.count(expired).await, 0);
    let left = rig.count("1 = 1").await;
    assert_eq!(left, i64::try_from(kept + placing.len()).unwrap());
    let waits = status(&rig, "Innodb_row_lock_waits").await;
    let longest = status(&rig, "Innodb_row_lock_time_max").await;
    let rate = (rows - kept) as f64 / took.as_secs_f64();
    let (p50, p99) = (quantile(&mut placing, 0.5), quantile(&mut placing, 0.99));
    let figures = format!(
        "{took:.1?} ({rate:.0} rows/s); {} orders meanwhile: p50 {p50:.1} ms, p99 {p99:.1} ms to their \
         commit; {waits} waits for a row lock, the longest {longest} ms",
        placing.len(),
    );
    print(&format!("{flavor:?}, {rows} rows: {figures}"));
    assert!(longest < LOCK_WAIT_MAX_MS, "{figures}");
    figures
}

/// Places rows one after the other; returns how long each one's transaction took.
async fn place(rig: &Rig, going_on: impl AsyncFn() -> bool) -> Vec<Duration> {
    let mut took = Vec::new();
    while going_on().await {
        let begun = Instant::now();
        let key = format!("p{}", took.len());
        rig.insert_one(&key, "order.pay", b"placed").await;
        took.push(begun.elapsed());
    }
    took
}

async fn status(rig: &Rig, name: &str) -> u64 {
    let statement = format!("SHOW GLOBAL STATUS LIKE '{name}'");
    let (_, value): (String, String) = sqlx::query_as(AssertSqlSafe(statement))
        .fetch_one(&rig.pool)
        .await
        .unwrap();
    value.parse().unwrap()
}
