//! The raw limit of consuming one by one: each message in a transaction of its own, inbox row and
//! payment together, then its acknowledgement; 32 workers, prefetch 256.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use futures::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use serde::{Deserialize, Serialize};
use sqlx::{Connection as _, Executor as _, MySqlConnection};
use tokio::{sync::Mutex, task::JoinSet};
use uuid::Uuid;

use crate::{
    part::{Part, print_result},
    process,
    queue::QUEUE,
};

const PREFETCH: u16 = 256;

/// Of the hidden command.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    database: String,
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    count: u64,
    #[arg(long, env = "RAW_WORKERS", default_value_t = 32)]
    workers: usize,
}

/// What it took.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Took {
    /// From the first delivery to the last commit.
    pub(crate) seconds: f64,
    /// Of the whole process.
    pub(crate) cpu_seconds: f64,
}

#[derive(Deserialize)]
struct Order {
    order_id: String,
    amount_minor: i64,
    currency: String,
}

/// Consumes `count` messages in a process of its own.
pub(crate) async fn consume(database: &str, amqp: &str, count: u64) -> anyhow::Result<Took> {
    let count = count.to_string();
    let args = ["raw-payments", "--database", database, "--amqp", amqp];
    Part::start(&[&args[..], &["--count", &count]].concat())?
        .reported()
        .await
}

/// The hidden command itself.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let mut databases = Vec::new();
    for _ in 0..args.workers {
        let mut database = MySqlConnection::connect(&args.database).await?;
        let isolation = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
        database.execute(isolation).await?;
        databases.push(database);
    }
    let connection = Connection::connect(&args.amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions { global: false })
        .await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel
        .basic_consume(QUEUE.into(), "raw".into(), options, FieldTable::default())
        .await?;
    let consumer = Arc::new(Mutex::new(consumer));
    let left = Arc::new(AtomicU64::new(args.count));
    let mut workers = JoinSet::new();
    for database in databases {
        workers.spawn(work(database, Arc::clone(&consumer), Arc::clone(&left)));
    }
    let mut begun: Option<Instant> = None;
    while let Some(first) = workers.join_next().await {
        let first = first??;
        begun = match (begun, first) {
            (Some(begun), Some(first)) => Some(begun.min(first)),
            (begun, first) => begun.or(first),
        };
    }
    print_result(&Took {
        seconds: begun
            .context("nothing was consumed")?
            .elapsed()
            .as_secs_f64(),
        cpu_seconds: process::cpu_seconds(std::process::id())?,
    })
}

/// Works until no message is left; gives when its first one came.
async fn work(
    mut database: MySqlConnection,
    consumer: Arc<Mutex<Consumer>>,
    left: Arc<AtomicU64>,
) -> anyhow::Result<Option<Instant>> {
    let mut first = None;
    let take = |left: u64| left.checked_sub(1);
    while left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
    {
        let next = consumer.lock().await.next().await;
        let delivery = next.context("the consumer ended")??;
        first.get_or_insert_with(Instant::now);
        pay(&mut database, &delivery).await?;
        delivery.ack(BasicAckOptions { multiple: false }).await?;
    }
    Ok(first)
}

async fn pay(database: &mut MySqlConnection, delivery: &Delivery) -> anyhow::Result<()> {
    let order: Order = serde_json::from_slice(&delivery.data)?;
    let id = delivery.properties.message_id().as_ref();
    let id = id.context("a message without an id")?.as_str();
    let mut tx = database.begin().await?;
    sqlx::query(
        "INSERT INTO inbox (message_id, event_type, aggregate_id, exchange, routing_key, payload, \
         status, processed_at) VALUES (?, 'order.placed.v1', ?, 'order-exchange', 'order.pay', ?, 2, \
         UTC_TIMESTAMP(6))",
    )
    .bind(id.as_bytes())
    .bind(&order.order_id)
    .bind(&delivery.data)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT INTO payments (payment_id, order_id, message_id, amount_minor, currency, outcome) \
         VALUES (?, ?, ?, ?, ?, 'captured')",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(&order.order_id)
    .bind(id.as_bytes())
    .bind(order.amount_minor)
    .bind(&order.currency)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}
