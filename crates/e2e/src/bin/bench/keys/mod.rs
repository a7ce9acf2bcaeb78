//! One file per key, or per family of keys that share a measurement.

pub(crate) mod mark_amplification;
pub(crate) mod order_http;
pub(crate) mod pay_consume;
pub(crate) mod relay_drain;
pub(crate) mod relay_foreign;
pub(crate) mod relay_growth;
pub(crate) mod relay_latency;
pub(crate) mod relay_memory;
pub(crate) mod relay_steady;
pub(crate) mod whole_path;
