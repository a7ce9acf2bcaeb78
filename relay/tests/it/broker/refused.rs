//! What the broker refuses: an exchange, a right, a virtual host that went away while the relay
//! worked, and messages that it answers by closing a channel or the whole connection.

use std::time::Instant;

use e2e::Rabbit;
use e2e::rig::rows::{assert_calm, wait_log};
use e2e::rig::writers::Writers;
use e2e::rig::{EXCHANGE, LATER, QUEUE, Rig, SOON};
use serde_json::json;

use super::world::{
    BATCH, CONNECTED, ON_THEIR_WAY, assert_complete, close_relays_connection, flows, own_user,
    place, put_between, revoke, topology, wait_ready, wait_unready,
};

const WAITING: &str =
    "outbox_relay_waiting_rows{exchange=\"order-exchange\",routing_key=\"order.pay\"}";

#[tokio::test]
async fn an_exchange_deleted_under_load_holds_its_rows_until_it_is_there_again() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.set("RELAY_BATCH_MAX", BATCH);
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 4, 40).await;
    let api = rig.rabbit.management().unwrap();
    for _ in 0..2 {
        place(&rig, "before", 300, "order.pay").await;
        assert!(
            api.delete_exchange(&rig.vhost.name, EXCHANGE)
                .await
                .unwrap()
        );
        rig.wait_reason("routing_key = 'order.pay'", "404 NOT_FOUND")
            .await;
        e2e::wait::until("waiting rows", LATER, async || {
            rig.metric(WAITING).await > Some(40.0)
        })
        .await;
        wait_ready(&rig).await;
        topology_on_quorum(&rig).await;
        flows_after_probe(&rig).await;
    }
    assert_eq!(rig.count("attempts > 0 OR status > 2").await, 0);
    assert_calm(&relay);
    assert_complete(&rig, Some(writers), Some(deliveries), 2 * ON_THEIR_WAY).await;
}

/// The rig's queue is a quorum queue and still there.
async fn topology_on_quorum(rig: &Rig) {
    let api = rig.rabbit.management().unwrap();
    let vhost = &rig.vhost.name;
    api.declare_exchange(vhost, EXCHANGE, "topic")
        .await
        .unwrap();
    api.bind(vhost, EXCHANGE, QUEUE, "order.*").await.unwrap();
}

/// A route that was closed: its probe comes first.
async fn flows_after_probe(rig: &Rig) {
    let open = Instant::now();
    let id = rig.insert_one("after", "order.pay", b"{}").await;
    rig.wait_status(&id, 2).await;
    let took = open.elapsed();
    let most = relay::engine::PROBE_MAX + std::time::Duration::from_secs(5);
    assert!(took < most, "{took:?}");
}

#[tokio::test]
async fn rights_that_are_revoked_are_waited_for_until_they_are_given_back() {
    let mut rig = Rig::new(e2e::shared::either().await).await;
    rig.set("RELAY_BATCH_MAX", BATCH);
    let user = own_user(&mut rig).await;
    let _relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 4, 40).await;
    let api = rig.rabbit.management().unwrap();

    // To write to the exchange: its routes are closed.
    revoke(&rig, &user, EXCHANGE).await;
    close_relays_connection(&rig).await;
    rig.wait_reason("routing_key = 'order.pay'", "403 ACCESS_REFUSED")
        .await;
    api.set_permissions(&rig.vhost.name, &user, [".*"; 3])
        .await
        .unwrap();
    flows_after_probe(&rig).await;

    // To log in at all: the relay waits, and says for what.
    api.create_user(&user, "another", "").await.unwrap();
    close_relays_connection(&rig).await;
    wait_unready(&rig, "check user and password").await;
    assert_eq!(rig.metric(CONNECTED).await, Some(0.0));
    api.create_user(&user, "pw", "").await.unwrap();
    flows(&rig, Instant::now(), "the password is right again").await;
    wait_ready(&rig).await;
    assert_eq!(rig.count("attempts > 0 OR status > 2").await, 0);
    assert_complete(&rig, Some(writers), Some(deliveries), 2 * ON_THEIR_WAY).await;
}

