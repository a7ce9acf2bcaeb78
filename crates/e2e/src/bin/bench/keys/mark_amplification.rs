//! `mark_amplification`: what marking a row adds to the binlog. `raw` is bytes a marked row with full
//! row images, the default; `product` with `RELAY_BINLOG_ROW_IMAGE=minimal`.

use sqlx::{MySqlPool, Row as _};

use e2e::Flavor;

use crate::{
    figures::Figures,
    keys::{relay_drain::as_f64, relay_drain::drain_with, relay_latency::rounded},
    outbox_rows,
    queue::Kind,
    scene::Scene,
    statistics::median,
};

pub(crate) async fn amplification(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let messages = scene.scale.pick(20_000, 10_000);
    let (database, pool) = scene.outbox().await?;
    let mut figures: [Vec<f64>; 2] = Default::default();
    let mut inserts = Vec::new();
    for round in 1..=scene.scale.rounds {
        for (image, figures) in ["full", "minimal"].into_iter().zip(&mut figures) {
            let queue = scene.queue(Kind::Quorum).await?;
            let before = binlog_bytes(&pool).await?;
            outbox_rows::place(&pool, messages).await?;
            let placed = binlog_bytes(&pool).await?;
            let settings = [("RELAY_BINLOG_ROW_IMAGE", image)];
            drain_with(&database.url, &pool, &queue, (messages, 0, &settings)).await?;
            let marked = binlog_bytes(&pool).await?;
            figures.push(as_f64(marked - placed) / as_f64(messages));
            inserts.push(as_f64(placed - before) / as_f64(messages));
            outbox_rows::clear(&pool).await?;
            queue.remove(&scene.rabbit).await?;
        }
        scene.say(&format!(
            "round {round}/{}: an insert {:.0} bytes; its mark {:.1}, MINIMAL {:.1}",
            scene.scale.rounds,
            inserts[2 * round - 1],
            figures[0][round - 1],
            figures[1][round - 1]
        ));
    }
    let [full, minimal] = figures.map(median);
    let right = match scene.flavor {
        Flavor::MariaDb => "BINLOG ADMIN",
        Flavor::MySql => "SESSION_VARIABLES_ADMIN",
    };
    Ok(Figures::new(full, minimal)
        .with("messages", messages)
        .with("insert_bytes", rounded(median(inserts)))
        .with("needs", right))
}

/// Of all binlog files together.
async fn binlog_bytes(pool: &MySqlPool) -> anyhow::Result<u64> {
    let files = sqlx::query("SHOW BINARY LOGS").fetch_all(pool).await?;
    let mut bytes = 0;
    for file in files {
        bytes += file.try_get_unchecked::<u64, _>(1)?;
    }
    Ok(bytes)
}
