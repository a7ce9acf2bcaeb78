//! The three services on real servers, under load, with the relay killed again and again.

use std::time::Duration;

use e2e::{Flavor, shop::Shop, stage::Stage, wait};
use rand::RngExt as _;

const ORDERS: u32 = 5_000;
/// Orders a second: the load lasts through all kills, and two cores stand it.
const RATE: u32 = 250;
const KILLS: usize = 20;
/// Messages that may be with the broker. Two batches hold twice as many, but at this rate never so
/// many wait.
const UNCONFIRMED_MAX: i64 = 2 * 1024;
/// Confirmed messages that may wait to be marked, and a mark's worth of others being marked.
const UNMARKED_MAX: i64 = 8_192 + 1024;
const SETTLED: Duration = Duration::from_secs(120);

#[tokio::test]
async fn every_order_is_paid_once_though_the_relay_is_killed_20_times_on_mariadb() {
    killed_relay(Flavor::MariaDb).await;
}

#[tokio::test]
async fn every_order_is_paid_once_though_the_relay_is_killed_20_times_on_mysql() {
    // Says loudly when MySQL can't be had, or fails when it is required.
    if e2e::shared::mysql().await.is_some() {
        killed_relay(Flavor::MySql).await;
    }
}

async fn killed_relay(flavor: Flavor) {
    let stage = Stage::set_up(flavor).await.unwrap();
    let shop = Shop::new(&stage.order.url, ORDERS, RATE).unwrap();
    let kills = async {
        for moment in moments() {
            wait::until("the next moment to kill", SETTLED, async || {
                shop.placed() >= moment
            })
            .await;
            stage.relay.process.kill().unwrap();
            stage.relay.process.start_again().unwrap();
        }
    };
    let (sold, ()) = futures::join!(shop.open(), kills);
    sold.unwrap();

    let orders = i64::from(ORDERS);
    let settled = wait::try_until("all orders to be paid", SETTLED, async || {
        figures(&stage).await == (orders, orders, orders)
    });
    if let Err(err) = settled.await {
        panic!("{err}: {:?}\n{}", figures(&stage).await, stage.logs());
    }
    let (deliveries, messages, several): (i64, i64, i64) = sqlx::query_as(
        "SELECT CAST(SUM(deliveries) AS SIGNED), COUNT(*), \
                (SELECT COUNT(*) - COUNT(DISTINCT order_id) FROM payments.payments) \
         FROM payments.inbox",
    )
    .fetch_one(&stage.pool)
    .await
    .unwrap();
    assert_eq!(messages, orders, "one message an order");
    assert_eq!(several, 0, "one payment an order");

    let duplicates = deliveries - messages;
    let bound = i64::try_from(KILLS).unwrap() * (UNCONFIRMED_MAX + UNMARKED_MAX);
    eprintln!("{flavor:?}: {duplicates} duplicate deliveries over {KILLS} kills, bound {bound}");
    assert!(
        duplicates <= bound,
        "{duplicates} duplicates, bound {bound}"
    );
}

/// Numbers of placed orders at which to kill, at random over the whole load.
fn moments() -> Vec<usize> {
    let orders = usize::try_from(ORDERS).unwrap();
    let mut moments: Vec<usize> = (0..KILLS)
        .map(|_| rand::rng().random_range(1..orders))
        .collect();
    moments.sort_unstable();
    moments
}

/// Sent events, orders that are paid, and processed messages.
async fn figures(stage: &Stage) -> (i64, i64, i64) {
    sqlx::query_as(
        "SELECT (SELECT COUNT(*) FROM orders.outbox WHERE status = 2), \
                (SELECT COUNT(*) FROM orders.orders o JOIN payments.payments p USING (order_id)), \
                (SELECT COUNT(*) FROM payments.inbox WHERE status = 2)",
    )
    .fetch_one(&stage.pool)
    .await
    .unwrap()
}
