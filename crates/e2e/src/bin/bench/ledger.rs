//! What was placed against what arrived: without this, a fast figure may be a wrong one.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::wait;
use sqlx::MySqlPool;
use uuid::Uuid;

use crate::queue::Arrived;

/// Marks follow the confirms within milliseconds; more is a fault.
const MARKED_WITHIN: Duration = Duration::from_secs(30);

/// Fails unless every row of the outbox has arrived and is marked sent, and nothing else arrived.
///
/// `placed` rows must be in the table, of which those before `from_id` are not looked at. Gives the
/// number of duplicates, which are allowed.
pub(crate) async fn check(
    pool: &MySqlPool,
    (placed, from_id): (u64, u64),
    arrived: &Arrived,
) -> anyhow::Result<u64> {
    all_marked(pool).await?;
    let ids: Vec<String> =
        sqlx::query_scalar("SELECT CAST(message_id AS CHAR) FROM outbox WHERE id >= ?")
            .bind(from_id)
            .fetch_all(pool)
            .await?;
    ensure!(
        ids.len() as u64 == placed,
        "the ledger does not balance: {placed} rows were placed, {} are in the table",
        ids.len()
    );
    let mut missing = 0_u64;
    for id in &ids {
        let id = Uuid::parse_str(id).context("a message_id that is no UUID")?;
        missing += u64::from(!arrived.0.contains_key(&id));
    }
    ensure!(
        missing == 0,
        "the ledger does not balance: {missing} of {placed} rows never arrived"
    );
    let strangers = arrived.0.len() as u64 - placed;
    ensure!(
        strangers == 0,
        "the ledger does not balance: {strangers} messages arrived that nobody placed"
    );
    Ok(arrived.duplicates())
}

/// Waits until no row of the outbox is anything but sent.
pub(crate) async fn all_marked(pool: &MySqlPool) -> anyhow::Result<()> {
    let left = async || -> anyhow::Result<i64> {
        let left = sqlx::query_scalar("SELECT COUNT(*) FROM outbox WHERE status <> 2");
        Ok(left.fetch_one(pool).await?)
    };
    let waited = wait::try_until("every row to be marked", MARKED_WITHIN, async || {
        left().await.is_ok_and(|left| left == 0)
    });
    if waited.await.is_err() {
        let left = left().await?;
        ensure!(
            left == 0,
            "the ledger does not balance: {left} rows are not marked sent"
        );
    }
    Ok(())
}
