//! A server that takes no writes any more, and grants locks all the same.

use std::time::{Duration, Instant};

use e2e::Flavor;
use e2e::rig::ops::{TAILING, assert_complete, own_user, readiness, stop};
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::Writers;
use e2e::rig::{LATER, QUEUE, Rig};

#[cfg(feature = "long")]
use super::world::record;
use super::world::{FLOWS_WITHIN, flows, probe};

async fn wait_not_leading(rig: &Rig) -> Duration {
    let began = Instant::now();
    e2e::wait::until("a relay that does not lead", LATER, async || {
        rig.metric("outbox_relay_leader").await == Some(0.0)
    })
    .await;
    began.elapsed()
}

/// The writers are administrators, whom read_only does not stop; the relay is not.
async fn demote(flavor: Flavor, rounds: usize) -> (Flavor, Vec<Duration>) {
    let mut took = Vec::new();
    let db = OwnDb::start(flavor, &[]).await;
    let mut rig = db.rig().await;
    own_user(&mut rig).await;
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 2, 10).await;
    for _ in 0..rounds {
        rig.wait_metric(TAILING, 1.0).await;
        probe(&rig, &deliveries).await;
        db.execute("SET GLOBAL read_only = ON").await.unwrap();
        let noticed = wait_not_leading(&rig).await;
        assert!(noticed < FLOWS_WITHIN, "{noticed:?}");
        e2e::wait::until("readiness says why", LATER, async || {
            let text = readiness(&rig).await.unwrap().1.to_string();
            text.contains("read-only") && text.contains(r#""role":"undecided""#)
        })
        .await;
        // The role was promised to somebody else: nothing is published from here.
        let published = deliveries.count();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(deliveries.count(), published, "{}", relay.log());
        db.execute("SET GLOBAL read_only = OFF").await.unwrap();
        took.push(flows(&rig, &deliveries, Instant::now(), "writable again").await);
    }
    rig.wait_metric(TAILING, 1.0).await;
    assert_complete(&rig, writers, &deliveries).await;
    stop(&relay).await;
    (flavor, took)
}

#[tokio::test]
async fn a_primary_that_turns_read_only_under_load_loses_the_relay_until_it_is_writable() {
    e2e::shared::on_every_server_at_once(async |flavor| demote(flavor, 1).await).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_database_a_primary_turns_read_only_10_times() {
    let took = e2e::shared::on_every_server_at_once(async |flavor| demote(flavor, 10).await).await;
    record("read-only and writable again under load", took);
}

/// MySQL refuses every write with 1792 though `read_only` is off: the ping sees nothing, the first
/// write does.
#[tokio::test]
async fn a_refused_write_ends_the_lease_though_the_server_does_not_call_itself_read_only() {
    e2e::shared::on_every_server_at_once(async |flavor| {
        let db = OwnDb::start(flavor, &[]).await;
        let rig = db.rig().await;
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        probe(&rig, &deliveries).await;
        let (off, on) = match flavor {
            Flavor::MySql => (
                "SET GLOBAL transaction_read_only = ON",
                "SET GLOBAL transaction_read_only = OFF",
            ),
            Flavor::MariaDb => (
                "SET GLOBAL tx_read_only = ON",
                "SET GLOBAL tx_read_only = OFF",
            ),
        };
        db.execute(off).await.unwrap();
        // A session that is older than the setting can write; a new one can't.
        kill_all(&rig).await;
        e2e::wait::until("the lock is given up", LATER, async || {
            relay.log().contains("the database takes no writes")
        })
        .await;
        db.execute(on).await.unwrap();
        flows(&rig, &deliveries, Instant::now(), "writes taken again").await;
        stop(&relay).await;
    })
    .await;
}

async fn kill_all(rig: &Rig) {
    let mut admin = rig.db.admin().await.unwrap();
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT CAST(ID AS SIGNED) FROM information_schema.PROCESSLIST \
         WHERE DB = ? AND ID <> CONNECTION_ID()",
    )
    .bind(&rig.database.name)
    .fetch_all(&mut admin)
    .await
    .unwrap();
    for id in ids {
        // It may have gone by itself.
        drop(rig.db.execute(&format!("KILL {id}")).await);
    }
}
