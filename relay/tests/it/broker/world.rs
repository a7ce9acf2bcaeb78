//! What the broker's faults have in common: brokers of this binary's own, a way to them that can be
//! cut, and the proof that all of it came through and nobody was blamed.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use e2e::rig::ops::readiness;
use e2e::rig::writers::{Writers, print};
use e2e::rig::{Deliveries, Delivery, EXCHANGE, LATER, QUEUE, Rig};
use e2e::{Db, Proxy, Rabbit, RabbitOptions};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// What is committed is confirmed within this once the broker is there again.
pub(crate) const FLOWS_WITHIN: Duration = Duration::from_secs(10);
/// Rows of a batch in these tests.
pub(crate) const BATCH: &str = "1024";
/// Two full batches: what may be delivered twice when their answers are lost once.
pub(crate) const ON_THEIR_WAY: usize = 2 * 1024;

pub(crate) const CONNECTED: &str = "outbox_relay_broker_connected";
pub(crate) const BLOCKED: &str = "outbox_relay_broker_blocked";

/// A broker for what disturbs everyone on it, one test after the other.
pub(crate) async fn fragile() -> (&'static Rabbit, MutexGuard<'static, ()>) {
    static BROKER: OnceCell<Rabbit> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let start = async || Rabbit::start(RabbitOptions::default()).await;
    (BROKER.get_or_try_init(start).await.unwrap(), turn)
}

pub(crate) fn address(rabbit: &Rabbit) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, rabbit.amqp_port()))
}

/// The relay alone goes through the proxy; `query` is further parts of its URL.
pub(crate) fn put_between(rig: &mut Rig, query: &str) -> Proxy {
    let proxy = Proxy::start(address(rig.rabbit)).unwrap();
    let url = proxy.url(&rig.env["AMQP_URL"]);
    rig.set("AMQP_URL", &format!("{url}{query}"));
    proxy
}

/// A rig with a queue that outlives a kill of its broker: a quorum queue of RabbitMQ 3.10 may not.
pub(crate) async fn lasting(db: &'static Db, rabbit: &'static Rabbit) -> Rig {
    let mut rig = Rig::on(db, rabbit).await;
    rig.set("RELAY_BATCH_MAX", BATCH);
    topology(&rig).await;
    rig
}

/// The exchange and a classic queue bound to it.
pub(crate) async fn topology(rig: &Rig) {
    declare_on(rig, EXCHANGE, QUEUE, "order.*", json!({})).await;
}

pub(crate) async fn wait_unready(rig: &Rig, text: &str) {
    e2e::wait::until(&format!("unready, {text:?}"), LATER, async || {
        let answer = readiness(rig).await;
        answer.is_some_and(|(status, said)| status == 503 && said.to_string().contains(text))
    })
    .await;
}

pub(crate) async fn wait_ready(rig: &Rig) {
    e2e::wait::until("readiness", LATER, async || {
        let answer = readiness(rig).await;
        answer.is_some_and(|(status, _)| status == 200)
    })
    .await;
}

/// Rows flow again before `since` is [`FLOWS_WITHIN`] ago. Returns how long one takes that is
/// committed now: what was committed during the fault goes before it.
pub(crate) async fn flows(rig: &Rig, since: Instant, what: &str) -> Duration {
    let sent = rig.count("status = 2").await;
    let key = format!("probe {}", uuid::Uuid::now_v7());
    let id = rig.insert_one(&key, "order.pay", b"1").await;
    e2e::wait::until("rows to flow", LATER, async || {
        rig.count("status = 2").await > sent
    })
    .await;
    let first = since.elapsed();
    assert!(first < FLOWS_WITHIN, "{what}: {first:?}");
    rig.wait_status(&id, 2).await;
    since.elapsed()
}

/// Kept by the long forms, printed by the short ones.
pub(crate) fn figure(rig: &Rig, what: &str, took: Duration) {
    let what = format!("{:?}: {what}", rig.db.flavor());
    let took = format!("{took:.1?}");
    if cfg!(feature = "long") {
        e2e::figures::record(&what, &took);
    } else {
        print(&format!("{what} {took}"));
    }
}

/// No row was blamed for what was nobody's fault.
pub(crate) async fn assert_nobody_blamed(rig: &Rig) {
    let blamed = "attempts > 0 OR last_error IS NOT NULL OR status > 2";
    assert_eq!(rig.count(blamed).await, 0);
    let attempts: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM outbox_attempts")
        .fetch_one(&rig.pool)
        .await
        .unwrap();
    assert_eq!(attempts, 0);
}

