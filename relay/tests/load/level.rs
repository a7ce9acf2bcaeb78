//! A busy key while very many other rows wait.

use std::time::{Duration, Instant};

use e2e::Db;
use e2e::rig::writers::print;
use e2e::rig::{EXCHANGE, LATER, QUEUE, Rig};

use crate::bulk::{Arrived, Filled, fill, place_key, quantile};

/// Rows of the busy key in one transaction: far more than go at once.
const BURST: usize = 400;
/// Rows of the busy key after it, and the time between two of them.
const LATER_ROWS: usize = 60;
const EVERY: Duration = Duration::from_millis(333);

#[tokio::test]
async fn a_burst_of_one_key_is_level_again_at_once_while_100000_rows_wait_for_their_time() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.set("RUST_LOG", "info");
    let in_an_hour = Filled {
        more: (", next_attempt_at", ", UTC_TIMESTAMP(6) + INTERVAL 1 HOUR"),
        ..Filled::default()
    };
    fill(&rig, 100_000, in_an_hour).await;
    busy(&rig, 100_000).await;
}

#[tokio::test]
async fn a_burst_of_one_key_is_level_again_at_once_while_200000_rows_wait_for_their_route() {
    let db: &'static Db = e2e::shared::either().await;
    let mut rig = Rig::new(db).await;
    rig.set("RUST_LOG", "info");
    let nowhere = Filled {
        more: (", exchange", ", 'no-such-exchange'"),
        ..Filled::default()
    };
    fill(&rig, 1, nowhere).await;
    let broker = rig.rabbit.management().unwrap();
    let vhost = &rig.vhost.name;
    broker
        .unbind(vhost, EXCHANGE, QUEUE, "order.*")
        .await
        .unwrap();
    fill(&rig, 200_000, Filled::default()).await;
    busy(&rig, 200_001).await;
}

/// A burst and then some rows a second of one key of another route, while `waiting` rows wait.
async fn busy(rig: &Rig, waiting: usize) {
    rig.declare_queue("busy", "busy.*").await;
    let relay = rig.tailing().await;
    let busy = Arrived::of(rig, "busy").await;
    // The gauge counts to 100,000 at the most.
    let counted = u32::try_from(waiting.min(100_000)).unwrap();
    rig.wait_metric("outbox_relay_pending_rows", f64::from(counted))
        .await;
    let burst = Filled {
        key: "'busy'",
        route: "busy.x",
        ..Filled::default()
    };
    fill(rig, BURST, burst).await;
    let committed = Instant::now();
    e2e::wait::until("the burst to arrive", LATER, async || busy.count() == BURST).await;
    let level = committed.elapsed();
    let mut delays = place_key(rig, (&busy, "busy.x"), "busy", (LATER_ROWS, EVERY)).await;
    let (p50, p99, max) = (
        quantile(&mut delays, 0.5),
        quantile(&mut delays, 0.99),
        quantile(&mut delays, 1.0),
    );
    let figures = format!(
        "{waiting} rows wait: {BURST} rows of one key are level after {level:.1?}; its next rows: \
         p50 {p50:.0} ms, p99 {p99:.0} ms, max {max:.0} ms; {} twice",
        busy.twice()
    );
    print(&figures);
    // While it was read by scans of everything its rows took 14 s and more.
    assert!(p50 < 1_000.0, "{figures}");
    relay.terminate().unwrap();
}
