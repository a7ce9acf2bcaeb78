//! `relay_growth`: whether a table full of sent rows makes the relay slower. `raw` is the drain rate
//! beside 10,000 sent rows, `product` beside very many.

use sqlx::{Executor as _, MySqlPool};

use crate::{
    figures::{Figures, number},
    keys::{relay_drain::drain, relay_latency::rounded},
    outbox_rows,
    queue::Kind,
    scene::Scene,
    statistics::median,
};

const FEW: u64 = 10_000;
/// Sent rows that are written at once: what an undo log takes lightly.
const AT_ONCE: u64 = 100_000;

pub(crate) async fn growth(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let many = scene.scale.pick(10_000_000, 1_000_000);
    let messages = scene.scale.pick(200_000, 50_000);
    let (small, small_pool) = scene.outbox().await?;
    let (large, large_pool) = scene.outbox().await?;
    fill(&small_pool, FEW).await?;
    scene.say(&format!("writing {many} sent rows …"));
    fill(&large_pool, many).await?;
    // (rate, seconds to the first message) of each round.
    let mut figures: [Vec<(f64, f64)>; 2] = Default::default();
    for round in 1..=scene.scale.rounds {
        let tables = [(&small, &small_pool), (&large, &large_pool)];
        for ((database, pool), figures) in tables.into_iter().zip(&mut figures) {
            let queue = scene.queue(Kind::Quorum).await?;
            let from = outbox_rows::next_id(pool).await?;
            outbox_rows::place(pool, messages).await?;
            let drained = drain(&database.url, pool, &queue, (messages, from)).await?;
            queue.remove(&scene.rabbit).await?;
            figures.push((drained.rate, drained.first_after));
        }
        let [(few, few_first), (many, many_first)] = figures.each_ref().map(|f| f[round - 1]);
        scene.say(&format!(
            "round {round}/{}: few {}/s, first after {few_first:.2} s; many {}/s, {many_first:.2} s",
            scene.scale.rounds,
            number(few),
            number(many)
        ));
    }
    let rate = figures
        .each_ref()
        .map(|f| median(f.iter().map(|each| each.0)));
    let first = figures
        .each_ref()
        .map(|f| median(f.iter().map(|each| each.1)));
    let first_ratio = first[1] / first[0];
    Ok(Figures::new(rate[0], rate[1])
        .met(|figures| figures.ratio >= 0.95 && first_ratio <= 1.5)
        .with("sent_rows", many)
        .with("messages", messages)
        .with("few_first_confirm_s", rounded(first[0]))
        .with("many_first_confirm_s", rounded(first[1]))
        .with("first_confirm_ratio", rounded(first_ratio)))
}

/// Writes so many rows that are sent already, past the binlog: nobody is to read them.
async fn fill(pool: &MySqlPool, count: u64) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    connection.execute("SET SESSION sql_log_bin = 0").await?;
    let payload = vec![b'x'; outbox_rows::PAYLOAD];
    sqlx::query(
        "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
         payload, status, sent_at) \
         VALUES ('sent', 'order', 'sent', 'order.placed.v1', 'order.pay', ?, 2, UTC_TIMESTAMP(6))",
    )
    .bind(payload)
    .execute(&mut *connection)
    .await?;
    let mut there = 1;
    while there < count {
        // Ids that rise, as UUIDs of version 7 do: with those of version 1 the index on them was what
        // ten million rows waited for.
        let more = there.min(count - there).min(AT_ONCE);
        let written = sqlx::query(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, payload, status, sent_at) \
             SELECT CONCAT('sent-', LPAD(?, 12, '0'), LPAD(id, 12, '0')), aggregate_type, \
             aggregate_id, event_type, routing_key, payload, 2, UTC_TIMESTAMP(6) \
             FROM outbox WHERE id < ? ORDER BY id LIMIT ?",
        )
        .bind(there)
        // Some ids are left out. Without an end MariaDB read the whole table each time.
        .bind(2 * AT_ONCE)
        .bind(more)
        .execute(&mut *connection)
        .await?;
        there += written.rows_affected();
    }
    // The connection goes back to the pool: it must write its binlog again.
    connection.execute("SET SESSION sql_log_bin = 1").await?;
    Ok(())
}
