//! Rows by the hundred thousand, written by the server itself, and a process' memory.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::product::Process;
use e2e::rig::{LATER, QUEUE, Rig};
use futures::StreamExt as _;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

/// Rows in one transaction of [`fill`].
const CHUNK: usize = 20_000;

/// Inserts `count` rows of the given columns, one statement per 20,000. `n` is the number of the
/// row, from 0, in the expressions `key`, `payload` and `more`.
pub(crate) async fn fill(rig: &Rig, count: usize, row: Filled<'_>) {
    let mut connection = rig.database.connect().await.unwrap();
    let Filled {
        key,
        route,
        payload,
        more: (columns, values),
    } = row;
    for from in (0..count).step_by(CHUNK) {
        let rows = CHUNK.min(count - from);
        let statement = format!(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, payload{columns}) \
             WITH RECURSIVE seq (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM seq WHERE i < 199), \
             numbers (n) AS (SELECT {from} + a.i * 200 + b.i FROM seq a JOIN seq b \
             WHERE a.i * 200 + b.i < {rows}) \
             SELECT UUID(), 'order', {key}, 'order.placed.v1', '{route}', {payload}{values} \
             FROM numbers ORDER BY n"
        );
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(statement.as_str())))
            .await
            .unwrap();
    }
}

/// What the rows of [`fill`] hold, as SQL expressions but for the route.
pub(crate) struct Filled<'a> {
    pub(crate) key: &'a str,
    /// The routing key as it is.
    pub(crate) route: &'a str,
    pub(crate) payload: &'a str,
    /// Further columns and their values, each with a leading comma.
    pub(crate) more: (&'a str, &'a str),
}

impl Default for Filled<'_> {
    fn default() -> Self {
        Self {
            key: "CONCAT('b', n)",
            route: "order.pay",
            payload: "REPEAT('x', 300)",
            more: ("", ""),
        }
    }
}

/// The most memory that the process has ever had resident, in MiB.
pub(crate) fn peak_mib(process: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid().unwrap()));
    let status = status.unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib / 1024.0
}

/// The given quantile of delays, as milliseconds.
pub(crate) fn quantile(delays: &mut [Duration], q: f64) -> f64 {
    delays.sort();
    let at = ((delays.len() - 1) as f64 * q).round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index that is in range"
    )]
    let delay = delays[at as usize];
    delay.as_secs_f64() * 1000.0
}

/// What has arrived at a queue: message ids alone, since there are hundreds of thousands.
#[derive(Clone, Default)]
pub(crate) struct Arrived(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    seen: HashSet<Uuid>,
    twice: usize,
    /// When the rows of [`place_while`] arrived.
    placed: HashMap<Uuid, Instant>,
}

impl Arrived {
    /// Consumes the rig's queue from now on.
    pub(crate) async fn consume(rig: &Rig) -> Self {
        Self::of(rig, QUEUE).await
    }

    pub(crate) async fn of(rig: &Rig, queue: &str) -> Self {
        let channel = rig.amqp().await;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let mut consumer = channel
            .basic_consume(queue.into(), "load".into(), options, FieldTable::default())
            .await
            .unwrap();
        let arrived = Self::default();
        let kept = arrived.clone();
        drop(svc_kit::tasks::unit(async move {
            let _channel = channel;
            while let Some(Ok(delivery)) = consumer.next().await {
                let id = delivery.properties.message_id().as_ref().unwrap().as_str();
                let id: Uuid = id.parse().unwrap();
                let mut inner = kept.0.lock().unwrap();
                if !inner.seen.insert(id) {
                    inner.twice += 1;
                } else if delivery.data == PLACED {
                    inner.placed.insert(id, Instant::now());
                }
            }
        }));
        arrived
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().seen.len()
    }

    /// Deliveries beyond the first of each message.
    pub(crate) fn twice(&self) -> usize {
        self.0.lock().unwrap().twice
    }

    fn at(&self, id: Uuid) -> Option<Instant> {
        self.0.lock().unwrap().placed.get(&id).copied()
    }
}

const PLACED: &[u8] = b"placed";

/// Places a row of a key of its own every 20 ms as long as something else is going on; returns the
/// delays from the return of COMMIT to the delivery.
pub(crate) async fn place_while(
    rig: &Rig,
    arrived: &Arrived,
    going_on: impl AsyncFn() -> bool,
) -> Vec<Duration> {
    place_on(rig, (arrived, "order.pay"), async |_| going_on().await).await
}

/// As [`place_while`], with another routing key and the number of those that were placed.
pub(crate) async fn place_on(
    rig: &Rig,
    (arrived, route): (&Arrived, &str),
    going_on: impl AsyncFn(usize) -> bool,
) -> Vec<Duration> {
    let key = |n| format!("p{n}");
    let every = Duration::from_millis(20);
    place(rig, (arrived, route), (&key, every), going_on).await
}

/// Places `count` rows of one key, one each time that `every` has passed; returns the delays as
/// [`place_while`] does.
pub(crate) async fn place_key(
    rig: &Rig,
    of: (&Arrived, &str),
    key: &str,
    (count, every): (usize, Duration),
) -> Vec<Duration> {
    let key = |_| key.to_owned();
    place(rig, of, (&key, every), async |placed| placed < count).await
}

async fn place(
    rig: &Rig,
    (arrived, route): (&Arrived, &str),
    (key, every): (&dyn Fn(usize) -> String, Duration),
    going_on: impl AsyncFn(usize) -> bool,
) -> Vec<Duration> {
    let mut placed = Vec::new();
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while going_on(placed.len()).await {
        ticks.tick().await;
        let id = rig.insert_one(&key(placed.len()), route, PLACED).await;
        placed.push((id.parse().unwrap(), Instant::now()));
    }
    let mut delays = Vec::with_capacity(placed.len());
    for (id, committed) in placed {
        let at = e2e::wait::until("a placed row to arrive", LATER, async || arrived.at(id)).await;
        delays.push(at.saturating_duration_since(committed));
    }
    delays
}
