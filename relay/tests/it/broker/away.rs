//! A broker that is gone: killed, stopped, cut off, silent.

use std::time::{Duration, Instant};

use e2e::rig::ops::MISSED;
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::Writers;
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Db, Rabbit};

use super::world::{
    CONNECTED, ON_THEIR_WAY, assert_complete, assert_nobody_blamed, figure, flows, fragile,
    lasting, place, place_large, put_between, wait_ready, wait_unready,
};

/// With the default of 10 s a dead broker is noticed within 20 s; tests need not wait for that.
const HEARTBEAT: &str = "?heartbeat=2";

#[tokio::test]
async fn a_killed_broker_is_waited_for_and_nothing_is_lost() {
    let (rabbit, _turn) = fragile().await;
    killed(e2e::shared::either().await, rabbit, 1).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_broker_killed_five_times);
#[cfg(feature = "long")]
async fn long_broker_killed_five_times(flavor: e2e::Flavor) {
    let (rabbit, _turn) = fragile().await;
    let db = e2e::shared::database(flavor).await;
    killed(db, rabbit, 5).await;
}

async fn killed(db: &'static Db, rabbit: &'static Rabbit, kills: usize) {
    let rig = lasting(db, rabbit).await;
    let _relay = rig.tailing().await;
    let writers = Writers::start(&rig, 4, 40).await;
    for kill in 0..kills {
        place(&rig, &format!("before kill {kill}"), 500, "order.pay").await;
        rabbit.kill().unwrap();
        rig.wait_metric(CONNECTED, 0.0).await;
        wait_unready(&rig, "broker").await;
        rabbit.restart().await.unwrap();
        let took = flows(&rig, Instant::now(), "killed and restarted").await;
        figure(
            &rig,
            "broker killed and restarted: a new order is sent after",
            took,
        );
        wait_ready(&rig).await;
    }
    assert_nobody_blamed(&rig).await;
    // A message that was on its way to a consumer dies with the broker, so there is none until now.
    assert_complete(&rig, Some(writers), None, kills * ON_THEIR_WAY).await;
}

#[tokio::test]
async fn a_connection_cut_in_the_middle_of_batches_loses_nothing() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    let proxy = put_between(&mut rig, "");
    cut(&rig, &proxy, 8).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_broker_connection_cut_fifty_times);
#[cfg(feature = "long")]
async fn long_broker_connection_cut_fifty_times(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let proxy = put_between(&mut rig, "");
    cut(&rig, &proxy, 50).await;
}

async fn cut(rig: &Rig, proxy: &e2e::Proxy, cuts: usize) {
    let _relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(rig, 4, 40).await;
    let mut longest = Duration::ZERO;
    for cut in 0..cuts {
        // Of a few hundred bytes a message: in the middle of one, and of a batch.
        proxy.cut_after(3_001);
        e2e::wait::until("the cut", LATER, async || {
            rig.metric(CONNECTED).await == Some(0.0) || proxy.connections() == 0
        })
        .await;
        longest = longest.max(flows(rig, Instant::now(), &format!("cut {cut}")).await);
    }
    let what = format!("connection cut {cuts} times: longest time until a new order is sent");
    figure(rig, &what, longest);
    assert_nobody_blamed(rig).await;
    assert_complete(rig, Some(writers), Some(deliveries), cuts * ON_THEIR_WAY).await;
}

#[tokio::test]
async fn a_broker_that_stalls_without_closing_is_noticed_by_its_heartbeat() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    let proxy = put_between(&mut rig, HEARTBEAT);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 4, 40).await;
    let mut twice = 0;
    for answers_only in [false, true] {
        if answers_only {
            proxy.stall_answers();
        } else {
            proxy.stall();
        }
        let stalled = Instant::now();
        rig.wait_metric(CONNECTED, 0.0).await;
        let noticed = stalled.elapsed();
        e2e::rig::writers::print(&format!(
            "answers only {answers_only}: noticed in {noticed:?}"
        ));
        assert!(noticed < Duration::from_secs(20), "{noticed:?}");
        wait_unready(&rig, "broker").await;
        proxy.resume();
        flows(&rig, Instant::now(), "a stall").await;
        twice += ON_THEIR_WAY;
    }
    wait_ready(&rig).await;
    assert_nobody_blamed(&rig).await;
    assert!(relay.ended().unwrap().is_none());
    assert_complete(&rig, Some(writers), Some(deliveries), twice).await;
}

#[tokio::test]
async fn a_broker_stopped_longer_than_net_write_timeout_loses_nothing() {
    let (rabbit, _turn) = fragile().await;
    let own = OwnDb::start(e2e::shared::flavor(), &["--net-write-timeout=2"]).await;
    let mut rig = lasting(own.server(), rabbit).await;
    let url = format!("{}{HEARTBEAT}", rig.env["AMQP_URL"]);
    rig.set("AMQP_URL", &url);
    stopped(&rig, rabbit, Duration::from_secs(12)).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_broker_stopped_for_ninety_seconds);
/// The defaults on all sides: heartbeats of 10 s, net_write_timeout of 60 s.
#[cfg(feature = "long")]
async fn long_broker_stopped_for_ninety_seconds(flavor: e2e::Flavor) {
    let (rabbit, _turn) = fragile().await;
    let db = e2e::shared::database(flavor).await;
    let rig = lasting(db, rabbit).await;
    stopped(&rig, rabbit, Duration::from_secs(90)).await;
}

/// Large rows: the server can't write them into the relay's socket while nobody reads.
async fn stopped(rig: &Rig, rabbit: &Rabbit, time: Duration) {
    let relay = rig.tailing().await;
    let writers = Writers::start(rig, 4, 40).await;
    rabbit.pause().unwrap();
    let large = place_large(rig, time).await;
    wait_unready(rig, "broker").await;
    rabbit.resume().unwrap();
    let what =
        format!("broker stopped for {time:?}, {large} rows of 100 kB: a new order is sent after");
    let took = flows(rig, Instant::now(), &what).await;
    figure(rig, &what, took);
    wait_ready(rig).await;
    assert_nobody_blamed(rig).await;
    assert_eq!(rig.metric(MISSED).await, Some(0.0), "{}", relay.log());
    assert_complete(rig, Some(writers), None, ON_THEIR_WAY).await;
}
