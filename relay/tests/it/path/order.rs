//! Messages of one aggregate arrive in the order of their commits, however often the relay is
//! stopped, killed and started again in between.

use e2e::Flavor;
use e2e::product::Process;
use e2e::rig::ops::{FROM_BINLOG, MISSED};
use e2e::rig::writers::{Writers, assert_first_deliveries_in_order, print, wait_all_delivered};
use e2e::rig::{LATER, QUEUE, Rig, SOON};

const KEYS: usize = 50;
const WRITERS: usize = 3;

#[tokio::test]
async fn the_order_per_key_survives_100_restarts_and_the_binlog_misses_nothing() {
    e2e::shared::on_every_server_at_once(async |flavor| restarts(flavor, 100, false).await).await;
}

e2e::on_each_server!(the_order_per_key_survives_kills);
async fn the_order_per_key_survives_kills(flavor: Flavor) {
    restarts(flavor, 20, true).await;
}

async fn restarts(flavor: Flavor, lives: usize, kill: bool) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    // Every page of a sweep is compared with what the binlog brought: many of them, under load.
    rig.set("RELAY_SWEEP_INTERVAL", "20ms");
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, WRITERS, KEYS).await;
    let (mut missed, mut from_binlog) = (0.0, 0.0);
    let relay = rig.relay();
    for life in 0..lives {
        live(&rig, life).await;
        missed += rig.metric(MISSED).await.unwrap();
        from_binlog += rig.metric(FROM_BINLOG).await.unwrap();
        end(&relay, kill && life % 2 == 0).await;
        relay.start_again().unwrap();
    }
    let committed = writers.stop(&rig).await;
    wait_all_delivered(&rig, &deliveries).await;
    missed += rig.metric(MISSED).await.unwrap();
    end(&relay, false).await;

    let flavor = db.flavor();
    let delivered = assert_first_deliveries_in_order(&deliveries);
    let twice = deliveries.count() - delivered - 1;
    print(&format!(
        "{flavor:?}: {lives} lives, {committed} messages, {from_binlog} by the binlog, {twice} twice"
    ));
    assert_eq!(delivered, committed, "{flavor:?}");
    assert_eq!(missed, 0.0, "{flavor:?}: {}", relay.log());
    assert!(from_binlog > 0.0, "{flavor:?}: the binlog was never tailed");
    if !kill {
        assert_eq!(
            twice, 0,
            "{flavor:?}: a drained relay leaves nothing unmarked"
        );
    }
}

/// Lives end in any state: just started, catching up, just tailing, and after a while of it.
async fn live(rig: &Rig, life: usize) {
    match life % 4 {
        0 => {
            e2e::wait::until("the relay to listen", SOON, async || {
                rig.metric(MISSED).await.is_some()
            })
            .await;
        }
        1 => rig.wait_phase("tailing").await,
        _ => {
            let enough = if life % 4 == 2 { 10.0 } else { 60.0 };
            e2e::wait::until("rows by the binlog", LATER, async || {
                rig.metric(FROM_BINLOG).await >= Some(enough)
            })
            .await;
        }
    }
}

async fn end(relay: &Process, kill: bool) {
    if kill {
        return relay.kill().unwrap();
    }
    relay.terminate().unwrap();
    let status = relay.wait_exit(LATER).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
