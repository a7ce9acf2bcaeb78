//! A broker that takes no publishes for a while: its memory is short.

use std::time::{Duration, Instant};

use e2e::Rabbit;
use e2e::rig::Rig;
use e2e::rig::ops::MISSED;
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::Writers;

use super::world::{
    BLOCKED, CONNECTED, ON_THEIR_WAY, assert_complete, assert_nobody_blamed, figure, flows,
    fragile, lasting, place, place_large, wait_ready, wait_unready,
};

const PENDING: &str = "outbox_relay_pending_rows";
const TIMED_OUT: &str = "outbox_relay_failed_total{reason=\"timeout\"}";
/// RabbitMQ's default.
const ENOUGH: &str = "0.4";

async fn watermark(rabbit: &Rabbit, value: &[&str]) {
    let args = [&["set_vm_memory_high_watermark"], value].concat();
    rabbit.ctl(&args).await.unwrap();
}

/// Longer than RELAY_CONFIRM_TIMEOUT, so that what was on its way times out, and longer than
/// net_write_timeout, so that the server gives up the binlog connection that nobody reads.
#[tokio::test]
async fn a_memory_alarm_stops_intake_and_blames_nobody() {
    let (rabbit, _turn) = fragile().await;
    let own = OwnDb::start(e2e::shared::flavor(), &["--net-write-timeout=2"]).await;
    let mut rig = lasting(own.server(), rabbit).await;
    rig.set("RELAY_CONFIRM_TIMEOUT", "2s");
    alarm(&rig, rabbit, Duration::from_secs(8)).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_broker_blocked_for_ninety_seconds);
/// The defaults on all sides: 30 s for a confirm, net_write_timeout of 60 s.
#[cfg(feature = "long")]
async fn long_broker_blocked_for_ninety_seconds(flavor: e2e::Flavor) {
    let (rabbit, _turn) = fragile().await;
    let db = e2e::shared::database(flavor).await;
    let rig = lasting(db, rabbit).await;
    alarm(&rig, rabbit, Duration::from_secs(90)).await;
}

async fn alarm(rig: &Rig, rabbit: &Rabbit, time: Duration) {
    let relay = rig.tailing().await;
    let writers = Writers::start(rig, 4, 40).await;
    watermark(rabbit, &["absolute", "1MB"]).await;
    rig.wait_metric(BLOCKED, 1.0).await;
    wait_unready(rig, "blocked by the broker").await;
    assert_eq!(rig.metric(CONNECTED).await, Some(1.0));
    let large = place_large(rig, time).await;
    assert!(rig.metric(PENDING).await > Some(0.0));
    let lag = rig.metric("outbox_relay_binlog_lag_seconds").await;
    assert!(
        lag > Some(time.as_secs_f64() / 2.0),
        "{lag:?} {}",
        relay.log()
    );
    assert_nobody_blamed(rig).await;

    watermark(rabbit, &[ENOUGH]).await;
    let what =
        format!("broker blocked for {time:?}, {large} rows of 100 kB: a new order is sent after");
    let took = flows(rig, Instant::now(), &what).await;
    figure(rig, &what, took);
    wait_ready(rig).await;
    assert_eq!(rig.metric(BLOCKED).await, Some(0.0));
    assert_eq!(rig.metric(TIMED_OUT).await, Some(0.0), "{}", relay.log());
    assert_eq!(rig.metric(MISSED).await, Some(0.0), "{}", relay.log());
    place(rig, "after", 100, "order.pay").await;
    assert_nobody_blamed(rig).await;
    assert_complete(rig, Some(writers), None, ON_THEIR_WAY).await;
}
