//! The canary: it tells of an outage when nobody places orders, and disturbs nobody.

use std::collections::HashSet;
use std::sync::Mutex;

use e2e::product::Process;
use e2e::rig::ops::{MISSED, binlog_rights, own_user};
use e2e::rig::rows::{assert_calm, wait_log};
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Db, Flavor};

use super::world::{CONNECTED, put_between};

const AGE: &str = "outbox_relay_canary_age_seconds";
const TOOK: &str = "outbox_relay_canary_seconds";
/// Rows of the relay's own.
const OWN: &str = "message_id LIKE 'relay-canary-%'";
/// What the alert CanaryLate needs.
const LATE: f64 = 30.0;
/// What orders alone may move.
const ORDERS: [&str; 4] = [
    "outbox_relay_pending_rows",
    "outbox_relay_parked_rows",
    "outbox_relay_oldest_pending_age_seconds",
    MISSED,
];

async fn rig(db: &'static Db) -> Rig {
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_CANARY_INTERVAL", "1s");
    rig
}

/// Three of them one after the other, none of them late.
async fn wait_flying(rig: &Rig) {
    let seen = Mutex::new(HashSet::new());
    e2e::wait::until("canaries one after the other", LATER, async || {
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT message_id FROM outbox WHERE message_id LIKE 'relay-can%'")
                .fetch_all(&rig.pool)
                .await
                .unwrap();
        assert!(ids.len() <= 2, "{ids:?}");
        let seen_now = {
            let mut seen = seen.lock().unwrap();
            seen.extend(ids);
            seen.len()
        };
        seen_now >= 3 && rig.metric(AGE).await < Some(2.0)
    })
    .await;
    assert!(rig.metric(TOOK).await > Some(0.0));
}

async fn wait_late(rig: &Rig, by: f64) {
    e2e::wait::until(
        &format!("a canary that is {by} s late"),
        LATER,
        async || rig.metric(AGE).await > Some(by),
    )
    .await;
}

async fn assert_not_counted(rig: &Rig) {
    for name in ORDERS {
        assert_eq!(rig.metric(name).await, Some(0.0), "{name}");
    }
}

#[tokio::test]
async fn a_canary_shows_that_the_broker_is_away_while_there_are_no_orders() {
    e2e::shared::on_every_server_at_once(broker_away).await;
}

async fn broker_away(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = rig(db).await;
    let proxy = put_between(&mut rig, "");
    // Whoever takes everything that goes through the exchange.
    rig.declare_queue("everything", "#").await;
    let consumers = [rig.consume(QUEUE).await, rig.consume("everything").await];
    let relay = rig.tailing().await;
    wait_flying(&rig).await;
    assert_not_counted(&rig).await;
    assert_calm(&relay);

    proxy.close();
    rig.wait_metric(CONNECTED, 0.0).await;
    wait_late(&rig, LATE).await;
    assert_not_counted(&rig).await;
    assert!(rig.count(OWN).await <= 1, "they do not heap up");

    proxy.open();
    wait_flying(&rig).await;
    assert_not_counted(&rig).await;
    assert_eq!(rig.count(&format!("{OWN} AND attempts > 0")).await, 0);
    for consumer in consumers {
        assert_eq!(consumer.ids(), [""; 0], "a consumer saw one");
    }
}

#[tokio::test]
async fn a_canary_shows_that_the_binlog_is_not_read_though_orders_go_out() {
    e2e::shared::on_every_server_at_once(binlog_away).await;
}

async fn binlog_away(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = rig(db).await;
    let user = own_user(&mut rig).await;
    let relay = rig.tailing().await;
    wait_flying(&rig).await;

    let rights = binlog_rights(&rig);
    db.execute(&format!("REVOKE {rights} ON *.* FROM {user}@'%'"))
        .await
        .unwrap();
    rig.kill_dump().await;
    rig.wait_phase("polling").await;
    wait_late(&rig, 5.0).await;
    rig.insert(3).await;
    rig.wait_count(&format!("status = 2 AND NOT {OWN}"), 3)
        .await;
    assert!(rig.metric(AGE).await > Some(5.0), "{}", relay.log());

    db.execute(&format!("GRANT {rights} ON *.* TO {user}@'%'"))
        .await
        .unwrap();
    wait_flying(&rig).await;
}

#[tokio::test]
async fn only_the_leader_has_a_canary_and_the_next_leader_tidies_up() {
    let mut one = rig(e2e::shared::either().await).await;
    let first = one.tailing().await;
    wait_flying(&one).await;
    let admin = format!("127.0.0.1:{}", e2e::port::free().unwrap());
    let before = one.env.insert("ADMIN_ADDR".into(), admin).unwrap();
    let _second = one.relay();
    one.wait_metric("outbox_relay_phase{phase=\"standby\"}", 1.0)
        .await;
    one.wait_metric(AGE, 0.0).await;
    let standby = one.env.insert("ADMIN_ADDR".into(), before).unwrap();
    wait_flying(&one).await;
    assert_eq!(nests(&one).await, 1);

    // In the middle of a flight, if it can be had.
    first.kill().unwrap();
    one.env.insert("ADMIN_ADDR".into(), standby);
    one.wait_phase("tailing").await;
    wait_flying(&one).await;
    one.wait_count(&format!("{OWN} AND status = 1"), 0).await;
    e2e::wait::until("one queue", LATER, async || nests(&one).await == 1).await;
    assert_not_counted(&one).await;
}

