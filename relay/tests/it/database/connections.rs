//! Each connection of the relay killed alone, idle longer than the server's patience, and all of
//! them cut at once.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::ops::{TAILING, assert_complete, own_user, stop};
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::Writers;
use e2e::rig::{LATER, QUEUE, Rig};
use relay::leadership::lock::lock_name;
use relay::outbox_table::OutboxTable;
use sqlx::MySqlConnection;
use svc_kit::database::DatabaseUrl;

#[cfg(feature = "long")]
use super::world::record;
use super::world::{flows, probe, put_between};

/// Binlog, lock, page reader, row loader and marker stay; gauges and clean-up come and go.
const STAYING: usize = 5;

#[derive(Debug)]
struct Connections {
    tail: i64,
    lock: i64,
    /// Page reader, row loader and marker.
    sql: Vec<i64>,
}

/// The connections that stay, distinguished by what the server knows of them.
async fn connections(rig: &Rig, user: &str, admin: &mut MySqlConnection) -> Connections {
    let table = OutboxTable {
        url: DatabaseUrl::parse(&rig.env["DATABASE_URL"]).unwrap(),
        name: "outbox".into(),
    };
    let list = "SELECT CAST(ID AS SIGNED), CAST(COMMAND AS CHAR) FROM information_schema.PROCESSLIST \
                WHERE USER = ? ORDER BY ID";
    loop {
        let lock: Option<i64> = sqlx::query_scalar("SELECT CAST(IS_USED_LOCK(?) AS SIGNED)")
            .bind(lock_name(&table))
            .fetch_one(&mut *admin)
            .await
            .unwrap();
        let mut seen = Vec::new();
        // What is there at two looks, apart by more than the gauges' connection lives, stays.
        for look in 0..2 {
            if look == 1 {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            let now: Vec<(i64, String)> = sqlx::query_as(list)
                .bind(user)
                .fetch_all(&mut *admin)
                .await
                .unwrap();
            seen.push(now);
        }
        let both: Vec<&(i64, String)> = seen[0]
            .iter()
            .filter(|(id, _)| seen[1].iter().any(|(other, _)| other == id))
            .collect();
        let tail = both
            .iter()
            .find(|(_, command)| command.starts_with("Binlog Dump"));
        if let (Some((tail, _)), Some(lock)) = (tail, lock)
            && both.len() >= STAYING
        {
            let sql = both.iter().map(|(id, _)| *id);
            let sql = sql.filter(|id| id != tail && *id != lock).collect();
            let tail = *tail;
            return Connections { tail, lock, sql };
        }
    }
}

/// Kills each connection of a working relay, one after the other, `rounds` times.
async fn kill_each(flavor: Flavor, rounds: usize) -> (Flavor, Vec<Duration>) {
    let db = e2e::shared::database(flavor).await;
    let mut took = Vec::new();
    let mut rig = Rig::new(db).await;
    let user = own_user(&mut rig).await;
    // The clean-up's connection comes with the first row that may be deleted, and stays.
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 2, 10).await;
    let mut admin = db.admin().await.unwrap();
    for _ in 0..rounds {
        let there = connections(&rig, &user, &mut admin).await;
        assert!(there.sql.len() >= 3, "{there:?}");
        let others = (0..there.sql.len()).map(|which| ("reader, marker or clean-up", Some(which)));
        let each = [("tail", None), ("lock", None)].into_iter().chain(others);
        for (what, which) in each {
            rig.wait_metric(TAILING, 1.0).await;
            let there = connections(&rig, &user, &mut admin).await;
            let id = match (what, which) {
                ("tail", _) => there.tail,
                ("lock", _) => there.lock,
                (_, which) => there.sql[which.unwrap().min(there.sql.len() - 1)],
            };
            let began = Instant::now();
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("KILL {id}")))
                .execute(&mut admin)
                .await
                .unwrap();
            took.push(flows(&rig, &deliveries, began, &format!("{what} killed")).await);
        }
    }
    rig.wait_metric(TAILING, 1.0).await;
    assert_complete(&rig, writers, &deliveries).await;
    stop(&relay).await;
    (flavor, took)
}

#[tokio::test]
async fn each_connection_killed_alone_costs_no_row_and_no_order() {
    e2e::shared::on_every_server_at_once(async |flavor| kill_each(flavor, 1).await).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_database_each_connection_killed_alone_again_and_again() {
    let took =
        e2e::shared::on_every_server_at_once(async |flavor| kill_each(flavor, 10).await).await;
    record("connections killed under load, one at a time", took);
}

/// An idle relay: nobody writes for longer than the server lets a connection be silent.
#[tokio::test]
async fn an_idle_relay_outlives_the_servers_wait_timeout() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = OwnDb::start(flavor, &["--wait-timeout=2"]).await;
        let rig = db.rig().await;
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        probe(&rig, &deliveries).await;
        let idle_until = Instant::now() + Duration::from_secs(8);
        tokio::time::sleep_until(idle_until.into()).await;
        flows(&rig, &deliveries, Instant::now(), "idle past wait_timeout").await;
        assert!(!relay.log().contains("starting again"), "{}", relay.log());
        stop(&relay).await;
    })
    .await;
}

/// A firewall that forgets: every connection to the database is reset, the broker's live on.
async fn cut(flavor: Flavor, times: usize) -> (Flavor, Vec<Duration>) {
    let db = e2e::shared::database(flavor).await;
    let mut took = Vec::new();
    let mut rig = Rig::new(db).await;
    let proxy = put_between(&mut rig);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 2, 10).await;
    for round in 0..times {
        rig.wait_metric(TAILING, 1.0).await;
        probe(&rig, &deliveries).await;
        let began = if round % 2 == 0 {
            proxy.cut();
            Instant::now()
        } else {
            proxy.close();
            e2e::wait::until("a relay without its database", LATER, async || {
                rig.metric("outbox_relay_leader").await == Some(0.0)
            })
            .await;
            proxy.open();
            Instant::now()
        };
        took.push(flows(&rig, &deliveries, began, "cut from the database").await);
    }
    assert_complete(&rig, writers, &deliveries).await;
    stop(&relay).await;
    (flavor, took)
}

#[tokio::test]
async fn a_relay_that_is_cut_from_the_database_alone_goes_on_when_it_is_back() {
    cut(e2e::shared::flavor(), 2).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_database_a_relay_that_is_cut_from_the_database_20_times() {
    let took = e2e::shared::on_every_server_at_once(async |flavor| cut(flavor, 20).await).await;
    record("cut from the database under load", took);
}
