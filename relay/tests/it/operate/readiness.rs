//! Readiness is false exactly when orders can't flow, and says why.

use std::collections::HashSet;

use e2e::proxy::Proxy;
use e2e::rig::ops::{binlog_rights, own_user, readiness};
use e2e::rig::rows::{assert_calm, wait_log};
use e2e::rig::servers::OwnDb;
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Flavor, Rabbit, RabbitOptions};
use serde_json::Value;
use sqlx::Executor as _;

use super::commands::{broker_address, done, wait_condition};

async fn wait_role(rig: &Rig, status: u16, role: &str) {
    let what = format!("{status} and the role {role}");
    e2e::wait::until(&what, LATER, async || {
        let (code, body) = readiness(rig).await?;
        (code == status && body["role"] == role).then_some(())
    })
    .await;
}

#[tokio::test]
async fn before_the_first_contact_it_is_false_and_says_what_is_waited_for() {
    let db = e2e::shared::either().await;
    let mut rig = Rig::without_queue(db).await;
    let good = rig.env["DATABASE_URL"].clone();
    let port = e2e::port::free().unwrap();
    rig.set("DATABASE_URL", &format!("mysql://a:b@127.0.0.1:{port}/d"));
    let refused = rig.relay();
    let says = "waiting for the database";
    wait_condition(&rig, 503, ("database", false), says).await;
    let (_, body) = readiness(&rig).await.unwrap();
    for name in ["lease", "broker", "binlog", "intake"] {
        assert_eq!(body["conditions"][name]["ok"], false, "{name}: {body}");
    }
    refused.kill().unwrap();

    let empty = db.create_database().await.unwrap();
    rig.set("DATABASE_URL", &empty.url);
    let unmigrated = rig.relay();
    wait_condition(&rig, 503, ("database", false), "there is no table").await;
    unmigrated.kill().unwrap();

    rig.set("DATABASE_URL", &good);
    let _relay = rig.tailing().await;
    wait_condition(&rig, 200, ("database", true), "connected").await;
}

#[tokio::test]
async fn without_the_broker_it_is_false_until_the_broker_is_back() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    let proxy = Proxy::start(broker_address(&rig)).unwrap();
    let url = proxy.url(&rig.env["AMQP_URL"]);
    rig.set("AMQP_URL", &url);
    proxy.close();
    let relay = rig.relay();
    wait_condition(&rig, 503, ("broker", false), "broker: ").await;
    wait_condition(&rig, 503, ("lease", true), "held").await;
    proxy.open();
    rig.wait_phase("tailing").await;
    wait_condition(&rig, 200, ("broker", true), "connected").await;
    proxy.close();
    wait_condition(&rig, 503, ("broker", false), "broker: ").await;
    proxy.open();
    wait_condition(&rig, 200, ("broker", true), "connected").await;
    relay.terminate().unwrap();
    assert_eq!(relay.wait_exit(LATER).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn while_the_broker_blocks_it_is_false() {
    let alarmed = RabbitOptions {
        conf: vec!["vm_memory_high_watermark.absolute = 1000000".to_owned()],
        ..RabbitOptions::default()
    };
    let rabbit: &'static Rabbit = Box::leak(Box::new(Rabbit::start(alarmed).await.unwrap()));
    let rig = Rig::on(e2e::shared::either().await, rabbit).await;
    let _relay = rig.tailing().await;
    wait_condition(&rig, 200, ("broker", true), "connected").await;
    // The broker says it to whoever publishes.
    rig.insert(1).await;
    wait_condition(&rig, 503, ("broker", false), "blocked by the broker").await;
    rabbit.kill().unwrap();
}

#[tokio::test]
async fn a_standby_is_ready_and_without_the_database_nobody_is() {
    let db = OwnDb::start(e2e::shared::flavor(), &[]).await;
    let rig = db.rig().await;
    let _active = rig.tailing().await;
    let mut beside = db.rig().await;
    for name in ["DATABASE_URL", "AMQP_URL"] {
        beside.set(name, &rig.env[name]);
    }
    let _standby = beside.relay();
    wait_role(&rig, 200, "active").await;
    wait_role(&beside, 200, "standby").await;
    let (_, body) = readiness(&beside).await.unwrap();
    let lease = &body["conditions"]["lease"];
    assert_eq!(lease["detail"], "another relay holds the lock");

    db.kill().unwrap();
    for relay in [&rig, &beside] {
        wait_condition(relay, 503, ("lease", false), "").await;
        wait_role(relay, 503, "undecided").await;
    }
    db.restart().await.unwrap();
    for relay in [&rig, &beside] {
        e2e::wait::until("a ready relay", LATER, async || {
            readiness(relay).await.is_some_and(|(code, _)| code == 200)
        })
        .await;
    }
}

#[tokio::test]
async fn closed_routes_parked_rows_and_an_unreadable_binlog_leave_it_true() {
    let db = e2e::shared::either().await;
    let mut rig = Rig::new(db).await;
    let user = own_user(&mut rig).await;
    rig.set_backoff("100ms", "1s");
    let _relay = rig.tailing().await;
    let parked = rig.insert_one("a", "order.pay", b"{}").await;
    rig.wait_status(&parked, 2).await;
    rig.sql("UPDATE outbox SET status = 3").await;
    rig.insert_one("b", "nobody.listens", b"{}").await;
    rig.wait_metric("outbox_relay_parked_rows", 1.0).await;
    rig.wait_waiting("nobody.listens", 1).await;
    wait_condition(&rig, 200, ("broker", true), "connected").await;

    let rights = binlog_rights(&rig);
    db.execute(&format!("REVOKE {rights} ON *.* FROM '{user}'@'%'"))
        .await
        .unwrap();
    rig.kill_dump().await;
    wait_condition(
        &rig,
        200,
        ("binlog", true),
        "polling, the binlog can't be read",
    )
    .await;
    let flows = rig.insert_one("c", "order.pay", b"{}").await;
    rig.wait_status(&flows, 2).await;
    let (code, body) = readiness(&rig).await.unwrap();
    assert_eq!((code, &body["ready"]), (200, &Value::Bool(true)));
}

e2e::on_each_server!(while_nothing_can_be_marked_it_is_false_and_nothing_goes_twice);
/// The lock lets the relay read and send, and keeps it from marking what it has sent.
async fn while_nothing_can_be_marked_it_is_false_and_nothing_goes_twice(flavor: Flavor) {
    // More than may be confirmed and unmarked.
    const ROWS: usize = 12_000;
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let relay = rig.tailing().await;
    done(&rig, &["pause", "--reason", "rows pile up"]).await;
    wait_condition(&rig, 503, ("intake", false), "").await;
    let keys = (0..ROWS).map(|number| (format!("k{number}"), "order.pay"));
    rig.insert_all(keys).await;
    let mut other = rig.database.connect().await.unwrap();
    other.execute("LOCK TABLES outbox READ").await.unwrap();
    done(&rig, &["resume", "--reason", "there are enough"]).await;
    wait_log(&relay, "somebody else holds a lock").await;
    wait_condition(&rig, 503, ("database", false), "can't be marked").await;
    let sent = deliveries.count();
    assert!(sent < ROWS, "intake did not stop: {sent}");

    other.execute("UNLOCK TABLES").await.unwrap();
    rig.wait_sent(i64::try_from(ROWS).unwrap()).await;
    wait_condition(&rig, 200, ("database", true), "connected").await;
    let ids = deliveries.ids();
    let once: HashSet<&String> = ids.iter().collect();
    assert_eq!((ids.len(), once.len()), (ROWS, ROWS));
    assert_calm(&relay);
}
