//! Order per key while everything fails at once.

use std::time::Instant;

use e2e::Db;
use e2e::product::Process;
use e2e::rig::ops::MISSED;
use e2e::rig::writers::{Writers, assert_first_deliveries_in_order, print, wait_all_delivered};
use e2e::rig::{EXCHANGE, LATER, QUEUE, Rig};
use serde_json::json;

const KEYS: usize = 200;
const WRITERS: usize = 3;

#[tokio::test]
async fn the_order_per_key_holds_through_nacks_returns_reconnects_kills_and_sweeps() {
    chaos(e2e::shared::either().await, 50).await;
}

#[cfg(feature = "long")]
e2e::on_each_server!(long_load_order_per_key_through_everything);
#[cfg(feature = "long")]
async fn long_load_order_per_key_through_everything(flavor: e2e::Flavor) {
    let db = e2e::shared::database(flavor).await;
    let figures = chaos(db, 500).await;
    let name = format!(
        "order of 200 keys × 500 messages through faults, {:?}",
        db.flavor()
    );
    e2e::figures::record(&name, &figures);
}

/// What is done to the relay while the writers go on; each is seen to have had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Returns,
    Nacks,
    Reconnect,
    Kill,
}

const FAULTS: [Fault; 4] = [Fault::Returns, Fault::Reconnect, Fault::Nacks, Fault::Kill];

async fn chaos(db: &'static Db, messages: i64) -> String {
    let mut rig = Rig::new(db).await;
    // Sweeps all the time, and probes soon after a route is open again.
    rig.set("RELAY_SWEEP_INTERVAL", "50ms")
        .set_backoff("50ms", "200ms");
    let started = Instant::now();
    let writers = Writers::start(&rig, WRITERS, KEYS).await;
    let relay = rig.tailing().await;
    let (mut injected, mut missed) = (0, 0.0);
    while least(&rig).await < messages || injected < FAULTS.len() {
        let fault = FAULTS[injected % FAULTS.len()];
        if fault == Fault::Kill {
            // What this life has counted ends with it.
            missed += rig.metric(MISSED).await.unwrap_or(0.0);
        }
        inject(&rig, &relay, fault).await;
        injected += 1;
        flows(&rig, &relay).await;
    }
    let committed = writers.stop(&rig).await;
    // Not before: all connections of the vhost are closed again and again.
    let deliveries = rig.consume(QUEUE).await;
    wait_all_delivered(&rig, &deliveries).await;
    missed += rig.metric(MISSED).await.unwrap();
    relay.terminate().unwrap();
    assert!(
        relay.wait_exit(LATER).await.unwrap().success(),
        "{}",
        relay.log()
    );

    let delivered = assert_first_deliveries_in_order(&deliveries);
    let figures = format!(
        "{injected} faults in {:.0?}: {committed} messages, {} twice",
        started.elapsed(),
        deliveries.count() - delivered - 1
    );
    print(&format!("{:?}: {figures}", db.flavor()));
    assert_eq!(delivered, committed, "{figures}");
    assert_eq!(missed, 0.0, "{}", relay.log());
    figures
}

/// Messages of the key that has the fewest.
async fn least(rig: &Rig) -> i64 {
    sqlx::query_scalar("SELECT MIN(n) FROM aggregates")
        .fetch_one(&rig.pool)
        .await
        .unwrap()
}

/// Rows are being sent, not only written.
async fn flows(rig: &Rig, relay: &Process) {
    let before = rig.count("status = 2").await;
    let flowing = e2e::wait::try_until("rows to be sent again", LATER, async || {
        rig.count("status = 2").await > before + 50
    });
    if let Err(err) = flowing.await {
        panic!("{err}\n{}", relay.log());
    }
}

async fn inject(rig: &Rig, relay: &Process, fault: Fault) {
    let broker = rig.rabbit.management().unwrap();
    let vhost = &rig.vhost.name;
    match fault {
        Fault::Returns => {
            broker
                .unbind(vhost, EXCHANGE, QUEUE, "order.*")
                .await
                .unwrap();
            failures(rig, "returned").await;
            broker
                .bind(vhost, EXCHANGE, QUEUE, "order.*")
                .await
                .unwrap();
        }
        Fault::Nacks => {
            // A second queue of the route that is full: the broker refuses for both what one refuses.
            let full = json!({"x-max-length": 1, "x-overflow": "reject-publish"});
            broker.declare_queue(vhost, "full", full).await.unwrap();
            broker
                .bind(vhost, EXCHANGE, "full", "order.*")
                .await
                .unwrap();
            failures(rig, "nack").await;
            assert!(broker.delete_queue(vhost, "full").await.unwrap());
        }
        Fault::Reconnect => {
            // The test has a connection of its own; the relay's comes and goes.
            e2e::wait::until("a connection to close", LATER, async || {
                broker.close_connections(vhost).await.unwrap() > 0
            })
            .await;
        }
        Fault::Kill => {
            relay.kill().unwrap();
            relay.start_again().unwrap();
        }
    }
}

async fn failures(rig: &Rig, reason: &str) {
    let name = format!("outbox_relay_failed_total{{reason=\"{reason}\"}}");
    // A relay that was just started does not answer yet, and has counted nothing.
    let before = rig.metric(&name).await.unwrap_or(0.0);
    e2e::wait::until(&format!("failures by {reason}"), LATER, async || {
        rig.metric(&name).await > Some(before)
    })
    .await;
}
