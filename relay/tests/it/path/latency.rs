//! A loose bound on the idle latency; the benchmark measures it against a bare loop.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::writers::print;
use e2e::rig::{LATER, QUEUE, Rig, SOON};
use futures::StreamExt;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;

const COMMITS: usize = 100;
/// A few milliseconds are usual; a timer or a batch that waits to fill is far over this.
const MEDIAN_MAX: Duration = Duration::from_millis(50);

e2e::on_each_server!(half_of_the_messages_of_an_idle_relay_arrive_within_50_ms_of_their_commit);
async fn half_of_the_messages_of_an_idle_relay_arrive_within_50_ms_of_their_commit(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let relay = rig.tailing().await;
    let channel = rig.amqp().await;
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut arrivals = channel
        .basic_consume(QUEUE.into(), "test".into(), no_ack, FieldTable::default())
        .await
        .unwrap();

    let mut took = Vec::with_capacity(COMMITS);
    for number in 0..COMMITS {
        rig.insert_one(&format!("k{number}"), "order.pay", b"{}")
            .await;
        let committed = Instant::now();
        let arrived = tokio::time::timeout(SOON, arrivals.next()).await;
        arrived.unwrap().unwrap().unwrap();
        took.push(committed.elapsed());
    }
    took.sort();
    let median = took[COMMITS / 2];
    print(&format!(
        "{:?}: commit to arrival p50 {median:?}, p99 {:?}",
        db.flavor(),
        took[COMMITS * 99 / 100]
    ));
    assert!(median < MEDIAN_MAX, "{median:?}");

    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
