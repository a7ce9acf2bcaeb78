//! Relays that are killed, stopped, suspended and stopped: nothing is lost, and what arrives
//! twice has a bound.

use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::product::Process;
use e2e::rig::ops::{readiness, wait_delivered};
use e2e::rig::rows::assert_calm;
use e2e::rig::writers::{backlog, print, wait_all_delivered};
use e2e::rig::{LATER, QUEUE, Rig, SOON};
use rand::RngExt;
use relay::leadership::lock::Lease;
use relay::publish::confirms::Outcome;
use relay::publish::publisher_task::{self, Broker};
use sqlx::{Connection as _, Executor};
use svc_kit::amqp::{Amqp, Channels};
use tokio::sync::mpsc;

use super::batch::row;

const KILLS: usize = 20;
const ORDERS: usize = 5_000;
const LANES: usize = 4;
const BATCH: usize = 256;
const MARK_MISSED: &str = "outbox_relay_mark_missed_total";
/// A standby works at most this long after the active one went silent.
const TAKEOVER_MAX: Duration = Duration::from_secs(10);

async fn drained(relay: &Process) {
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}

#[tokio::test]
async fn every_message_arrives_though_the_relay_is_killed_20_times_while_5000_are_placed() {
    e2e::shared::on_every_server_at_once(kills).await;
}

async fn kills(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_LANES", &LANES.to_string())
        .set("RELAY_BATCH_MAX", &BATCH.to_string());
    let deliveries = rig.consume(QUEUE).await;
    let relay = rig.relay();
    let mut placed = Vec::new();
    for kill in 0..KILLS {
        placed.extend(backlog(&rig, ORDERS / KILLS / 2).await);
        // Some while it connects, most in the middle of the work, some when all is done.
        let arrived = deliveries.count();
        let moment = arrived + rand::rng().random_range(0..ORDERS / KILLS);
        let place = async { placed.extend(backlog(&rig, ORDERS / KILLS / 2).await) };
        let wait = e2e::wait::try_until("the moment", SOON / 10, async || {
            deliveries.count() > moment
        });
        let ((), _early) = tokio::join!(place, wait);
        relay.kill().unwrap();
        relay.start_again().unwrap();
        print(&format!(
            "{:?}: kill {kill} after {} deliveries",
            db.flavor(),
            deliveries.count() - arrived
        ));
    }
    wait_all_delivered(&rig, &deliveries).await;
    relay.terminate().unwrap();
    drained(&relay).await;

    let mut arrived: Vec<String> = deliveries
        .first()
        .into_iter()
        .map(|delivery| delivery.message_id)
        .filter(|id| placed.contains(id))
        .collect();
    arrived.sort();
    placed.sort();
    assert_eq!(placed.len(), ORDERS);
    assert!(arrived == placed, "{} of {ORDERS}", arrived.len());
    let twice = deliveries.twice();
    let bound = KILLS * (LANES * BATCH + relay::engine::UNWRITTEN_MAX);
    print(&format!(
        "{:?}: {twice} duplicate deliveries after {KILLS} kills, bound {bound}",
        db.flavor()
    ));
    assert!(twice <= bound);
}

#[tokio::test]
async fn a_table_locked_for_longer_than_a_read_may_take_costs_no_copy_and_no_session() {
    // The reader's time-out is 30 s.
    const LOCKED: Duration = Duration::from_secs(35);
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = e2e::shared::database(flavor).await;
        let mut rig = Rig::new(db).await;
        rig.set("RELAY_SWEEP_INTERVAL", "500ms");
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        let mut operator = rig.database.connect().await.unwrap();
        operator.execute("LOCK TABLES outbox WRITE").await.unwrap();
        let unlock = Instant::now() + LOCKED;
        for number in 0..10 {
            let row = insert("locked", number);
            let row = sqlx::AssertSqlSafe(row.as_str());
            operator.execute(row).await.unwrap();
        }
        e2e::wait::until("readiness says why", SOON, async || {
            let (status, body) = readiness(&rig).await.unwrap();
            let why = "the table can't be read, it is tried again";
            status == 200 && body.to_string().contains(why)
        })
        .await;
        assert_eq!(
            deliveries.count(),
            0,
            "a row that can't be read is not sent"
        );
        let what = "a lock longer than a read may take";
        e2e::wait::until(what, 2 * LOCKED, async || Instant::now() > unlock).await;
        operator.execute("UNLOCK TABLES").await.unwrap();
        rig.wait_sent(10).await;
        rig.insert(5).await;
        rig.wait_sent(15).await;
        assert_eq!((deliveries.count(), deliveries.twice()), (15, 0));
        assert_calm(&relay);
    })
    .await;
}

