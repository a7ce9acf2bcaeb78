//! The raw limit of publishing: as many messages as the broker takes, from a process that does
//! nothing else.
//!
//! Batches whose publishes begin together and whose confirms are then awaited together, side by side
//! on a few channels of one connection; mandatory, persistent, the same messages the relay makes of
//! rows. That is the fastest way known to publish with lapin: awaiting each publish hands over to its
//! io task once a message.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use e2e::product::Process;
use lapin::{
    Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use outbox::{message::encode, row::Row};
use serde::{Deserialize, Serialize};
use svc_kit::amqp::all_in_order;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    outbox_rows, process,
    queue::{EXCHANGE, Kind, Queue},
};

const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};
const CHANNELS: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(300);

/// Of the hidden command.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    count: u64,
    #[arg(long)]
    batch: u64,
    #[arg(long)]
    channels: u64,
}

/// What it took.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Took {
    /// From the first publish to the last confirm.
    pub(crate) seconds: f64,
    /// Of the whole process.
    pub(crate) cpu_seconds: f64,
}

/// The batch with which each kind of queue takes most: of 512, 1,024, 2,048 and, classic, 4,096.
fn best_batch(kind: Kind) -> u64 {
    match kind {
        Kind::Quorum => 512,
        Kind::Classic => 4096,
    }
}

/// Publishes `count` messages from a process of its own, with `RAW_BATCH` and `RAW_CHANNELS` if they
/// are set.
pub(crate) async fn publish(queue: &Queue, count: u64) -> anyhow::Result<Took> {
    let program = std::env::current_exe().context("this process has no program file")?;
    let count = count.to_string();
    let batch = std::env::var("RAW_BATCH").unwrap_or_else(|_| best_batch(queue.kind).to_string());
    let channels = std::env::var("RAW_CHANNELS").unwrap_or_else(|_| CHANNELS.to_string());
    let mut args = vec!["raw-publish", "--amqp", &queue.vhost.amqp_url];
    args.extend([
        "--count",
        &count,
        "--batch",
        &batch,
        "--channels",
        &channels,
    ]);
    let process = Process::spawn(&program, &args, &[])?;
    let status = process.wait_exit(PATIENCE).await?;
    let log = process.log();
    ensure!(status.success(), "the raw publisher failed: {log}");
    let last = log.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the raw publisher said: {log}"))
}

/// The hidden command itself.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let connection = Connection::connect(&args.amqp, ConnectionProperties::default()).await?;
    let mut channels = Vec::new();
    for _ in 0..args.channels {
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions { nowait: false })
            .await?;
        channels.push(channel);
    }
    let started = Instant::now();
    let mut lanes = JoinSet::new();
    for (number, channel) in (0..).zip(channels) {
        let share = args.count / args.channels + u64::from(number < args.count % args.channels);
        lanes.spawn(lane(channel, share, args.batch));
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    let took = Took {
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: process::cpu_seconds(std::process::id())?,
    };
    println!("{}", serde_json::to_string(&took)?);
    Ok(())
}

async fn lane(channel: Channel, count: u64, batch: u64) -> anyhow::Result<()> {
    let mut published = 0;
    while published < count {
        let together = batch.min(count - published);
        let rows: Vec<Row> = (published..published + together).map(row).collect();
        publish_all(&channel, &rows).await?;
        published += together;
    }
    Ok(())
}

/// A channel with confirms, and the connection it closes with.
pub(crate) async fn channel(amqp_url: &str) -> anyhow::Result<(Channel, Connection)> {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions { nowait: false })
        .await?;
    Ok((channel, connection))
}

/// Publishes rows together and awaits their confirms.
pub(crate) async fn publish_all(channel: &Channel, rows: &[Row]) -> anyhow::Result<()> {
    let messages: Vec<_> = rows.iter().map(encode).collect::<Result<_, _>>()?;
    let publishes = rows.iter().zip(messages).map(|(row, message)| {
        channel.basic_publish(
            message.exchange,
            message.routing_key,
            MANDATORY,
            &row.payload,
            message.properties,
        )
    });
    // From the last, as the relay does: whoever waits for the first one wakes up for each.
    for confirm in all_in_order(publishes).await.into_iter().rev() {
        match confirm?.await? {
            Confirmation::Ack(None) => {}
            other => bail!("not confirmed: {other:?}"),
        }
    }
    Ok(())
}

/// The row of [`outbox_rows::event`], without a table.
fn row(number: u64) -> Row {
    let now = OffsetDateTime::now_utc();
    Row {
        id: number,
        message_id: Uuid::now_v7().to_string(),
        aggregate_type: b"order".to_vec(),
        aggregate_id: format!("order-{number:012}").into_bytes(),
        event_type: b"order.placed.v1".to_vec(),
        exchange: EXCHANGE.as_bytes().to_vec(),
        routing_key: b"order.pay".to_vec(),
        content_type: b"application/json".to_vec(),
        headers: None,
        payload: vec![b'x'; outbox_rows::PAYLOAD],
        created_at: Some(PrimitiveDateTime::new(now.date(), now.time())),
    }
}
