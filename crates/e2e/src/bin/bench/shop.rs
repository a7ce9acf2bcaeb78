//! The tables of orders and payments under measurement, and their ledger.

use anyhow::ensure;
use sqlx::{AssertSqlSafe, Executor as _, MySqlPool};

use crate::scene::Scene;

/// A database of one service.
pub(crate) struct Books {
    pub(crate) url: String,
    pub(crate) pool: MySqlPool,
}

impl Books {
    /// The database of order-svc.
    pub(crate) async fn of_orders(scene: &Scene<'_>) -> anyhow::Result<Self> {
        Self::of("order-svc", scene).await
    }

    /// The database of pay-svc.
    pub(crate) async fn of_payments(scene: &Scene<'_>) -> anyhow::Result<Self> {
        Self::of("pay-svc", scene).await
    }

    async fn of(program: &str, scene: &Scene<'_>) -> anyhow::Result<Self> {
        let database = scene.db.create_database().await?;
        scene.migrate(program, &database.url).await?;
        Ok(Self {
            pool: database.pool()?,
            url: database.url,
        })
    }

    /// Fails unless there are `placed` orders, and an event for each and no other.
    pub(crate) async fn check_orders(&self, placed: u64) -> anyhow::Result<()> {
        let (orders, events, pairs): (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM orders), (SELECT COUNT(*) FROM outbox), \
             (SELECT COUNT(*) FROM orders o JOIN outbox e ON e.message_id = o.order_id)",
        )
        .fetch_one(&self.pool)
        .await?;
        balances("orders", placed, &[orders, events, pairs])
    }

    /// Fails unless there are `placed` payments of as many orders, and as many messages processed
    /// and no other.
    pub(crate) async fn check_payments(&self, placed: u64) -> anyhow::Result<()> {
        let (payments, processed, all, pairs): (i64, i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT COUNT(DISTINCT order_id) FROM payments), \
             (SELECT COUNT(*) FROM inbox WHERE status = 2), (SELECT COUNT(*) FROM inbox), \
             (SELECT COUNT(*) FROM payments p JOIN inbox i ON i.message_id = p.message_id)",
        )
        .fetch_one(&self.pool)
        .await?;
        balances("payments", placed, &[payments, processed, all, pairs])
    }

    /// Empties these tables, so that every round meets the same.
    pub(crate) async fn clear(&self, tables: &[&str]) -> anyhow::Result<()> {
        for table in tables {
            let sql = AssertSqlSafe(format!("TRUNCATE TABLE {table}"));
            self.pool.execute(sql).await?;
        }
        Ok(())
    }
}

/// The tables of an order.
pub(crate) const ORDERS: [&str; 3] = ["orders", "outbox", "idempotency_keys"];
/// The tables of a payment.
pub(crate) const PAYMENTS: [&str; 2] = ["inbox", "payments"];

fn balances(what: &str, placed: u64, there: &[i64]) -> anyhow::Result<()> {
    let level = there
        .iter()
        .all(|&count| u64::try_from(count) == Ok(placed));
    ensure!(
        level,
        "the ledger of {what} does not balance: {placed} were placed, there are {there:?}"
    );
    Ok(())
}
