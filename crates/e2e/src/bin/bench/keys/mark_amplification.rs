//! `mark_amplification`: what marking a row adds to the binlog. `raw` is bytes a marked row with full
//! row images, by an account that may not choose; `product` with MINIMAL ones.

use sqlx::{MySqlPool, Row as _};
use uuid::Uuid;

use e2e::Flavor;

use crate::{
    keys::{relay_drain::as_f64, relay_drain::drain, relay_latency::rounded},
    outbox_rows,
    queue::Kind,
    results::Figures,
    scene::Scene,
    statistics::median,
};

pub(crate) async fn amplification(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let messages = scene.scale.pick(20_000, 10_000);
    let (database, pool) = scene.outbox().await?;
    let password = Uuid::now_v7().simple().to_string();
    let rights = [
        "REPLICATION SLAVE, REPLICATION CLIENT ON *.*".to_owned(),
        format!("SELECT, INSERT, UPDATE, DELETE ON {}.*", database.name),
    ];
    scene.db.create_user("plain", &password, &rights).await?;
    let plain = scene.db.user_url("plain", &password, &database.name);
    let mut figures: [Vec<f64>; 2] = Default::default();
    let mut inserts = Vec::new();
    for round in 1..=scene.scale.rounds {
        for (url, figures) in [&plain, &database.url].into_iter().zip(&mut figures) {
            let queue = scene.queue(Kind::Quorum).await?;
            let before = binlog_bytes(&pool).await?;
            outbox_rows::place(&pool, messages).await?;
            let placed = binlog_bytes(&pool).await?;
            drain(url, &pool, &queue, (messages, 0)).await?;
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
