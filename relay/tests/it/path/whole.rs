//! The whole path: committed row, binlog, broker, mark.

use e2e::Flavor;
use e2e::rig::ops::{FROM_BINLOG, MISSED};
use e2e::rig::{LATER, QUEUE, Rig, SOON};

e2e::on_each_server!(what_is_committed_arrives_once_and_is_marked_sent);
async fn what_is_committed_arrives_once_and_is_marked_sent(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let before = rig.insert(20).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let after = rig.insert(20).await;
    rig.wait_sent(40).await;
    e2e::wait::until("40 deliveries", SOON, async || deliveries.count() == 40).await;

    let mut arrived: Vec<_> = deliveries.all().into_iter().map(|d| d.message_id).collect();
    arrived.sort();
    let mut written = [before, after].concat();
    written.sort();
    assert_eq!(arrived, written);
    assert_eq!(rig.metric(FROM_BINLOG).await, Some(20.0));
    assert_eq!(rig.metric(MISSED).await, Some(0.0));

    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
