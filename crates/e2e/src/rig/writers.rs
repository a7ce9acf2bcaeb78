//! Writers who never stop committing, and whose messages say in which order they were committed.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outbox::Event;
use sqlx::{AssertSqlSafe, Executor, MySqlPool};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{Deliveries, LATER, Rig};

/// A measurement for whoever watches, straight to standard error: the harness hides what a passing
/// test prints.
pub fn print(text: &str) {
    // A closed standard error is no reason to fail a test.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Tasks that each commit one transaction after the other.
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// `count` writers on `keys` aggregates of the rig's database.
    pub async fn start(rig: &Rig, count: usize, keys: usize) -> Self {
        Self::spawn(rig, (count, keys), false).await
    }

    /// The same, but they go on when the database fails them.
    pub async fn stubborn(rig: &Rig, count: usize, keys: usize) -> Self {
        Self::spawn(rig, (count, keys), true).await
    }

    async fn spawn(rig: &Rig, (count, keys): (usize, usize), stubborn: bool) -> Self {
        let create = "CREATE TABLE aggregates (id INT PRIMARY KEY, n BIGINT NOT NULL)";
        rig.pool.execute(create).await.unwrap();
        let rows: Vec<String> = (0..keys).map(|key| format!("({key}, 0)")).collect();
        let fill = format!("INSERT INTO aggregates VALUES {}", rows.join(", "));
        rig.pool
            .execute(AssertSqlSafe(fill.as_str()))
            .await
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..count).map(|number| {
            let (pool, stop) = (rig.pool.clone(), Arc::clone(&stop));
            svc_kit::tasks::unit(async move {
                // A step without a common divisor with most key counts: every writer meets every key.
                let mut key = number * 7;
                while !stop.load(Ordering::Relaxed) {
                    key = (key + 17) % keys;
                    let written = write(&pool, key).await;
                    // The message's number is in the same transaction, so it is right either way.
                    if stubborn && written.is_err() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    } else {
                        written.unwrap();
                    }
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, tasks }
    }

    /// Stops them; returns how many messages they committed.
    pub async fn stop(self, rig: &Rig) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let committed: i64 =
            sqlx::query_scalar("SELECT CAST(SUM(n) AS SIGNED INTEGER) FROM aggregates")
                .fetch_one(&rig.pool)
                .await
                .unwrap();
        usize::try_from(committed).unwrap()
    }
}

/// Commits `count` rows of as many keys, 500 in a transaction; returns their message ids.
pub async fn backlog(rig: &Rig, count: usize) -> Vec<String> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let events: Vec<Event> = (ids.len()..count.min(ids.len() + 500))
            .map(|n| {
                Event::new(
                    "order",
                    format!("b{n}"),
                    "order.placed.v1",
                    "order.pay",
                    "1",
                )
            })
            .collect();
        let mut tx = rig.pool.begin().await.unwrap();
        let written = outbox::event::write_all(&mut tx, &events).await.unwrap();
        tx.commit().await.unwrap();
        ids.extend(written.iter().map(Uuid::to_string));
    }
    ids
}

/// Locks its aggregate before it inserts: without that no order of commits is defined.
async fn write(pool: &MySqlPool, key: usize) -> anyhow::Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("UPDATE aggregates SET n = n + 1 WHERE id = ?")
        .bind(key as u64)
        .execute(&mut *tx)
        .await?;
    let number: i64 = sqlx::query_scalar("SELECT n FROM aggregates WHERE id = ?")
        .bind(key as u64)
        .fetch_one(&mut *tx)
        .await?;
    let event = Event::new(
        "order",
        format!("k{key}"),
        "order.placed.v1",
        "order.pay",
        number.to_string(),
    );
    outbox::event::write(&mut tx, &event).await?;
    tx.commit().await?;
    Ok(())
}

/// Waits until everything that was ever committed has arrived: the queue is first in, first out,
/// so this holds when a row arrives that was written when nothing was pending any more.
pub async fn wait_all_delivered(rig: &Rig, deliveries: &Deliveries) {
    crate::wait::until("no row pending", LATER * 2, async || {
        rig.count("status = 1").await == 0
    })
    .await;
    let last = rig.insert_one("last", "order.pay", b"1").await;
    crate::wait::until("the last row to arrive", LATER, async || {
        deliveries.ids().contains(&last)
    })
    .await;
}

/// Every key's first deliveries are its messages 1, 2, 3 … without a gap. Returns how many messages
/// there are, the last one of [`wait_all_delivered`] not counted.
pub fn assert_first_deliveries_in_order(deliveries: &Deliveries) -> usize {
    let mut seen: HashMap<String, u64> = HashMap::new();
    let first = deliveries.first();
    for delivery in &first {
        let number: u64 = String::from_utf8_lossy(&delivery.payload).parse().unwrap();
        let before = seen.entry(delivery.key.clone()).or_default();
        assert_eq!(
            number,
            *before + 1,
            "{} after message {before} of {}",
            delivery.message_id,
            delivery.key
        );
        *before = number;
    }
    first.len() - 1
}
