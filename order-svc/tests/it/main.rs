//! order-svc against real databases.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod app;

mod clients;
mod coalesce;
mod idempotency;
mod orders;
mod outage;
mod process;
mod trace;
mod validation;
