//! Servers that forget, rotate, die and hang up: the relay keeps no position, so nothing is lost.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::product::Process;
use e2e::rig::ops::{FROM_BINLOG, MISSED, assert_complete, stop, wait_live};
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::{Writers, print, wait_all_delivered};
use e2e::rig::{LATER, QUEUE, Rig};

const FROM_SWEEP: &str = "outbox_relay_confirmed_total{source=\"sweep\"}";
const DUMP_CONNECTION: &str = "SELECT CAST(ID AS SIGNED) FROM information_schema.PROCESSLIST \
                               WHERE COMMAND LIKE 'Binlog Dump%'";
/// A sweep interval, the wait for a tail that may be slow only, and a catch-up.
const LIVE_AGAIN_MAX: Duration = Duration::from_secs(25);

fn reset(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::MariaDb => "RESET MASTER",
        Flavor::MySql => "RESET BINARY LOGS AND GTIDS",
    }
}

async fn wait_by_binlog(rig: &Rig, rows: f64) {
    let before = rig.metric(FROM_BINLOG).await.unwrap_or(0.0);
    e2e::wait::until("rows by the binlog", LATER, async || {
        rig.metric(FROM_BINLOG).await >= Some(before + rows)
    })
    .await;
}

fn streams(relay: &Process) -> usize {
    relay.log().matches("tailing the binlog").count()
}

async fn wait_another_stream(relay: &Process, opened: usize) {
    e2e::wait::until("another stream", LATER, async || streams(relay) > opened).await;
}

#[tokio::test]
async fn the_tail_is_live_within_25_s_after_a_reset_of_an_idle_binlog() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = OwnDb::start(flavor, &[]).await;
        let rig = db.rig().await;
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        rig.insert(50).await;
        rig.wait_sent(50).await;

        // Neither server tells the old dump connection, and it stays open: until the new binlog has
        // outgrown the old position nothing shows on it.
        let opened = streams(&relay);
        db.execute(reset(flavor)).await.unwrap();
        let began = Instant::now();
        rig.insert(1).await;
        wait_another_stream(&relay, opened).await;
        wait_live(&rig).await;
        let took = began.elapsed();
        print(&format!(
            "{flavor:?}: live {took:?} after the RESET of an idle binlog"
        ));
        assert!(took < LIVE_AGAIN_MAX, "{took:?}: {}", relay.log());
        wait_all_delivered(&rig, &deliveries).await;
        // All of them: the last one has arrived, but may not be marked yet.
        let written = rig.count("status IN (1, 2)").await;
        e2e::wait::until("every row", LATER, async || {
            i64::try_from(deliveries.first().len()).unwrap() == written
        })
        .await;
        stop(&relay).await;
    })
    .await;
}

#[tokio::test]
async fn the_tail_is_live_within_25_s_after_a_reset_of_a_busy_binlog_and_no_row_around_it_is_lost()
{
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = OwnDb::start(flavor, &[]).await;
        let rig = db.rig().await;
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        let writers = Writers::start(&rig, 2, 10).await;
        wait_by_binlog(&rig, 20.0).await;

        // The new binlog outgrows the old position at once.
        let opened = streams(&relay);
        db.execute(reset(flavor)).await.unwrap();
        let began = Instant::now();
        wait_another_stream(&relay, opened).await;
        wait_by_binlog(&rig, 1.0).await;
        let took = began.elapsed();
        print(&format!(
            "{flavor:?}: live {took:?} after the RESET of a busy binlog"
        ));
        assert!(took < LIVE_AGAIN_MAX, "{took:?}: {}", relay.log());
        assert_complete(&rig, writers, &deliveries).await;
        stop(&relay).await;
    })
    .await;
}

e2e::on_each_server!(purged_binlogs_are_not_missed_by_a_relay_that_starts);
async fn purged_binlogs_are_not_missed_by_a_relay_that_starts(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let rig = db.rig().await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    rig.insert(10).await;
    rig.wait_sent(10).await;
    stop(&relay).await;
    rig.insert(10).await;
    db.execute("FLUSH BINARY LOGS").await.unwrap();
    db.execute("PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY")
        .await
        .unwrap();

    relay.start_again().unwrap();
    rig.wait_sent(20).await;
    rig.wait_phase("tailing").await;
    wait_live(&rig).await;
    wait_all_delivered(&rig, &deliveries).await;
    assert_eq!(deliveries.count(), deliveries.first().len());
    assert!(deliveries.count() > 20);
    stop(&relay).await;
}

e2e::on_each_server!(a_rotation_of_the_binlog_costs_nothing);
async fn a_rotation_of_the_binlog_costs_nothing(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    // Sweeps compare what they read with what the tail brought, across the files.
    rig.set("RELAY_SWEEP_INTERVAL", "100ms");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 3, 10).await;
    for _ in 0..10 {
        wait_by_binlog(&rig, 10.0).await;
        db.execute("FLUSH BINARY LOGS").await.unwrap();
    }
    wait_by_binlog(&rig, 10.0).await;
    assert_complete(&rig, writers, &deliveries).await;
    assert_eq!(deliveries.count(), deliveries.first().len());
    assert_eq!(rig.metric(MISSED).await, Some(0.0));
    assert_eq!(streams(&relay), 1);
    assert_eq!(rig.metric(FROM_SWEEP).await, Some(0.0), "{}", relay.log());
    stop(&relay).await;
}

e2e::on_each_server!(a_server_that_is_killed_and_comes_back_finds_the_same_relay_at_work);
async fn a_server_that_is_killed_and_comes_back_finds_the_same_relay_at_work(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let rig = db.rig().await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut written = 0;
    for _ in 0..3 {
        // Killed with rows that are published and not marked yet.
        written += rig.insert(20).await.len();
        db.kill().unwrap();
        db.restart().await.unwrap();
        let began = Instant::now();
        written += rig.insert(20).await.len();
        e2e::wait::until("every row", LATER, async || {
            deliveries.first().len() == written
        })
        .await;
        print(&format!(
            "{flavor:?}: {:?} from the server's start to delivery",
            began.elapsed()
        ));
    }
    rig.wait_sent(120).await;
    rig.wait_phase("tailing").await;
    wait_live(&rig).await;
    assert!(relay.ended().unwrap().is_none(), "{}", relay.log());
    stop(&relay).await;
}

e2e::on_each_server!(a_killed_dump_connection_is_opened_again_and_no_row_is_lost_or_doubled);
async fn a_killed_dump_connection_is_opened_again_and_no_row_is_lost_or_doubled(flavor: Flavor) {
    let db = OwnDb::start(flavor, &[]).await;
    let rig = db.rig().await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 2, 10).await;
    let admin = db.admin_pool().unwrap();
    for _ in 0..5 {
        wait_by_binlog(&rig, 10.0).await;
        let id: i64 = e2e::wait::until("a dump connection", LATER, async || {
            sqlx::query_scalar(DUMP_CONNECTION)
                .fetch_optional(&admin)
                .await
                .unwrap()
        })
        .await;
        db.execute(&format!("KILL {id}")).await.unwrap();
    }
    wait_by_binlog(&rig, 10.0).await;
    assert_complete(&rig, writers, &deliveries).await;
    assert_eq!(deliveries.count(), deliveries.first().len());
    stop(&relay).await;
}
