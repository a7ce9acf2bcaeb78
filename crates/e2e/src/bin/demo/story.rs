//! What is done to the system while orders come in, and what was seen of it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use e2e::{shop::Shop, stage::Stage, wait};
use serde_json::json;

use crate::{
    figures::{Figures, Snapshot},
    histogram::Histogram,
    view::{View, latency},
};

/// Messages of each kind that are delivered again on purpose.
const AGAIN: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, for the report and the ledger.
pub(crate) struct Story {
    /// Commit to confirm before anything was broken.
    undisturbed: Histogram,
    outage: Duration,
    backlog: i64,
    /// Payments by order just before messages were delivered again.
    pub(crate) paid_before: HashMap<String, String>,
    /// Deliveries of known messages in the end.
    duplicates: i64,
    /// What was still missing when the patience was over.
    pub(crate) unfinished: Option<String>,
}

/// Breaks things as the orders come in, and waits until all is settled.
pub(crate) async fn run(
    stage: &Stage,
    shop: &Shop,
    figures: &Figures<'_>,
    view: &View,
) -> anyhow::Result<Story> {
    share_placed(shop, 30).await?;
    let undisturbed = figures.latency().await;
    let (outage, backlog) = broker_dies(stage, figures, view).await?;
    share_placed(shop, 60).await?;
    relay_dies(stage, view).await?;
    share_placed(shop, 80).await?;
    let orders = i64::from(shop.orders());
    // On a busy machine orders may be placed faster than they are paid.
    let enough = i64::from(2 * AGAIN).min(orders * 80 / 100);
    settled("some orders to be paid", figures, |now| now.paid >= enough).await?;
    let duplicates_before = figures.look().await?.duplicates;
    let (paid_before, again) = deliver_again(stage, view).await?;
    share_placed(shop, 100).await?;
    view.event("all orders are placed");
    let wanted = duplicates_before + again;
    let waited = settled("all to be sent, paid and delivered again", figures, |now| {
        now.pending == 0 && now.sent == orders && now.paid >= orders && now.duplicates >= wanted
    })
    .await;
    Ok(Story {
        undisturbed,
        outage,
        backlog,
        paid_before,
        duplicates: figures.look().await?.duplicates,
        // The ledger shows what is missing better than the end of a wait does.
        unfinished: waited.err().map(|err| err.to_string()),
    })
}

impl Story {
    /// The report.
    pub(crate) fn print(&self) {
        let Self {
            outage,
            backlog,
            duplicates,
            ..
        } = self;
        println!("\nWhat happened");
        println!(
            "  commit → confirm, undisturbed    {}",
            latency(&self.undisturbed)
        );
        println!("  RabbitMQ was away for            {outage:.1?}, {backlog} events waited");
        println!("  messages delivered again         {duplicates}");
    }
}

/// Waits until that many percent of the orders are placed. The shop has its own patience.
async fn share_placed(shop: &Shop, percent: usize) -> anyhow::Result<()> {
    let wanted = shop.orders() as usize * percent / 100;
    let patience = Duration::from_secs(u64::from(shop.orders())) + PATIENCE;
    wait::try_until("orders to be placed", patience, async || {
        shop.placed() >= wanted
    })
    .await?;
    Ok(())
}

async fn broker_dies(
    stage: &Stage,
    figures: &Figures<'_>,
    view: &View,
) -> anyhow::Result<(Duration, i64)> {
    stage
        .rabbit
        .quorum_queue_on_disk("/", "order-queue")
        .await?;
    view.event("RabbitMQ is killed: orders are still accepted, their events wait in the table");
    let died = Instant::now();
    stage.rabbit.kill()?;
    // Starting takes it the seconds that the outage is to last.
    stage.rabbit.restart().await?;
    let outage = died.elapsed();
    let backlog = figures.look().await?.pending;
    view.event(&format!(
        "RabbitMQ is back after {outage:.1?}: {backlog} events have waited"
    ));
    settled("the backlog to drain", figures, |now| {
        now.pending <= backlog / 4
    })
    .await?;
    let drained = died.elapsed().saturating_sub(outage);
    view.event(&format!("the backlog is drained {drained:.1?} later"));
    Ok((outage, backlog))
}

async fn relay_dies(stage: &Stage, view: &View) -> anyhow::Result<()> {
    stage.relay.process.kill()?;
    view.event("the relay is killed with SIGKILL and started again");
    stage.relay.process.start_again()?;
    stage.relay.ready().await?;
    view.event("the relay is at work again: what was sent and not yet marked goes out twice");
    Ok(())
}

/// Delivers messages of paid orders again, in both ways that happen: the relay sends a row twice,
/// and the broker delivers a message twice. Gives the payments until then, and how many messages.
async fn deliver_again(
    stage: &Stage,
    view: &View,
) -> anyhow::Result<(HashMap<String, String>, i64)> {
    let paid: Vec<(String, String)> =
        sqlx::query_as("SELECT order_id, payment_id FROM payments.payments")
            .fetch_all(&stage.pool)
            .await?;
    let rows: Vec<(u64, String, Vec<u8>)> = sqlx::query_as(
        "SELECT o.id, o.message_id, o.payload FROM orders.outbox o \
         JOIN payments.inbox i ON i.message_id = CAST(o.message_id AS BINARY) \
         WHERE o.status = 2 AND i.status = 2 ORDER BY o.id LIMIT ?",
    )
    .bind(2 * AGAIN)
    .fetch_all(&stage.pool)
    .await
    .context("could not read sent messages")?;
    let (by_relay, by_broker) = rows.split_at(rows.len() / 2);

    for (id, ..) in by_relay {
        sqlx::query("UPDATE orders.outbox SET status = 1, sent_at = NULL WHERE id = ?")
            .bind(id)
            .execute(&stage.pool)
            .await?;
    }
    let management = stage.rabbit.management()?;
    for (_, message_id, payload) in by_broker {
        let properties = json!({
            "message_id": message_id,
            "type": "order.placed.v1",
            "content_type": "application/json",
            "delivery_mode": 2,
        });
        let payload = std::str::from_utf8(payload).context("a payload is not text")?;
        let to = ("order-exchange", "order.pay");
        let routed = management.publish("/", to, properties, payload).await?;
        anyhow::ensure!(routed, "a message that is delivered again has no queue");
    }
    view.event(&format!(
        "{} rows are set back to pending and {} messages are published again",
        by_relay.len(),
        by_broker.len()
    ));
    Ok((paid.into_iter().collect(), i64::try_from(rows.len())?))
}

async fn settled(
    what: &str,
    figures: &Figures<'_>,
    is: impl Fn(&Snapshot) -> bool,
) -> anyhow::Result<Snapshot> {
    let look = wait::try_until(what, PATIENCE, async || match figures.look().await {
        Ok(now) if !is(&now) => None,
        looked => Some(looked),
    });
    look.await?
}
