//! A route that was shut for long.

use std::time::Instant;

use e2e::Db;

use crate::bulk::{Arrived, Filled, fill};
use crate::rig::{EXCHANGE, LATER, QUEUE, Rig};
use crate::writers::tell;

/// The relay's own bound between two probes of a route.
const PROBE_MAX: std::time::Duration = relay::shut::PROBE_MAX;

#[tokio::test]
async fn a_route_with_many_waiting_rows_opens_by_itself_within_a_probe_interval() {
    shut(e2e::shared::mariadb().await, 30_000).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_route_with_a_million_waiting_rows() {
    for db in e2e::shared::databases().await {
        let figures = shut(db, 1_000_000).await;
        let name = format!("a shut route with 1,000,000 rows, {:?}", db.flavor());
        e2e::figures::record(&name, &figures);
    }
}

async fn shut(db: &'static Db, rows: usize) -> String {
    let mut rig = Rig::new(db).await;
    rig.set("RUST_LOG", "info");
    let broker = rig.rabbit.management().unwrap();
    let vhost = &rig.vhost.name;
    broker
        .unbind(vhost, EXCHANGE, QUEUE, "order.*")
        .await
        .unwrap();
    // Few keys, so that each is far behind its head.
    let few_keys = Filled {
        key: "CONCAT('k', n % 1000)",
        ..Filled::default()
    };
    fill(&rig, rows, few_keys).await;
    let relay = rig.tailing().await;
    let waiting = u32::try_from(rows).unwrap();
    rig.wait_waiting("order.pay", waiting).await;
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
        "{first:.1?} from the binding to the first messages, {:.1?} to the last, {} twice",
        opened.elapsed(),
        arrived.twice()
    );
    tell(&figures);
    assert!(first < PROBE_MAX * 2, "{figures}");
    figures
}
