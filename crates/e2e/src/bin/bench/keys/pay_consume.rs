//! `pay_consume`: messages in the queue that become payments, against one transaction per message.

use outbox::row::Row;
use serde_json::json;
use time::{OffsetDateTime, PrimitiveDateTime};
use uuid::Uuid;

use crate::{
    figures::{Figures, number},
    keys::{relay_drain::as_f64, relay_latency::rounded},
    process,
    queue::{EXCHANGE, Kind, Queue},
    raw_payments, raw_publisher,
    scene::Scene,
    service::Service,
    shop::{Books, PAYMENTS},
    statistics::median,
};

/// Published together.
const TOGETHER: u64 = 500;
pub(crate) const PROCESSED: &str = "inbox_processed_total";

/// One round: messages a second, CPU seconds.
struct Round {
    raw_rate: f64,
    rate: f64,
    raw_cpu: f64,
    service_cpu: f64,
    database_cpu: f64,
}

pub(crate) async fn consume(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let messages = scene.scale.pick(50_000, 20_000);
    // Of the raw consumer fewer: it takes as long for them.
    let raw_messages = scene.scale.pick(12_000, 6_000);
    let books = Books::of_payments(scene).await?;
    let mut rounds: Vec<Round> = Vec::new();
    for round in 1..=scene.scale.rounds {
        let (raw_rate, raw_cpu) = raw(scene, &books, raw_messages).await?;
        let product = product(scene, &books, messages).await?;
        let one = Round {
            raw_rate,
            raw_cpu,
            ..product
        };
        scene.say(&format!(
            "round {round}/{}: raw {}/s, {:.1} CPU s; product {}/s, {:.1} CPU s, database {:.1}; \
             ratio {:.2}",
            scene.scale.rounds,
            number(one.raw_rate),
            one.raw_cpu,
            number(one.rate),
            one.service_cpu,
            one.database_cpu,
            one.rate / one.raw_rate
        ));
        rounds.push(one);
    }
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    let each: Vec<_> = rounds
        .iter()
        .map(|r| json!({"raw": r.raw_rate.round(), "product": r.rate.round()}))
        .collect();
    Ok(Figures::new(of(|r| r.raw_rate), of(|r| r.rate))
        .met(|figures| figures.ratio >= 4.0)
        .with("messages", messages)
        .with("raw_messages", raw_messages)
        .with("pay_svc_cpu_s", rounded(of(|r| r.service_cpu)))
        .with("database_cpu_s", rounded(of(|r| r.database_cpu)))
        .with("rounds", each))
}

/// Messages a second of the raw consumer, and its CPU seconds.
pub(crate) async fn raw(
    scene: &Scene<'_>,
    books: &Books,
    messages: u64,
) -> anyhow::Result<(f64, f64)> {
    let queue = scene.queue(Kind::Quorum).await?;
    place(&queue, messages).await?;
    let raw = raw_payments::consume(&books.url, &queue.vhost.amqp_url, messages).await?;
    books.check_payments(messages).await?;
    books.clear(&PAYMENTS).await?;
    queue.remove(&scene.rabbit).await?;
    Ok((as_f64(messages) / raw.seconds, raw.cpu_seconds))
}

async fn product(scene: &Scene<'_>, books: &Books, messages: u64) -> anyhow::Result<Round> {
    let queue = scene.queue(Kind::Quorum).await?;
    place(&queue, messages).await?;
    let database = scene.db.pid().unwrap_or_default();
    let before = process::cpu_seconds(database)?;
    let settings = [
        ("DATABASE_URL", books.url.as_str()),
        ("AMQP_URL", &queue.vhost.amqp_url),
    ];
    let service = Service::start("pay-svc", &settings).await?;
    let (begun, there) = service.until(PROCESSED, 1.0).await?;
    let (ended, all) = service.until(PROCESSED, as_f64(messages)).await?;
    let service_cpu = service.cpu_seconds()?;
    let database_cpu = process::cpu_seconds(database)? - before;
    service.stop().await?;
    books.check_payments(messages).await?;
    books.clear(&PAYMENTS).await?;
    queue.remove(&scene.rabbit).await?;
    Ok(Round {
        raw_rate: 0.0,
        raw_cpu: 0.0,
        rate: (all - there) / (ended - begun).as_secs_f64(),
        service_cpu,
        database_cpu,
    })
}

/// Publishes the messages of so many orders, and waits until all are in the queue.
async fn place(queue: &Queue, messages: u64) -> anyhow::Result<()> {
    let channel = raw_publisher::channel(&queue.vhost.amqp_url).await?;
    let mut placed = 0;
    while placed < messages {
        let together = TOGETHER.min(messages - placed);
        let rows: Vec<Row> = (placed..placed + together).map(row).collect();
        raw_publisher::publish_all(&channel.0, &rows).await?;
        placed += together;
    }
    queue.wait_for(messages).await?;
    Ok(())
}

/// The row that order-svc writes for an order.
fn row(number: u64) -> Row {
    let now = OffsetDateTime::now_utc();
    let id = Uuid::now_v7().to_string();
    let payload = json!({
        "order_id": id, "customer_id": "c-17", "amount_minor": 1999, "currency": "EUR",
        "placed_at": "2026-01-02T03:04:05.678901Z",
    });
    Row {
        id: number,
        message_id: id.clone(),
        aggregate_type: b"order".to_vec(),
        aggregate_id: id.into_bytes(),
        event_type: b"order.placed.v1".to_vec(),
        exchange: EXCHANGE.as_bytes().to_vec(),
        routing_key: b"order.pay".to_vec(),
        content_type: b"application/json".to_vec(),
        headers: None,
        payload: payload.to_string().into_bytes(),
        created_at: Some(PrimitiveDateTime::new(now.date(), now.time())),
    }
}
