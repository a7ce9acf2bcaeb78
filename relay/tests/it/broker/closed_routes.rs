//! A route that is closed, in each of the ways there are: the other routes are as fast as before, and
//! when it opens its rows go by themselves, in order, within one probe interval.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use e2e::Db;
use e2e::rig::rows::assert_calm;
use e2e::rig::writers::print;
use e2e::rig::{Deliveries, LATER, QUEUE, Rig};
use relay::engine::PROBE_MAX;
use serde_json::json;

use super::world::{close_relays_connection, declare_on, latencies, own_user, revoke, wait_ready};

const SIDE: &str = "side";
const SIDE_EXCHANGE: &str = "side-exchange";
const SIDE_KEY: &str = "side.pay";
const WAITING: &str =
    "outbox_relay_waiting_rows{exchange=\"side-exchange\",routing_key=\"side.pay\"}";
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// A pass, the broker and a busy machine.
const SLACK: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    Unbound,
    ExchangeGone,
    RightRevoked,
    QueueFull,
    Silent,
}

impl Closed {
    /// What the operator reads.
    fn text(self) -> &'static str {
        match self {
            Self::Unbound => "312 NO_ROUTE",
            Self::ExchangeGone => "404 NOT_FOUND",
            Self::RightRevoked => "403 ACCESS_REFUSED",
            Self::QueueFull => "basic.nack",
            Self::Silent => "no confirm within RELAY_CONFIRM_TIMEOUT",
        }
    }

    async fn close(self, rig: &Rig, user: &str) {
        let (api, vhost) = (rig.rabbit.management().unwrap(), rig.vhost.name.as_str());
        match self {
            Self::Unbound => {
                let unbound = api.unbind(vhost, SIDE_EXCHANGE, SIDE, "side.*").await;
                assert!(unbound.unwrap());
            }
            Self::ExchangeGone => {
                assert!(api.delete_exchange(vhost, SIDE_EXCHANGE).await.unwrap());
            }
            Self::RightRevoked => {
                revoke(rig, user, SIDE_EXCHANGE).await;
                // A channel that has used a right remembers it.
                close_relays_connection(rig).await;
            }
            Self::QueueFull => {
                // Above what is in it: as this takes effect, the oldest might be dropped.
                let full = json!({"max-length": 30, "overflow": "reject-publish"});
                api.set_policy(vhost, "full", ("queues", "^side$"), full)
                    .await
                    .unwrap();
            }
            Self::Silent => rig.rabbit.suspend_queue(vhost, SIDE).await.unwrap(),
        }
    }

    async fn open(self, rig: &Rig, user: &str) {
        let (api, vhost) = (rig.rabbit.management().unwrap(), rig.vhost.name.as_str());
        match self {
            Self::Unbound | Self::ExchangeGone => {
                declare_on(rig, SIDE_EXCHANGE, SIDE, "side.*", json!({})).await;
            }
            Self::RightRevoked => {
                let all = api.set_permissions(vhost, user, [".*"; 3]).await;
                all.unwrap();
            }
            Self::QueueFull => assert!(api.delete_policy(vhost, "full").await.unwrap()),
            Self::Silent => rig.rabbit.wake_queue(vhost, SIDE).await.unwrap(),
        }
    }
}

const ANSWERED: [Closed; 4] = [
    Closed::Unbound,
    Closed::ExchangeGone,
    Closed::RightRevoked,
    Closed::QueueFull,
];

/// At the same time, each with a relay of its own: they wait for the most part.
#[tokio::test]
async fn a_route_that_refuses_slows_no_other_and_opens_by_itself() {
    let db = e2e::shared::either().await;
    let kinds = ANSWERED.map(|kind| close_and_open(db, kind, 200));
    futures::future::join_all(kinds).await;
}

/// As of a quorum queue that has lost its majority: no confirm, no nack, no return.
#[tokio::test]
async fn a_route_that_keeps_silent_slows_no_other_and_opens_by_itself() {
    close_and_open(e2e::shared::either().await, Closed::Silent, 400).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_broker_routes_closed_for_two_minutes);
#[cfg(feature = "long")]
async fn long_broker_routes_closed_for_two_minutes(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    for kind in ANSWERED.into_iter().chain([Closed::Silent]) {
        let (median, late, opened) = close_and_open(db, kind, 6000).await;
        let figures = format!("{median:.1?}, {late:.1?}; all sent {opened:.1?} after it opened");
        let what = format!("{:?}: route {kind:?} for 2 min", db.flavor());
        e2e::figures::record(
            &format!("{what}: commit to delivery on another route, median, p99"),
            &figures,
        );
    }
}