e2e::on_each_server!(a_late_mark_after_truncate_marks_nothing_that_was_not_sent);
async fn a_late_mark_after_truncate_marks_nothing_that_was_not_sent(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut operator = rig.database.connect().await.unwrap();
    let mut writer = rig.database.connect().await.unwrap();
    let mut rows = writer.begin().await.unwrap();
    for number in 0..10 {
        let row = insert("old", number);
        let row = sqlx::AssertSqlSafe(row.as_str());
        rows.execute(row).await.unwrap();
    }
    rows.commit().await.unwrap();
    // The lock stops the marks, which are collected for a moment, and not the reads.
    operator.execute("LOCK TABLES outbox READ").await.unwrap();
    e2e::wait::until("the old ones", SOON, async || deliveries.count() == 10).await;
    let refused = "outbox_relay_refused_records{kind=\"mark\"}";
    rig.wait_metric(refused, 10.0).await;
    // Marks that met a lock are put off for seconds: the table is another one by then.
    operator.execute("UNLOCK TABLES").await.unwrap();
    operator.execute("LOCK TABLES outbox WRITE").await.unwrap();
    operator.execute("TRUNCATE TABLE outbox").await.unwrap();
    for number in 0..10 {
        operator
            .execute(sqlx::AssertSqlSafe(insert("new", number).as_str()))
            .await
            .unwrap();
    }
    // The TRUNCATE makes the relay read the table; without its fence it can't, so the marks come
    // first and meet rows that were not sent.
    let mut fence = rig.pool.begin().await.unwrap();
    fence
        .execute("SELECT n FROM outbox_fence FOR UPDATE")
        .await
        .unwrap();
    operator.execute("UNLOCK TABLES").await.unwrap();
    e2e::wait::until("the late marks", SOON, async || {
        let marked = rig.metric("outbox_relay_marked_total").await?;
        (marked + rig.metric(MARK_MISSED).await? >= 10.0).then_some(())
    })
    .await;
    fence.rollback().await.unwrap();

    rig.wait_sent(10).await;
    let ids: Vec<u64> = sqlx::query_scalar("SELECT id FROM outbox ORDER BY id")
        .fetch_all(&rig.pool)
        .await
        .unwrap();
    assert_eq!(ids, (1..=10).collect::<Vec<u64>>(), "the same ids again");
    e2e::wait::until("the new ones", SOON, async || deliveries.count() >= 20).await;
    assert_eq!(deliveries.first().len(), 20, "{:?}", deliveries.ids());
    assert_late_marks(&rig).await;
    relay.terminate().unwrap();
    drained(&relay).await;
}

e2e::on_each_server!(a_late_mark_on_replaced_rows_marks_nothing_that_was_not_sent);
async fn a_late_mark_on_replaced_rows_marks_nothing_that_was_not_sent(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    for number in 0..10 {
        let statement = insert("old", number);
        rig.pool
            .execute(sqlx::AssertSqlSafe(statement.as_str()))
            .await
            .unwrap();
    }
    // Row locks let the relay read and publish, and stop its mark.
    let mut operator = rig.pool.begin().await.unwrap();
    operator
        .execute("SELECT id FROM outbox FOR UPDATE")
        .await
        .unwrap();
    let relay = rig.tailing().await;
    e2e::wait::until("the old ones", SOON, async || deliveries.count() == 10).await;
    operator.execute("DELETE FROM outbox").await.unwrap();
    for number in 0..10 {
        let statement = insert("new", number).replace("(message_id", "(id, message_id");
        let statement = statement.replace("VALUES (", &format!("VALUES ({}, ", number + 1));
        operator
            .execute(sqlx::AssertSqlSafe(statement.as_str()))
            .await
            .unwrap();
    }
    operator.commit().await.unwrap();

    rig.wait_sent(10).await;
    e2e::wait::until("the new ones", SOON, async || deliveries.count() >= 20).await;
    assert_eq!(deliveries.first().len(), 20, "{:?}", deliveries.ids());
    assert_late_marks(&rig).await;
    relay.terminate().unwrap();
    drained(&relay).await;
}

fn insert(generation: &str, number: usize) -> String {
    format!(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
         payload) VALUES ('{generation}-{number}', 'order', 'k{number}', 'order.placed.v1', \
         'order.pay', '{generation}')"
    )
}

/// The marks of the old rows did come, and late: else the test has shown nothing.
async fn assert_late_marks(rig: &Rig) {
    let unmarked = rig.metric(MARK_MISSED).await;
    assert_eq!(unmarked, Some(10.0));
}

