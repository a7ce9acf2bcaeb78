//! The metrics of this service, by their contract names.

use prometheus::{IntCounter, Registry};

const ORDERS_PLACED: &str = "orders_placed_total";

/// Counters of placed orders.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Orders committed; an answer repeated by its idempotency key is not one.
    pub orders_placed: IntCounter,
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
        registry.register(Box::new(orders_placed.clone()))?;
        Ok(Self { orders_placed })
    }
}
