//! HTTP: one way to serve, one form of errors, one pair of metrics.

mod metrics;
mod problem;
mod serve;

pub use metrics::{HttpMetrics, HttpMetricsService, http_metrics};
pub use problem::{FieldError, Problem};
pub use serve::serve;
