//! A binlog dump that does not begin: scans find new rows, and the state says why.

use std::time::{Duration, Instant};

use e2e::rig::ops::{TAILING, readiness, stop};
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::print;
use e2e::rig::{LATER, QUEUE, SOON};

use super::world::{probe, put_between};

const AWAITING: &str = "outbox_relay_phase{phase=\"awaiting_binlog\"}";
/// Once it took a try to open the stream, which is given up after 20 s.
const FLOWS_MAX: Duration = Duration::from_secs(5);

#[tokio::test]
async fn rows_flow_by_scans_while_a_binlog_dump_hangs_and_the_state_says_so() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = OwnDb::start(flavor, &[]).await;
        let mut rig = db.rig().await;
        let proxy = put_between(&mut rig);
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        probe(&rig, &deliveries).await;

        proxy.stall_new();
        rig.kill_dump().await;
        rig.wait_metric(AWAITING, 1.0).await;
        e2e::wait::until("readiness says why", SOON, async || {
            let (status, body) = readiness(&rig).await.unwrap();
            status == 200
                && body
                    .to_string()
                    .contains("the binlog stream is being opened")
        })
        .await;
        // Beyond the end of one try and into the next.
        let began = Instant::now();
        let mut took = Vec::new();
        while began.elapsed() < Duration::from_secs(24) {
            took.push(probe(&rig, &deliveries).await);
        }
        took.sort_unstable();
        let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
        let max = took[took.len() - 1];
        print(&format!(
            "{flavor:?}: {} rows while dumps hang: p50 {p50:?}, p99 {p99:?}, max {max:?}",
            took.len()
        ));
        assert!(max < FLOWS_MAX, "{took:?}");
        assert!(relay.log().contains("polling stands in"), "{}", relay.log());

        proxy.resume();
        e2e::wait::until("the binlog again", LATER, async || {
            rig.metric(TAILING).await == Some(1.0)
        })
        .await;
        probe(&rig, &deliveries).await;
        assert_eq!(deliveries.twice(), 0);
        stop(&relay).await;
    })
    .await;
}
