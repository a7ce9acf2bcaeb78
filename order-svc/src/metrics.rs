//! The metrics of this service, by their contract names.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

const ORDERS_PLACED: &str = "orders_placed_total";
const ORDERS_QUEUED: &str = "orders_queued";
const KEYS_PRUNE_SKIPPED: &str = "orders_keys_prune_skipped_rows";
const BATCH_ORDERS: &str = "orders_commit_batch_orders";

/// Upper ends of the buckets of [`Metrics::batch_orders`], in orders.
const BATCH_BUCKETS: [f64; 10] = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// What is counted of orders.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Orders committed; an answer repeated by its idempotency key is not one.
    pub orders_placed: IntCounter,
    /// Orders that wait for a committer.
    pub queued: IntGauge,
    /// Old idempotency keys that the last round of pruning left behind.
    pub keys_prune_skipped: IntGauge,
    /// Orders committed together.
    pub batch_orders: Histogram,
}

impl Metrics {
    /// Makes and registers the metrics.
    ///
    /// # Errors
    /// A name that is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let orders_placed = IntCounter::new(
            ORDERS_PLACED,
            "Orders committed together with their event; repeated answers are not counted.",
        )?;
        let queued = IntGauge::new(ORDERS_QUEUED, "Orders that wait to be committed.")?;
        let keys_prune_skipped = IntGauge::new(
            KEYS_PRUNE_SKIPPED,
            "Old idempotency keys that the last round of pruning left behind.",
        )?;
        let batch_orders = Histogram::with_opts(
            HistogramOpts::new(
                BATCH_ORDERS,
                "Orders that shared a transaction; 0 when it only repeated answers.",
            )
            .buckets(BATCH_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(orders_placed.clone()))?;
        registry.register(Box::new(queued.clone()))?;
        registry.register(Box::new(keys_prune_skipped.clone()))?;
        registry.register(Box::new(batch_orders.clone()))?;
        Ok(Self {
            orders_placed,
            queued,
            keys_prune_skipped,
            batch_orders,
        })
    }
}
