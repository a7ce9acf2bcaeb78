//! What the row gauges cost on a large outbox.

use std::time::Duration;

use e2e::Flavor;
use e2e::rig::{LATER, Rig};

use crate::bulk::{Filled, fill};

/// One reading of all of them.
const READ_MAX: f64 = 0.05;
const READING: &str = "outbox_relay_row_gauges_read_seconds";
/// Between two readings.
const READ_EVERY: Duration = Duration::from_secs(3);

e2e::on_each_server!(long_load_gauges_of_five_million_rows);
/// Sent rows, and more pending and parked ones than are counted; a paused relay leaves them alone.
async fn long_load_gauges_of_five_million_rows(flavor: Flavor) {
    const ROWS: usize = 5_000_000;
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::without_queue(db).await;
    rig.sql(
        "INSERT INTO outbox_pauses (scope, actor, reason) VALUES ('relay', 'test', 'measured')",
    )
    .await;
    let status = "CASE WHEN n % 20 = 0 THEN 1 WHEN n % 20 = 1 THEN 3 ELSE 2 END";
    let row = Filled {
        more: (", status", &format!(", {status}")),
        ..Filled::default()
    };
    fill(&rig, ROWS, row).await;
    let _relay = rig.relay();
    rig.wait_phase("paused").await;
    rig.wait_metric("outbox_relay_pending_rows", 100_000.0)
        .await;
    rig.wait_metric("outbox_relay_parked_rows", 100_000.0).await;
    let mut readings = Vec::new();
    while readings.len() < 10 {
        let before = rig.metric(READING).await;
        e2e::wait::until("another reading", LATER, async || {
            rig.metric(READING).await != before
        })
        .await;
        readings.extend(rig.metric(READING).await);
        tokio::time::sleep(READ_EVERY / 3).await;
    }
    readings.sort_by(f64::total_cmp);
    let (median, longest) = (readings[5] * 1000.0, readings[9] * 1000.0);
    let name = format!("row gauges of 5,000,000 rows, {:?}", db.flavor());
    let figure = format!("median {median:.1} ms, longest {longest:.1} ms");
    e2e::figures::record(&name, &figure);
    assert!(readings[9] < READ_MAX, "{readings:?}");
}
