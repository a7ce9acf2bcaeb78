//! Clocks that are wrong, or are set while the relay works.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::rig::ops::{TAILING, assert_complete, stop};
use e2e::rig::servers::OwnDb;
use e2e::rig::writers::{Writers, print};
use e2e::rig::{LATER, QUEUE, Rig};
use e2e::{Clock, DbOptions, Flavor};
use futures::future::{Either, join_all, select};

use super::world::probe;

const JUMP: i64 = 300;
const CONFIRMED: &str = "outbox_relay_commit_to_confirm_seconds";
const AGES: [&str; 2] = [
    "outbox_relay_binlog_lag_seconds",
    "outbox_relay_oldest_pending_age_seconds",
];

/// The lowest and the highest of each age that was ever shown.
#[derive(Clone, Default)]
struct Ages(Arc<Mutex<Vec<f64>>>);

impl Ages {
    /// Looks until `work` is done.
    async fn during<T>(&self, rig: &Rig, work: impl Future<Output = T>) -> T {
        let looks = std::pin::pin!(async {
            loop {
                for name in AGES {
                    if let Some(age) = rig.metric(name).await {
                        self.0.lock().unwrap().push(age);
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        match select(std::pin::pin!(work), looks).await {
            Either::Left((done, _)) => done,
            Either::Right((never, _)) => never,
        }
    }

    fn range(&self) -> (f64, f64) {
        let ages = self.0.lock().unwrap();
        assert!(ages.len() > 20, "{} looks", ages.len());
        ages.iter().fold((0.0, 0.0), |(low, high), age| {
            (low.min(*age), high.max(*age))
        })
    }
}

/// No sample of the latency is beyond a minute, and there are some. All from one answer: rows go on.
async fn assert_no_absurd_latency(rig: &Rig, at_least: f64) {
    let url = format!("http://{}/metrics", rig.env["ADMIN_ADDR"]);
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let sample = |name: String| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let all = sample(format!("{CONFIRMED}_count"));
    let in_time = sample(format!("{CONFIRMED}_bucket{{le=\"60\"}}"));
    assert!(all > at_least, "{all}");
    assert_eq!(all, in_time, "a latency that nobody has seen");
}

/// A message that can't be one: attempts, waits between them, and parking.
async fn wait_retried_and_parked(rig: &Rig) {
    let key = format!("invalid {}", uuid::Uuid::now_v7());
    let mut tx = rig.pool.begin().await.unwrap();
    let event = outbox::Event::new("order", &key, "order.placed.v1", "order.pay", b"1");
    let id = outbox::event::write(&mut tx, &event).await.unwrap();
    sqlx::query("UPDATE outbox SET headers = 'no object' WHERE message_id = ?")
        .bind(id.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let state = rig.wait_status(&id.to_string(), 3).await;
    assert_eq!(state.attempts, 3);
}

async fn jumps(flavor: Flavor, offsets: &[i64]) {
    let clock = Clock::new().unwrap();
    let options = DbOptions {
        env: clock.env(),
        ..DbOptions::default()
    };
    let db = OwnDb::with(flavor, options).await;
    let mut rig = db.rig().await;
    rig.set_backoff("100ms", "200ms")
        .set("RELAY_MAX_ATTEMPTS", "3");
    let relay = rig.tailing().await;
    let began = Instant::now();
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(&rig, 2, 10).await;
    // One that waits for its route all the while, and ages by nobody's clock but the relay's.
    rig.insert_one("waits", "nowhere", b"1").await;
    let ages = Ages::default();
    let work = async {
        for &offset in offsets {
            probe(&rig, &deliveries).await;
            clock.set(offset).unwrap();
            wait_jumped(&rig, offset).await;
            probe(&rig, &deliveries).await;
            wait_retried_and_parked(&rig).await;
            // Three readings of the gauges and a sweep see the new time.
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    ages.during(&rig, work).await;
    let (low, high) = ages.range();
    let took = began.elapsed();
    print(&format!(
        "{flavor:?}: ages from {low} to {high} s over {took:?}"
    ));
    assert!(low >= 0.0, "{low}");
    // What waits does so since the test began, and nothing is older.
    assert!(high <= took.as_secs_f64() + 5.0, "{high} s in {took:?}");
    assert!(high > 5.0, "{high} s: nothing aged");
    assert_no_absurd_latency(&rig, 100.0).await;
    rig.wait_metric(TAILING, 1.0).await;

    rig.sql(
        "UPDATE outbox SET routing_key = 'order.pay', aggregate_id = 'probe late' \
             WHERE aggregate_id = 'waits'",
    )
    .await;
    assert_complete(&rig, writers, &deliveries).await;
    stop(&relay).await;
}

/// The server itself must have moved: what it says is now, not a session of the test's.
async fn wait_jumped(rig: &Rig, offset: i64) {
    e2e::wait::until(&format!("a clock {offset} s off"), LATER, async || {
        let server: i64 =
            sqlx::query_scalar("SELECT TIMESTAMPDIFF(SECOND, '1970-01-01', UTC_TIMESTAMP())")
                .fetch_one(&rig.pool)
                .await
                .unwrap();
        let right = time::OffsetDateTime::now_utc().unix_timestamp();
        (server - right - offset).abs() < 10
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_and_no_age_is_absurd_when_the_databases_clock_jumps() {
    e2e::shared::on_every_server_at_once(async |flavor| jumps(flavor, &[JUMP, 0]).await).await;
}

#[cfg(feature = "long")]
#[tokio::test]
async fn long_database_the_databases_clock_jumps_again_and_again() {
    let offsets = [JUMP, 0, -JUMP, 0, 3600, -3600, JUMP, -JUMP, 0];
    e2e::shared::on_every_server_at_once(async |flavor| jumps(flavor, &offsets).await).await;
}

async fn wrong_relay(rig: &mut Rig, offset: i64) {
    let clock = Clock::new().unwrap();
    clock.set(offset).unwrap();
    for (name, value) in clock.env() {
        rig.set(&name, &value);
    }
    rig.set_backoff("100ms", "200ms")
        .set("RELAY_MAX_ATTEMPTS", "3");
    let relay = rig.tailing().await;
    let deliveries = rig.consume(QUEUE).await;
    let writers = Writers::start(rig, 1, 5).await;
    let ages = Ages::default();
    let work = async {
        for _ in 0..5 {
            probe(rig, &deliveries).await;
            wait_retried_and_parked(rig).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    ages.during(rig, work).await;
    let (low, high) = ages.range();
    assert!(low >= 0.0 && high < 30.0, "{low} to {high} s");
    assert_no_absurd_latency(rig, 10.0).await;
    // Its clock is really wrong: its log has the hour.
    let hour = time::OffsetDateTime::now_utc() + time::Duration::seconds(offset);
    let stamp = format!("{}T{:02}:", hour.date(), hour.hour());
    let hour_ago = hour - time::Duration::minutes(5);
    let stamp_ago = format!("{}T{:02}:", hour_ago.date(), hour_ago.hour());
    let log = relay.log();
    assert!(
        log.contains(&stamp) || log.contains(&stamp_ago),
        "{stamp}: {log}"
    );
    assert_complete(rig, writers, &deliveries).await;
    stop(&relay).await;
}

#[tokio::test]
async fn a_relay_whose_own_clock_is_an_hour_wrong_loses_and_delays_nothing() {
    let each = [3600, -3600].map(async |offset| {
        let mut rig = Rig::new(e2e::shared::either().await).await;
        wrong_relay(&mut rig, offset).await;
    });
    join_all(each).await;
}
