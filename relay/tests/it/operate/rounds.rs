//! Pauses and resumes in quick succession under load.

use std::time::Duration;

use e2e::Db;
use e2e::rig::writers::{Writers, assert_first_deliveries_in_order, print, wait_all_delivered};
use e2e::rig::{LATER, QUEUE, Rig};
use rand::RngExt as _;

use super::commands::done;

const ROUTE: [&str; 3] = ["--route", "order-exchange", "order.pay"];

/// Pauses and resumes the relay, then the route, as often as this, and now and then kills the relay
/// in between. A resume may come before the relay has seen the pause, or in the middle of it.
async fn rounds(db: &'static Db, rounds: usize) -> String {
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_SWEEP_INTERVAL", "1s");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 4, 30).await;
    let mut kills = 0;
    for round in 0..rounds {
        let what = if round % 2 == 0 { &[][..] } else { &ROUTE[..] };
        let before = deliveries.count();
        e2e::wait::until("a relay that sends", LATER, async || {
            deliveries.count() > before
        })
        .await;
        let why = ["--reason", "a round", "--by", "test"];
        done(&rig, &[&["pause"], what, &why].concat()).await;
        let moment = rand::rng().random_range(0..2_500);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        if round % 4 == 3 {
            relay.kill().unwrap();
            relay.start_again().unwrap();
            kills += 1;
        }
        done(&rig, &[&["resume"], what].concat()).await;
    }
    let written = writers.stop(&rig).await;
    wait_all_delivered(&rig, &deliveries).await;
    assert_eq!(assert_first_deliveries_in_order(&deliveries), written);
    let twice = deliveries.count() - deliveries.first().len();
    let figures = format!("{kills} kills, {written} messages, none lost, {twice} twice");
    print(&format!("{:?}: {rounds} pauses, {figures}", db.flavor()));
    assert!(kills > 0 || twice == 0, "{twice} without a kill");
    assert!(!relay.log().contains("panicked"), "{}", relay.log());
    figures
}

#[tokio::test]
async fn pauses_under_load_keep_the_order_of_each_key_and_repeat_nothing() {
    rounds(e2e::shared::either().await, 3).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_operate_pauses_and_kills_under_load_keep_the_order_of_each_key() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = e2e::shared::database(flavor).await;
        let figures = rounds(db, 60).await;
        e2e::figures::record(
            &format!("60 pauses under load, {:?}", db.flavor()),
            &figures,
        );
    })
    .await;
}
