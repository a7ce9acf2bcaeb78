//! What others do to the relay's database while it works.

use std::collections::HashMap;

use e2e::Flavor;
use e2e::rig::ops::{FROM_BINLOG, binlog_rights, own_user};
use e2e::rig::rows::wait_log;
use e2e::rig::{EXCHANGE, LATER, QUEUE, Rig, SOON};
use sqlx::Connection as _;

e2e::on_each_server!(a_row_that_somebody_has_locked_keeps_no_other_from_being_marked);
async fn a_row_that_somebody_has_locked_keeps_no_other_from_being_marked(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::without_queue(db).await;
    rig.set_backoff("100ms", "200ms");
    let relay = rig.tailing().await;
    // Without a queue the row waits, so that it can be locked before it is sent.
    let locked = rig.insert_one("locked", "order.pay", b"{}").await;
    e2e::wait::until("the broker's text", SOON, async || {
        rig.state(&locked).await.error().contains("NO_ROUTE")
    })
    .await;
    let mut other = rig.database.connect().await.unwrap();
    let mut tx = other.begin().await.unwrap();
    sqlx::query("SELECT id FROM outbox WHERE message_id = ? FOR UPDATE")
        .bind(&locked)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    rig.declare_queue(QUEUE, "order.*").await;
    let deliveries = rig.consume(QUEUE).await;
    e2e::wait::until("the locked row's message", LATER, async || {
        deliveries.count() > 0
    })
    .await;

    rig.insert(50).await;
    e2e::wait::until("50 rows marked beside the lock", LATER, async || {
        rig.count("status = 2").await == 50
    })
    .await;
    assert_eq!(rig.state(&locked).await.status, 1);
    tx.rollback().await.unwrap();
    rig.wait_sent(51).await;

    let mut times: HashMap<String, usize> = HashMap::new();
    for delivery in deliveries.all() {
        *times.entry(delivery.message_id).or_default() += 1;
    }
    assert_eq!(times.len(), 51);
    assert!(times.values().all(|times| *times == 1), "{times:?}");
    assert!(!relay.log().contains("starting again"), "{}", relay.log());
}

e2e::on_each_server!(
    a_binlog_that_is_refused_while_the_relay_works_is_polled_around_until_it_is_granted_again
);
async fn a_binlog_that_is_refused_while_the_relay_works_is_polled_around_until_it_is_granted_again(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    let user = own_user(&mut rig).await;
    let rights = binlog_rights(&rig);
    let _relay = rig.tailing().await;

    db.execute(&format!("REVOKE {rights} ON *.* FROM '{user}'@'%'"))
        .await
        .unwrap();
    rig.kill_dump().await;
    rig.wait_phase("polling").await;
    rig.insert(20).await;
    rig.wait_sent(20).await;

    db.execute(&format!("GRANT {rights} ON *.* TO '{user}'@'%'"))
        .await
        .unwrap();
    rig.wait_phase("tailing").await;
    let before = rig.metric(FROM_BINLOG).await;
    rig.insert(5).await;
    rig.wait_sent(25).await;
    assert_eq!(rig.metric(FROM_BINLOG).await, before.map(|rows| rows + 5.0));
}

e2e::on_each_server!(without_an_order_too_a_changed_table_is_learned_again);
async fn without_an_order_too_a_changed_table_is_learned_again(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_ORDER", "none");
    let _relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    rig.insert(5).await;
    rig.wait_sent(5).await;
    // Of the same number of columns, in another order: decoded by the old one it would send
    // messages to the wrong exchange.
    rig.sql(
        "ALTER TABLE outbox MODIFY COLUMN exchange VARCHAR(127) \
         CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'order-exchange' \
         AFTER routing_key",
    )
    .await;
    rig.insert(5).await;
    rig.wait_sent(10).await;
    let before = rig.metric(FROM_BINLOG).await;
    e2e::wait::until("rows by the binlog again", LATER, async || {
        rig.insert_one("probe", "order.pay", b"{}").await;
        rig.metric(FROM_BINLOG).await > before
    })
    .await;
    let sent = rig.count("status IN (1, 2)").await;
    rig.wait_sent(sent).await;
    let sent = usize::try_from(sent).unwrap();
    e2e::wait::until("every delivery", SOON, async || {
        deliveries.first().len() == sent
    })
    .await;
    assert_eq!(rig.count(&format!("exchange <> '{EXCHANGE}'")).await, 0);
}

#[tokio::test]
async fn a_standby_tries_the_broker_at_its_start_and_is_not_ended_by_it_when_it_is_needed() {
    let mut rig = Rig::new(e2e::shared::mariadb().await).await;
    let active = rig.tailing().await;
    let (right, wrong) = (
        rig.env["AMQP_URL"].clone(),
        rig.rabbit.amqp_url("not-there"),
    );
    let admin = format!("127.0.0.1:{}", e2e::port::free().unwrap());
    rig.set("ADMIN_ADDR", &admin).set("AMQP_URL", &wrong);
    let refused = rig.relay();
    let status = refused.wait_exit(SOON).await.unwrap();
    assert_eq!(status.code(), Some(64), "{}", refused.log());

    rig.set("AMQP_URL", &right);
    let standby = rig.relay();
    wait_log(&standby, "the broker was tried").await;
    let broker = rig.rabbit.management().unwrap();
    let vhost = format!("vhosts/{}", rig.vhost.name);
    assert!(broker.delete(&vhost).await.unwrap());
    active.kill().unwrap();
    wait_log(&standby, "check the vhost").await;
    broker.put(&vhost, &serde_json::json!({})).await.unwrap();
    broker
        .set_permissions(&rig.vhost.name, e2e::rabbit::ADMIN, [".*"; 3])
        .await
        .unwrap();
    // A quorum queue of the same name that was just deleted with its vhost may find no leader.
    let vhost = &rig.vhost.name;
    let arguments = serde_json::json!({});
    broker.declare_queue(vhost, QUEUE, arguments).await.unwrap();
    broker
        .declare_exchange(vhost, EXCHANGE, "topic")
        .await
        .unwrap();
    broker
        .bind(vhost, EXCHANGE, QUEUE, "order.*")
        .await
        .unwrap();
    rig.insert(1).await;
    rig.wait_sent(1).await;
    assert!(standby.ended().unwrap().is_none(), "{}", standby.log());
}
