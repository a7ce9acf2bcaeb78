//! From COMMIT to a consumer, row by row.
//!
//! The arrival stands for the confirm, which nobody outside the publisher sees: the broker sends both
//! when the queue has taken the message.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use e2e::product::Process;
use futures::StreamExt as _;
use sqlx::MySqlPool;
use uuid::Uuid;

use crate::{
    bare_loop, ledger, outbox_rows,
    queue::{Arrived, Kind, Queue},
    relay::Relay,
    scene::Scene,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Who brings rows from the binlog to the broker.
pub(crate) enum Carrier {
    Bare(Process),
    Product(Relay),
}

/// One way from a commit to a consumer, with a database and a queue of its own.
pub(crate) struct Way {
    pub(crate) database_url: String,
    pub(crate) pool: MySqlPool,
    pub(crate) queue: Queue,
    pub(crate) product: bool,
}

impl Way {
    pub(crate) async fn set_up(scene: &Scene<'_>, product: bool) -> anyhow::Result<Self> {
        let (database, pool) = scene.outbox().await?;
        Ok(Self {
            database_url: database.url,
            pool,
            queue: scene.queue(Kind::Quorum).await?,
            product,
        })
    }

    /// Starts what carries its rows, and waits until it reads the binlog.
    pub(crate) async fn start(&self) -> anyhow::Result<Carrier> {
        let amqp_url = &self.queue.vhost.amqp_url;
        if !self.product {
            let process = bare_loop::start(&self.database_url, amqp_url).await?;
            return Ok(Carrier::Bare(process));
        }
        let relay = Relay::start(&self.database_url, amqp_url, &[])?;
        relay.tails().await?;
        Ok(Carrier::Product(relay))
    }

    /// Ends it, and checks the ledger: of the bare loop's rows only that they arrived.
    pub(crate) async fn finish(
        &self,
        carrier: Carrier,
        (placed, arrived): (u64, &Arrived),
    ) -> anyhow::Result<()> {
        match carrier {
            Carrier::Product(relay) => {
                ledger::all_marked(&self.pool).await?;
                relay.stop().await?;
            }
            Carrier::Bare(process) => {
                process.kill()?;
                sqlx::query("UPDATE outbox SET status = 2")
                    .execute(&self.pool)
                    .await?;
            }
        }
        ledger::check(&self.pool, (placed, 0), arrived).await?;
        outbox_rows::clear(&self.pool).await
    }
}

/// Commits one row at a time, the next when the last has arrived and is marked, so that every commit
/// meets idle servers. Gives the milliseconds from the return of COMMIT to the arrival.
pub(crate) async fn one_at_a_time(way: &Way, count: u64) -> anyhow::Result<(Vec<f64>, Arrived)> {
    let mut arrived = Arrived::default();
    let mut consumer = way.queue.consume().await?;
    let mut took = Vec::new();
    for number in 0..count {
        let mut tx = way.pool.begin().await?;
        let id = outbox::event::write(&mut tx, &outbox_rows::event(number)).await?;
        tx.commit().await?;
        let committed = Instant::now();
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
        let delivery = next.context("a row did not arrive")?;
        took.push(committed.elapsed().as_secs_f64() * 1e3);
        arrived.add(&delivery.context("the consumer ended")??)?;
        while way.product && status(&way.pool, id).await? == 1 {}
    }
    way.queue.cancel().await?;
    Ok((took, arrived))
}

async fn status(pool: &MySqlPool, message_id: Uuid) -> anyhow::Result<u8> {
    let status = sqlx::query_scalar("SELECT status FROM outbox WHERE message_id = ?");
    Ok(status.bind(message_id.to_string()).fetch_one(pool).await?)
}

/// Rows on their way, second by second.
#[derive(Default)]
pub(crate) struct Flow {
    pub(crate) arrived: Arrived,
    pub(crate) placed: u64,
    /// Milliseconds from the return of COMMIT to the arrival, of every row.
    pub(crate) took: Vec<f64>,
    /// Rows that were committed and had not arrived, four times a second.
    pub(crate) backlog: Vec<u64>,
}

/// Commits `per_second` rows a second for `seconds`, ten a transaction, on four connections.
pub(crate) async fn steadily(way: &Way, per_second: u64, seconds: u64) -> anyhow::Result<Flow> {
    const TOGETHER: u64 = 10;
    const WRITERS: u64 = 4;
    let committed: std::cell::RefCell<HashMap<Uuid, Instant>> = Default::default();
    let mut consumer = way.queue.consume().await?;
    let total = per_second * seconds;
    let every =
        Duration::from_secs(1) * u32::try_from(TOGETHER * WRITERS)? / u32::try_from(per_second)?;
    let writer = async |number: u64| -> anyhow::Result<()> {
        let mut clock = tokio::time::interval(every);
        let rounds = total / TOGETHER / WRITERS;
        // Side by side, not all at once.
        tokio::time::sleep(every * u32::try_from(number)? / u32::try_from(WRITERS)?).await;
        for round in 0..rounds {
            clock.tick().await;
            let from = (round * WRITERS + number) * TOGETHER;
            let events: Vec<_> = (from..from + TOGETHER).map(outbox_rows::event).collect();
            let mut tx = way.pool.begin().await?;
            outbox::event::write_all(&mut tx, &events).await?;
            tx.commit().await?;
            let now = Instant::now();
            let ids = events.iter().map(|event| (event.id(), now));
            committed.borrow_mut().extend(ids);
        }
        Ok(())
    };
    let mut flow = Flow::default();
    let mut seen: HashMap<Uuid, Instant> = HashMap::new();
    let placed = total / TOGETHER / WRITERS * TOGETHER * WRITERS;
    let receiving = async {
        let mut look = tokio::time::interval(Duration::from_millis(250));
        while (seen.len() as u64) < placed {
            tokio::select! {
                delivery = tokio::time::timeout(PATIENCE, consumer.next()) => {
                    let delivery = delivery.context("rows did not arrive")?;
                    let delivery = delivery.context("the consumer ended")??;
                    seen.entry(flow.arrived.add(&delivery)?).or_insert_with(Instant::now);
                }
                _ = look.tick() => {
                    let there = committed.borrow().len();
                    flow.backlog.push(there.saturating_sub(seen.len()) as u64);
                }
            }
        }
        anyhow::Ok(())
    };
    let writing = futures::future::try_join_all((0..WRITERS).map(writer));
    futures::try_join!(receiving, writing)?;
    way.queue.cancel().await?;
    let committed = committed.into_inner();
    flow.placed = placed;
    flow.took = seen
        .iter()
        .filter_map(|(id, at)| Some((*at, *committed.get(id)?)))
        // It may arrive before COMMIT has returned to the writer.
        .map(|(at, from)| at.saturating_duration_since(from).as_secs_f64() * 1e3)
        .collect();
    Ok(flow)
}
