//! The raw limit of placing orders one by one: connections that each write an order and its event in
//! a transaction, one after the other, and nothing else: no HTTP.

use std::time::{Duration, Instant};

use outbox::Event;
use serde::{Deserialize, Serialize};
use sqlx::{Connection as _, Executor as _, MySqlConnection};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    part::{Part, print_result},
    process,
    statistics::percentile,
};

/// Of the hidden command.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    database: String,
    #[arg(long, env = "RAW_CONNECTIONS", default_value_t = 32)]
    connections: usize,
    #[arg(long)]
    warm_up: f64,
    #[arg(long)]
    seconds: f64,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Took {
    /// Orders committed, those of the warm-up included.
    pub(crate) placed: u64,
    /// Orders committed a second, behind the warm-up.
    pub(crate) rate: f64,
    /// Milliseconds of a transaction, from before its BEGIN to the return of its COMMIT.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Of the whole process.
    pub(crate) cpu_seconds: f64,
}

/// Places orders from a process of its own.
pub(crate) async fn place(database: &str, warm_up: f64, seconds: f64) -> anyhow::Result<Took> {
    let (warm_up, seconds) = (warm_up.to_string(), seconds.to_string());
    let args = ["raw-orders", "--database", database, "--warm-up", &warm_up];
    Part::start(&[&args[..], &["--seconds", &seconds]].concat())?
        .reported()
        .await
}

/// The hidden command itself.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let counted_from = Instant::now() + Duration::from_secs_f64(args.warm_up);
    let end = counted_from + Duration::from_secs_f64(args.seconds);
    let mut writers = JoinSet::new();
    for _ in 0..args.connections {
        writers.spawn(write(args.database.clone(), end));
    }
    let (mut placed, mut took) = (0, Vec::new());
    while let Some(orders) = writers.join_next().await {
        for (at, ms) in orders?? {
            placed += 1;
            if (counted_from..end).contains(&at) {
                took.push(ms);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let rate = took.len() as f64 / args.seconds;
    print_result(&Took {
        placed,
        rate,
        p50: percentile(&took, 50),
        p99: percentile(&took, 99),
        cpu_seconds: process::cpu_seconds(std::process::id())?,
    })
}

async fn write(database: String, end: Instant) -> anyhow::Result<Vec<(Instant, f64)>> {
    let mut connection = MySqlConnection::connect(&database).await?;
    connection
        .execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        .await?;
    let mut orders = Vec::new();
    loop {
        let begun = Instant::now();
        if begun >= end {
            return Ok(orders);
        }
        order(&mut connection).await?;
        let committed = Instant::now();
        orders.push((committed, (committed - begun).as_secs_f64() * 1e3));
    }
}

async fn order(connection: &mut MySqlConnection) -> anyhow::Result<()> {
    let id = Uuid::now_v7();
    let mut tx = connection.begin().await?;
    sqlx::query(
        "INSERT INTO orders (order_id, customer_id, amount_minor, currency, description, \
         created_at) VALUES (?, 'c-17', 1999, 'EUR', 'two of the blue ones', ?)",
    )
    .bind(id.to_string())
    .bind(OffsetDateTime::now_utc())
    .execute(&mut *tx)
    .await?;
    outbox::event::write(&mut tx, &event(id)).await?;
    tx.commit().await?;
    Ok(())
}

/// The event that order-svc writes for an order.
pub(crate) fn event(order_id: Uuid) -> Event {
    let id = order_id.to_string();
    let payload = serde_json::json!({
        "order_id": id, "customer_id": "c-17", "amount_minor": 1999, "currency": "EUR",
        "placed_at": "2026-01-02T03:04:05.678901Z",
    });
    Event::new(
        "order",
        id,
        "order.placed.v1",
        "order.pay",
        payload.to_string(),
    )
    .message_id(order_id)
    .header(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
}
