//! A whole relay that reads with `mysql_cdc`.

use e2e::Flavor;
use e2e::rig::{LATER, QUEUE, Rig};

e2e::on_each_server!(orders_flow_through_the_second_reader);
async fn orders_flow_through_the_second_reader(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_READER", "mysql_cdc")
        // What is delivered is delivered by the binlog.
        .set("RELAY_SWEEP_INTERVAL", "10m");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;

    let mut written = rig.insert(50).await;
    let large = vec![b'x'; 3 << 20];
    written.push(rig.insert_one("large", "order.pay", &large).await);
    rig.wait_sent(51).await;
    e2e::wait::until("51 deliveries", LATER, async || deliveries.count() >= 51).await;
    let mut delivered = deliveries.ids();
    delivered.sort();
    written.sort();
    assert_eq!(delivered, written, "once each");
    let from_binlog = rig
        .metric("outbox_relay_confirmed_total{source=\"binlog\"}")
        .await;
    assert_eq!(from_binlog, Some(51.0), "{}", relay.log());

    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