#[tokio::test]
async fn a_wrong_vhost_is_refused_at_first_and_waited_for_later() {
    let mut rig = Rig::without_queue(e2e::shared::either().await).await;
    rig.set("RELAY_BATCH_MAX", BATCH);
    topology(&rig).await;
    let right = rig.env["AMQP_URL"].clone();
    let wrong = rig.rabbit.amqp_url("not-there");
    rig.set("AMQP_URL", &wrong);
    let refused = rig.relay();
    let status = refused.wait_exit(SOON).await.unwrap();
    assert_eq!(status.code(), Some(64), "{}", refused.log());
    assert!(refused.log().contains("not-there"), "{}", refused.log());
    assert!(
        refused.log().contains("check the vhost"),
        "{}",
        refused.log()
    );

    rig.set("AMQP_URL", &right);
    let relay = rig.tailing().await;
    let writers = Writers::start(&rig, 4, 40).await;
    place(&rig, "before", 300, "order.pay").await;
    let api = rig.rabbit.management().unwrap();
    let path = format!("vhosts/{}", rig.vhost.name);
    assert!(api.delete(&path).await.unwrap());
    wait_unready(&rig, "check the vhost").await;
    rig.sql("UPDATE outbox SET status = 1 WHERE status = 2")
        .await;
    api.put(&path, &json!({})).await.unwrap();
    api.set_permissions(&rig.vhost.name, e2e::rabbit::ADMIN, [".*"; 3])
        .await
        .unwrap();
    topology(&rig).await;
    flows(&rig, Instant::now(), "the vhost is there again").await;
    wait_ready(&rig).await;
    assert!(relay.ended().unwrap().is_none(), "{}", relay.log());
    assert_eq!(rig.count("attempts > 0 OR status > 2").await, 0);
    assert_complete(&rig, Some(writers), None, ON_THEIR_WAY).await;
}

/// One message in a batch of many makes the broker close the channel: it is found, and the others
/// are sent.
pub(crate) async fn one_message_too_large(rabbit: &'static Rabbit, limit: usize) {
    let mut rig = Rig::on(e2e::shared::either().await, rabbit).await;
    topology(&rig).await;
    rig.set_backoff("200ms", "400ms")
        .set("RELAY_MAX_ATTEMPTS", "2");
    let relay = rig.tailing().await;
    let mut tx = rig.pool.begin().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..60 {
        let bytes = if number == 30 { limit + 1 } else { limit / 100 };
        let key = format!("{}", number % 20);
        let payload = vec![b' '; bytes];
        let event = outbox::Event::new("order", key, "order.placed.v1", "order.pay", payload);
        let id = outbox::event::write(&mut tx, &event).await.unwrap();
        ids.push(id.to_string());
    }
    tx.commit().await.unwrap();
    let parked = rig.wait_status(&ids[30], 3).await;
    assert_eq!(parked.attempts, 2);
    assert!(parked.error().starts_with("too_large: 406 "), "{parked:?}");
    rig.wait_count("status = 2 AND attempts = 0 AND last_error IS NULL", 59)
        .await;
    let classes = rig.attempts(&ids[30]).await;
    assert!(classes.iter().all(|attempt| attempt.class == "too_large"));
    let too_large = "outbox_relay_failed_total{reason=\"too_large\"}";
    assert_eq!(rig.metric(too_large).await, Some(2.0));
    rig.wait_metric("outbox_relay_parked_rows", 1.0).await;
    wait_ready(&rig).await;
    assert_calm(&relay);
    let deliveries = rig.consume(QUEUE).await;
    e2e::wait::until("59 messages", SOON, async || deliveries.first().len() == 59).await;
}

/// RabbitMQ closes the connection for what breaks the protocol. The relay sends nothing that does,
/// so the proxy spoils the end of one message's frame, each time it passes.
#[tokio::test]
async fn a_message_that_closes_the_whole_connection_is_found_and_parked_alone() {
    const POISON: &[u8] = b"<spoil the byte after this>";
    let mut rig = Rig::new(e2e::shared::either().await).await;
    let proxy = put_between(&mut rig, "");
    proxy.spoil_after(Some(POISON));
    rig.set_backoff("200ms", "400ms")
        .set("RELAY_MAX_ATTEMPTS", "2");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let mut tx = rig.pool.begin().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..200 {
        let key = format!("{}", number % 50);
        let payload = if number == 100 { POISON } else { b"{}" };
        let event = outbox::Event::new("order", key, "order.placed.v1", "order.pay", payload);
        let id = outbox::event::write(&mut tx, &event).await.unwrap();
        ids.push(id.to_string());
    }
    tx.commit().await.unwrap();
    wait_log(&relay, "501 FRAME_ERROR").await;
    let parked = rig.wait_status(&ids[100], 3).await;
    assert_eq!(parked.attempts, 2);
    assert!(
        parked.error().starts_with("channel_closed: 501 "),
        "{parked:?}"
    );
    rig.wait_count("status = 2 AND attempts = 0", 199).await;
    assert_eq!(rig.count("last_error IS NOT NULL").await, 1);
    e2e::wait::until("199 messages", LATER, async || {
        deliveries.first().len() == 199
    })
    .await;
    let of_key: Vec<String> = deliveries
        .first()
        .into_iter()
        .filter_map(|delivery| (delivery.key == "0").then_some(delivery.message_id))
        .collect();
    assert_eq!(of_key, [ids[0].as_str(), &ids[50], &ids[150]]);
    let orders = place(&rig, "after", 20, "order.pay").await;
    rig.wait_status(orders.last().unwrap(), 2).await;
    wait_ready(&rig).await;
}
