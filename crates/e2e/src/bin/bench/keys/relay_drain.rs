//! `relay_drain_quorum`, `relay_drain_classic`, `relay_cpu`: how fast the relay empties a backlog, and
//! at what cost, against a process that only publishes the same messages.
//!
//! The product's rate counts from its first message in the queue to the last row marked sent.

use std::time::Instant;

use serde_json::{Value, json};
use sqlx::MySqlPool;

use crate::{
    figures::{Figures, number},
    ledger, outbox_rows,
    queue::{Kind, Queue},
    raw_publisher,
    relay::Relay,
    scene::{Drain, Scene},
    statistics::median,
};

/// What one drain of the product's took.
pub(crate) struct Drained {
    /// Messages a second.
    pub(crate) rate: f64,
    /// From the start of the process to its first message in the queue.
    pub(crate) first_after: f64,
    pub(crate) cpu: f64,
    pub(crate) duplicates: u64,
}

pub(crate) async fn quorum(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    Ok(figures(&rounds(scene, Kind::Quorum).await?).met(|figures| figures.ratio >= 0.70))
}

pub(crate) async fn classic(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    Ok(figures(&rounds(scene, Kind::Classic).await?).met(|figures| figures.ratio >= 0.90))
}

/// From the rounds of `relay_drain_quorum`, when they were measured in this run.
pub(crate) async fn cpu(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let rounds = rounds(scene, Kind::Quorum).await?;
    let per_million = |cpu: f64, messages: u64| cpu * 1e6 / as_f64(messages);
    let raw = rounds.iter().map(|r| per_million(r.raw_cpu, r.messages));
    let product = rounds.iter().map(|r| per_million(r.cpu, r.messages));
    let figures = Figures::new(median(raw), median(product)).met(|figures| figures.ratio <= 2.0);
    Ok(figures.with("messages", rounds.first().map_or(0, |r| r.messages)))
}

fn figures(rounds: &[Drain]) -> Figures {
    let each: Vec<Value> = rounds
        .iter()
        .map(|r| json!({"raw": r.raw_rate.round(), "product": r.rate.round()}))
        .collect();
    let duplicates: u64 = rounds.iter().map(|round| round.duplicates).sum();
    Figures::new(
        median(rounds.iter().map(|round| round.raw_rate)),
        median(rounds.iter().map(|round| round.rate)),
    )
    .with("messages", rounds.first().map_or(0, |r| r.messages))
    .with("duplicates", duplicates)
    .with("rounds", each)
}

async fn rounds(scene: &Scene<'_>, kind: Kind) -> anyhow::Result<Vec<Drain>> {
    let of = format!("{:?} {kind:?}", scene.flavor);
    if let Some(drains) = scene.memory.drains(&of) {
        return Ok(drains);
    }
    let messages = scene.scale.pick(200_000, 50_000);
    let (database, pool) = scene.outbox().await?;
    let mut drains = Vec::new();
    for round in 1..=scene.scale.rounds {
        let queue = scene.queue(kind).await?;
        let raw = raw_publisher::publish(&queue, messages).await?;
        queue.purge().await?;
        outbox_rows::place(&pool, messages).await?;
        let drained = drain(&database.url, &pool, &queue, (messages, 0)).await?;
        outbox_rows::clear(&pool).await?;
        queue.remove(&scene.rabbit).await?;
        let drain = Drain {
            messages,
            raw_rate: as_f64(messages) / raw.seconds,
            rate: drained.rate,
            raw_cpu: raw.cpu_seconds,
            cpu: drained.cpu,
            duplicates: drained.duplicates,
        };
        scene.say(&format!(
            "round {round}/{}: raw {}/s, {:.1} CPU s; product {}/s, {:.1} CPU s; ratio {:.2}",
            scene.scale.rounds,
            number(drain.raw_rate),
            drain.raw_cpu,
            number(drain.rate),
            drain.cpu,
            drain.rate / drain.raw_rate
        ));
        drains.push(drain);
    }
    scene.memory.keep_drains(of, drains.clone());
    Ok(drains)
}

/// Starts a relay on a table in which `messages` rows are pending, those from `from_id` on, waits
/// until all are marked, and checks the ledger.
pub(crate) async fn drain(
    database_url: &str,
    pool: &MySqlPool,
    queue: &Queue,
    (messages, from_id): (u64, u64),
) -> anyhow::Result<Drained> {
    drain_with(database_url, pool, queue, (messages, from_id, &[])).await
}

/// With further settings of the relay's.
pub(crate) async fn drain_with(
    database_url: &str,
    pool: &MySqlPool,
    queue: &Queue,
    (messages, from_id, settings): (u64, u64, &[(&str, &str)]),
) -> anyhow::Result<Drained> {
    let relay = Relay::start(database_url, &queue.vhost.amqp_url, settings)?;
    let started = relay.started;
    let first = queue.wait_for(1).await?;
    let there = queue.count().await?;
    let counted = Instant::now();
    queue.wait_for(messages).await?;
    let end = relay.marked(messages).await?;
    let cpu = relay.cpu_seconds()?;
    relay.stop().await?;
    let arrived = queue.take_all().await?;
    let duplicates = ledger::check(pool, (messages, from_id), &arrived).await?;
    Ok(Drained {
        rate: as_f64(messages.saturating_sub(there)) / (end - counted).as_secs_f64(),
        first_after: (first - started).as_secs_f64(),
        cpu,
        duplicates,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}
