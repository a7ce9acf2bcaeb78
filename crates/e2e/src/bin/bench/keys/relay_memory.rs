//! `relay_memory`: resident memory idle, with a large backlog, and after many messages.
//!
//! `raw` is what is allowed with the backlog, `product` the most that was seen then. The further
//! messages are placed while the relay tails, faster than it can publish them; the most that was seen
//! meanwhile stands beside it.

use std::pin::pin;
use std::time::Duration;

use crate::{
    figures::{Figures, number},
    keys::relay_latency::rounded,
    ledger, outbox_rows,
    queue::Kind,
    relay::Relay,
    scene::Scene,
};

const IDLE_MAX: f64 = 20.0;
const BACKLOG_MAX: f64 = 64.0;
/// With rows placed faster than they go: payloads, batches and the index of what is on its way.
const TAILING_MAX: f64 = 113.0;
/// What an allocator's moods may add from one million to the fifth.
const GROWTH_MAX: f64 = 4.0;
/// The allocator gives back what is free a second or more after it was freed.
const REST: Duration = Duration::from_secs(10);
/// From one look at its memory to the next.
const GLANCE: Duration = Duration::from_millis(50);

pub(crate) async fn memory(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let backlog = scene.scale.pick(1_000_000, 200_000);
    let rounds = scene.scale.pick(5, 1);
    let (database, pool) = scene.outbox().await?;
    let queue = scene.queue(Kind::Quorum).await?;
    let relay = Relay::start(&database.url, &queue.vhost.amqp_url, &[])?;
    relay.tails().await?;
    tokio::time::sleep(REST).await;
    let idle = relay.resident_mib()?;
    relay.stop().await?;

    let mut from = outbox_rows::next_id(&pool).await?;
    outbox_rows::place(&pool, backlog).await?;
    let relay = Relay::start(&database.url, &queue.vhost.amqp_url, &[])?;
    let mut most = [0.0_f64; 2];
    let mut after = Vec::new();
    for round in 1..=rounds {
        while queue.count().await? < backlog {
            let most = &mut most[usize::from(round > 1)];
            *most = most.max(relay.resident_mib()?);
            tokio::time::sleep(GLANCE).await;
        }
        relay.marked(backlog * round).await?;
        tokio::time::sleep(REST).await;
        after.push(relay.resident_mib()?);
        scene.say(&format!(
            "idle {} MiB, at most {} MiB, {} MiB after {} messages",
            number(idle),
            number(most[0].max(most[1])),
            number(after.last().copied().unwrap_or_default()),
            backlog * round
        ));
        let arrived = queue.take_all().await?;
        ledger::check(&pool, (backlog, from), &arrived).await?;
        if round < rounds {
            from = outbox_rows::next_id(&pool).await?;
            let mut placing = pin!(outbox_rows::place(&pool, backlog));
            loop {
                most[1] = most[1].max(relay.resident_mib()?);
                if let Ok(placed) = tokio::time::timeout(GLANCE, &mut placing).await {
                    break placed?;
                }
            }
        }
    }
    relay.stop().await?;
    let grown = after.last().copied().unwrap_or_default() - after[0];
    let figures = Figures::new(BACKLOG_MAX, most[0])
        .met(|_| {
            let most = most[0] <= BACKLOG_MAX && most[1] <= TAILING_MAX;
            idle <= IDLE_MAX && most && grown <= GROWTH_MAX
        })
        .with("backlog", backlog)
        .with("idle_mib", rounded(idle))
        .with("messages", backlog * rounds);
    Ok(match rounds {
        1 => figures,
        _ => figures
            .with("most_while_tailing_mib", rounded(most[1]))
            .with("grown_mib", rounded(grown)),
    })
}
