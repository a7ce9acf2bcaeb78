//! SIGTERM when what is on its way can't be finished: an end in time, exit code 1, and nothing lost.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use e2e::Db;
use e2e::proxy::Proxy;
use e2e::rig::writers::{backlog, print, wait_all_delivered};
use e2e::rig::{LATER, QUEUE, Rig, SOON};

use super::commands::{broker_address, wait_condition, wait_in_flight};

const ROWS: usize = 3_000;
const DRAIN: Duration = Duration::from_secs(4);
/// From the second signal, or the deadline, to the end of the process on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What keeps the relay from draining.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// The broker is silent, and the operator signals again.
    SecondSignal,
    /// The broker is silent until the deadline.
    Deadline,
    /// The broker goes away.
    BrokerGone,
    /// The database is silent.
    DatabaseSilent,
}

/// Message ids of the rows that are marked sent.
async fn marked(rig: &Rig) -> Vec<String> {
    sqlx::query_scalar("SELECT CAST(message_id AS CHAR) FROM outbox WHERE status = 2")
        .fetch_all(&rig.pool)
        .await
        .unwrap()
}

async fn cut_off(db: &'static Db, trouble: Trouble) {
    let mut rig = Rig::new(db).await;
    let broker = Proxy::start(broker_address(&rig)).unwrap();
    let database = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, db.port()))).unwrap();
    for (name, proxy) in [("AMQP_URL", &broker), ("DATABASE_URL", &database)] {
        let url = proxy.url(&rig.env[name]);
        rig.set(name, &url);
    }
    let drain = match trouble {
        Trouble::Deadline => DRAIN,
        _ => LATER,
    };
    rig.set("RELAY_DRAIN_TIMEOUT", &format!("{}s", drain.as_secs()));
    let deliveries = rig.consume(QUEUE).await;
    let written = backlog(&rig, ROWS).await;
    let relay = rig.relay();
    e2e::wait::until("a working relay", LATER, async || deliveries.count() > 100).await;
    match trouble {
        Trouble::DatabaseSilent => database.stall(),
        _ => broker.stall(),
    }
    wait_in_flight(&rig).await;

    relay.terminate().unwrap();
    wait_condition(&rig, 503, ("intake", false), "draining").await;
    assert!(relay.ended().unwrap().is_none(), "it did not wait");
    let began = Instant::now();
    match trouble {
        Trouble::SecondSignal => relay.terminate().unwrap(),
        Trouble::BrokerGone => broker.close(),
        Trouble::Deadline | Trouble::DatabaseSilent => {}
    }
    let status = relay.wait_exit(SOON).await.unwrap();
    let took = began.elapsed();
    print(&format!(
        "{:?}, {trouble:?}: ended after {took:?}",
        db.flavor()
    ));
    assert_eq!(status.code(), Some(1), "{}", relay.log());
    assert!(!relay.log().contains("panicked"), "{}", relay.log());
    let patience = match trouble {
        Trouble::Deadline => DRAIN + AT_ONCE,
        Trouble::SecondSignal => AT_ONCE,
        Trouble::BrokerGone | Trouble::DatabaseSilent => Duration::from_secs(10),
    };
    assert!(took < patience, "{took:?}");

    broker.open();
    broker.resume();
    database.resume();
    let done = marked(&rig).await;
    relay.start_again().unwrap();
    wait_all_delivered(&rig, &deliveries).await;
    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
    let mut times: HashMap<String, usize> = HashMap::new();
    for id in deliveries.ids() {
        *times.entry(id).or_default() += 1;
    }
    assert!(written.iter().all(|id| times.contains_key(id)), "lost");
    assert!(
        done.iter().all(|id| times[id] == 1),
        "marked, and sent again"
    );
}

async fn in_trouble(db: &'static Db) {
    use Trouble::{BrokerGone, DatabaseSilent, Deadline, SecondSignal};
    let each = [SecondSignal, Deadline, BrokerGone, DatabaseSilent];
    futures::future::join_all(each.map(|trouble| cut_off(db, trouble))).await;
}

#[tokio::test]
async fn a_drain_that_can_not_end_is_cut_off_with_1_and_nothing_is_lost() {
    in_trouble(e2e::shared::either().await).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_operate_a_drain_that_can_not_end_is_cut_off_with_1_and_nothing_is_lost);
#[cfg(feature = "long")]
async fn long_operate_a_drain_that_can_not_end_is_cut_off_with_1_and_nothing_is_lost(
    flavor: e2e::Flavor,
) {
    for _round in 0..5 {
        in_trouble(e2e::shared::database(flavor).await).await;
    }
}

#[tokio::test]
async fn a_relay_that_has_nothing_on_its_way_stops_at_once_with_0() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    let active = rig.tailing().await;
    let admin = |rig: &mut Rig| {
        let port = e2e::port::free().unwrap();
        rig.set("ADMIN_ADDR", &format!("127.0.0.1:{port}"));
    };
    admin(&mut rig);
    let standby = rig.relay();
    rig.wait_phase("standby").await;
    wait_condition(&rig, 200, ("lease", false), "another relay holds").await;
    let stopped = async |relay: &e2e::product::Process| {
        let began = Instant::now();
        relay.terminate().unwrap();
        let status = relay.wait_exit(SOON).await.unwrap();
        assert_eq!(status.code(), Some(0), "{}", relay.log());
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    };
    stopped(&standby).await;
    stopped(&active).await;

    let port = e2e::port::free().unwrap();
    rig.set("AMQP_URL", &format!("amqp://127.0.0.1:{port}"));
    let connecting = rig.relay();
    wait_condition(&rig, 503, ("broker", false), "broker: ").await;
    stopped(&connecting).await;
}

/// SIGTERM in the middle of a backlog, while more is placed. Returns the longest time to the end.
#[cfg(feature = "long")]
async fn drains(db: &'static Db, rounds: usize) -> Duration {
    let rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let relay = rig.relay();
    let mut longest = Duration::ZERO;
    let mut written = 0;
    for _round in 0..rounds {
        written += backlog(&rig, 4_000).await.len();
        let before = deliveries.count();
        e2e::wait::until("a relay at full load", LATER, async || {
            deliveries.count() > before + 500
        })
        .await;
        let began = Instant::now();
        let (more, ()) = tokio::join!(backlog(&rig, 500), async {
            relay.terminate().unwrap();
            let status = relay.wait_exit(LATER).await.unwrap();
            assert_eq!(status.code(), Some(0), "{}", relay.log());
            longest = longest.max(began.elapsed());
        });
        written += more.len();
        relay.start_again().unwrap();
    }
    wait_all_delivered(&rig, &deliveries).await;
    assert_eq!(deliveries.first().len(), written + 1);
    assert_eq!(deliveries.count(), written + 1, "some came twice");
    longest
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_operate_a_relay_that_is_stopped_at_full_load_drains_and_repeats_nothing);
#[cfg(feature = "long")]
async fn long_operate_a_relay_that_is_stopped_at_full_load_drains_and_repeats_nothing(
    flavor: e2e::Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let longest = drains(db, 30).await;
    let name = format!(
        "SIGTERM at full load to exit, the longest of 30, {:?}",
        db.flavor()
    );
    e2e::figures::record(&name, &format!("{} ms", longest.as_millis()));
    assert!(longest < Duration::from_secs(25), "{longest:?}");
}
