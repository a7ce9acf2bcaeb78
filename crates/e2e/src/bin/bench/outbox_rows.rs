//! Rows of the outbox, as a service would write them.

use anyhow::ensure;
use outbox::Event;
use sqlx::MySqlPool;

/// Bytes of a payload.
pub(crate) const PAYLOAD: usize = 300;
/// Rows in one transaction when many are placed.
const TOGETHER: u64 = 500;

/// The event with this number: every message of a benchmark looks like it. Each has a key of its
/// own, as orders have.
pub(crate) fn event(number: u64) -> Event {
    Event::new(
        "order",
        format!("order-{number:012}"),
        "order.placed.v1",
        "order.pay",
        vec![b'x'; PAYLOAD],
    )
}

/// Writes so many rows, 500 a transaction.
pub(crate) async fn place(pool: &MySqlPool, count: u64) -> anyhow::Result<()> {
    let mut placed = 0;
    while placed < count {
        let together = TOGETHER.min(count - placed);
        let events: Vec<Event> = (placed..placed + together).map(event).collect();
        let mut tx = pool.begin().await?;
        outbox::event::write_all(&mut tx, &events).await?;
        tx.commit().await?;
        placed += together;
    }
    Ok(())
}

/// Empties the table, so that every round meets the same one. No relay may be running.
pub(crate) async fn clear(pool: &MySqlPool) -> anyhow::Result<()> {
    let (pending,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM outbox WHERE status = 1")
        .fetch_one(pool)
        .await?;
    ensure!(pending == 0, "{pending} rows are still pending");
    sqlx::query("TRUNCATE TABLE outbox").execute(pool).await?;
    Ok(())
}

/// The id of the next row, or a smaller one that no row has.
pub(crate) async fn next_id(pool: &MySqlPool) -> anyhow::Result<u64> {
    let next = sqlx::query_scalar("SELECT CAST(COALESCE(MAX(id), 0) + 1 AS UNSIGNED) FROM outbox");
    Ok(next.fetch_one(pool).await?)
}