/// `rows` of the open route, one every 20 ms, are measured before and while the other one is closed.
/// Returns how long they took then, median and 99th percentile, and how long the opening took.
async fn close_and_open(
    db: &'static Db,
    kind: Closed,
    rows: usize,
) -> (Duration, Duration, Duration) {
    let mut rig = Rig::new(db).await;
    declare_on(&rig, SIDE_EXCHANGE, SIDE, "side.*", json!({})).await;
    let user = own_user(&mut rig).await;
    rig.set("RELAY_CONFIRM_TIMEOUT", "5s");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    // While it is open: a broker that remembers a right, or a lane that knows the route, is no help.
    let mut written = place(&rig, 1).await;
    rig.wait_count("status = 2", 20).await;
    let (alone, alone_late) = measured(&rig, "alone", 200, &deliveries).await;

    kind.close(&rig, &user).await;
    written.extend(place(&rig, 10).await);
    rig.wait_reason("routing_key = 'side.pay'", kind.text())
        .await;
    e2e::wait::until("the route to be closed", LATER, async || {
        rig.metric(WAITING).await > Some(100.0)
    })
    .await;
    let (beside, beside_late) = measured(&rig, "beside", rows, &deliveries).await;
    print(&format!(
        "{:?}, {kind:?}: alone {alone:?}, {alone_late:?}, beside it {beside:?}, {beside_late:?}",
        db.flavor()
    ));
    assert!(beside < alone * 3 + Duration::from_millis(200), "median");
    assert!(beside_late < alone_late * 3 + Duration::from_secs(1), "p99");
    wait_ready(&rig).await;
    assert!(rig.metric(WAITING).await > Some(100.0));

    kind.open(&rig, &user).await;
    let opened = Instant::now();
    e2e::wait::until("all rows sent", LATER * 2, async || {
        rig.count("status = 1").await == 0
    })
    .await;
    let took = opened.elapsed();
    print(&format!(
        "{:?}, {kind:?}: all sent {took:?} after it opened",
        db.flavor()
    ));
    let answer = if kind == Closed::Silent {
        CONFIRM_TIMEOUT
    } else {
        Duration::ZERO
    };
    assert!(took < PROBE_MAX + answer + SLACK, "{took:?}");
    assert_in_order(&rig, &written).await;
    assert_eq!(rig.count("attempts > 0 OR status <> 2").await, 0);
    e2e::wait::until("no waiting rows", LATER, async || {
        rig.metric(WAITING).await.is_none()
    })
    .await;
    if kind != Closed::RightRevoked {
        assert_calm(&relay);
    }
    (beside, beside_late, took)
}

/// Rows of 20 keys on the side route.
async fn place(rig: &Rig, each: usize) -> Vec<String> {
    let mut tx = rig.pool.begin().await.unwrap();
    let events: Vec<_> = (0..20 * each)
        .map(|n| {
            let key = format!("side {}", n % 20);
            outbox::Event::new("order", key, "order.placed.v1", SIDE_KEY, b"{}")
                .exchange(SIDE_EXCHANGE)
        })
        .collect();
    outbox::event::write_all(&mut tx, &events).await.unwrap();
    tx.commit().await.unwrap();
    events.iter().map(|event| event.id().to_string()).collect()
}

async fn measured(
    rig: &Rig,
    name: &str,
    rows: usize,
    deliveries: &Deliveries,
) -> (Duration, Duration) {
    let took = latencies(rig, name, rows, deliveries).await;
    (took[took.len() / 2], took[took.len() * 99 / 100])
}

async fn assert_in_order(rig: &Rig, written: &[String]) {
    let side = rig.consume(SIDE).await;
    e2e::wait::until("the side route's messages", LATER, async || {
        side.first().len() == written.len()
    })
    .await;
    let at: HashMap<&str, usize> = written.iter().map(String::as_str).zip(0..).collect();
    let mut last: HashMap<String, usize> = HashMap::new();
    for delivery in side.first() {
        let number = at[delivery.message_id.as_str()];
        let before = last.insert(delivery.key.clone(), number);
        assert!(before < Some(number), "order of {}", delivery.key);
    }
}
