//! `relay_foreign`: other tables on the same server take ten times the row changes of the outbox.
//!
//! `raw` is the rate of outbox rows through the tail alone, `product` the rate while ten times as many
//! rows of another table are written beside; `cpu_per_foreign_event_us` is the relay's processor
//! time for one foreign row event, measured without any outbox row.

use std::time::Instant;

use sqlx::{Executor as _, MySqlPool};

use crate::{
    figures::{Figures, number},
    keys::{relay_drain::as_f64, relay_latency::rounded},
    ledger, outbox_rows,
    queue::{Kind, Queue},
    relay::Relay,
    scene::Scene,
    statistics::median,
};

/// Foreign row changes for one of the outbox.
const TIMES: u64 = 10;
/// Row events of one foreign transaction.
const TOGETHER: u64 = 100;
/// What a foreign row event may cost, in µs of processor time.
const EVENT_MAX: f64 = 2.0;

pub(crate) async fn foreign(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let messages = scene.scale.pick(40_000, 10_000);
    let (database, pool) = scene.outbox().await?;
    create(&pool).await?;
    let queue = scene.queue(Kind::Quorum).await?;
    let relay = Relay::start(&database.url, &queue.vhost.amqp_url, &[])?;
    relay.tails().await?;
    let mut figures: [Vec<f64>; 3] = Default::default();
    let mut marked = 0;
    for round in 1..=scene.scale.rounds {
        for (beside, figures) in [0, TIMES].into_iter().zip(&mut figures) {
            let rate = rate(&pool, (&queue, &relay), (messages, beside), marked).await?;
            marked += messages;
            figures.push(rate);
        }
        let events = messages * TIMES;
        let before = relay.cpu_seconds()?;
        write(&pool, events).await?;
        // What is behind them in the binlog has been read when it arrives.
        outbox_rows::place(&pool, 1).await?;
        queue.wait_for(1).await?;
        marked += 1;
        let cost = (relay.cpu_seconds()? - before) * 1e6 / as_f64(events);
        relay.marked(marked).await?;
        ledger::check(
            &pool,
            (1, outbox_rows::next_id(&pool).await? - 1),
            &queue.take_all().await?,
        )
        .await?;
        figures[2].push(cost);
        scene.say(&format!(
            "round {round}/{}: {}/s alone, {}/s beside {events} foreign row events; {cost:.2} µs each",
            scene.scale.rounds,
            number(figures[0][round - 1]),
            number(figures[1][round - 1])
        ));
    }
    relay.stop().await?;
    let [alone, beside, cost] = figures.map(median);
    Ok(Figures::new(alone, beside)
        .met(|_| cost <= EVENT_MAX)
        .with("messages", messages)
        .with("foreign_row_events", messages * TIMES)
        .with("cpu_per_foreign_event_us", rounded(cost)))
}

/// Rows a second from the first COMMIT to the last mark, and the ledger of them.
async fn rate(
    pool: &MySqlPool,
    (queue, relay): (&Queue, &Relay),
    (messages, times): (u64, u64),
    marked: u64,
) -> anyhow::Result<f64> {
    let from = outbox_rows::next_id(pool).await?;
    let started = Instant::now();
    futures::try_join!(
        outbox_rows::place(pool, messages),
        write(pool, messages * times)
    )?;
    queue.wait_for(messages).await?;
    let end = relay.marked(marked + messages).await?;
    ledger::check(pool, (messages, from), &queue.take_all().await?).await?;
    Ok(as_f64(messages) / (end - started).as_secs_f64())
}

/// A table of somebody else's, and a procedure that writes to it: a statement a row, so that each is
/// a row event of its own.
async fn create(pool: &MySqlPool) -> anyhow::Result<()> {
    pool.execute(
        "CREATE TABLE foreign_rows (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, \
         name VARCHAR(64) NOT NULL, amount BIGINT NOT NULL, body VARCHAR(300) NOT NULL)",
    )
    .await?;
    let procedure = format!(
        "CREATE PROCEDURE write_foreign_rows() BEGIN \
         DECLARE n INT DEFAULT 0; START TRANSACTION; WHILE n < {TOGETHER} DO \
         INSERT INTO foreign_rows (name, amount, body) VALUES ('foreign', n, REPEAT('y', 200)); \
         SET n = n + 1; END WHILE; COMMIT; END"
    );
    pool.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(procedure)))
        .await?;
    Ok(())
}

async fn write(pool: &MySqlPool, events: u64) -> anyhow::Result<()> {
    for _ in 0..events / TOGETHER {
        pool.execute(sqlx::raw_sql("CALL write_foreign_rows()"))
            .await?;
    }
    Ok(())
}
