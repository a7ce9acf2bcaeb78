//! A route that was closed for long.

use std::time::Instant;

use e2e::Db;
use e2e::rig::writers::print;
use e2e::rig::{EXCHANGE, LATER, QUEUE, Rig};

use crate::bulk::{Arrived, Filled, fill, place_on, quantile};

/// The relay's own bound between two probes of a route.
const PROBE_MAX: std::time::Duration = relay::engine::PROBE_MAX;

#[tokio::test]
async fn a_route_with_many_waiting_rows_opens_by_itself_within_a_probe_interval() {
    // Few keys, so that each is far behind its head; and as many keys as rows.
    for keys in [1_000, 30_000] {
        closed(e2e::shared::either().await, 30_000, keys).await;
    }
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_load_route_with_a_million_waiting_rows);
#[cfg(feature = "long")]
async fn long_load_route_with_a_million_waiting_rows(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    for keys in [1_000, 1_000_000] {
        let figures = closed(db, 1_000_000, keys).await;
        let flavor = db.flavor();
        let name = format!("a closed route with 1,000,000 rows of {keys} keys, {flavor:?}");
        e2e::figures::record(&name, &figures);
    }
}

async fn closed(db: &'static Db, rows: usize, keys: usize) -> String {
    let mut rig = Rig::new(db).await;
    rig.set("RUST_LOG", "info");
    let broker = rig.rabbit.management().unwrap();
    let vhost = &rig.vhost.name;
    broker
        .unbind(vhost, EXCHANGE, QUEUE, "order.*")
        .await
        .unwrap();
    rig.declare_queue("other", "other.*").await;
    let key = format!("CONCAT('k', n % {keys})");
    let waiting = Filled {
        key: &key,
        ..Filled::default()
    };
    fill(&rig, rows, waiting).await;
    let relay = rig.tailing().await;
    let waiting = u32::try_from(rows).unwrap();
    rig.wait_waiting("order.pay", waiting).await;
    let other = Arrived::of(&rig, "other").await;
    let mut delays = place_on(&rig, (&other, "other.x"), async |placed| placed < 100).await;
    let (p50, p99) = (quantile(&mut delays, 0.5), quantile(&mut delays, 0.99));
    let arrived = Arrived::consume(&rig).await;
    broker
        .bind(vhost, EXCHANGE, QUEUE, "order.*")
        .await
        .unwrap();
    let opened = Instant::now();
    e2e::wait::until("the first to arrive", LATER, async || arrived.count() > 1).await;
    let first = opened.elapsed();
    e2e::wait::until("all to arrive", LATER * 10, async || {
        arrived.count() == rows && rig.count("status = 1").await == 0
    })
    .await;
    relay.terminate().unwrap();
    let figures = format!(
        "orders of another route meanwhile: p50 {p50:.0} ms, p99 {p99:.0} ms; {first:.1?} from the \
         binding to the first messages, {:.1?} to the last, {} twice",
        opened.elapsed(),
        arrived.twice()
    );
    print(&figures);
    assert!(first < PROBE_MAX, "{figures}");
    // Where the tail is closed for them they wait for passes, seconds each.
    assert!(p50 < 1_000.0, "{figures}");
    figures
}