async fn nests(rig: &Rig) -> usize {
    let queues = rig.rabbit.management().unwrap();
    let queues = queues.queues(&rig.vhost.name).await.unwrap();
    let own = |name: &str| name.starts_with("relay-canary.");
    queues.iter().filter(|queue| own(&queue.name)).count()
}

/// The broker would close the channel of the lane that publishes it, orders and all.
#[tokio::test]
async fn without_the_rights_to_a_queue_of_its_own_no_canary_is_written() {
    let mut rig = rig(e2e::shared::either().await).await;
    let rights = ["^order-exchange$", "^order-exchange$", "^$"];
    let relay = limited(&mut rig, rights).await;
    wait_log(&relay, "relay-canary.* and to write to amq.default").await;
    wait_late(&rig, 5.0).await;
    rig.insert(20).await;
    rig.wait_sent(20).await;
    assert_eq!(rig.count(OWN).await, 0);
    let closed = "outbox_relay_failed_total{reason=\"channel_closed\"}";
    assert_eq!(rig.metric(closed).await, Some(0.0));
    assert_calm(&relay);

    let output = command(&rig, &["check"]).await;
    assert!(output.contains("no canary comes back"), "{output}");
}

#[tokio::test]
async fn the_rights_that_deploy_gives_suffice() {
    let mut rig = rig(e2e::shared::either().await).await;
    let definitions = include_str!("../../../../deploy/rabbitmq/definitions.json");
    let definitions: serde_json::Value = serde_json::from_str(definitions).unwrap();
    let all = definitions["permissions"].as_array().unwrap();
    let relay = all.iter().find(|entry| entry["user"] == "relay").unwrap();
    let rights = ["configure", "write", "read"].map(|right| relay[right].as_str().unwrap());
    let relay = limited(&mut rig, rights).await;
    wait_flying(&rig).await;
    rig.insert(20).await;
    rig.wait_count(&format!("status = 2 AND NOT {OWN}"), 20)
        .await;
    assert_calm(&relay);
}

/// A relay whose account has these rights alone: to configure, write and read.
async fn limited(rig: &mut Rig, rights: [&str; 3]) -> Process {
    let api = rig.rabbit.management().unwrap();
    let user = format!("canary-{}", rig.vhost.name);
    api.create_user(&user, "pw", "").await.unwrap();
    api.set_permissions(&rig.vhost.name, &user, rights)
        .await
        .unwrap();
    let url = rig.rabbit.user_url(&user, "pw", &rig.vhost.name);
    rig.set("AMQP_URL", &url);
    rig.tailing().await
}

/// What another relay has left waits in the table while this one is paused.
#[tokio::test]
async fn a_canary_that_waits_is_not_counted_and_is_tidied_up() {
    let rig = rig(e2e::shared::either().await).await;
    let _relay = rig.tailing().await;
    wait_flying(&rig).await;
    command(&rig, &["pause", "--reason", "test"]).await;
    rig.wait_phase("paused").await;
    rig.sql(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, exchange, \
         routing_key, payload, created_at) VALUES ('relay-canary-old', 'relay', 'canary', \
         'relay.canary', '', 'relay-canary.gone', '{}', UTC_TIMESTAMP(6) - INTERVAL 1 HOUR)",
    )
    .await;
    // Two readings of the gauges.
    wait_late(&rig, rig.metric(AGE).await.unwrap() + 7.0).await;
    assert_not_counted(&rig).await;
    let output = command(&rig, &["status", "--json"]).await;
    assert!(output.contains("\"rows\": 0,"), "{output}");
    assert!(!output.contains("relay-canary."), "{output}");
    let listed = command(&rig, &["parked", "list", "--state", "waiting"]).await;
    assert!(!listed.contains("relay-canary"), "{listed}");
    let groups = command(&rig, &["parked", "groups", "--state", "waiting", "--json"]).await;
    assert!(groups.contains("\"groups\": []"), "{groups}");
    rig.wait_count("message_id = 'relay-canary-old'", 1).await;

    command(&rig, &["resume"]).await;
    wait_flying(&rig).await;
    rig.wait_count("message_id = 'relay-canary-old'", 0).await;
}

#[tokio::test]
async fn a_canary_that_is_lost_is_followed_by_another() {
    let rig = rig(e2e::shared::either().await).await;
    let relay = rig.tailing().await;
    wait_flying(&rig).await;
    // Never to be sent.
    rig.sql("CREATE TRIGGER lost BEFORE INSERT ON outbox FOR EACH ROW SET NEW.status = 4")
        .await;
    wait_log(&relay, "it did not come back").await;
    rig.sql("DROP TRIGGER lost").await;
    wait_flying(&rig).await;
    assert_calm(&relay);
}

async fn command(rig: &Rig, args: &[&str]) -> String {
    let command = rig.command(args);
    let ended = command.wait_exit(LATER).await.unwrap();
    assert!(ended.success(), "{}", command.log());
    command.log()
}
