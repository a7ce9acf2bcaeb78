//! Two relays: whatever becomes of the one that works, the other goes on within 10 s, none is lost,
//! and the old one publishes nothing beside it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use e2e::rig::ops::{assert_complete, stop, wait_delivered};
use e2e::rig::writers::{Writers, backlog, print};
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Db, Flavor};
use relay::leadership::lock::lock_name;
use relay::outbox_table::OutboxTable;
use svc_kit::database::DatabaseUrl;

use super::pair::{Trace, Twin, settled};
use super::world::{FLOWS_WITHIN, probe};

/// What becomes of the relay that works.
#[derive(Clone, Copy, Debug)]
enum Way {
    Killed,
    Suspended,
    /// No byte passes between it and the database, and no connection is closed.
    CutOff,
    /// An operator's KILL of the lock's connection: the relay lives and has everything else.
    LockKilled,
}

const WAYS: [Way; 4] = [Way::Killed, Way::Suspended, Way::CutOff, Way::LockKilled];

/// Has it happen.
async fn inject(way: Way, rig: &Rig, active: &Twin) {
    match way {
        Way::Killed => active.process.kill().unwrap(),
        Way::Suspended => active.process.pause().unwrap(),
        Way::CutOff => active.proxy.stall(),
        Way::LockKilled => kill_lock(rig).await,
    }
}

/// The other one is at work: this one comes back.
fn undo(way: Way, old: &Twin) {
    match way {
        Way::Killed => old.process.start_again().unwrap(),
        Way::Suspended => old.process.resume().unwrap(),
        Way::CutOff => old.proxy.resume(),
        Way::LockKilled => {}
    }
}

async fn kill_lock(rig: &Rig) {
    let table = OutboxTable {
        url: DatabaseUrl::parse(&rig.env["DATABASE_URL"]).unwrap(),
        name: "outbox".into(),
    };
    let mut admin = rig.db.admin().await.unwrap();
    let id: Option<i64> = sqlx::query_scalar("SELECT CAST(IS_USED_LOCK(?) AS SIGNED)")
        .bind(lock_name(&table))
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let kill = format!("KILL {}", id.unwrap());
    rig.db.execute(&kill).await.unwrap();
}

async fn twins(rig: &Rig) -> [Twin; 2] {
    let one = Twin::start(rig, "one").await;
    one.wait_role("active").await;
    let two = Twin::start(rig, "two").await;
    two.wait_role("standby").await;
    [one, two]
}

/// Nothing is on its way when it happens, so that whatever the old one publishes afterwards it must
/// have taken up after it woke.
async fn nothing_beside(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let trace = Trace::start(&rig).await;
    let twins = twins(&rig).await;
    for way in [Way::Suspended, Way::CutOff] {
        let (active, _) = settled(&twins).await;
        let before = rig.insert(5).await;
        wait_delivered(&deliveries, &before).await;
        // A mark that is missing when it happens is a duplicate, and no fault.
        rig.wait_count("status = 1", 0).await;
        inject(way, &rig, active).await;
        let since = Instant::now();
        // The old one's binlog connection takes these in, or they wait before the stalled proxy.
        let during = rig.insert(20).await;
        wait_delivered(&deliveries, &during).await;
        let took = since.elapsed();
        print(&format!(
            "{:?}: {way:?}: taken over after {took:?}",
            db.flavor()
        ));
        assert!(took < FLOWS_WITHIN, "{way:?}: {took:?}");

        let woken = trace.len();
        undo(way, active);
        active.wait_role("standby").await;
        let after = rig.insert(5).await;
        for id in &after {
            trace.wait_for(id).await;
        }
        let all = trace.all();
        let late = all.iter().skip(woken).filter(|p| p.user == active.user);
        assert_eq!(late.count(), 0, "{way:?}: {}", active.process.log());
        let by_old = |id: &String| {
            all.iter()
                .any(|p| p.message_id == *id && p.user == active.user)
        };
        assert!(
            before.iter().all(by_old),
            "{way:?}: the trace tells nothing"
        );
        assert!(!during.iter().any(by_old), "{way:?}");
    }
    for twin in &twins {
        stop(&twin.process).await;
    }
    assert_eq!(deliveries.count(), deliveries.first().len());
}

#[tokio::test]
async fn a_relay_that_was_suspended_or_cut_off_publishes_nothing_when_it_comes_back() {
    e2e::shared::on_every_server_at_once(nothing_beside).await;
}

/// Two small lanes, so that the bound is far below what the relay has taken in.
const LANES: usize = 2;
const BATCH: usize = 8;

