//! A server that holds its connections and answers nothing.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::ops::{TAILING, assert_complete, stop};
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::Writers;
use e2e::rig::{LATER, QUEUE};
use futures::future::join_all;

#[cfg(feature = "long")]
use super::world::record;
use super::world::{flows, probe, put_between};

#[derive(Clone, Copy, Debug)]
enum Way {
    /// SIGSTOP of the server: its kernel goes on accepting connections.
    Stopped,
    /// The bytes stop between relay and server, and orders are placed on.
    Silent,
}

const WAYS: [Way; 2] = [Way::Stopped, Way::Silent];

/// Stalls until the relay has noticed, and `more` beyond that.
async fn stall(flavor: Flavor, way: Way, more: Duration) -> (Flavor, Vec<Duration>) {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    let proxy = put_between(&mut rig);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::stubborn(&rig, 2, 10).await;
    probe(&rig, &deliveries).await;

    match way {
        Way::Stopped => db.pause().unwrap(),
        Way::Silent => proxy.stall(),
    }
    let began = Instant::now();
    e2e::wait::until("a relay that gives up the lock", LATER, async || {
        rig.metric("outbox_relay_leader").await == Some(0.0)
    })
    .await;
    let noticed = began.elapsed();
    assert!(noticed < Duration::from_secs(10), "{noticed:?}");
    let published = deliveries.count();
    tokio::time::sleep(more).await;
    assert_eq!(deliveries.count(), published, "published without a lease");

    match way {
        Way::Stopped => db.resume().unwrap(),
        Way::Silent => proxy.resume(),
    }
    let what = format!("{way:?} for {:?}", began.elapsed());
    let took = flows(&rig, &deliveries, Instant::now(), &what).await;
    rig.wait_metric(TAILING, 1.0).await;
    assert_complete(&rig, writers, &deliveries).await;
    stop(&relay).await;
    (flavor, vec![took])
}

#[tokio::test]
async fn a_server_that_stalls_without_closing_is_left_and_found_again() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        join_all(WAYS.map(|way| stall(flavor, way, Duration::ZERO))).await
    })
    .await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_database_a_server_that_stalls_for_90_s() {
    let took = e2e::shared::on_every_server_at_once(async |flavor| {
        join_all(WAYS.map(|way| stall(flavor, way, Duration::from_secs(90)))).await
    })
    .await;
    record("a server that stalled for 90 s", took.into_iter().flatten());
}