/// Where a relay tells how it is.
async fn ready(admin: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(format!("http://{admin}/readyz")).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

async fn wait_standby(admin: &str) {
    e2e::wait::until("a standby", LATER, async || {
        let (status, body) = ready(admin).await?;
        (status == 200 && body.contains(r#""role":"standby""#)).then_some(())
    })
    .await;
}

/// An active relay with its admin address, and a standby at the rig's.
async fn pair(rig: &mut Rig) -> (Process, String, Process) {
    let active = rig.tailing().await;
    let address = rig.env["ADMIN_ADDR"].clone();
    let second = format!("127.0.0.1:{}", e2e::port::free().unwrap());
    rig.set("ADMIN_ADDR", &second);
    let standby = rig.relay();
    wait_standby(&second).await;
    (active, address, standby)
}

e2e::on_each_server!(a_standby_publishes_within_10_s_after_the_active_relay_was_killed);
async fn a_standby_publishes_within_10_s_after_the_active_relay_was_killed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let (active, address, standby) = pair(&mut rig).await;
    let mut written = rig.insert(20).await;
    rig.wait_sent(20).await;
    let (status, body) = ready(&address).await.unwrap();
    assert!(
        status == 200 && body.contains(r#""role":"active""#),
        "{body}"
    );
    let published = "outbox_relay_published_total{source=\"binlog\"}";
    assert_eq!(
        rig.metric(published).await,
        Some(0.0),
        "the standby works as well"
    );

    active.kill().unwrap();
    let killed = Instant::now();
    written.extend(rig.insert(1).await);
    wait_delivered(&deliveries, &written).await;
    let took = killed.elapsed();
    print(&format!("{:?}: SIGKILL to delivery {took:?}", db.flavor()));
    assert!(took < TAKEOVER_MAX, "{took:?}");
    assert_eq!(deliveries.twice(), 0);
    standby.terminate().unwrap();
    drained(&standby).await;
}

e2e::on_each_server!(a_suspended_relay_is_replaced_within_10_s_and_publishes_nothing_when_it_wakes);
async fn a_suspended_relay_is_replaced_within_10_s_and_publishes_nothing_when_it_wakes(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let (active, address, standby) = pair(&mut rig).await;
    let mut written = rig.insert(20).await;
    rig.wait_sent(20).await;

    active.pause().unwrap();
    let paused = Instant::now();
    // Its binlog connection takes these in while it sleeps.
    written.extend(rig.insert(20).await);
    wait_delivered(&deliveries, &written).await;
    let took = paused.elapsed();
    print(&format!("{:?}: SIGSTOP to delivery {took:?}", db.flavor()));
    assert!(took < TAKEOVER_MAX, "{took:?}");

    active.resume().unwrap();
    wait_standby(&address).await;
    written.extend(rig.insert(20).await);
    wait_delivered(&deliveries, &written).await;
    for relay in [&active, &standby] {
        relay.terminate().unwrap();
        drained(relay).await;
    }
    assert_eq!(deliveries.twice(), 0, "{}", active.log());
}

/// The check that a relay which wakes up depends on: it may take a while until it is notified.
#[tokio::test]
async fn a_publisher_whose_lease_is_over_publishes_nothing() {
    let rig = Rig::new(e2e::shared::mariadb().await).await;
    let deliveries = rig.consume(QUEUE).await;
    let amqp = Amqp::parse(&rig.vhost.amqp_url).unwrap();
    let connection = Arc::new(amqp.connect("test").await.unwrap());
    let frame_max = usize::try_from(connection.configuration().frame_max()).unwrap();
    let channels = Channels::new(amqp, "test".to_owned(), connection, |_| {});
    let broker = Broker {
        channels: Arc::new(channels),
        frame_max,
        lease: Lease::default(),
        confirm_timeout: SOON,
    };
    let (batches, inlet) = mpsc::channel(1);
    let (outcomes_in, mut outcomes) = mpsc::channel(1);
    let publisher = publisher_task::run(0, broker, inlet, outcomes_in);
    let publisher = svc_kit::tasks::unit(publisher);
    batches.send(vec![row(1)]).await.unwrap();
    let (_, outcome) = outcomes.recv().await.unwrap();
    assert!(matches!(outcome, Outcome::LeaseOver), "{outcome:?}");
    drop(batches);
    publisher.await.unwrap().unwrap();

    // The queue is first in, first out: nothing came before this.
    let relay = rig.relay();
    let only = rig.insert(1).await;
    wait_delivered(&deliveries, &only).await;
    assert_eq!(deliveries.ids(), only);
    relay.terminate().unwrap();
    drained(&relay).await;
}

e2e::on_each_server!(a_relay_that_is_stopped_under_load_drains_and_nothing_is_delivered_twice);
async fn a_relay_that_is_stopped_under_load_drains_and_nothing_is_delivered_twice(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let mut written = backlog(&rig, 3_000).await;
    let relay = rig.relay();
    for _ in 0..4 {
        let before = deliveries.count();
        e2e::wait::until("some deliveries", LATER, async || {
            deliveries.count() > before
        })
        .await;
        let load = backlog(&rig, 500);
        let (more, stopped) = tokio::join!(load, async {
            relay.terminate()?;
            relay.wait_exit(LATER).await
        });
        written.extend(more);
        let stopped = stopped.unwrap();
        assert_eq!(stopped.code(), Some(0), "{stopped}: {}", relay.log());
        let sent = usize::try_from(rig.count("status = 2").await).unwrap();
        e2e::wait::until("what is marked has arrived", SOON, async || {
            deliveries.count() >= sent
        })
        .await;
        assert_eq!(deliveries.count(), sent, "delivered and not marked");
        relay.start_again().unwrap();
    }
    wait_all_delivered(&rig, &deliveries).await;
    relay.terminate().unwrap();
    drained(&relay).await;
    assert_eq!(deliveries.first().len(), written.len() + 1);
    assert_eq!(deliveries.twice(), 0);
}