/// Every row of the table has arrived and is marked, the writers' in the order of each key, and no
/// more than `twice_max` of them twice.
pub(crate) async fn assert_complete(
    rig: &Rig,
    writers: Option<Writers>,
    deliveries: Option<Deliveries>,
    twice_max: usize,
) {
    if let Some(writers) = writers {
        writers.stop(rig).await;
    }
    e2e::wait::until("no row pending", LATER * 2, async || {
        rig.count("status = 1").await == 0
    })
    .await;
    assert_eq!(rig.count("status <> 2").await, 0);
    let deliveries = match deliveries {
        Some(deliveries) => deliveries,
        None => rig.consume(QUEUE).await,
    };
    let ids: Vec<String> = sqlx::query_scalar("SELECT message_id FROM outbox ORDER BY id")
        .fetch_all(&rig.pool)
        .await
        .unwrap();
    e2e::wait::until(&format!("{} messages", ids.len()), LATER, async || {
        deliveries.first().len() >= ids.len()
    })
    .await;
    let first = deliveries.first();
    let arrived: HashSet<&str> = first.iter().map(|d| d.message_id.as_str()).collect();
    assert!(ids.iter().all(|id| arrived.contains(id.as_str())));
    assert_eq!(arrived.len(), ids.len(), "nothing else arrived");
    assert_writers_order(&first);
    let twice = deliveries.count() - first.len();
    let all = ids.len();
    print(&format!(
        "{twice} of {all} delivered twice, bound {twice_max}"
    ));
    assert!(twice <= twice_max, "{twice} delivered twice");
}

/// The writers number the messages of each key.
fn assert_writers_order(first: &[Delivery]) {
    let mut seen: HashMap<&str, u64> = HashMap::new();
    for delivery in first
        .iter()
        .filter(|delivery| delivery.key.starts_with('k'))
    {
        let number: u64 = String::from_utf8_lossy(&delivery.payload).parse().unwrap();
        let before = seen.entry(&delivery.key).or_default();
        assert_eq!(number, *before + 1, "after {before} of {}", delivery.key);
        *before = number;
    }
}

/// Rows of keys of their own.
pub(crate) async fn place(rig: &Rig, name: &str, count: usize, route: &str) -> Vec<String> {
    rig.insert_all((0..count).map(|n| (format!("{name} {n}"), route)))
        .await
}

/// A topic exchange and a queue with these arguments bound to it.
pub(crate) async fn declare_on(
    rig: &Rig,
    exchange: &str,
    queue: &str,
    binding: &str,
    arguments: Value,
) {
    let api = rig.rabbit.management().unwrap();
    let vhost = &rig.vhost.name;
    api.declare_queue(vhost, queue, arguments).await.unwrap();
    api.declare_exchange(vhost, exchange, "topic")
        .await
        .unwrap();
    api.bind(vhost, exchange, queue, binding).await.unwrap();
}

/// The relay has a user of its own, with all rights.
pub(crate) async fn own_user(rig: &mut Rig) -> String {
    let user = format!("relay-{}", rig.vhost.name);
    let api = rig.rabbit.management().unwrap();
    api.create_user(&user, "pw", "").await.unwrap();
    api.set_permissions(&rig.vhost.name, &user, [".*"; 3])
        .await
        .unwrap();
    let url = rig.rabbit.user_url(&user, "pw", &rig.vhost.name);
    rig.set("AMQP_URL", &url);
    user
}

/// The user may not write to this exchange any more.
pub(crate) async fn revoke(rig: &Rig, user: &str, exchange: &str) {
    let api = rig.rabbit.management().unwrap();
    let others = format!("^(?!{exchange}$).*");
    api.set_permissions(&rig.vhost.name, user, [".*", &others, ".*"])
        .await
        .unwrap();
}

/// From commit to delivery of rows of keys of their own, one every 20 ms, sorted.
pub(crate) async fn latencies(
    rig: &Rig,
    name: &str,
    rows: usize,
    deliveries: &Deliveries,
) -> Vec<Duration> {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let mut committed = HashMap::new();
    for number in 0..rows {
        tick.tick().await;
        let key = format!("{name} {number}");
        let id = rig.insert_one(&key, "order.pay", b"{}").await;
        committed.insert(id, Instant::now());
    }
    let of_these = || {
        let all = deliveries.first().into_iter();
        all.filter_map(|d| Some(d.at.saturating_duration_since(*committed.get(&d.message_id)?)))
    };
    e2e::wait::until("all measured rows", LATER, async || {
        of_these().count() == rows
    })
    .await;
    let mut took: Vec<Duration> = of_these().collect();
    took.sort_unstable();
    took
}

/// As an operator closes it in the management page.
pub(crate) async fn close_relays_connection(rig: &Rig) {
    let api = rig.rabbit.management().unwrap();
    e2e::wait::until("the relay's connection to be closed", LATER, async || {
        let all = api.connections(&rig.vhost.name).await.unwrap();
        let is_relay = |name: &Option<String>| name.as_ref().is_some_and(|n| n.contains("relay"));
        let relays = all.iter().find(|one| is_relay(&one.client_name))?;
        api.close_connection(&relays.name).await.ok()
    })
    .await;
}

/// Places rows of 100 kB, twenty a second, for so long; returns how many.
pub(crate) async fn place_large(rig: &Rig, time: Duration) -> usize {
    let payload = vec![b'1'; 100_000];
    let begun = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    let mut placed = 0;
    while begun.elapsed() < time {
        pace.tick().await;
        let key = format!("large {placed}");
        rig.insert_one(&key, "order.pay", &payload).await;
        placed += 1;
    }
    placed
}
