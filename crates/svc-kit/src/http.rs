//! HTTP: one way to serve, one form of errors, one pair of metrics.

mod body;
mod metrics;
#[cfg(feature = "openapi")]
pub mod openapi;
mod problem;
mod refusal;
mod serve;

pub use body::{media_type, whole_body};
pub use metrics::{HttpMetrics, HttpMetricsService, http_metrics};
pub use problem::{FieldError, Problem};
pub use refusal::{
    database_problem, in_own_task, in_own_task_within, internal, malformed_json,
    method_not_allowed, not_json, nothing_here, unavailable, unreadable,
};
pub use serve::{bind, peer, serve};
