//! A cold start in front of everything that an outage left.

use std::time::Instant;

use e2e::Flavor;
use e2e::rig::LATER;
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::print;

use crate::bulk::{Arrived, Filled, fill, peak_mib, place_while, quantile};

/// Resident memory of the relay, whatever waits for it.
const MEMORY_MAX_MIB: f64 = 64.0;
/// Rows of the backlog that go while an order placed meanwhile is on its way, without an order per
/// key: the median. In rows, because a machine's speed is its own; at 20,000 a second it is 100 ms.
const OVERTAKEN_BY_MAX: f64 = 2_000.0;

#[tokio::test]
async fn a_backlog_is_drained_in_bounded_memory_while_orders_are_placed() {
    for order in ["key", "none"] {
        backlog(e2e::shared::flavor(), 50_000, order).await;
    }
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_load_backlog_of_a_million_rows);
#[cfg(feature = "long")]
async fn long_load_backlog_of_a_million_rows(flavor: Flavor) {
    for order in ["key", "none"] {
        let figures = backlog(flavor, 1_000_000, order).await;
        let name = format!("1,000,000 pending rows, cold start, {flavor:?}, order {order}");
        e2e::figures::record(&name, &figures);
    }
}

async fn backlog(flavor: Flavor, rows: usize, order: &str) -> String {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    rig.set("RELAY_ORDER", order).set("RUST_LOG", "info");
    fill(&rig, rows, Filled::default()).await;
    let arrived = Arrived::consume(&rig).await;
    let started = Instant::now();
    let relay = rig.relay();
    if order == "none" {
        // The tail is on at once, beside the passes.
        rig.wait_metric("outbox_relay_binlog_connected", 1.0).await;
    }
    let mut delays = place_while(&rig, &arrived, async || arrived.count() < rows).await;
    let took = started.elapsed();
    e2e::wait::until("everything to arrive", LATER, async || {
        arrived.count() == rows + delays.len() && rig.count("status = 1").await == 0
    })
    .await;
    let peak = peak_mib(&relay);
    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert!(status.success(), "{}", relay.log());
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = rows as f64 / took.as_secs_f64();
    let (p50, p99) = (quantile(&mut delays, 0.5), quantile(&mut delays, 0.99));
    let figures = format!(
        "{took:.1?} ({rate:.0}/s), at most {peak:.0} MiB resident, {} twice; {} orders meanwhile: \
         p50 {p50:.0} ms, p99 {p99:.0} ms",
        arrived.twice(),
        delays.len(),
    );
    print(&format!(
        "{flavor:?}, order {order}, {rows} rows: {figures}"
    ));
    assert!(peak < MEMORY_MAX_MIB, "{figures}");
    // In one line with the backlog they waited for all that was queued, 4,600 rows.
    let before_it = p50 / 1000.0 * rate;
    assert!(order == "key" || before_it < OVERTAKEN_BY_MAX, "{figures}");
    figures
}
