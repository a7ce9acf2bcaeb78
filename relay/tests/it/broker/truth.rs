//! Metrics that can't lie: 0 when idle, one second per second while nothing goes out.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::ops::MISSED;
use e2e::rig::writers::print;
use e2e::rig::{LATER, Rig};

use super::world::{CONNECTED, put_between};

const AGES: [&str; 2] = [
    "outbox_relay_binlog_lag_seconds",
    "outbox_relay_oldest_pending_age_seconds",
];
/// After the last confirm.
const IDLE_WITHIN: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_secs(6);
/// An age is shown anew once a second, and a scrape takes a moment.
const TICK: f64 = 1.3;

#[tokio::test]
async fn lag_and_age_are_zero_when_idle_and_rise_as_time_does_while_the_broker_is_away() {
    e2e::shared::on_every_server_at_once(ages).await;
}

async fn ages(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let proxy = put_between(&mut rig, "");
    let _relay = rig.tailing().await;
    rig.insert(30).await;
    rig.wait_sent(30).await;
    wait_idle(&rig).await;

    proxy.close();
    rig.wait_metric(CONNECTED, 0.0).await;
    let began = Instant::now();
    rig.insert_one("waits", "order.pay", b"{}").await;
    for name in AGES {
        e2e::wait::until(&format!("{name} to rise"), LATER, async || {
            rig.metric(name).await > Some(1.0)
        })
        .await;
    }
    let mut looks = 0;
    let before = look(&rig).await;
    while before.0.elapsed() < WATCHED {
        let now = look(&rig).await;
        let passed = (now.0 - before.0).as_secs_f64();
        for (age, was) in now.1.iter().zip(before.1) {
            let rise = age - was;
            assert!((rise - passed).abs() < TICK, "{rise} in {passed} s");
            assert!(*age < began.elapsed().as_secs_f64() + TICK, "{age}");
        }
        looks += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(looks > 10, "{looks} looks");

    proxy.open();
    rig.wait_sent(31).await;
    wait_idle(&rig).await;
    assert_eq!(rig.metric(MISSED).await, Some(0.0));
    let undecodable = "outbox_relay_undecodable_events_total";
    assert_eq!(rig.metric(undecodable).await, Some(0.0));
}

async fn look(rig: &Rig) -> (Instant, [f64; 2]) {
    let mut ages = [0.0; 2];
    for (age, name) in ages.iter_mut().zip(AGES) {
        *age = rig.metric(name).await.unwrap();
    }
    (Instant::now(), ages)
}

async fn wait_idle(rig: &Rig) {
    let idle = Instant::now();
    e2e::wait::until("all ages at 0", LATER, async || {
        look(rig).await.1 == [0.0, 0.0]
    })
    .await;
    let took = idle.elapsed();
    print(&format!("{:?}: 0 after {took:.1?}", rig.db.flavor()));
    assert!(took < IDLE_WITHIN, "{took:?}");
}
