//! The relay under more than it can do at once: backlogs, hot keys, large payloads, deletes beside
//! orders. Short forms here; the long ones are behind the feature `long`.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod backlog;
mod bulk;
mod chaos;
mod cleanup;
mod closed_routes;
#[cfg(feature = "long")]
mod gauges;
mod hot;
mod level;
mod payloads;
