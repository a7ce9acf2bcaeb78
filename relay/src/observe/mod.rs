//! What the relay shows of itself.

pub mod canary;
pub mod metrics;
pub mod row_gauges;
pub mod show;