/// Suspended with thousands of rows taken in. Only batches that were already with the broker's
/// client go out after the wake, one a lane, and no row that was committed after the stop.
async fn little_beside(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let mut rig = Rig::new(db).await;
    rig.set("RELAY_LANES", &LANES.to_string())
        .set("RELAY_BATCH_MAX", &BATCH.to_string());
    let deliveries = rig.consume(QUEUE).await;
    let trace = Trace::start(&rig).await;
    let twins = twins(&rig).await;
    for _ in 0..2 {
        let (active, _) = settled(&twins).await;
        probe(&rig, &deliveries).await;
        let from = trace.len();
        let mut load = backlog(&rig, 4_000).await;
        e2e::wait::until("the load", LATER, async || trace.len() > from + 100).await;
        active.process.pause().unwrap();
        let left = rig.count("status = 1").await;
        assert!(left > 1_000, "{left} rows are no load");
        let during = rig.insert(20).await;
        load.extend(during.iter().cloned());
        wait_delivered(&deliveries, &load).await;
        // The broker has long read what the old one had sent before the stop.
        trace.wait_for(during.last().unwrap()).await;

        let woken = trace.len();
        active.process.resume().unwrap();
        active.wait_role("standby").await;
        for id in &rig.insert(5).await {
            trace.wait_for(id).await;
        }
        let all = trace.all();
        let late = all.iter().skip(woken).filter(|p| p.user == active.user);
        let late = late.count();
        print(&format!("{:?}: {late} published late", db.flavor()));
        assert!(late <= LANES * BATCH, "{late}: {}", active.process.log());
        let by_old = all.iter().filter(|p| p.user == active.user);
        let by_old: HashSet<&String> = by_old.map(|p| &p.message_id).collect();
        assert!(!during.iter().any(|id| by_old.contains(id)));
    }
    for twin in &twins {
        stop(&twin.process).await;
    }
}

#[tokio::test]
async fn a_relay_suspended_under_load_publishes_at_most_its_batches_when_it_wakes() {
    e2e::shared::on_every_server_at_once(little_beside).await;
}

/// Under load: the server frees the lock at once, while the old relay has all its connections but
/// that one, and rows to publish.
#[tokio::test]
async fn a_relay_whose_lock_was_killed_publishes_nothing_beside_the_next_one() {
    e2e::shared::on_every_server_at_once(lock_killed).await;
}

async fn lock_killed(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let trace = Trace::start(&rig).await;
    let twins = twins(&rig).await;
    let writers = Writers::start(&rig, 2, 10).await;
    for _ in 0..4 {
        let (active, standby) = settled(&twins).await;
        probe(&rig, &deliveries).await;
        let from = trace.len();
        kill_lock(&rig).await;
        let killed = Instant::now();
        e2e::wait::until("rows from whoever works now", LATER, async || {
            // Well beyond a second ping, before which the old one would not have known.
            killed.elapsed() > Duration::from_secs(3) && trace.len() > from + 100
        })
        .await;
        let (now, _) = settled(&twins).await;
        if now.user == active.user {
            continue;
        }
        let all = trace.all();
        let mut tail = all.iter().skip(from).map(|p| p.user == standby.user);
        let beside = tail
            .by_ref()
            .skip_while(|by_new| !by_new)
            .filter(|by_new| !by_new);
        assert_eq!(beside.count(), 0, "{}", active.process.log());
    }
    assert_complete(&rig, writers, &deliveries).await;
    for twin in &twins {
        stop(&twin.process).await;
    }
}

/// Under load, in every way, one after the other.
async fn take_overs(db: &'static Db, count: usize) -> Vec<Duration> {
    let rig = Rig::new(db).await;
    let deliveries = rig.consume(QUEUE).await;
    let twins = twins(&rig).await;
    let writers = Writers::start(&rig, 2, 10).await;
    let mut took = Vec::new();
    for way in WAYS.into_iter().cycle().take(count) {
        let (active, _) = settled(&twins).await;
        probe(&rig, &deliveries).await;
        inject(way, &rig, active).await;
        let since = Instant::now();
        probe(&rig, &deliveries).await;
        took.push(since.elapsed());
        print(&format!(
            "{:?}: {way:?}: taken over after {:?}",
            db.flavor(),
            since.elapsed()
        ));
        assert!(
            since.elapsed() < FLOWS_WITHIN,
            "{way:?}: {:?}",
            since.elapsed()
        );
        undo(way, active);
    }
    settled(&twins).await;
    assert_complete(&rig, writers, &deliveries).await;
    for twin in &twins {
        stop(&twin.process).await;
    }
    took
}

#[tokio::test]
async fn no_message_is_lost_over_take_overs_of_every_kind() {
    take_overs(e2e::shared::either().await, WAYS.len()).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_database_50_take_overs_in_a_row() {
    let took = e2e::shared::on_every_server_at_once(async |flavor| {
        let db = e2e::shared::database(flavor).await;
        (flavor, take_overs(db, 50).await)
    })
    .await;
    super::world::record("take-overs of every kind under load", took);
}
