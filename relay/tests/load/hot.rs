//! One key with far more rows than the others.

use std::time::{Duration, Instant};

use e2e::rig::Rig;
use e2e::rig::writers::print;

use crate::bulk::{Arrived, Filled, fill, place_while, quantile};

/// The hot key's rows go one a round trip; others must not wait for that.
#[tokio::test]
async fn a_hot_key_does_not_keep_the_others_waiting() {
    hot(e2e::shared::either().await, 4_000).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_load_hot_key_of_10000_rows);
#[cfg(feature = "long")]
async fn long_load_hot_key_of_10000_rows(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    let figures = hot(db, 10_000).await;
    e2e::figures::record(
        &format!("hot key of 10,000 rows, {:?}", db.flavor()),
        &figures,
    );
}

async fn hot(db: &'static e2e::Db, rows: usize) -> String {
    let mut rig = Rig::new(db).await;
    rig.set("RUST_LOG", "info");
    let hot = Filled {
        key: "'hot'",
        ..Filled::default()
    };
    // Half of them before a cold start, and half while the binlog is tailed.
    fill(&rig, rows / 2, hot).await;
    fill(&rig, 2_000, Filled::default()).await;
    let arrived = Arrived::consume(&rig).await;
    let relay = rig.tailing().await;
    let before = arrived.count();
    let hot = Filled {
        key: "'hot'",
        ..Filled::default()
    };
    fill(&rig, rows / 2, hot).await;
    let started = Instant::now();
    let mut delays = place_while(&rig, &arrived, async || {
        rig.count("status = 1 AND aggregate_id = 'hot'").await > 0
    })
    .await;
    let took = started.elapsed();
    e2e::wait::until(
        "everything to arrive",
        Duration::from_secs(60),
        async || rig.count("status = 1").await == 0,
    )
    .await;
    let (p50, p99, max) = (
        quantile(&mut delays, 0.5),
        quantile(&mut delays, 0.99),
        quantile(&mut delays, 1.0),
    );
    let figures = format!(
        "{before} rows had arrived when the tail was on; the rest of the hot key's {rows} rows took \
         {took:.1?}; {} orders of other keys meanwhile: p50 {p50:.0} ms, p99 {p99:.0} ms, max {max:.0} ms",
        delays.len(),
    );
    print(&figures);
    assert!(
        delays.len() >= 5,
        "the hot key was too fast to delay anybody"
    );
    // With the queue full of the hot key's rows it was half of the time that these took.
    assert!(p99 < took.as_secs_f64() * 1000.0 / 10.0, "{figures}");
    relay.terminate().unwrap();
    figures
}
