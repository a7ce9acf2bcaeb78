//! HTTP: one way to serve, one form of errors, one pair of metrics.

mod body;
mod metrics;
mod problem;
mod refusal;
mod serve;

pub use body::whole_body;
pub use metrics::{HttpMetrics, HttpMetricsService, http_metrics};
pub use problem::{FieldError, Problem};
pub use refusal::{
    database_problem, in_own_task, in_own_task_within, internal, unavailable, unreadable,
};
pub use serve::{peer, serve};
